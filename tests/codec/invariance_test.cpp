// Properties 3, 4, 5 and 16 of the method on tiles: idempotence, homogeneity and shift,
// permutation, round trip through 16-bit rows.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <random>

#include "support/random_rows.hpp"
#include "support/tiles.hpp"

namespace zipcache {
namespace {

using test::code_tile;
using test::CodedTile;

constexpr Axis kAxes[] = {Axis::Channel, Axis::Token, Axis::Group, Axis::ChannelGroup, Axis::Cst};
constexpr int kTokens = 40, kDim = 64;

// Small whole numbers whose sets all span 0 .. top, so that steps are 1 and everything is exact.
std::vector<float> whole_numbers(int bits) {
  const int top = top_code(bits);
  std::mt19937 engine(5);
  std::vector<float> x(size_t(kTokens * kDim));
  for (float& value : x) value = float(int(engine() % unsigned(top + 1)));
  for (int t = 0; t < kTokens; ++t) {
    for (int c = 0; c < kDim; ++c) {
      if ((t + c) % 8 == 0) x[size_t(t * kDim + c)] = 0;
      if ((t + c) % 8 == 4) x[size_t(t * kDim + c)] = float(top);
    }
  }
  return x;
}

TEST(Invariance, CodingAReconstructionGivesTheSameCodes) {
  for (const Axis axis : kAxes) {
    for (const int bits : {2, 3, 4}) {
      const std::vector<float> x = test::random_rows(kTokens, kDim, 1);
      const CodedTile once = code_tile(x, kTokens, kDim, bits, axis);
      const CodedTile twice =
          code_tile(once.values, kTokens, kDim, bits, axis, 32, Fit::Endpoint, once.factors);
      EXPECT_EQ(twice.codes, once.codes) << "axis " << int(axis) << " bits " << bits;
    }
  }
}

TEST(Invariance, CodesSurviveTheRoundTripThrough16BitRows) {
  for (const Axis axis : kAxes) {
    for (const int bits : {2, 3, 4}) {
      const CodedTile once =
          code_tile(test::random_rows(kTokens, kDim, 2), kTokens, kDim, bits, axis);
      const std::vector<float> rows = test::to_floats(test::to_halves(once.values));
      const CodedTile twice =
          code_tile(rows, kTokens, kDim, bits, axis, 32, Fit::Endpoint, once.factors);
      EXPECT_EQ(twice.codes, once.codes) << "axis " << int(axis) << " bits " << bits;
    }
  }
}

TEST(Invariance, ARoundTripBelowThe16BitSpacingStaysWithinTheBound) {
  // Values near 1000 have a spacing of 0.5; 8 bits over a range of 4 ask for steps of 4/255.
  std::vector<float> x(size_t(kTokens * kDim));
  for (size_t i = 0; i < x.size(); ++i) x[i] = 1000.0f + float(i % 9) * 0.5f;
  const CodedTile once = code_tile(x, kTokens, kDim, 8, Axis::Channel);
  const std::vector<float> rows = test::to_floats(test::to_halves(once.values));
  const CodedTile twice = code_tile(rows, kTokens, kDim, 8, Axis::Channel);
  for (size_t i = 0; i < x.size(); ++i) {
    // Rounding the row moves it by half a spacing, coding it by the bound over a range up to one
    // wider.
    const float bound = 0.25f + error_bound(999.5f, 1004.5f, 8, Fit::Endpoint);
    EXPECT_LE(std::fabs(twice.values[i] - once.values[i]), bound);
  }
}

TEST(Invariance, ScalingByPowersOfFourScalesTheReconstruction) {
  for (const Axis axis : kAxes) {
    for (const float a : {4.0f, 16.0f, 0.25f}) {
      const std::vector<float> x = test::random_rows(kTokens, kDim, 3);
      std::vector<float> scaled = x;
      for (float& value : scaled) value *= a;
      const CodedTile before = code_tile(x, kTokens, kDim, 4, axis);
      const CodedTile after = code_tile(scaled, kTokens, kDim, 4, axis);
      ASSERT_EQ(after.codes, before.codes) << "axis " << int(axis) << " times " << a;
      for (size_t i = 0; i < x.size(); ++i) ASSERT_EQ(after.values[i], a * before.values[i]);
    }
  }
}

TEST(Invariance, AddingAConstantToASetLeavesItsCodesAlone) {
  for (const int bits : {2, 3, 4}) {
    const std::vector<float> x = whole_numbers(bits);
    for (const Axis axis : {Axis::Channel, Axis::Token}) {
      std::vector<float> shifted = x;
      for (size_t i = 0; i < x.size(); ++i) {
        const size_t set = axis == Axis::Channel ? i % kDim : i / kDim;
        shifted[i] += float(int(set % 13) - 6);
      }
      const CodedTile before = code_tile(x, kTokens, kDim, bits, axis);
      const CodedTile after = code_tile(shifted, kTokens, kDim, bits, axis);
      EXPECT_EQ(after.codes, before.codes) << "axis " << int(axis) << " bits " << bits;
      for (size_t i = 0; i < x.size(); ++i) EXPECT_EQ(after.values[i], shifted[i]);
    }
  }
}

TEST(Invariance, RescalingOneChannelChangesChannelSeparableCodes) {
  // Dividing by max instead of its root would make codes independent of a channel's scale.
  std::vector<float> x = test::random_rows(kTokens, kDim, 4, 1.0f);
  const CodedTile before = code_tile(x, kTokens, kDim, 4, Axis::Cst);
  for (int t = 0; t < kTokens; ++t) x[size_t(t * kDim + 9)] *= 64;
  EXPECT_NE(code_tile(x, kTokens, kDim, 4, Axis::Cst).codes, before.codes);
  // And the channel dominates by the root of 64, not by 64 and not by 1.
  EXPECT_NEAR(code_tile(x, kTokens, kDim, 4, Axis::Cst).factor(9), 8 * before.factor(9),
              0.02 * before.factor(9));
}

TEST(Invariance, FactorsOfOneMakeChannelSeparableTokenwise) {
  const std::vector<float> x = test::random_rows(kTokens, kDim, 5);
  const CodedTile token = code_tile(x, kTokens, kDim, 3, Axis::Token);
  const std::vector<half> ones(kDim, to_half(1.0f));
  const CodedTile cst = code_tile(x, kTokens, kDim, 3, Axis::Cst, 32, Fit::Endpoint, ones);
  EXPECT_EQ(cst.packed, token.packed);
  EXPECT_EQ(cst.params, token.params);
}

std::vector<float> permuted(const std::vector<float>& x, const std::vector<int>& order,
                            bool tokens) {
  std::vector<float> out(x.size());
  for (int t = 0; t < kTokens; ++t) {
    for (int c = 0; c < kDim; ++c) {
      const size_t from =
          tokens ? size_t(order[size_t(t)] * kDim + c) : size_t(t * kDim + order[size_t(c)]);
      out[size_t(t * kDim + c)] = x[from];
    }
  }
  return out;
}

TEST(Invariance, ReconstructionMovesWithItsTokensAndChannels) {
  const std::vector<float> x = test::random_rows(kTokens, kDim, 6);
  for (const bool tokens : {true, false}) {
    std::vector<int> order(size_t(tokens ? kTokens : kDim));
    std::iota(order.begin(), order.end(), 0);
    std::shuffle(order.begin(), order.end(), std::mt19937(7));
    for (const Axis axis : kAxes) {
      // A group is its channels, or its tokens.
      if (axis == (tokens ? Axis::ChannelGroup : Axis::Group)) continue;
      const CodedTile before = code_tile(x, kTokens, kDim, 4, axis);
      const CodedTile after = code_tile(permuted(x, order, tokens), kTokens, kDim, 4, axis);
      EXPECT_EQ(after.values, permuted(before.values, order, tokens)) << int(axis);
    }
  }
}

}  // namespace
}  // namespace zipcache
