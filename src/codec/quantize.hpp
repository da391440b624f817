// The uniform quantizer: how one set of values that share parameters becomes codes (paper, Eq. 5
// and appendix A). A set holds k-bit codes u in [0, 2^k - 1] and decodes to floor + step * u.
//
//   step, floor  f16, rounded before coding, so that encoder and decoder use the same numbers
//   rounding     half to even, clamped to the code range
//   a constant set has step 0 and decodes to floor
//
// Bound for Fit::Endpoint and Fit::Midpoint: |decoded - x| <= step/2 + range * 2^-11 + |floor| *
// 2^-11
// + L * 2^-25, with L = 2^k - 1 (the last three terms are the rounding of step and floor to 16
// bits; see error_bound()). Fit::Unbiased and Fit::Mse give the bound up: they clip.
// Pure functions, thread-safe.
#pragma once

#include <algorithm>
#include <cstdint>

#include "base/half.hpp"
#include "zipcache/policy.hpp"

namespace zipcache {

// Parameters of one set: the grid on which values are coded, and the pair that decodes them.
// They differ only for Fit::Unbiased.
struct SetFit {
  float code_step = 0;
  float code_floor = 0;
  half step = 0;
  half floor = 0;
};

constexpr int top_code(int bits) { return (1 << bits) - 1; }

// Chooses parameters for `x` [n], n >= 1, finite.
SetFit fit_set(const float* x, int n, int bits, Fit fit);

// Code of one value on the grid of `fit`.
uint8_t code_of(float x, const SetFit& fit, int bits);

// Its parts. Adding and taking away 1.5 * 2^23 leaves no room for fraction bits: rounds half to
// even.
inline float round_even(float x) { return (x + 0x1.8p23f) - 0x1.8p23f; }
// A value clamped to the code range and rounded; `inverse` is inverse_of(step).
inline float coded(float x, float inverse, float floor, float top) {
  return round_even(std::min(std::max((x - floor) * inverse, 0.0f), top));
}
// 0 for a constant set.
inline float inverse_of(float step) { return step > 0 ? 1.0f / step : 0.0f; }

inline float decode(uint8_t code, half step, half floor) {
  return std::fma(to_float(step), static_cast<float>(code), to_float(floor));
}

// Largest |decoded - x| of a value within [lo, hi] coded with Fit::Endpoint or Fit::Midpoint.
float error_bound(float lo, float hi, int bits, Fit fit);

// Channel factors of the channel-separable scheme (paper, Eq. 6): sqrt(max over tokens of |x|),
// rounded to 16 bits, 1 for a channel of zeros. x [n, dim] -> factors [dim].
void cst_factors(const float* x, int n, int dim, half* factors);

}  // namespace zipcache
