// Dual scaling (KVarN, section 3): a factor for each channel and each token of a tile, so that
// after division by both every channel and every token has the same spread. Pure, thread-safe;
// square roots and products only, so that all machines get the same bits.
#pragma once

#include <vector>

namespace zipcache {

// Numbers that 16 bits hold, above 0.
struct DualScale {
  std::vector<float> channels;  // [dim]
  std::vector<float> tokens;    // [n]
};

// x [n, dim]. A round divides channels by their standard deviation over the tokens, then tokens by
// theirs over the channels; a channel or token without spread keeps its factor.
DualScale dual_scale(const float* x, int n, int dim, int rounds);

}  // namespace zipcache
