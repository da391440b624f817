// What kernels that decode need of a side beside its form, made once a launch.
#pragma once

#include <cstdint>

#include "base/half.hpp"
#include "codec/levels.hpp"
#include "cuda/record.hpp"

namespace zipcache::cuda {

// What the codes of one width stand for, before steps and floors.
struct CodeValues {
  float zero = 0;                      // the code that stands for 0, where codes are numbers
  uint32_t low[2] = {}, high[2] = {};  // bytes of the sizes of levels, 16-bit numbers, 8 of them
};

struct SideValues {
  CodeValues of[kRecordTiers];
  // Units of a group of tokens: unit * this / 256 is the group of a unit below 8.
  int group_of_unit = 0;
};

inline CodeValues code_values(Codec codec, int bits) {
  CodeValues values;
  if (codes_are_numbers(codec)) values.zero = -implied_floor(codec, bits);
  if (codes_are_numbers(codec) || bits > 4) return values;
  const float* levels = levels_of(codec, bits);
  for (int i = 0; i < 1 << (bits - 1); ++i) {
    const half size = to_half(levels[i]);
    values.low[i / 4] |= uint32_t(size & 0xFF) << 8 * (i % 4);
    values.high[i / 4] |= uint32_t(size >> 8) << 8 * (i % 4);
  }
  return values;
}

inline SideValues side_values(const SideForm& side) {
  SideValues values;
  for (int t = 0; t < kRecordTiers; ++t) {
    if (in_codes(side.bits[t])) values.of[t] = code_values(side.codec, side.bits[t]);
  }
  if (side.axis == Axis::ChannelGroup) {
    const int units = side.group / kUnitTokens;
    values.group_of_unit = (256 + units - 1) / units;
  }
  return values;
}

}  // namespace zipcache::cuda
