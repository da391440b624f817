// Decode attention over a synthetic packed cache on a GPU, timed and checked, and the packing of
// one, timed: what `zipcache bench cuda` measures. Without CUDA in the build every function says
// so.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "bench_math.hpp"
#include "zipcache/policy.hpp"

namespace zipcache::cli {

struct GpuShape {
  int d_head = 128, n_head = 32, n_head_kv = 8, depth = 4096, batch = 1, n_queries = 1;
};

struct GpuTiming {
  Spread us;
  double bytes = 0;  // that the kernel has to move: attention, to read of the cache
  double rel_err =
      0;  // worst head of the first stream against double precision over the same codes
};

class GpuBench {
 public:
  // Takes the first GPU. Environment where there is none.
  static Result<std::unique_ptr<GpuBench>> create();
  virtual ~GpuBench() = default;

  virtual const std::string& name() const = 0;  // of the GPU
  virtual Result<Spread> copy_bandwidth() = 0;  // GB/s, bytes read and written
  // One layer's attention of one token of every stream, from a CUDA graph that goes over as many
  // copies of the cache as exceed the GPU's own cache four times; `reps` replays.
  virtual Result<GpuTiming> measure(const Policy& policy, const GpuShape& shape, int reps) = 0;
  // The packing of one layer's tokens of every stream, tiers by drawn scores, timed the same way.
  // `bytes`: rows read and records written; `rel_err` is 0, since tests compare the bytes.
  virtual Result<GpuTiming> measure_packing(const Policy& policy, const GpuShape& shape,
                                            int reps) = 0;
};

}  // namespace zipcache::cli
