// 16-bit floating point numbers as bit patterns: conversion to and from float, round half to even.
// Branch-free, so that a compiler can vectorise loops over it on any machine.
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>

namespace zipcache {

using half = uint16_t;

inline constexpr half kHalfNegInf = 0xFC00;
inline constexpr float kHalfMax = 65504.0f;

// Exact for every pattern, subnormals, infinities and NaN included.
constexpr float to_float(half h) {
  const uint32_t magnitude = static_cast<uint32_t>(h & 0x7FFFu) << 13;
  // Multiplying by 2^112 moves the exponent bias from 15 to 127 and normalises subnormals.
  const float scaled = std::bit_cast<float>(magnitude) * 0x1p112f;
  const uint32_t special = (h & 0x7C00u) == 0x7C00u ? 0x7F800000u : 0u;
  const uint32_t sign = static_cast<uint32_t>(h & 0x8000u) << 16;
  return std::bit_cast<float>(std::bit_cast<uint32_t>(scaled) | special | sign);
}

// Rounds half to even; values beyond the range become infinities.
constexpr half to_half(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  const half sign = static_cast<half>((bits >> 16) & 0x8000u);
  const uint32_t magnitude = bits & 0x7FFFFFFFu;
  if (magnitude > 0x7F800000u) return static_cast<half>(sign | 0x7E00u);   // NaN
  if (magnitude >= 0x477FF000u) return static_cast<half>(sign | 0x7C00u);  // rounds past 65504
  if (magnitude < 0x38800000u) {
    // Subnormal: adding 0.5 lines the last kept bit up with float's last bit, so float rounding
    // does it.
    const float shifted = std::bit_cast<float>(magnitude) + 0.5f;
    return static_cast<half>(sign |
                             (std::bit_cast<uint32_t>(shifted) - std::bit_cast<uint32_t>(0.5f)));
  }
  const uint32_t odd = (magnitude >> 13) & 1u;
  return static_cast<half>(sign | ((magnitude - 0x38000000u + 0xFFFu + odd) >> 13));
}

// The nearest finite number.
constexpr half finite_half(float value) {
  // Not std::clamp: a kernel that is compiled from this would read the limit from the host's
  // memory.
  return to_half(value < -kHalfMax ? -kHalfMax : kHalfMax < value ? kHalfMax : value);
}

// Of either sign.
constexpr bool is_zero(half h) { return (h & 0x7FFFu) == 0; }
constexpr bool is_finite(half h) { return (h & 0x7C00u) != 0x7C00u; }

// The value after a round trip through 16 bits.
constexpr float rounded_to_half(float value) { return to_float(to_half(value)); }

}  // namespace zipcache
