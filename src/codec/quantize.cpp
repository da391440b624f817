#include "codec/quantize.hpp"

#include <algorithm>
#include <cmath>

#include "codec/kernels.hpp"

namespace zipcache {
namespace {

struct Range {
  float lo;
  float hi;
};

Range range_of(const float* x, int n) {
  Range range{x[0], x[0]};
  for (int i = 1; i < n; ++i) {
    range.lo = std::min(range.lo, x[i]);
    range.hi = std::max(range.hi, x[i]);
  }
  return range;
}

// Rotated or refitted parameters may leave the 16-bit range; the nearest finite number stays
// usable.

SetFit same_grid(float step, float floor) {
  SetFit fit;
  fit.step = finite_half(step);
  fit.floor = finite_half(floor);
  fit.code_step = to_float(fit.step);
  fit.code_floor = to_float(fit.floor);
  return fit;
}

// Smallest share of the range worth trying when clipping, in steps of 5 % below the whole range;
// wide codes gain nothing from clipping.
int clipping_steps(int bits) { return bits <= 2 ? 12 : bits == 3 ? 8 : bits == 4 ? 5 : 0; }

// Sums of the codes u of y = x - mean on one grid.
struct CodeSums {
  float u = 0, uu = 0, uy = 0;
};

CodeSums code_sums(const float* x, int n, float mean, float step, float floor, float top) {
  CodeSums sums;
  const float inverse = inverse_of(step);
  for (int i = 0; i < n; ++i) {
    const float u = coded(x[i], inverse, floor, top);
    sums.u += u;
    sums.uu += u * u;
    sums.uy += u * (x[i] - mean);
  }
  return sums;
}

// The clipped range with the least squared error wins. Fit::Mse decodes on the grid that coded.
// Fit::Unbiased refits first: step = var(x) / cov(u, x) makes the reconstruction's regression slope
// 1, and floor keeps the mean. Shrinkage is what hurts attention: independent noise averages out
// over tokens, a common factor does not.
SetFit fit_clipped(const float* x, int n, int bits, Fit fit, Range range) {
  const float top = static_cast<float>(top_code(bits));
  float mean = 0, variance = 0;
  for (int i = 0; i < n; ++i) mean += x[i];
  mean /= static_cast<float>(n);
  for (int i = 0; i < n; ++i) variance += (x[i] - mean) * (x[i] - mean);

  SetFit best = same_grid((range.hi - range.lo) / top, range.lo);
  float least = INFINITY;
  const float centre = 0.5f * (range.lo + range.hi), reach = 0.5f * (range.hi - range.lo);
  for (int clip = 0; clip <= clipping_steps(bits); ++clip) {
    const float factor = 1.0f - 0.05f * static_cast<float>(clip);
    const float step = 2 * reach * factor / top, floor = centre - reach * factor;
    const CodeSums sums = code_sums(x, n, mean, step, floor, top);
    if (!(sums.uy > 0)) continue;
    if (fit == Fit::Mse) {
      const float off = floor - mean;
      const float error = static_cast<float>(n) * off * off +
                          step * (2 * off * sums.u + step * sums.uu - 2 * sums.uy);
      if (!(error < least)) continue;
      least = error;
      best = same_grid(step, floor);
      continue;
    }
    const float slope = variance / sums.uy;
    const float mean_code = sums.u / static_cast<float>(n);
    const float error = slope * slope * (sums.uu - sums.u * mean_code) - variance;
    if (!(error < least) || !(slope < kHalfMax)) continue;
    least = error;
    best = {step, floor, finite_half(slope), finite_half(mean - slope * mean_code)};
  }
  return best;
}

}  // namespace

SetFit fit_set(const float* x, int n, int bits, Fit fit) {
  const Range range = range_of(x, n);
  const float span = range.hi - range.lo;
  if (!(span > 0)) return same_grid(0, range.lo);
  switch (fit) {
    case Fit::Midpoint: {
      const float step = span / static_cast<float>(top_code(bits) + 1);
      return same_grid(step, range.lo + 0.5f * step);
    }
    case Fit::Unbiased:
    case Fit::Mse:
      return fit_clipped(x, n, bits, fit, range);
    case Fit::Endpoint:
      break;
  }
  return same_grid(span / static_cast<float>(top_code(bits)), range.lo);
}

SetFit finish_fit(const SetSearch& found, int lane, int bits, Fit fit) {
  const float lo = found.lo[lane], span = found.hi[lane] - lo;
  const float top = static_cast<float>(top_code(bits));
  if (!(span > 0)) return same_grid(0, lo);
  if (fit == Fit::Midpoint) return same_grid(span / (top + 1), lo + 0.5f * (span / (top + 1)));
  if (fit == Fit::Unbiased && found.slope[lane] > 0) {
    return {found.step[lane], found.floor[lane], finite_half(found.slope[lane]),
            finite_half(found.offset[lane])};
  }
  if (fit == Fit::Mse && found.slope[lane] > 0) {
    return same_grid(found.slope[lane], found.offset[lane]);
  }
  return same_grid(span / top, lo);
}

uint8_t code_of(float x, const SetFit& fit, int bits) {
  const float top = static_cast<float>(top_code(bits));
  return static_cast<uint8_t>(coded(x, inverse_of(fit.code_step), fit.code_floor, top));
}

float error_bound(float lo, float hi, int bits, Fit fit) {
  const float top = static_cast<float>(top_code(bits));
  const float levels = fit == Fit::Midpoint ? top + 1 : top;
  const float step = (hi - lo) / levels;
  const float largest = std::max(std::fabs(lo), std::fabs(hi));
  return 0.5f * step * (1 + 0x1p-11f) + (hi - lo) * 0x1p-11f + largest * 0x1p-11f + top * 0x1p-25f;
}

void cst_factors(const float* x, int n, int dim, half* factors) {
  for (int c = 0; c < dim; ++c) {
    float largest = 0;
    for (int t = 0; t < n; ++t) largest = std::max(largest, std::fabs(x[t * dim + c]));
    const half factor = to_half(std::sqrt(largest));
    factors[c] = factor ? factor : to_half(1.0f);
  }
}

}  // namespace zipcache
