// Tiers within a budget of bits.
#include "policy/knapsack.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <random>

#include "codec/tile.hpp"
#include "support/random_rows.hpp"

namespace zipcache {
namespace {

// Tiers of so many bytes a token.
Knapsack plain(const std::vector<double>& errors, const std::vector<size_t>& token_bytes, int n,
               size_t budget) {
  Knapsack sack{errors, {}, budget, 1};
  for (const size_t bytes : token_bytes) {
    std::vector<size_t>& of_tier = sack.bytes.emplace_back();
    for (int i = 0; i <= n; ++i) of_tier.push_back(bytes * size_t(i));
  }
  return sack;
}

double error_of(const Knapsack& sack, std::vector<double> weights, const TierCounts& counts) {
  std::sort(weights.rbegin(), weights.rend());
  double error = 0;
  size_t next = 0;
  for (size_t tier = 0; tier < sack.errors.size(); ++tier) {
    for (int i = 0; i < counts[tier]; ++i) error += sack.errors[tier] * weights[next++];
  }
  return error;
}

size_t bytes_of(const Knapsack& sack, const TierCounts& counts) {
  size_t bytes = 0;
  for (size_t tier = 0; tier < sack.errors.size(); ++tier)
    bytes += sack.bytes[tier][size_t(counts[tier])];
  return bytes;
}

// Every tier for every token, heavier ones in no better tier too.
double least_error(const Knapsack& sack, const std::vector<double>& weights, size_t token = 0,
                   size_t bytes = 0, double error = 0) {
  if (bytes > sack.budget) return INFINITY;
  if (token == weights.size()) return error;
  double least = INFINITY;
  for (size_t tier = 0; tier < sack.errors.size(); ++tier) {
    least = std::min(least, least_error(sack, weights, token + 1, bytes + sack.bytes[tier][1],
                                        error + weights[token] * sack.errors[tier]));
  }
  return least;
}

TEST(Knapsack, NoOtherTiersOfSingleTokensHaveLessError) {
  std::mt19937 engine(1);
  for (int repeat = 0; repeat < 300; ++repeat) {
    const int n = 1 + int(engine() % 7);
    const size_t n_tiers = 2 + engine() % 3;
    const std::vector<double> errors = {0, 0.01, 0.25, 1};
    const std::vector<size_t> bytes = {16, 4, 2, 0};
    const size_t first = 4 - n_tiers;
    std::vector<double> weights;
    for (int i = 0; i < n; ++i) weights.push_back(double(engine() % 1000) / 100);
    const size_t least = bytes.back() * size_t(n);
    const Knapsack sack =
        plain({errors.begin() + ptrdiff_t(first), errors.end()},
              {bytes.begin() + ptrdiff_t(first), bytes.end()}, n, least + engine() % 60);
    const TierCounts counts = fill_knapsack(sack, weights);
    ASSERT_EQ(std::accumulate(counts.begin(), counts.end(), 0), n);
    ASSERT_LE(bytes_of(sack, counts), sack.budget);
    ASSERT_NEAR(error_of(sack, weights, counts), least_error(sack, weights), 1e-9) << repeat;
  }
}

// Filling makes bytes rise in steps; whatever counts the search leaves out are no better.
TEST(Knapsack, PortionsAndFillingAreCountedInTheBudget) {
  std::mt19937 engine(2);
  for (int repeat = 0; repeat < 40; ++repeat) {
    const int n = 20 + int(engine() % 13), bits[] = {16, 4, 3, 2};
    Knapsack sack{{0, 0.02, 0.07, 0.3}, {}, 0, 4};
    for (const int width : bits) {
      std::vector<size_t>& bytes = sack.bytes.emplace_back();
      for (int i = 0; i <= n; ++i)
        bytes.push_back(
            size_t(width == 16 ? 2 * i : padded_to(i, width == 3 ? 32 : 16) * width / 8));
    }
    sack.budget = sack.bytes.back().back() + engine() % 40;
    std::vector<double> weights;
    for (int i = 0; i < n; ++i) weights.push_back(std::exp(double(engine() % 1000) / 150));
    const TierCounts counts = fill_knapsack(sack, weights);
    ASSERT_LE(bytes_of(sack, counts), sack.budget);
    double least = INFINITY;
    for (int a = 0; a <= n; a += 4) {
      for (int b = 0; a + b <= n; b += 4) {
        for (int c = 0; a + b + c <= n; c += 4) {
          const TierCounts other = {a, b, c, n - a - b - c};
          if (bytes_of(sack, other) <= sack.budget)
            least = std::min(least, error_of(sack, weights, other));
        }
      }
    }
    ASSERT_NEAR(error_of(sack, weights, counts), least, 1e-9) << repeat;
    for (int tier = 0; tier < 3; ++tier) EXPECT_EQ(counts[size_t(tier)] % 4, 0);
  }
}

TEST(Knapsack, ABudgetThatHoldsNothingLeavesTheLastTier) {
  EXPECT_EQ(fill_knapsack(plain({0, 1}, {4, 2}, 5, 9), std::vector<double>(5, 1.0)),
            (TierCounts{0, 5, 0, 0}));
}

// The water level of RDKV's rule: weights .5, .3, .15 and .05 want 2.3, 1.6, 0.6 and 0 bits.
TEST(Knapsack, LightTokensAreEvictedFirst) {
  const std::vector<double> errors = {1 / 16.0, 1 / 4.0, 1};  // 4^-bits
  EXPECT_EQ(fill_knapsack(plain(errors, {2, 1, 0}, 4, 4), {.05, .5, .15, .3}),
            (TierCounts{1, 2, 1, 0}));
}

TEST(KnapsackWeights, TokensThatNobodyCouldAskAboutWeighAsTheHeaviest) {
  const std::vector<float> scores = {0.5f, INFINITY, 3.0f, -1.0f};
  EXPECT_EQ(knapsack_weights(scores, false), (std::vector<double>{0.5, 3, 3, 0}));
  EXPECT_EQ(knapsack_weights(scores, true), (std::vector<double>{0.25, 9, 9, 0}));
  EXPECT_EQ(knapsack_weights(std::vector<float>{0, INFINITY}, false), (std::vector<double>{0, 1}));
  for (const float none : {0.0f, INFINITY})
    EXPECT_EQ(knapsack_weights(std::vector<float>(3, none), false), std::vector<double>(3, 1.0));
}

// What the codecs leave of normal numbers, to a tenth.
TEST(Distortion, IsThatOfTheCodecsOnNormalNumbers) {
  constexpr int kTokens = 2000, kDim = 128;
  std::mt19937 engine(4);
  std::normal_distribution<float> normal;
  std::vector<float> x(size_t(kTokens) * kDim);
  for (float& value : x) value = normal(engine);
  const auto expect = [&](Side side, int bits) {
    const TileShape shape{kTokens, kDim, bits, side.axis, side.group, Lanes::Tokens, side.codec};
    std::vector<uint8_t> codes(code_bytes(shape));
    std::vector<half> params(param_bytes(shape) / sizeof(half));
    encode_tile(shape, side.fit, x.data(), codes.data(), params.data());
    const float* levels = levels_of(shape.codec, bits);
    double error = 0;
    for (int t = 0; t < kTokens; ++t) {
      for (int c = 0; c < kDim; ++c) {
        const int set = set_of(shape, t, c);
        const uint8_t code = read_code(shape, codes.data(), t, c);
        const float step = step_of(shape, params.data(), set);
        const float floor = side.codec == Codec::Affine
                                ? to_float(params[params.size() / 2 + size_t(set)])
                                : step * implied_floor(side.codec, bits);
        const float value = floor + step * (levels ? levels[code] : float(code));
        error += std::pow(value - x[size_t(t * kDim + c)], 2);
      }
    }
    error /= double(x.size());
    EXPECT_NEAR(distortion(side, bits), error, 0.1 * error)
        << int(side.codec) << " " << int(side.fit) << " " << bits;
  };
  Side side;
  side.axis = Axis::Token;
  for (const Fit fit : {Fit::Endpoint, Fit::Midpoint, Fit::Mse, Fit::Unbiased}) {
    side.fit = fit;
    for (const int bits : {2, 3, 4, 8}) expect(side, bits);
  }
  side.fit = Fit::Endpoint;
  for (const Codec codec : {Codec::Symmetric, Codec::Lloyd, Codec::E4m3, Codec::E2m1}) {
    side.codec = codec;
    for (const int bits : {2, 3, 4, 8}) {
      if (has_width(codec, bits)) expect(side, bits);
    }
  }
  EXPECT_EQ(distortion(side, 0), 1);
  EXPECT_EQ(distortion(side, 16), 0);
}

}  // namespace
}  // namespace zipcache
