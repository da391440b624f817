// The saliency pass on a GPU (paper, section 4.2): attention that probe rows gave to keys of 16
// bits, summed up for each token. Ordered by its stream, capturable in CUDA graphs, waits for
// nothing on the host, gives the same sums every time.
#pragma once

#include "cuda/rows.hpp"
#include "zipcache/status.hpp"

// CUDA's name for a stream, so that this header needs no other of CUDA's.
typedef struct CUstream_st* cudaStream_t;

namespace zipcache::cuda {

struct ProbeArgs {
  int dim = 0, n_heads = 0, group = 0;  // KV heads, and query heads of each
  int n_streams = 0, n_probes = 0;      // probe rows of each stream
  int n_tokens = 0;                     // keys of each stream
  InputRows q;  // [stream, probe, query head, dim]; query head h * group + i reads KV head h
  InputRows k;  // [stream, token, head, dim]
  // [n_streams] row of each stream's first key; the others follow it, row 0 the last row. Null: 0.
  const int32_t* oldest = nullptr;
  const int32_t* limits = nullptr;  // [n_streams, n_probes] keys that a probe sees: so many from
                                    // the first on; 0 for a row that is no probe
  // [n_streams, n_probes, n_heads * group] natural logarithm of the sum of exp(scale * q . k) over
  // all that the probe attends to. Null where that is the keys which it sees here: then a pass of
  // its own makes them, in `workspace`, probe_workspace() bytes.
  const float* log_sums = nullptr;
  float* workspace = nullptr;
  float scale = 0;          // above 0
  PerToken<float> sums;     // by row, as keys are; attention is added to them
  PerToken<uint32_t> seen;  // by row; the number of probes that see a token is added to them, or
                            // null; of head 0
};

size_t probe_workspace(const ProbeArgs& args);

// Enqueues the pass. Errors: BadArgument for shapes that no kernel has, Environment for what CUDA
// reports.
Status sum_probes(const ProbeArgs& args, cudaStream_t stream);

}  // namespace zipcache::cuda
