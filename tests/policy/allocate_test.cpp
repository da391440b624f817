// Properties 8 and 12 of the method: the published ratios, and exact partitions.
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <numeric>
#include <random>

#include "zipcache/cache.hpp"
#include "zipcache/policy.hpp"

namespace zipcache {
namespace {

// Counts of the first of two tiers.
std::array<int, 1> first_tier(int n) { return {n}; }

TEST(Allocate, LowTierHasExactlyItsShareForEveryRatioAndLength) {
  std::mt19937 engine(1);
  for (const int permille : {0, 400, 600, 700, 800, 1000}) {
    for (int n = 1; n <= 300; ++n) {
      std::vector<float> scores(size_t(n), 0.0f);
      for (float& score : scores) score = float(engine() % 1000) / 999.0f;
      const std::vector<uint8_t> tiers = allocate(scores, first_tier(high_share(n, permille)));
      ASSERT_EQ(tiers.size(), size_t(n));
      const auto low = std::count(tiers.begin(), tiers.end(), 1);
      ASSERT_EQ(low, (1000 - permille) * n / 1000) << permille << " of " << n;
      ASSERT_EQ(std::count(tiers.begin(), tiers.end(), 0), n - low);
    }
  }
  EXPECT_TRUE(allocate({}, first_tier(0)).empty());
}

TEST(Allocate, TheLowestScoresGetTheLowTier) {
  std::mt19937 engine(2);
  std::vector<float> scores(128);
  for (float& score : scores) score = float(engine() % 40);  // many ties
  const std::vector<uint8_t> tiers = allocate(scores, first_tier(high_share(128, 600)));
  for (size_t a = 0; a < 128; ++a) {
    for (size_t b = 0; b < 128; ++b) {
      if (tiers[a] == 0 && tiers[b] == 1) {
        // Higher score first, then higher position.
        ASSERT_TRUE(scores[a] > scores[b] || (scores[a] == scores[b] && a > b)) << a << " " << b;
      }
    }
  }
}

TEST(Allocate, EqualScoresMakeTheNewestSalient) {
  const std::vector<uint8_t> tiers =
      allocate(std::vector<float>(10, 0.5f), first_tier(high_share(10, 600)));
  EXPECT_EQ(tiers, (std::vector<uint8_t>{1, 1, 1, 1, 0, 0, 0, 0, 0, 0}));
}

TEST(Allocate, TokensWithoutEvidenceAreTheLastToBeDemoted) {
  std::vector<float> scores = {INFINITY, 0.1f, INFINITY, 0.3f, 0.2f};
  EXPECT_EQ(allocate(scores, first_tier(2)), (std::vector<uint8_t>{0, 1, 0, 1, 1}));
}

TEST(Allocate, BlocksHoldTheShareInPortionsOf16) {
  for (int permille = 0; permille <= 1000; permille += 25) {
    int64_t high = 0;
    for (uint64_t block = 0; block < 400; ++block) {
      const int here = tier_counts_of_block(block, kBlockTokens, std::vector{permille})[0];
      ASSERT_EQ(here % 16, 0);
      high += here;
      const double share = double(int64_t(block) + 1) * kBlockTokens * permille / 1000;
      ASSERT_LE(std::fabs(double(high) - share), 8) << permille << " after " << block;
    }
  }
  EXPECT_EQ(tier_counts_of_block(0, 60, std::vector{1000})[0], 60);  // no more than there are
}

TEST(Allocate, SeveralTiersAreCutFromOneOrder) {
  const std::vector<float> scores = {0.1f, 0.9f, 0.5f, 0.9f, 0.3f, INFINITY, 0.5f};
  EXPECT_EQ(allocate(scores, std::array{1, 2, 1}), (std::vector<uint8_t>{3, 1, 3, 1, 3, 0, 2}));
  EXPECT_EQ(allocate(scores, std::array{0, 7, 0}), std::vector<uint8_t>(7, 1));
  EXPECT_EQ(allocate(scores, std::array{3, 9}), (std::vector<uint8_t>{1, 0, 1, 0, 1, 0, 1}));
}

TEST(Allocate, SharesOfSeveralTiersHoldOverAnyNumberOfBlocks) {
  std::mt19937 engine(3);
  for (int repeat = 0; repeat < 60; ++repeat) {
    std::vector<int> shares;
    int left = 1000;
    for (size_t tier = 0; tier < 1 + engine() % 3; ++tier)
      left -= shares.emplace_back(int(engine() % unsigned(left + 1)));
    shares.push_back(0);
    std::shuffle(shares.begin(), shares.end(), engine);
    shares.resize(std::min<size_t>(shares.size(), 3));
    std::vector<int64_t> held(shares.size());
    for (uint64_t block = 0; block < 300; ++block) {
      const TierCounts counts = tier_counts_of_block(block, kBlockTokens, shares);
      ASSERT_EQ(std::accumulate(counts.begin(), counts.end(), 0), kBlockTokens);
      for (size_t tier = 0; tier < shares.size(); ++tier) {
        ASSERT_GE(counts[tier], 0);
        ASSERT_EQ(counts[tier] % 16, 0);
        held[tier] += counts[tier];
        const double share = double(block + 1) * kBlockTokens * shares[tier] / 1000;
        ASSERT_LE(std::fabs(double(held[tier]) - share), 2 * 16) << tier << " after " << block;
      }
    }
  }
}

TEST(Allocate, ARankingOfManyBlocksIsCutToTheToken) {
  EXPECT_EQ(tier_counts(10, std::array{100, 300}), (TierCounts{1, 3, 6, 0}));
  EXPECT_EQ(tier_counts(7, std::array{100, 300}), (TierCounts{1, 2, 4, 0}));
  EXPECT_EQ(tier_counts(7, std::array{250, 250, 250}), (TierCounts{2, 2, 2, 1}));
  EXPECT_EQ(tier_counts(5, std::array{0, 1000, 0}), (TierCounts{0, 5, 0, 0}));
}

double rounded(double value, int decimals) {
  const double scale = std::pow(10.0, decimals);
  return std::round(value * scale) / scale;
}

TEST(Ratio, UniformRatiosOfTheAppendixComeOutToThreeDecimals) {
  const double b = 8, C = 4096, l = 4096, n = 32;
  EXPECT_EQ(rounded(paper_ratio(4, 4 * b * C * l / n, b, C, l), 3), 3.200);
  EXPECT_EQ(rounded(paper_ratio(4, 4 * b * l, b, C, l), 3), 3.992);
  EXPECT_EQ(rounded(paper_ratio(4, 2 * C + 2 * b * l, b, C, l), 3), 3.996);
  EXPECT_EQ(rounded(paper_ratio(4, 3 * C + 2 * b * l, b, C, l), 3), 3.995);
}

TEST(Ratio, PoliciesGiveTheAppendixTheirOwnParameterCounts) {
  const auto ratio = [](const char* text) {
    return rounded(paper_ratio(*parse_policy(text), 4096, 4096, 8), 3);
  };
  EXPECT_EQ(ratio("uniform,k_axis=group32,v_axis=group32"), 3.200);
  EXPECT_EQ(ratio("uniform,k_axis=token,v_axis=token"), 3.992);
  EXPECT_EQ(ratio("uniform,v_axis=token"), 3.996);
  EXPECT_EQ(ratio("uniform"), 3.995);
  EXPECT_EQ(ratio("f16"), 1.0);
  // A factor of 16 bits for each token beside channel parameters, for each channel beside tokens'.
  EXPECT_EQ(ratio("uniform,v_axis=token,dual=8"),
            rounded(paper_ratio(4, 3 * 4096 + 3 * 8 * 4096.0, 8, 4096, 4096), 3));
}

// H2O's worked example: two of six tokens by score beside a window of two.
TEST(Allocate, HeavyTokensBesideTheWindow) {
  EXPECT_EQ(allocate(std::vector<float>{5, 1, 3, 2}, first_tier(2)),
            (std::vector<uint8_t>{0, 1, 0, 1}));
}

TEST(Ratio, EvictedTokensCountWithNoBits) {
  EXPECT_DOUBLE_EQ(paper_ratio(*parse_policy("random+pin"), 512, 1024), 4.0);
  EXPECT_DOUBLE_EQ(
      paper_ratio(*parse_policy("random+pin,bits=4/0,k_axis=token,v_axis=token"), 512, 1024),
      16 / (1 + 16 * 4.0 * 1024 / (2 * 512 * 1024)));
}

TEST(Ratio, SeveralTiersCountByTheirShares) {
  const Policy policy = *parse_policy("zip,k=4,v=16/4/2,ratio=0.1/0.4");
  // K: a step and a floor for each channel; V: for each token.
  EXPECT_DOUBLE_EQ(paper_ratio(policy, 512, 1024),
                   paper_ratio((4 + 1.6 + 1.6 + 1.0) / 2, 2 * 512 + 2 * 1024, 1, 512, 1024));
  EXPECT_DOUBLE_EQ(
      paper_ratio(*parse_policy("zip,v=16/4/2,alloc=knapsack,target_bits=3.5"), 512, 1024),
      paper_ratio(3.5, 2 * 512 + 2 * 1024, 1, 512, 1024));
}

TEST(Ratio, TheFivePublishedMixedRatiosComeOutToTwoDecimals) {
  struct Published {
    double l, r, ratio;
  };
  for (const auto& [l, r, ratio] : {Published{840, .6, 4.98},
                                    {840, .7, 4.69},
                                    {120, .6, 4.94},
                                    {120, .8, 4.39},
                                    {3072, .8, 4.43}}) {
    const double C = 4096, b = 8;
    EXPECT_EQ(rounded(paper_ratio(4 * r + 2 * (1 - r), 4 * C + 4 * b * l, b, C, l), 2), ratio);
    Policy policy = *parse_policy("zipcache");
    policy.shares = {int(std::round(r * 1000))};
    EXPECT_EQ(rounded(paper_ratio(policy, C, l, b), 2), ratio);
  }
}

TEST(Ratio, GroupwiseRowOfTheRetrievalTableIsSixteenByFourPointTwo) {
  // 3.2 bits on average at r = 0.6, and 32-channel groups on both sides add 16 * 2 / 32 = 1 bit.
  EXPECT_EQ(rounded(16 / 4.2, 2), 3.81);
  EXPECT_EQ(rounded(paper_ratio(3.2, 4.0 * 4096 * 3072 / 32, 1, 4096, 3072), 2), 3.81);
}

}  // namespace
}  // namespace zipcache
