// Rows sym8, sym4 and nvfp4 against llama.cpp's own quantizers: the same values, number by number.
#include <ggml.h>
#include <gtest/gtest.h>

#include <vector>

#include "codec/tile.hpp"
#include "support/random_rows.hpp"
#include "support/tiles.hpp"

namespace zipcache {
namespace {

constexpr int kTokens = 40, kDim = 128;

// Rows quantized and read back by ggml's reference code.
std::vector<float> through_ggml(const std::vector<float>& rows, ggml_type type) {
  const ggml_type_traits* traits = ggml_get_type_traits(type);
  std::vector<uint8_t> packed(ggml_row_size(type, int64_t(rows.size())));
  traits->from_float_ref(rows.data(), packed.data(), int64_t(rows.size()));
  std::vector<float> values(rows.size());
  traits->to_float(packed.data(), values.data(), int64_t(rows.size()));
  return values;
}

// Normal numbers with loud channels, a block of zeros, one of equal numbers, very large and very
// small ones, and numbers half way between two levels.
std::vector<float> awkward_rows() {
  std::vector<float> x = test::random_rows(kTokens, kDim, 3);
  for (int c = 0; c < kDim; ++c) {
    x[size_t(c)] = 0;
    x[size_t(kDim + c)] = -2.5f;
    x[size_t(2 * kDim + c)] *= 1000;
    x[size_t(3 * kDim + c)] *= 1e-4f;
    x[size_t(4 * kDim + c)] = float(c % 17 - 8);
    x[size_t(5 * kDim + c)] = float(c % 33 - 16) / 2;
  }
  return x;
}

void expect_ggml_values(ggml_type type, Codec codec, int bits, int group, float factor = 1) {
  std::vector<float> rows = awkward_rows();
  for (float& value : rows) value *= factor;
  const std::vector<float> expected = through_ggml(rows, type);
  for (const Lanes lanes : {Lanes::Tokens, Lanes::Channels}) {
    const test::CodedTile tile = test::code_tile(rows, kTokens, kDim, bits, Axis::Group, group,
                                                 Fit::Endpoint, {}, lanes, codec);
    for (size_t i = 0; i < rows.size(); ++i) {
      ASSERT_EQ(tile.values[i], expected[i])
          << "token " << i / kDim << " channel " << i % kDim << " value " << rows[i];
    }
  }
}

TEST(GgmlFormats, Symmetric8BitsAreQ8_0) {
  expect_ggml_values(GGML_TYPE_Q8_0, Codec::Symmetric, 8, 32);
}

TEST(GgmlFormats, Symmetric4BitsAreQ4_0) {
  expect_ggml_values(GGML_TYPE_Q4_0, Codec::Symmetric, 4, 32);
}

// Scales and codes half way between two go to the even one here; ggml has other rules, so the rows
// are moved off such places.
TEST(GgmlFormats, E2m1WithScalesOf8BitsIsNvfp4) {
  expect_ggml_values(GGML_TYPE_NVFP4, Codec::E2m1, 4, 16, 1.0003f);
}

}  // namespace
}  // namespace zipcache
