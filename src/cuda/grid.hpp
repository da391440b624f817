// How a set of numbers becomes codes (codec/quantize.hpp), in words that host and device both
// have. Results are the CPU's bit for bit, so products and sums must not be fused (-fmad=false),
// and of equal numbers the first in order counts, as there: a zero keeps its sign.
#pragma once

#include <algorithm>
#include <type_traits>

#include "base/half.hpp"
#include "cuda/record.hpp"
#include "zipcache/policy.hpp"
#ifdef __CUDACC__
#include "cuda/device.cuh"
#endif

namespace zipcache::cuda {

// ---- the two machines' words for the same thing

ZC_BOTH inline uint32_t bits_of(float x) {
#ifdef __CUDA_ARCH__
  return __float_as_uint(x);
#else
  return std::bit_cast<uint32_t>(x);
#endif
}

ZC_BOTH inline float float_from(uint32_t bits) {
#ifdef __CUDA_ARCH__
  return __uint_as_float(bits);
#else
  return std::bit_cast<float>(bits);
#endif
}

ZC_BOTH inline float float_of(uint16_t half_bits) {
#ifdef __CUDA_ARCH__
  return __half2float(__ushort_as_half(half_bits));
#else
  return to_float(half_bits);
#endif
}

ZC_BOTH inline uint16_t half_of(float x) {
#ifdef __CUDA_ARCH__
  return __half_as_ushort(__float2half_rn(x));
#else
  return to_half(x);
#endif
}

// The smaller, the larger of both 16-bit numbers of two words.
ZC_BOTH inline uint32_t smaller_of_pairs(uint32_t a, uint32_t b) {
#ifdef __CUDA_ARCH__
  return bits_of(__hmin2(pair_from(a), pair_from(b)));
#else
  const auto smaller = [](half x, half y) { return to_float(y) < to_float(x) ? y : x; };
  return smaller(half(a), half(b)) | uint32_t(smaller(half(a >> 16), half(b >> 16))) << 16;
#endif
}
ZC_BOTH inline uint32_t larger_of_pairs(uint32_t a, uint32_t b) {
#ifdef __CUDA_ARCH__
  return bits_of(__hmax2(pair_from(a), pair_from(b)));
#else
  return smaller_of_pairs(a ^ 0x80008000u, b ^ 0x80008000u) ^ 0x80008000u;
#endif
}

// Of whatever type: one load or store.
struct __attribute__((may_alias, aligned(16))) SixteenBytes {
  uint32_t word[4];
};

ZC_BOTH inline int ones_of(uint32_t bits) {
#ifdef __CUDA_ARCH__
  return __popc(bits);
#else
  return std::popcount(bits);
#endif
}

// Bits up to the highest one.
ZC_BOTH inline int bits_below(uint32_t x) {
#ifdef __CUDA_ARCH__
  return 32 - __clz(int(x));
#else
  return std::bit_width(x);
#endif
}

// A word of the lowest bytes of four.
ZC_BOTH inline uint32_t low_bytes(uint32_t a, uint32_t b, uint32_t c, uint32_t d) {
#ifdef __CUDA_ARCH__
  return __byte_perm(__byte_perm(a, b, 0x0040), __byte_perm(c, d, 0x0040), 0x5410);
#else
  return (a & 0xFF) | (b & 0xFF) << 8 | (c & 0xFF) << 16 | d << 24;
#endif
}

// 16 bytes or 4 from device memory to shared memory, in groups of copies.
ZC_BOTH inline void copy_piece(void* to, const void* from) {
#ifdef __CUDA_ARCH__
  copy_16(to, from);
#else
  *static_cast<SixteenBytes*>(to) = *static_cast<const SixteenBytes*>(from);
#endif
}
template <class T>
ZC_BOTH void copy_word(T* to, const T* from) {
  static_assert(sizeof(T) == 4);
#ifdef __CUDA_ARCH__
  copy_4(to, from);
#else
  *to = *from;
#endif
}
ZC_BOTH inline void end_copy_group() {
#ifdef __CUDA_ARCH__
  commit_copies();
#endif
}
// All but the last groups of the thread.
template <int kPending>
ZC_BOTH void wait_for_copies() {
#ifdef __CUDA_ARCH__
  wait_copies<kPending>();
#endif
}

// ---- arithmetic (codec/quantize.hpp)

// Smallest and largest of numbers.
struct Extremes {
  float lo = INFINITY, hi = -INFINITY;
};

// The largest of three whole numbers, with a sign and without: one instruction of sm_90.
ZC_BOTH inline int32_t largest_of_three(int32_t a, int32_t b, int32_t c) {
#ifdef __CUDA_ARCH__
  return __vimax3_s32(a, b, c);
#else
  return std::max({a, b, c});
#endif
}
ZC_BOTH inline uint32_t largest_of_three(uint32_t a, uint32_t b, uint32_t c) {
#ifdef __CUDA_ARCH__
  return __vimax3_u32(a, b, c);
#else
  return std::max({a, b, c});
#endif
}

// Extremes of numbers on both sides of zero by their bits, two numbers at a time: those of the
// largest are the largest with a sign, those of the smallest the largest without.
struct alignas(8) SpanBits {
  int32_t largest = INT32_MIN;
  uint32_t smallest = 0;

