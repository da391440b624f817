// Codecs whose codes name levels of a table.
#include "codec/levels.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "codec/level_codes.hpp"
#include "support/random_rows.hpp"

namespace zipcache {
namespace {

TEST(Levels, LloydTablesHaveTheErrorOfTheBestQuantizerOfNormalNumbers) {
  const std::vector<float> x = test::random_rows(1000, 1000, 1, 0.0f);
  std::vector<uint8_t> codes(x.size());
  const std::pair<int, double> published[] = {{2, .11748}, {3, .03455}, {4, .00950}};
  for (const auto& [bits, expected] : published) {
    code_on(Codec::Lloyd, bits, 1.0f, x.data(), int(x.size()), codes.data());
    double error = 0, n = 0;
    for (size_t i = 0; i < x.size(); ++i) {
      if (i % 1000 % 16 == 5) continue;  // the loud channels, here silent
      const double off = x[i] - levels_of(Codec::Lloyd, bits)[codes[i]];
      error += off * off, ++n;
    }
    EXPECT_NEAR(error / n, expected, 0.005 * expected) << bits;
  }
}

TEST(Levels, ALloydSetKeepsItsNorm) {
  for (const int bits : {2, 3, 4}) {
    const std::vector<float> x = test::random_rows(1, 64, uint64_t(bits));
    std::vector<uint8_t> codes(x.size());
    const double step = code_set(Codec::Lloyd, bits, x.data(), 64, codes.data());
    double before = 0, after = 0;
    for (size_t i = 0; i < x.size(); ++i) {
      before += double(x[i]) * x[i];
      after += std::pow(step * levels_of(Codec::Lloyd, bits)[codes[i]], 2);
    }
    // The step is rounded to 11 bits, which moves the norm by 2^-11 of itself.
    EXPECT_NEAR(std::sqrt(after), std::sqrt(before), 0x1p-11 * std::sqrt(before));
  }
}

// From the bits of the format: sign, 4 bits of exponent with bias 7, 3 of mantissa.
double e4m3_value(int code) {
  const int exponent = (code >> 3) & 15, mantissa = code & 7;
  const double size =
      exponent == 0 ? std::ldexp(mantissa, -9) : std::ldexp(8 + mantissa, exponent - 10);
  return code & 0x80 ? -size : size;
}

TEST(Levels, EightBitFloatsAreE4m3AndRoundHalfToEven) {
  for (int code = 0; code < 256; ++code) {
    if ((code & 0x7F) == 0x7F) continue;  // no number
    ASSERT_EQ(from_e4m3(uint8_t(code)), e4m3_value(code)) << code;
    ASSERT_EQ(to_e4m3(from_e4m3(uint8_t(code))), code);
    if ((code & 0x7F) == 0x7E) continue;
    const float low = float(e4m3_value(code)), high = float(e4m3_value(code + 1));
    ASSERT_EQ(to_e4m3(0.5f * (low + high)), code % 2 ? code + 1 : code) << code;
    ASSERT_EQ(to_e4m3(std::nextafter(0.5f * (low + high), low)), code);
    ASSERT_EQ(to_e4m3(std::nextafter(0.5f * (low + high), high)), code + 1);
  }
  EXPECT_EQ(to_e4m3(1e6f), 0x7E);
  EXPECT_EQ(to_e4m3(-1e6f), 0xFE);
  EXPECT_EQ(from_e4m3(0x7E), 448.0f);
}

TEST(Levels, FourBitFloatsTakeTheNearestLevelOnAScaleOf8Bits) {
  // Largest size 6.3: the scale 1.05 has neighbours 1 and 1.125 among e4m3 numbers.
  const std::vector<float> x = {6.3f, -0.3f, 0.25f, 0.75f, -2.6f, 4.9f, 5.1f, 0};
  std::vector<uint8_t> codes(x.size());
  EXPECT_EQ(code_set(Codec::E2m1, 4, x.data(), int(x.size()), codes.data()), 1.0f);
  const std::vector<float> expected = {6, -0.5f, 0, 1, -3, 4, 6, 0};
  for (size_t i = 0; i < x.size(); ++i)
    EXPECT_EQ(levels_of(Codec::E2m1, 4)[codes[i]], expected[i]) << x[i];
}

TEST(Levels, SetsOfZerosAndTheSmallestNumbersHaveFiniteSteps) {
  for (const auto& [codec, bits] : {std::pair{Codec::Symmetric, 4},
                                    {Codec::Symmetric, 8},
                                    {Codec::Lloyd, 2},
                                    {Codec::E4m3, 8},
                                    {Codec::E2m1, 4}}) {
    for (const float size : {0.0f, 1e-42f, 1e-20f, 65504.0f, 1e6f}) {
      const std::vector<float> x = {size, -size, 0, size};
      std::vector<uint8_t> codes(x.size());
      EXPECT_TRUE(std::isfinite(code_set(codec, bits, x.data(), 4, codes.data()))) << int(codec);
      for (const uint8_t code : codes) EXPECT_LT(int(code), 1 << bits);
    }
  }
}

}  // namespace
}  // namespace zipcache
