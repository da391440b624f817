// What codes stand for in every codec (zipcache/policy.hpp: Codec), and how a set of values becomes
// codes in those that have a step and no floor (level_codes.hpp). Pure functions, thread-safe.
#pragma once

#include <cstddef>
#include <cstdint>

#include "base/half.hpp"
#include "zipcache/policy.hpp"

namespace zipcache {

// A value grows evenly with its code, so that sums can be taken of the codes themselves; otherwise
// a code is a place in a table.
constexpr bool codes_are_numbers(Codec codec) {
  return codec == Codec::Affine || codec == Codec::Symmetric;
}

// What is added to a code of a codec without floors.
constexpr float implied_floor(Codec codec, int bits) {
  return codec == Codec::Symmetric ? -static_cast<float>(1 << (bits - 1)) : 0.0f;
}

// Bytes of the parameters of one set.
constexpr size_t set_bytes(Codec codec) {
  return codec == Codec::Affine ? 2 * sizeof(half) : codec == Codec::E2m1 ? 1 : sizeof(half);
}

bool has_width(Codec codec, int bits);

// Levels [2^bits] that codes stand for; null where codes are numbers. The top bit of a code is the
// sign, the others number the sizes upwards.
const float* levels_of(Codec codec, int bits);

// Codes of one set x [n], n >= 1, in a codec without floors. Returns the step, a number that the
// parameters of the codec hold.
float code_set(Codec codec, int bits, const float* x, int n, uint8_t* codes);
// The same on a given step.
void code_on(Codec codec, int bits, float step, const float* x, int n, uint8_t* codes);

// The 8-bit floating point number of a code (level_codes.hpp: to_e4m3).
float from_e4m3(uint8_t code);

}  // namespace zipcache