  ZC_BOTH void take(float a, float b) {
    largest = largest_of_three(largest, int32_t(bits_of(a)), int32_t(bits_of(b)));
    smallest = largest_of_three(smallest, bits_of(a), bits_of(b));
  }
  ZC_BOTH void take(const SpanBits& a, const SpanBits& b) {
    largest = largest_of_three(largest, a.largest, b.largest);
    smallest = largest_of_three(smallest, a.smallest, b.smallest);
  }
  // Otherwise the extremes are wrong: none is below zero, or all are.
  ZC_BOTH bool about_zero() const { return largest >= 0 && smallest >> 31; }
  ZC_BOTH Extremes extremes() const {
    return {float_from(smallest), float_from(uint32_t(largest))};
  }
};

// Neighbouring numbers of 8 bytes and their extremes. Which of two zeros is the smaller stays open.
struct __attribute__((may_alias, aligned(8))) HalfQuad {
  uint32_t pairs[2];

  ZC_BOTH static HalfQuad all(float x) {
    const uint32_t pair = half_of(x) * 0x10001u;
    return {{pair, pair}};
  }
  ZC_BOTH float at(int i) const { return float_of(uint16_t(pairs[i / 2] >> 16 * (i % 2))); }
  ZC_BOTH HalfQuad size() const { return {{pairs[0] & 0x7FFF7FFFu, pairs[1] & 0x7FFF7FFFu}}; }
  ZC_BOTH void lower(const HalfQuad& to) {
    for (int i = 0; i < 2; ++i) pairs[i] = smaller_of_pairs(pairs[i], to.pairs[i]);
  }
  ZC_BOTH void raise(const HalfQuad& to) {
    for (int i = 0; i < 2; ++i) pairs[i] = larger_of_pairs(pairs[i], to.pairs[i]);
  }
};
struct __attribute__((may_alias, aligned(8))) FloatPair {
  float x[2];

  ZC_BOTH static FloatPair all(float x) { return {{x, x}}; }
  ZC_BOTH float at(int i) const { return x[i]; }
  ZC_BOTH FloatPair size() const { return {{fabsf(x[0]), fabsf(x[1])}}; }
  ZC_BOTH void lower(const FloatPair& to) {
    for (int i = 0; i < 2; ++i) x[i] = fminf(x[i], to.x[i]);
  }
  ZC_BOTH void raise(const FloatPair& to) {
    for (int i = 0; i < 2; ++i) x[i] = fmaxf(x[i], to.x[i]);
  }
};
template <class Value>
using EightBytesOf = std::conditional_t<sizeof(Value) == 2, HalfQuad, FloatPair>;

// A grid of codes, ready for code_on().
struct alignas(8) Grid {
  float inverse = 0, floor = 0;  // 1 / step, 0 for a constant set
};

ZC_BOTH inline Grid grid_of(float step, float floor) {
  return {step > 0 ? 1.0f / step : 0.0f, floor};
}

// A code plus 1.5 * 2^23, which leaves no room for fraction bits: the sum rounds half to even.
// `top` is the largest code.
constexpr float kNoFraction = 0x1.8p23f;
constexpr int kNoFractionBits = 0x4B400000;
ZC_BOTH inline float shifted_code(const Grid& grid, float x, float top) {
  return fminf(fmaxf((x - grid.floor) * grid.inverse, 0.0f), top) + kNoFraction;
}
// The code itself stands in the lowest bits.
ZC_BOTH inline uint32_t code_on(const Grid& grid, float x, float top) {
  return bits_of(shifted_code(grid, x, top)) - uint32_t(kNoFractionBits);
}
// Its lowest bits where it is in range.
ZC_BOTH inline uint32_t uncut_code(const Grid& grid, float x) {
  return bits_of((x - grid.floor) * grid.inverse + kNoFraction);
}
// Whether the codes of all numbers of a range are: codes grow as numbers do, since each operation
// on them does, and bits of sums out of range are far from those in range.
ZC_BOTH inline bool in_range(const Grid& grid, const Extremes& range, int top) {
  return uncut_code(grid, range.lo) - uint32_t(kNoFractionBits) <= uint32_t(top) &&
         uncut_code(grid, range.hi) - uint32_t(kNoFractionBits) <= uint32_t(top);
}
// The same code where x lies at most 2^23 steps below the floor: then the sum is not below 0, and
// grows as its bits do, so that these can be cut off after it.
ZC_BOTH inline uint32_t near_code_on(const Grid& grid, float x, int top) {
  const uint32_t sum = uncut_code(grid, x);
#ifdef __CUDA_ARCH__
  return uint32_t(__viaddmin_s32_relu(int(sum), -kNoFractionBits, top));
#else
  const int code = int(sum - uint32_t(kNoFractionBits));
  return uint32_t(code < 0 ? 0 : code < top ? code : top);
#endif
}

ZC_BOTH constexpr float top_code_of(int bits) { return float((1 << bits) - 1); }

// The range of a set that codes it best, of those that clip it by more and more.
struct Search {
  float error = INFINITY;
  float step = 0, floor = 0;    // that code
  float slope = 0, offset = 0;  // that decode; slope 0: none was found

