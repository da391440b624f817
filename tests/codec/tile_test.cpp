#include "codec/tile.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <random>

namespace zipcache {
namespace {

class PackingOfWidth : public testing::TestWithParam<int> {};

std::vector<uint8_t> random_codes(int dim, int bits, uint32_t seed) {
  std::mt19937 engine(seed);
  std::vector<uint8_t> codes(size_t(dim), 0);
  for (auto& code : codes) code = uint8_t(engine() % (1u << bits));
  return codes;
}

TEST_P(PackingOfWidth, CodesComeBackForEveryHeadSize) {
  const int bits = GetParam();
  for (int dim = 8; dim <= 256; dim += 8) {
    const auto codes = random_codes(dim, bits, uint32_t(dim));
    std::vector<uint8_t> packed(size_t(dim * bits / 8) + 1, 0xA5), back(codes.size());
    pack_row(codes.data(), dim, bits, packed.data());
    unpack_row(packed.data(), dim, bits, back.data());
    EXPECT_EQ(back, codes) << dim;
    EXPECT_EQ(packed.back(), 0xA5) << "wrote past a row of " << dim;
  }
}

// With the test above: as many codes as bytes, and both ways are the identity, so packing is a
// bijection.
TEST_P(PackingOfWidth, EveryByteValueAtEveryPlaceComesBack) {
  const int bits = GetParam(), dim = 16;
  std::vector<uint8_t> codes(dim);
  for (int place = 0; place < dim * bits / 8; ++place) {
    for (int value = 0; value < 256; ++value) {
      std::vector<uint8_t> packed(size_t(dim * bits / 8), 0x3C), again(packed.size());
      packed[size_t(place)] = uint8_t(value);
      unpack_row(packed.data(), dim, bits, codes.data());
      EXPECT_LE(*std::max_element(codes.begin(), codes.end()), top_code(bits));
      pack_row(codes.data(), dim, bits, again.data());
      ASSERT_EQ(again, packed);
    }
  }
}

TEST_P(PackingOfWidth, NoCodeAltersItsNeighbour) {
  const int bits = GetParam(), dim = 24;
  const auto codes = random_codes(dim, bits, 99);
  std::vector<uint8_t> packed(size_t(dim * bits / 8)), back(codes.size());
  for (int c = 0; c < dim; ++c) {
    for (const int value : {0, top_code(bits)}) {
      auto changed = codes;
      changed[size_t(c)] = uint8_t(value);
      pack_row(changed.data(), dim, bits, packed.data());
      unpack_row(packed.data(), dim, bits, back.data());
      ASSERT_EQ(back, changed) << "channel " << c;
    }
  }
}

TEST_P(PackingOfWidth, ValuesBeyondTheRangeClampAndLeaveNeighboursAlone) {
  const int bits = GetParam();
  SetFit fit;  // a grid that cannot reach the values
  fit.code_step = 1;
  fit.code_floor = 0;
  const std::vector<SetFit> fits(16, fit);
  std::vector<float> x(16);
  for (size_t c = 0; c < 16; ++c) x[c] = c % 2 ? 1e6f : -1e6f;
  std::vector<uint8_t> packed(size_t(16 * bits / 8)), codes(16);
  encode_with({1, 16, bits, Axis::Channel, 0}, fits, x.data(), packed.data());
  unpack_row(packed.data(), 16, bits, codes.data());
  for (size_t c = 0; c < 16; ++c) EXPECT_EQ(codes[c], c % 2 ? top_code(bits) : 0);
}

INSTANTIATE_TEST_SUITE_P(Tile, PackingOfWidth, testing::Values(2, 3, 4, 8));

TEST(Tile, BytesOfCodesAndParametersAreThoseOfTheHeader) {
  EXPECT_EQ(code_bytes({128, 64, 4, Axis::Channel, 0}), 4096u);
  EXPECT_EQ(code_bytes({51, 128, 3, Axis::Cst, 0}), 51u * 48);
  EXPECT_EQ(code_bytes({1, 24, 2, Axis::Token, 0}), 6u);
  EXPECT_EQ(code_bytes({2, 64, 16, Axis::Channel, 0}), 256u);
  EXPECT_EQ(n_sets({128, 64, 4, Axis::Channel, 0}), 64);
  EXPECT_EQ(n_sets({128, 64, 4, Axis::Token, 0}), 128);
  EXPECT_EQ(n_sets({128, 64, 4, Axis::Cst, 0}), 128);
  EXPECT_EQ(n_sets({128, 64, 4, Axis::Group, 16}), 512);
  EXPECT_EQ(n_sets({128, 64, 16, Axis::Token, 0}), 0);
  EXPECT_EQ(n_sets({0, 64, 4, Axis::Channel, 0}), 0);
  EXPECT_EQ(param_bytes({128, 64, 4, Axis::Channel, 0}), 256u);
}

// Golden bytes: the layout that codec/tile.hpp states, written out by hand.
TEST(Tile, PackedBytesAreThoseOfTheHeader) {
  const std::vector<uint8_t> codes = {1, 2, 3, 0, 2, 1, 0, 3};
  std::vector<uint8_t> packed(8);
  pack_row(codes.data(), 8, 2, packed.data());
  EXPECT_EQ(packed[0], 1 | 3 << 2 | 2 << 4 | 0 << 6);
  EXPECT_EQ(packed[1], 2 | 0 << 2 | 1 << 4 | 3 << 6);
  pack_row(codes.data(), 8, 4, packed.data());
  EXPECT_EQ(packed[0], 1 | 2 << 4);
  EXPECT_EQ(packed[3], 0 | 3 << 4);
  const std::vector<uint8_t> wide = {7, 0, 4, 1, 2, 6, 3, 5};
  pack_row(wide.data(), 8, 3, packed.data());
  EXPECT_EQ(packed[0], 3 | 0 << 2 | 2 << 4 | 3 << 6);
  EXPECT_EQ(packed[1], 0 | 1 << 2 | 2 << 4 | 1 << 6);
  EXPECT_EQ(packed[2], 0b10100101);
}

TEST(Tile, EmptyTilesNeedNothing) {
  for (const Axis axis : {Axis::Channel, Axis::Token, Axis::Group, Axis::Cst}) {
    const TileShape shape{0, 64, 4, axis, 32};
    EXPECT_EQ(code_bytes(shape) + param_bytes(shape), 0u);
    encode_tile(shape, Fit::Endpoint, nullptr, nullptr, nullptr);
  }
}

}  // namespace
}  // namespace zipcache
