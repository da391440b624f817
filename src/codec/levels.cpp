#include "codec/levels.hpp"

#include <array>

#include "codec/level_codes.hpp"

namespace zipcache {
namespace {

// Sizes of a codec's levels in memory.
template <int kBits>
constexpr auto sizes_in_memory(Codec codec) {
  const LevelSizes sizes{codec, kBits};
  std::array<float, 1 << (kBits - 1)> out{};
  // A pattern that is no number, which nothing writes, reads as the largest.
  for (int place = 0; place < int(out.size()); ++place)
    out[size_t(place)] = sizes[place < sizes.n() ? place : sizes.n() - 1];
  return out;
}

// Sizes with either sign.
template <int kBits>
constexpr auto both_signs(Codec codec) {
  const auto sizes = sizes_in_memory<kBits>(codec);
  std::array<float, 1 << kBits> levels{};
  for (size_t place = 0; place < sizes.size(); ++place) {
    levels[place] = sizes[place];
    levels[sizes.size() + place] = -sizes[place];
  }
  return levels;
}

constexpr auto kLloyd2 = both_signs<2>(Codec::Lloyd);
constexpr auto kLloyd3 = both_signs<3>(Codec::Lloyd);
constexpr auto kLloyd4 = both_signs<4>(Codec::Lloyd);
constexpr auto kE4m3 = both_signs<8>(Codec::E4m3);
constexpr auto kE2m1 = both_signs<4>(Codec::E2m1);

// The sizes among the levels.
struct Sizes {
  const float* begin;
  int count;
  int n() const { return count; }
  float operator[](int place) const { return begin[place]; }
};

Sizes sizes_of(Codec codec, int bits) {
  return {levels_of(codec, bits), LevelSizes{codec, bits}.n()};
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
  switch (codec) {
    case Codec::Lloyd:
      return bits == 2 ? kLloyd2.data() : bits == 3 ? kLloyd3.data() : kLloyd4.data();
    case Codec::E4m3:
      return kE4m3.data();
    case Codec::E2m1:
      return kE2m1.data();
    case Codec::Affine:
    case Codec::Symmetric:
      break;
  }
  return nullptr;
}

void code_on(Codec codec, int bits, float step, const float* x, int n, uint8_t* codes) {
  const Sizes sizes = sizes_of(codec, bits);
  const float inverse = inverse_of_step(step);
  for (int i = 0; i < n; ++i) codes[i] = level_code(sizes, bits, x[i] * inverse);
}

float code_set(Codec codec, int bits, const float* x, int n, uint8_t* codes) {
  return code_in_order(
      codec, bits, n, sizes_of(codec, bits),
      [=](auto&& visit) {
        for (int i = 0; i < n; ++i) visit(x[i]);
      },
      [=](auto&& code) {
        for (int i = 0; i < n; ++i) codes[i] = code(x[i]);
      });
}

float from_e4m3(uint8_t code) { return kE4m3[code]; }

}  // namespace zipcache