  ZC_BOTH void take(const Search& later) {
    if (later.error < error) *this = later;
  }
};

ZC_BOTH constexpr bool searches(Fit fit) { return fit == Fit::Unbiased || fit == Fit::Mse; }
// Clipped ranges to try, the whole one among them, each 5 % shorter than the one before.
ZC_BOTH constexpr int n_clips(int bits) {
  return bits <= 2 ? 13 : bits == 3 ? 9 : bits == 4 ? 6 : 1;
}

// Tries clips `first` to `last` - 1 on a set of n numbers, which for_each(visit) hands over in
// order, step by step as codec/kernels_body.inc does.
template <class ForEach>
ZC_BOTH Search search_clips(const Extremes& range, int n, int bits, Fit fit, int first, int last,
                            ForEach&& for_each) {
  const float top = top_code_of(bits), count = float(n);
  float mean = 0, variance = 0;
  for_each([&](float x) { mean += x; });
  mean /= count;
  for_each([&](float x) { variance += (x - mean) * (x - mean); });
  const float centre = 0.5f * (range.lo + range.hi), reach = 0.5f * (range.hi - range.lo);
  Search best;
  for (int clip = first; clip < last; ++clip) {
    const float factor = 1.0f - 0.05f * float(clip);
    Search tried;
    tried.step = 2 * reach * factor / top;
    tried.floor = centre - reach * factor;
    const Grid grid = grid_of(tried.step, tried.floor);
    float u_sum = 0, uu_sum = 0, uy_sum = 0;
    for_each([&](float x) {
      const float u = shifted_code(grid, x, top) - kNoFraction;
      u_sum += u;
      uu_sum += u * u;
      uy_sum += u * (x - mean);
    });
    if (!(uy_sum > 0)) continue;
    if (fit == Fit::Mse) {
      const float off = tried.floor - mean;
      tried.slope = tried.step;
      tried.offset = tried.floor;
      tried.error =
          count * off * off + tried.step * (2 * off * u_sum + tried.step * uu_sum - 2 * uy_sum);
    } else {
      const float mean_code = u_sum / count;
      tried.slope = variance / uy_sum;
      tried.offset = mean - tried.slope * mean_code;
      tried.error = tried.slope * tried.slope * (uu_sum - u_sum * mean_code) - variance;
    }
    if (tried.slope < kHalfMax) best.take(tried);
  }
  return best;
}

struct FittedGrid {
  uint16_t step = 0, floor = 0;
  Grid grid;
};

ZC_BOTH inline uint16_t finite_half_of(float x) {
  return half_of(fminf(fmaxf(x, -kHalfMax), kHalfMax));
}

// Codes on the numbers that decode.
ZC_BOTH inline FittedGrid same_grid(float step, float floor) {
  FittedGrid out;
  out.step = finite_half_of(step);
  out.floor = finite_half_of(floor);
  out.grid = grid_of(float_of(out.step), float_of(out.floor));
  return out;
}

// `found` is what a fit that searches has found.
ZC_BOTH inline FittedGrid fit_grid(const Extremes& range, int bits, Fit fit, const Search& found) {
  const float span = range.hi - range.lo, top = top_code_of(bits);
  if (!(span > 0)) return same_grid(0, range.lo);
  if (fit == Fit::Midpoint) {
    const float step = span / (top + 1);
    return same_grid(step, range.lo + 0.5f * step);
  }
  if (fit == Fit::Mse && found.slope > 0) return same_grid(found.slope, found.offset);
  if (fit == Fit::Unbiased && found.slope > 0) {
    FittedGrid out = same_grid(found.slope, found.offset);
    out.grid = grid_of(found.step, found.floor);
    return out;
  }
  return same_grid(span / top, range.lo);
}

// 1 / factor of a 16-bit factor: cut off to a float, and what that leaves over.
struct alignas(8) Inverse {
  float upper = 1, lower = 0;
};
ZC_BOTH inline Inverse inverse_of_half(float factor) {
  float upper = 1.0f / factor;
  float rest = fmaf(-upper, factor, 1.0f);  // without error
  if (rest < 0) {
    upper = float_from(bits_of(upper) - 1);
    rest = fmaf(-upper, factor, 1.0f);
  }
  return {upper, rest * upper};
}

// x / factor to the nearest float. Both parts of the inverse and the smaller product are off by
// 2^-45 of the quotient at most, and the sum is rounded once. No quotient by a number of 11 bits is
// closer to the middle m of two floats than 2^-36 of it: m has 25 bits, so x and m * factor are
// whole numbers of one unit below 2^36 of it, and differ, since m is odd and x has no 25 bits.
// Neither part is below 0, so a zero keeps its sign. A test goes through all pairs of mantissas of
// 16-bit numbers, and others.
ZC_BOTH inline float divided(float x, const Inverse& factor) {
  return fmaf(x, factor.upper, x * factor.lower);
}

}  // namespace zipcache::cuda
