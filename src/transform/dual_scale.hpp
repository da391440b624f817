// Dual scaling (KVarN, section 3): a factor for each channel and each token of a tile, so that
// after division by both every channel and every token has the same spread. Pure, thread-safe;
// square roots and products only, so that all machines get the same bits.
#pragma once

#include <algorithm>
#include <vector>

#include "base/half.hpp"

namespace zipcache {

// Sums over n numbers and over their squares; runs on a GPU too.
struct Moments {
  double sum = 0, squares = 0;
  constexpr void add(double value) { sum += value, squares += value * value; }
  // The square of their standard deviation; 1 for numbers whose spread is lost in rounding.
  constexpr double variance(double n) const {
    const double mean = sum / n, variance = squares / n - mean * mean;
    return variance > 1e-12 * squares / n ? variance : 1.0;
  }
};

// A factor as 16 bits hold it, above 0.
constexpr half held_factor(double factor) {
  constexpr double kLeast = 0x1p-14;  // the least with all its digits
  return finite_half(float(factor < kLeast ? kLeast : factor));
}

// Numbers that 16 bits hold, above 0.
struct DualScale {
  std::vector<float> channels;  // [dim]
  std::vector<float> tokens;    // [n]
};

// x [n, dim]. A round divides channels by their standard deviation over the tokens, then tokens by
// theirs over the channels; a channel or token without spread keeps its factor.
DualScale dual_scale(const float* x, int n, int dim, int rounds);

}  // namespace zipcache
