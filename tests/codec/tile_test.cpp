#include "codec/tile.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <random>
#include <tuple>

namespace zipcache {
namespace {

class PackingOfWidth : public testing::TestWithParam<std::tuple<int, Lanes>> {
 protected:
  int bits = std::get<0>(GetParam());
  TileShape shape(int n_tokens, int dim) const {
    return {n_tokens, dim, bits, Axis::Channel, 0, std::get<1>(GetParam())};
  }
};

std::vector<uint8_t> random_codes(int n, int bits, uint32_t seed) {
  std::mt19937 engine(seed);
  std::vector<uint8_t> codes(size_t(n), 0);
  for (auto& code : codes) code = uint8_t(engine() % (1u << bits));
  return codes;
}

std::vector<uint8_t> packed_codes(const TileShape& shape, const std::vector<uint8_t>& codes) {
  std::vector<uint8_t> packed(code_bytes(shape), 0);
  for (size_t i = 0; i < codes.size(); ++i)
    write_code(shape, packed.data(), int(i) / shape.dim, int(i) % shape.dim, codes[i]);
  return packed;
}

// A grid of whole numbers: values are their codes.
std::vector<SetFit> unit_grid(int dim) {
  SetFit fit;
  fit.code_step = 1;
  fit.code_floor = 0;
  return std::vector<SetFit>(size_t(dim), fit);
}

TEST_P(PackingOfWidth, EveryCodeComesBackFromItsPlace) {
  for (const int dim : {8, 16, 24, 64, 80, 128, 256}) {
    for (const int n : {1, 7, 16, 17, 128}) {
      const TileShape tile = shape(n, dim);
      const auto codes = random_codes(n * dim, bits, uint32_t(dim + n));
      const auto packed = packed_codes(tile, codes);
      for (int i = 0; i < n * dim; ++i)
        ASSERT_EQ(read_code(tile, packed.data(), i / dim, i % dim), codes[size_t(i)]) << dim;
    }
  }
}

// No two codes share a bit, and none is unused where rows and columns fill whole units.
TEST_P(PackingOfWidth, EveryBitBelongsToOneCode) {
  const TileShape tile = shape(32, 32);
  std::vector<uint8_t> seen(code_bytes(tile), 0);
  EXPECT_EQ(seen.size(), size_t(32 * 32 * bits / 8));
  for (int i = 0; i < 32 * 32; ++i) {
    std::vector<uint8_t> one(seen.size(), 0);
    write_code(tile, one.data(), i / 32, i % 32, uint8_t(top_code(bits)));
    for (size_t b = 0; b < one.size(); ++b) {
      ASSERT_EQ(seen[b] & one[b], 0);
      seen[b] |= one[b];
    }
  }
  for (const uint8_t byte : seen) ASSERT_EQ(byte, 0xFF);
}

TEST_P(PackingOfWidth, EncodingWritesTheSameBytesAsTheReference) {
  for (const int dim : {8, 24, 64, 128}) {
    for (const int n : {1, 16, 33, 128}) {
      const TileShape tile = shape(n, dim);
      const auto codes = random_codes(n * dim, bits, uint32_t(3 * dim + n));
      const std::vector<float> x(codes.begin(), codes.end());
      std::vector<uint8_t> packed(code_bytes(tile) + 1, 0xA5);
      encode_with(tile, unit_grid(dim), x.data(), packed.data());
      EXPECT_EQ(packed.back(), 0xA5) << "wrote past a tile of " << n << " x " << dim;
      packed.pop_back();
      ASSERT_EQ(packed, packed_codes(tile, codes)) << n << " x " << dim;
    }
  }
}

TEST_P(PackingOfWidth, ValuesBeyondTheRangeClampAndLeaveNeighboursAlone) {
  std::vector<float> x(16);
  for (size_t c = 0; c < 16; ++c) x[c] = c % 2 ? 1e6f : -1e6f;
  const TileShape tile = shape(1, 16);
  std::vector<uint8_t> packed(code_bytes(tile));
  encode_with(tile, unit_grid(16), x.data(), packed.data());
  for (int c = 0; c < 16; ++c)
    EXPECT_EQ(read_code(tile, packed.data(), 0, c), c % 2 ? top_code(bits) : 0);
}

INSTANTIATE_TEST_SUITE_P(Tile, PackingOfWidth,
                         testing::Combine(testing::Values(2, 3, 4, 8),
                                          testing::Values(Lanes::Tokens, Lanes::Channels)));

TEST(Tile, BytesOfCodesAndParametersAreThoseOfTheHeader) {
  EXPECT_EQ(code_bytes({128, 64, 4, Axis::Channel, 0}), 4096u);
  EXPECT_EQ(code_bytes({48, 128, 3, Axis::Cst, 0}), 48u * 48);
  EXPECT_EQ(code_bytes({1, 24, 2, Axis::Token, 0}), 128u);                   // 16 rows, 32 columns
  EXPECT_EQ(code_bytes({1, 24, 2, Axis::Token, 0, Lanes::Channels}), 128u);  // 32 rows, 16 columns
  EXPECT_EQ(code_bytes({2, 64, 16, Axis::Channel, 0}), 256u);
  EXPECT_EQ(n_sets({128, 64, 4, Axis::Channel, 0}), 64);
  EXPECT_EQ(n_sets({128, 24, 4, Axis::Channel, 0}), 32);
  EXPECT_EQ(n_sets({128, 64, 4, Axis::Token, 0}), 128);
  EXPECT_EQ(n_sets({100, 64, 4, Axis::Cst, 0}), 112);
  EXPECT_EQ(n_sets({128, 64, 4, Axis::Group, 16}), 512);
  EXPECT_EQ(n_sets({128, 64, 4, Axis::ChannelGroup, 32}), 256);
  EXPECT_EQ(n_sets({100, 24, 4, Axis::ChannelGroup, 32}), 4 * 32);
  EXPECT_EQ(n_sets({128, 64, 16, Axis::Token, 0}), 0);
  EXPECT_EQ(n_sets({0, 64, 4, Axis::Channel, 0}), 0);
  EXPECT_EQ(param_bytes({128, 64, 4, Axis::Channel, 0}), 256u);
}

// Golden bytes of format 1 (docs/formats.md), written out by hand: 17 tokens of 16 channels, code =
// (3 * token + channel) mod 2^bits, tokens in lanes.
TEST(Tile, PackedBytesAreThoseOfTheFormat) {
  const auto golden = [](int bits, Lanes lanes) {
    const TileShape tile{17, 16, bits, Axis::Channel, 0, lanes};
    std::vector<float> x(17 * 16);
    for (int i = 0; i < 17 * 16; ++i) x[size_t(i)] = float((3 * (i / 16) + i % 16) % (1 << bits));
    std::vector<uint8_t> packed(code_bytes(tile));
    encode_with(tile, unit_grid(16), x.data(), packed.data());
    return packed;
  };
  const auto tokens4 = golden(4, Lanes::Tokens);
  ASSERT_EQ(tokens4.size(), 256u);  // 2 units of 2 steps
  EXPECT_EQ(tokens4[0], 0x40);      // token 0, channels 0 and 4
  EXPECT_EQ(tokens4[3], 0x73);      // token 0, channels 3 and 7
  EXPECT_EQ(tokens4[4], 0x73);      // token 1, channels 0 and 4
  EXPECT_EQ(tokens4[64], 0xC8);     // token 0, channels 8 and 12
  EXPECT_EQ(tokens4[128], 0x40);    // token 16: 48 + channel
  EXPECT_EQ(tokens4[132], 0x00);    // there is no token 17
  const auto channels4 = golden(4, Lanes::Channels);
  ASSERT_EQ(channels4.size(), 192u);       // 1 unit of 3 steps
  EXPECT_EQ(channels4[0], 0xC0);           // channel 0, tokens 0 and 4
  EXPECT_EQ(channels4[1], 0xF3);           // channel 0, tokens 1 and 5
  EXPECT_EQ(channels4[4 * 15 + 0], 0xBF);  // channel 15, tokens 0 and 4
  EXPECT_EQ(channels4[128], 0x00);         // channel 0, tokens 16 and none: 48 mod 16
  EXPECT_EQ(channels4[132], 0x01);         // channel 1
  const auto tokens2 = golden(2, Lanes::Tokens);
  ASSERT_EQ(tokens2.size(), 128u);
  EXPECT_EQ(tokens2[0], 0x00);  // channels 0, 4, 8, 12 of token 0: all 0
  EXPECT_EQ(tokens2[1], 0x55);  // channels 1, 5, 9, 13: all 1
  EXPECT_EQ(tokens2[4], 0xFF);  // token 1, channel 0 ..: all 3
  const auto tokens3 = golden(3, Lanes::Tokens);
  ASSERT_EQ(tokens3.size(), 384u);  // 2 units of one step, half of it filling
  EXPECT_EQ(tokens3[0], 0x00);      // channels 0, 4, 8, 12 are 0, 4, 0, 4: low bits 0
  EXPECT_EQ(tokens3[128], 0x0A);    // and their top bits 0, 1, 0, 1
  EXPECT_EQ(tokens3[4], 0xFF);      // token 1: 3, 7, 3, 7
  EXPECT_EQ(tokens3[132], 0x0A);
  EXPECT_EQ(golden(8, Lanes::Tokens)[4], 3);
}

// The order of the sets of a tile with groups of tokens (docs/formats.md): 20 tokens of 16 channels
// in groups of 16; channel c of group g runs from -c to 3 * (g + 1) - c.
TEST(Tile, SetsOfTokenGroupsStandGroupByGroup) {
  for (const Lanes lanes : {Lanes::Tokens, Lanes::Channels}) {
    const TileShape tile{20, 16, 2, Axis::ChannelGroup, 16, lanes};
    std::vector<float> x(20 * 16);
    for (int t = 0; t < 20; ++t) {
      for (int c = 0; c < 16; ++c) x[size_t(t * 16 + c)] = float(t % 4 * (t / 16 + 1) - c);
    }
    std::vector<uint8_t> packed(code_bytes(tile));
    std::vector<half> params(2 * size_t(n_sets(tile)));
    encode_tile(tile, Fit::Endpoint, x.data(), packed.data(), params.data());
    ASSERT_EQ(params.size(), 64u);  // steps of 2 groups of 16 channels, then floors
    for (int c = 0; c < 16; ++c) {
      EXPECT_EQ(to_float(params[size_t(c)]), 1.0f);
      EXPECT_EQ(to_float(params[size_t(16 + c)]), 2.0f);
      EXPECT_EQ(to_float(params[size_t(32 + c)]), float(-c));
      EXPECT_EQ(to_float(params[size_t(48 + c)]), float(-c));
      for (int t = 0; t < 20; ++t) ASSERT_EQ(read_code(tile, packed.data(), t, c), t % 4);
    }
  }
}

// Codecs without floors (docs/formats.md): one token of 16 channels in sets of 16.
TEST(Tile, BytesOfCodecsWithoutFloorsAreThoseOfTheFormat) {
  struct Golden {
    Codec codec;
    int bits;
    Axis axis;
    std::vector<float> x;
    std::vector<uint8_t> codes;
    std::vector<uint8_t> params;  // first bytes
  };
  const Golden cases[] = {
      // The largest value, -8, has the lowest code: step 1 (0x3C00).
      {Codec::Symmetric, 4, Axis::Token, {-8, 7, 0, 1}, {0, 15, 8, 9}, {0x00, 0x3C}},
      // The largest value, 8, has the lowest code too: step -1 (0xBC00).
      {Codec::Symmetric, 4, Axis::Token, {8, -7, 0, 1}, {0, 15, 8, 7}, {0x00, 0xBC}},
      {Codec::Symmetric, 8, Axis::Token, {-127, 64, 0, 1}, {1, 192, 128, 129}, {0x00, 0x3C}},
      // Largest size 6 times a scale of 2 (0x40 as e4m3).
      {Codec::E2m1, 4, Axis::Group, {-12, 1, 0, 8}, {15, 1, 0, 6}, {0x40}},
      {Codec::E4m3, 8, Axis::None, {-1, 448, 0, 0x1p-9f}, {0xB8, 0x7E, 0, 1}, {}},
      // Largest size 448, so the step is 1.
      {Codec::E4m3, 8, Axis::Token, {-1, 448, 0, 0x1p-9f}, {0xB8, 0x7E, 0, 1}, {0x00, 0x3C}},
  };
  for (const Golden& golden : cases) {
    std::vector<float> x = golden.x;
    x.resize(16, 0.0f);
    const TileShape tile{1, 16, golden.bits, golden.axis, 16, Lanes::Tokens, golden.codec};
    std::vector<uint8_t> packed(code_bytes(tile), 0xA5), expected(packed.size(), 0);
    std::vector<half> params(param_bytes(tile) / 2 + 1, 0xA5A5);
    encode_tile(tile, Fit::Endpoint, x.data(), packed.data(), params.data());
    const uint8_t zero = golden.codec == Codec::Symmetric ? uint8_t(1 << (golden.bits - 1)) : 0;
    for (int c = 0; c < 16; ++c)
      write_code(tile, expected.data(), 0, c, c < 4 ? golden.codes[size_t(c)] : zero);
    EXPECT_EQ(packed, expected) << int(golden.codec);
    EXPECT_EQ(params.back(), 0xA5A5);
    const auto* bytes = reinterpret_cast<const uint8_t*>(params.data());
    for (size_t i = 0; i < param_bytes(tile); ++i)
      EXPECT_EQ(bytes[i], i < golden.params.size() ? golden.params[i] : 0) << int(golden.codec);
  }
}

TEST(Tile, EmptyTilesNeedNothing) {
  for (const Axis axis : {Axis::Channel, Axis::Token, Axis::Group, Axis::ChannelGroup, Axis::Cst}) {
    const TileShape shape{0, 64, 4, axis, 32};
    EXPECT_EQ(code_bytes(shape) + param_bytes(shape), 0u);
    encode_tile(shape, Fit::Endpoint, nullptr, nullptr, nullptr);
  }
}

}  // namespace
}  // namespace zipcache
