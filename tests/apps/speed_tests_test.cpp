// Tests, names and statistics of `zipcache bench model`.
#include "speed_tests.hpp"

#include <gtest/gtest.h>

#include <cmath>

namespace zipcache::cli {
namespace {

using Names = std::vector<std::string>;

Names names(const std::vector<SpeedTest>& tests) {
  Names out;
  for (const SpeedTest& test : tests) out.push_back(name_of(test));
  return out;
}

TEST(SpeedTests, NamesAreThoseOfLlamaBench) {
  EXPECT_EQ(name_of({512, 0, 4096}), "pp512 @ d4096");
  EXPECT_EQ(name_of({0, 32, 8192}), "tg32 @ d8192");
  EXPECT_EQ(name_of({8192, 0, 0}), "pp8192");
}

TEST(SpeedTests, TheShortestTestComesFirst) {
  EXPECT_EQ(names(tests_at(64, {512, 16}, {128, 32})),
            (Names{"pp16 @ d64", "tg32 @ d64", "tg128 @ d64", "pp512 @ d64"}));
}

TEST(SpeedTests, ALengthOfZeroIsNoTest) {
  EXPECT_EQ(names(tests_at(0, {0}, {0, 8})), (Names{"tg8"}));
  EXPECT_TRUE(tests_at(0, {0}, {}).empty());
}

TEST(SpeedTests, SpreadIsThatOfASample) {
  const MeanSd found = mean_sd(std::vector<double>{2, 4, 9});
  EXPECT_DOUBLE_EQ(found.mean, 5);
  EXPECT_DOUBLE_EQ(found.sd, std::sqrt((9.0 + 1 + 16) / 2));
  EXPECT_EQ(mean_sd(std::vector<double>{7}).sd, 0);
  EXPECT_EQ(mean_sd({}).mean, 0);
}

// A machine that halves its speed in the second round leaves the ratio as it is.
TEST(SpeedTests, RatiosArePairedByRound) {
  const auto found = ratio_over_rounds(std::vector<double>{20, 10}, std::vector<double>{10, 5});
  EXPECT_DOUBLE_EQ(found->mean, 2);
  EXPECT_DOUBLE_EQ(found->sd, 0);
}

TEST(SpeedTests, ARoundThatOnlyOneHasIsLeftOut) {
  const std::vector<double> three = {3, 6, 100}, two = {1, 3};
  EXPECT_DOUBLE_EQ(ratio_over_rounds(three, two)->mean, 2.5);
  EXPECT_DOUBLE_EQ(ratio_over_rounds(two, three)->mean, (1.0 / 3 + 0.5) / 2);
  EXPECT_FALSE(ratio_over_rounds(three, {}));
}

TEST(SpeedTests, AShortTextIsRepeated) {
  EXPECT_EQ(repeated({1, 2, 3}, 7), (std::vector<int>{1, 2, 3, 1, 2, 3, 1}));
  EXPECT_EQ(repeated({1, 2, 3}, 2), (std::vector<int>{1, 2}));
}

}  // namespace
}  // namespace zipcache::cli
