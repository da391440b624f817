// How a set of values becomes codes in the codecs that have a step and no floor (levels.hpp):
// arithmetic that CPU and GPU share, one number at a time in a fixed order, so that both write the
// same bytes. Pure; no tables in memory, so that it runs wherever it is compiled.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>

#include "base/half.hpp"
#include "zipcache/policy.hpp"

namespace zipcache {

// Sizes of a codec's levels, ascending; a code without its sign is a place among them. None where
// codes are numbers.
struct LevelSizes {
  Codec codec = Codec::E4m3;
  int bits = 8;

  // Of 8-bit floating point numbers the last pattern is no number.
  constexpr int n() const { return codec == Codec::E4m3 ? 127 : 1 << (bits - 1); }
  constexpr float operator[](int place) const {
    if (codec == Codec::E4m3) return e4m3(place);
    if (codec == Codec::E2m1) return e2m1(place);
    return lloyd(place);
  }

 private:
  // 4 bits of exponent, bias 7, and 3 of mantissa; no infinity.
  static constexpr float e4m3(int place) {
    const int exponent = place >> 3, mantissa = place & 7;
    if (exponent == 0) return float(mantissa) * 0x1p-9f;
    return float((8 + mantissa) << (exponent - 1)) * 0x1p-9f;
  }
  static constexpr float e2m1(int place) {
    constexpr float kSizes[] = {0, 0.5f, 1, 1.5f, 2, 3, 4, 6};
    return kSizes[place];
  }
  // The best levels for normal numbers of variance 1 (Lloyd 1982, Max 1960).
  constexpr float lloyd(int place) const {
    constexpr float kLloyd2[] = {0.45278f, 1.5104176f};
    constexpr float kLloyd3[] = {0.2450942f, 0.7560053f, 1.3439093f, 2.1519457f};
    constexpr float kLloyd4[] = {0.128395f,  0.3880483f, 0.6567591f, 0.9423405f,
                                 1.2562312f, 1.6180464f, 2.0690172f, 2.7325896f};
    return bits == 2 ? kLloyd2[place] : bits == 3 ? kLloyd3[place] : kLloyd4[place];
  }
};

// Place of the size nearest to x >= 0; of two equally near ones the even place. Sizes: those of
// LevelSizes, or the same numbers in memory.
template <class Sizes>
constexpr int nearest_place(const Sizes& sizes, float x) {
  const int n = sizes.n();
  int place = 0;  // of the first size that is not below x
  for (int left = n; left > 0;) {
    const int half_way = left / 2;
    const bool below = sizes[place + half_way] < x;
    if (below) place += half_way + 1;
    left = below ? left - half_way - 1 : half_way;
  }
  if (place == 0) return 0;
  if (place == n) return n - 1;
  const float up = sizes[place] - x, down = x - sizes[place - 1];
  return up < down || (up == down && place % 2 == 0) ? place : place - 1;
}

// Code of a number in units of the step.
template <class Sizes>
constexpr uint8_t level_code(const Sizes& sizes, int bits, float x) {
  const bool negative = std::bit_cast<uint32_t>(x) >> 31;
  return uint8_t((negative ? 1 << (bits - 1) : 0) | nearest_place(sizes, std::fabs(x)));
}

// The 8-bit floating point number nearest to x, half to even; what is too large becomes 448.
constexpr uint8_t to_e4m3(float x) { return level_code(LevelSizes{}, 8, x); }

// 0 where the inverse would be no number.
constexpr float inverse_of_step(float step) {
  return std::fabs(step) >= 0x1p-126f ? 1.0f / step : 0.0f;
}

// Codes of symmetric sets, as llama.cpp's reference makes them, operation by operation: 8 bits
// divide the largest size by 127 and round half away from zero, fewer put the largest value on the
// lowest code, which has no twin of the other sign. `largest` is the first value of the largest
// size.
constexpr float symmetric_step(int bits, float largest) {
  return bits == 8 ? std::fabs(largest) / 127 : largest / float(-(1 << (bits - 1)));
}
constexpr uint8_t symmetric_code(int bits, float inverse, float x) {
  if (bits == 8) return uint8_t(128 + int(std::round(x * inverse)));
  const int middle = 1 << (bits - 1);
  const int code = int(x * inverse + (float(middle) + 0.5f));
  return uint8_t(code < 2 * middle - 1 ? code : 2 * middle - 1);
}

// A step of 16 bits.
constexpr float held_step(float step) { return to_float(finite_half(step)); }

// Levels are chosen for a set of variance 1; the step then gives the decoded set the norm of the
// original.
template <class Sizes, class ForEach, class CodeEach>
constexpr float code_lloyd(int bits, int n, const Sizes& sizes, ForEach&& for_each,
                           CodeEach&& code_each) {
  float squares = 0, decoded = 0;
  for_each([&](float x) { squares += x * x; });
  const float inverse = inverse_of_step(std::sqrt(squares / float(n)));
  code_each([&](float x) {
    const uint8_t code = level_code(sizes, bits, x * inverse);
    const float size = sizes[code & ((1 << (bits - 1)) - 1)];
    decoded += size * size;
    return code;
  });
  return held_step(std::sqrt(squares / decoded));
}

// Codes of one set of n numbers, n >= 1: `for_each(visit)` shows them in order, `code_each(code)`
// replaces each, in order, by its code. Returns the step, a number that the parameters of the codec
// hold. Of symmetric sets codes are made before the step is rounded.
template <class Sizes, class ForEach, class CodeEach>
constexpr float code_in_order(Codec codec, int bits, int n, const Sizes& sizes, ForEach&& for_each,
                              CodeEach&& code_each) {
  if (codec == Codec::Lloyd) return code_lloyd(bits, n, sizes, for_each, code_each);
  float largest = 0;
  for_each([&](float x) {
    if (std::fabs(x) > std::fabs(largest)) largest = x;
  });
  if (codec == Codec::Symmetric) {
    const float step = symmetric_step(bits, largest), inverse = inverse_of_step(step);
    code_each([&](float x) { return symmetric_code(bits, inverse, x); });
    return held_step(step);
  }
  const float whole = std::fabs(largest) / sizes[sizes.n() - 1];
  const float step = codec == Codec::E2m1 ? LevelSizes{}[to_e4m3(whole)] : held_step(whole);
  const float inverse = inverse_of_step(step);
  code_each([&](float x) { return level_code(sizes, bits, x * inverse); });
  return step;
}

}  // namespace zipcache
