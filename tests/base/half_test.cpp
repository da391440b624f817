#include "base/half.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <cstdlib>

#include "support/oracle.hpp"

namespace zipcache {
namespace {

// A finite pattern's value from its definition: sign, 5 bits of exponent, 10 bits of fraction.
double value_of(half h) {
  const int exponent = (h >> 10) & 31, fraction = h & 1023;
  const double magnitude =
      exponent == 0 ? std::ldexp(fraction, -24) : std::ldexp(1024 + fraction, exponent - 25);
  return h & 0x8000 ? -magnitude : magnitude;
}

bool finite(half h) { return (h & 0x7C00) != 0x7C00; }

TEST(Half, EveryPatternMeansWhatTheStandardSays) {
  for (int h = 0; h < 65536; ++h) {
    const float value = to_float(half(h));
    if (finite(half(h))) {
      ASSERT_EQ(double(value), value_of(half(h))) << h;
      ASSERT_EQ(std::signbit(value), (h & 0x8000) != 0) << h;
    } else if (h & 0x3FF) {
      ASSERT_TRUE(std::isnan(value)) << h;
    } else {
      ASSERT_EQ(value, h & 0x8000 ? -INFINITY : INFINITY);
    }
  }
}

TEST(Half, EveryPatternComesBackFromFloat) {
  for (int h = 0; h < 65536; ++h) {
    const half back = to_half(to_float(half(h)));
    if (finite(half(h)) || !(h & 0x3FF)) {
      ASSERT_EQ(back, h);
    } else {
      ASSERT_TRUE(std::isnan(to_float(back))) << h;
    }
  }
}

TEST(Half, ValuesHalfWayRoundToEvenAndTheirNeighboursToTheNearer) {
  for (int h = 0; h < 0x7BFF; ++h) {
    const float below = to_float(half(h)), above = to_float(half(h + 1));
    const float middle =
        0.5f * (below + above);  // exact: it needs one bit more than a 16-bit float
    for (const int sign : {1, -1}) {
      const half bit = sign < 0 ? 0x8000 : 0;
      ASSERT_EQ(to_half(sign * middle), (h % 2 ? h + 1 : h) | bit) << h;
      ASSERT_EQ(to_half(sign * std::nextafter(middle, 0.0f)), h | bit) << h;
      ASSERT_EQ(to_half(sign * std::nextafter(middle, INFINITY)), (h + 1) | bit) << h;
    }
  }
}

TEST(Half, ValuesBeyondTheRangeBecomeInfinite) {
  EXPECT_EQ(to_half(65504.0f), 0x7BFF);
  EXPECT_EQ(to_half(std::nextafter(65520.0f, 0.0f)), 0x7BFF);
  EXPECT_EQ(to_half(65520.0f), 0x7C00);
  EXPECT_EQ(to_half(-1e30f), kHalfNegInf);
  EXPECT_EQ(to_half(INFINITY), 0x7C00);
  EXPECT_EQ(to_half(0x1p-25f), 0x0000);
  EXPECT_EQ(to_half(std::nextafter(0x1p-25f, 1.0f)), 0x0001);
  EXPECT_EQ(to_half(-0.0f), 0x8000);
}

TEST(Half, OracleAgreesOnRounding) {
  for (int i = 0; i < 200000; ++i) {
    const float value = std::ldexp(float(i) - 100000.0f, -(i % 37));
    const double expected = test::half_rounded(value);
    ASSERT_EQ(double(rounded_to_half(value)), expected) << value;
  }
}

}  // namespace
}  // namespace zipcache
