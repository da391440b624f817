#include "base/random.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <set>

namespace zipcache {
namespace {

TEST(Random, SameKeyGivesTheSameNumbers) {
  Random a(1, 2, 3, 4), b(1, 2, 3, 4);
  for (int i = 0; i < 100; ++i) EXPECT_EQ(a.next(), b.next());
}

TEST(Random, EveryPartOfTheKeyAndItsPlaceCount) {
  std::set<uint64_t> first;
  for (uint64_t place = 0; place < 4; ++place) {
    for (uint64_t value = 1; value <= 50; ++value) {
      uint64_t key[4] = {0, 0, 0, 0};
      key[place] = value;
      first.insert(Random(key[0], key[1], key[2], key[3]).next());
    }
  }
  first.insert(Random(0).next());
  EXPECT_EQ(first.size(), 201u);
}

TEST(Random, BelowStaysInRangeAndReachesAllOfIt) {
  Random random(7);
  std::vector<int> seen(13);
  for (int i = 0; i < 13000; ++i) {
    const uint32_t value = random.below(13);
    ASSERT_LT(value, 13u);
    ++seen[value];
  }
  // Each count is binomial(13000, 1/13): mean 1000, deviation 30.4; six deviations hold for all 13
  // but once in 4e7 seeds.
  for (const int count : seen) EXPECT_NEAR(count, 1000, 183);
  EXPECT_EQ(Random(5).below(1), 0u);
}

TEST(Random, UnitLiesInTheHalfOpenIntervalWithTheRightMean) {
  Random random(11);
  double sum = 0;
  for (int i = 0; i < 100000; ++i) {
    const float value = random.unit();
    ASSERT_GE(value, 0.0f);
    ASSERT_LT(value, 1.0f);
    sum += value;
  }
  EXPECT_NEAR(sum / 100000, 0.5, 6 * std::sqrt(1.0 / 12 / 100000));  // six deviations of the mean
}

TEST(Random, SampleDrawsDifferentNumbersInOrder) {
  for (const int n : {0, 1, 2, 7, 128, 512}) {
    for (const int count : {0, 1, n / 2, n}) {
      if (count > n) continue;
      const std::vector<int> chosen = Random(3, uint64_t(n), uint64_t(count)).sample(n, count);
      ASSERT_EQ(chosen.size(), size_t(count));
      ASSERT_TRUE(std::is_sorted(chosen.begin(), chosen.end()));
      ASSERT_EQ(std::set<int>(chosen.begin(), chosen.end()).size(), size_t(count));
      for (const int value : chosen) ASSERT_TRUE(value >= 0 && value < n);
    }
  }
}

TEST(Random, SampleChoosesEverySubsetEquallyOften) {
  constexpr int kRounds = 20000, kSubsets = 20;  // 3 of 6
  std::vector<int> counts(64);
  for (int round = 0; round < kRounds; ++round) {
    int subset = 0;
    for (const int value : Random(9, uint64_t(round)).sample(6, 3)) subset |= 1 << value;
    ++counts[size_t(subset)];
  }
  double chi_squared = 0;
  int found = 0;
  for (const int count : counts) {
    if (count == 0) continue;
    ++found;
    const double expected = double(kRounds) / kSubsets;
    chi_squared += (count - expected) * (count - expected) / expected;
  }
  EXPECT_EQ(found, kSubsets);
  // Chi-squared with 19 degrees of freedom exceeds 61 once in 2.5 million seeds.
  EXPECT_LT(chi_squared, 61);
}

}  // namespace
}  // namespace zipcache
