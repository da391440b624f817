// A check of a policy on the model at hand, in passing: the first tokens of a text are kept as they
// came, and once they are packed, what attention makes of them is computed from both forms. A model
// that a policy does not suit is then told of in the log, instead of talking nonsense.
//
// Thread safety: one thread at a time.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "base/half.hpp"
#include "zipcache/cache.hpp"

namespace zipcache {

// Relative error of attention over the kept tokens alone above which a layer is called broken. Two
// outputs of equal size that have nothing to do with each other differ by 1.41; docs/tune.md
// says where policies were seen.
inline constexpr double kBrokenAttention = 1.25;

class SelfCheck {
 public:
  // For a cache of `layers` under `policy`. Policies that pack nothing, evict or wait for the
  // prompt's end are not checked.
  SelfCheck(const Policy& policy, const std::vector<LayerShape>& layers);

  bool finished() const { return layers_.empty(); }

  // Rows that are written, as Cache::write gets them.
  void note(int layer, int stream, SideId side, std::span<const int64_t> cells, const float* rows,
            ptrdiff_t row_stride);

  // An attention operation on `cache` that is done; true when it was the last one to look at.
  Result<bool> compare(const Cache& cache, const Attention& done);

  // Whether the worst layer is above the bound, and then what to tell the user.
  bool broken() const { return worst_error_ > kBrokenAttention; }
  std::string warning() const;

  // All cells are empty again.
  void clear();

 private:
  struct Layer {
    LayerShape shape;
    std::vector<half> k, v;    // [kKept, heads, dim]
    std::vector<uint8_t> has;  // [kKept] bits: 1 for K, 2 for V
    int64_t n_written = 0;     // rows of K in all
    bool done = false;
  };

  Status measure(const Cache& cache, const Attention& step, Layer& layer);

  int64_t n_needed_;  // rows after which the kept ones are packed
  std::vector<Layer> layers_;
  int worst_layer_ = 0;
  double worst_error_ = 0;
};

}  // namespace zipcache
