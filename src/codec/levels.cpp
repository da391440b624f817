#include "codec/levels.hpp"

#include <algorithm>
#include <array>
#include <cmath>

namespace zipcache {
namespace {

// Sizes of a codec's levels, ascending; a code without its sign is a place here.
struct Sizes {
  const float* begin = nullptr;
  int n = 0;
};

// The best levels for normal numbers of variance 1 (Lloyd 1982, Max 1960).
constexpr float kLloyd2[] = {0.45278f, 1.5104176f};
constexpr float kLloyd3[] = {0.2450942f, 0.7560053f, 1.3439093f, 2.1519457f};
constexpr float kLloyd4[] = {0.128395f,  0.3880483f, 0.6567591f, 0.9423405f,
                             1.2562312f, 1.6180464f, 2.0690172f, 2.7325896f};
constexpr float kE2m1[] = {0, 0.5f, 1, 1.5f, 2, 3, 4, 6};

// 4 bits of exponent, bias 7, and 3 of mantissa; no infinity, the last pattern is no number.
constexpr int kE4m3Sizes = 127;
constexpr std::array<float, kE4m3Sizes> kE4m3 = [] {
  std::array<float, kE4m3Sizes> sizes{};
  for (int code = 0; code < kE4m3Sizes; ++code) {
    const int exponent = code >> 3, mantissa = code & 7;
    float size = exponent == 0 ? float(mantissa) : float(8 + mantissa);
    for (int i = 1; i < exponent; ++i) size *= 2;
    sizes[size_t(code)] = size * 0x1p-9f;
  }
  return sizes;
}();

Sizes sizes_of(Codec codec, int bits) {
  switch (codec) {
    case Codec::Lloyd:
      if (bits == 2) return {kLloyd2, 2};
      if (bits == 3) return {kLloyd3, 4};
      return {kLloyd4, 8};
    case Codec::E4m3:
      return {kE4m3.data(), kE4m3Sizes};
    case Codec::E2m1:
      return {kE2m1, 8};
    case Codec::Affine:
    case Codec::Symmetric:
      break;
  }
  return {};
}

// Sizes with either sign. A pattern that is no number, which nothing writes, reads as the largest.
template <int kBits>
std::array<float, 1 << kBits> both_signs(Sizes sizes) {
  std::array<float, 1 << kBits> levels{};
  const int half_way = 1 << (kBits - 1);
  for (int code = 0; code < half_way; ++code) {
    const float size = sizes.begin[std::min(code, sizes.n - 1)];
    levels[size_t(code)] = size;
    levels[size_t(half_way + code)] = -size;
  }
  return levels;
}

// Place of the size nearest to x >= 0; of two equally near ones the even place.
int nearest(Sizes sizes, float x) {
  const float* above = std::lower_bound(sizes.begin, sizes.begin + sizes.n, x);
  const int place = int(above - sizes.begin);
  if (place == 0) return 0;
  if (place == sizes.n) return sizes.n - 1;
  const float up = *above - x, down = x - above[-1];
  return up < down || (up == down && place % 2 == 0) ? place : place - 1;
}

float largest_size(const float* x, int n) {
  float largest = 0;
  for (int i = 0; i < n; ++i) largest = std::max(largest, std::fabs(x[i]));
  return largest;
}

float sum_of_squares(const float* x, int n) {
  float sum = 0;
  for (int i = 0; i < n; ++i) sum += x[i] * x[i];
  return sum;
}

// 0 where the inverse would be no number.
float inverse_of(float step) { return std::fabs(step) >= 0x1p-126f ? 1.0f / step : 0.0f; }

float as_half(float step) { return to_float(finite_half(step)); }

// As llama.cpp's reference does, operation by operation: 8 bits divide the largest size by 127 and
// round half away from zero, fewer put the largest value on the lowest code, which has no twin of
// the other sign. Codes are made before the step is rounded to 16 bits.
float code_symmetric(int bits, const float* x, int n, uint8_t* codes) {
  if (bits == 8) {
    const float step = largest_size(x, n) / 127, inverse = inverse_of(step);
    for (int i = 0; i < n; ++i) codes[i] = uint8_t(128 + int(std::round(x[i] * inverse)));
    return as_half(step);
  }
  float largest = 0;
  for (int i = 0; i < n; ++i) {
    if (std::fabs(x[i]) > std::fabs(largest)) largest = x[i];
  }
  const int middle = 1 << (bits - 1);
  const float step = largest / float(-middle), inverse = inverse_of(step);
  for (int i = 0; i < n; ++i) {
    const int code = int(x[i] * inverse + (float(middle) + 0.5f));
    codes[i] = uint8_t(std::min(code, 2 * middle - 1));
  }
  return as_half(step);
}

// Levels are chosen for a set of variance 1; the step then gives the decoded set the norm of the
// original.
float code_lloyd(int bits, const float* x, int n, uint8_t* codes) {
  const float squares = sum_of_squares(x, n);
  code_on(Codec::Lloyd, bits, std::sqrt(squares / float(n)), x, n, codes);
  const float* levels = levels_of(Codec::Lloyd, bits);
  float decoded = 0;
  for (int i = 0; i < n; ++i) decoded += levels[codes[i]] * levels[codes[i]];
  return as_half(std::sqrt(squares / decoded));
}

}  // namespace

bool has_width(Codec codec, int bits) {
  switch (codec) {
    case Codec::Affine:
    case Codec::Symmetric:
      return bits == 2 || bits == 3 || bits == 4 || bits == 8;
    case Codec::Lloyd:
      return bits == 2 || bits == 3 || bits == 4;
    case Codec::E4m3:
      return bits == 8;
    case Codec::E2m1:
      break;
  }
  return bits == 4;
}

const float* levels_of(Codec codec, int bits) {
  static const auto lloyd2 = both_signs<2>(sizes_of(Codec::Lloyd, 2));
  static const auto lloyd3 = both_signs<3>(sizes_of(Codec::Lloyd, 3));
  static const auto lloyd4 = both_signs<4>(sizes_of(Codec::Lloyd, 4));
  static const auto e4m3 = both_signs<8>(sizes_of(Codec::E4m3, 8));
  static const auto e2m1 = both_signs<4>(sizes_of(Codec::E2m1, 4));
  switch (codec) {
    case Codec::Lloyd:
      return bits == 2 ? lloyd2.data() : bits == 3 ? lloyd3.data() : lloyd4.data();
    case Codec::E4m3:
      return e4m3.data();
    case Codec::E2m1:
      return e2m1.data();
    case Codec::Affine:
    case Codec::Symmetric:
      break;
  }
  return nullptr;
}

void code_on(Codec codec, int bits, float step, const float* x, int n, uint8_t* codes) {
  const Sizes sizes = sizes_of(codec, bits);
  const float inverse = inverse_of(step);
  for (int i = 0; i < n; ++i) {
    const float value = x[i] * inverse;
    const int sign = std::signbit(value) ? 1 << (bits - 1) : 0;
    codes[i] = uint8_t(sign | nearest(sizes, std::fabs(value)));
  }
}

float code_set(Codec codec, int bits, const float* x, int n, uint8_t* codes) {
  if (codec == Codec::Symmetric) return code_symmetric(bits, x, n, codes);
  if (codec == Codec::Lloyd) return code_lloyd(bits, x, n, codes);
  const Sizes sizes = sizes_of(codec, bits);
  const float whole = largest_size(x, n) / sizes.begin[sizes.n - 1];
  const float step = codec == Codec::E2m1 ? from_e4m3(to_e4m3(whole)) : as_half(whole);
  code_on(codec, bits, step, x, n, codes);
  return step;
}

uint8_t to_e4m3(float x) {
  uint8_t code = 0;
  code_on(Codec::E4m3, 8, 1.0f, &x, 1, &code);
  return code;
}

float from_e4m3(uint8_t code) { return levels_of(Codec::E4m3, 8)[code]; }

}  // namespace zipcache
