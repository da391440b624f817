#include "saliency/probes.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <set>

namespace zipcache {
namespace {

TEST(Probes, CountsAreCeilOfTheNewestAndFloorOfTheRandomShare) {
  const Saliency saliency;
  for (int n = 1; n <= 1000; ++n) {
    const auto rows = choose_probes(n, saliency, Random(1, uint64_t(n)));
    const int recent = (n + 19) / 20, random = n / 20;
    ASSERT_EQ(rows.size(), size_t(recent + random)) << n;
    ASSERT_TRUE(std::is_sorted(rows.begin(), rows.end()));
    ASSERT_EQ(std::set<int>(rows.begin(), rows.end()).size(), rows.size())
        << "a row drawn twice at " << n;
    for (int i = 0; i < recent; ++i) ASSERT_EQ(rows[rows.size() - 1 - size_t(i)], n - 1 - i);
    for (int i = 0; i < random; ++i)
      ASSERT_TRUE(rows[size_t(i)] >= 0 && rows[size_t(i)] < n - recent);
  }
  EXPECT_EQ(choose_probes(840, saliency, Random(1)).size(), 84u);
  EXPECT_EQ(choose_probes(512, saliency, Random(1)).size(), 51u);
  EXPECT_EQ(choose_probes(19, saliency, Random(1)), std::vector<int>{18});
}

TEST(Probes, DependOnTheirKeyOnly) {
  const Saliency saliency;
  EXPECT_EQ(choose_probes(512, saliency, Random(1, 2, 3, 4)),
            choose_probes(512, saliency, Random(1, 2, 3, 4)));
  EXPECT_NE(choose_probes(512, saliency, Random(1, 2, 3, 4)),
            choose_probes(512, saliency, Random(1, 2, 3, 5)));
  EXPECT_NE(choose_probes(512, saliency, Random(1, 2, 3, 4)),
            choose_probes(512, saliency, Random(2, 2, 3, 4)));
}

TEST(Probes, DrawsWithReplacementMayRepeat) {
  Saliency saliency;
  saliency.replacement = true;
  int repeats = 0;
  for (uint64_t seed = 0; seed < 50; ++seed) {
    const auto rows = choose_probes(840, saliency, Random(seed));
    ASSERT_EQ(rows.size(), 84u);
    ASSERT_TRUE(std::is_sorted(rows.begin(), rows.end()));
    repeats += int(84 - std::set<int>(rows.begin(), rows.end()).size());
  }
  // Of 42 draws from 798 about 42 * 41 / 2 / 798 = 1.08 repeat; 50 rounds 54, deviation about 7.
  EXPECT_NEAR(repeats, 54, 45);
  EXPECT_GT(repeats, 0);
}

TEST(Probes, EveryRowIsAProbeWhenTheSharesSayAll) {
  Saliency saliency;
  saliency.recent_permille = 1000;
  saliency.random_permille = 0;
  EXPECT_EQ(choose_probes(37, saliency, Random(1)).size(), 37u);
  saliency.recent_permille = 0;
  saliency.random_permille = 1000;
  EXPECT_EQ(choose_probes(37, saliency, Random(1)).size(), 37u);
}

TEST(Probes, DecodeStepsOfABlockHaveSevenNewestAndSixRandomRows) {
  const auto rows = choose_decode_probes(Saliency{}, Random(3));
  EXPECT_EQ(rows.count(), 13u);
  for (int i = 121; i < 128; ++i) EXPECT_TRUE(rows.test(size_t(i)));
  EXPECT_EQ(rows, choose_decode_probes(Saliency{}, Random(3)));
  Saliency last;
  last.decode = DecodeProbes::Last;
  EXPECT_EQ(choose_decode_probes(last, Random(3)).count(), 1u);
  EXPECT_TRUE(choose_decode_probes(last, Random(3)).test(127));
}

TEST(Pool, KeepsLengthAndTakesTheNeighboursThatThereAre) {
  const std::vector<float> scores = {6, 0, 3, 9, 12};
  EXPECT_EQ(pooled_scores(scores, Pool::Average, 1), scores);
  EXPECT_EQ(pooled_scores(scores, Pool::Average, 3), (std::vector<float>{3, 3, 4, 8, 10.5f}));
  EXPECT_EQ(pooled_scores(scores, Pool::Max, 3), (std::vector<float>{6, 6, 9, 12, 12}));
  EXPECT_EQ(pooled_scores(scores, Pool::Max, 31), std::vector<float>(5, 12));
  EXPECT_TRUE(pooled_scores({}, Pool::Max, 5).empty());
}

TEST(Pool, TokensWithoutAScoreStayOutOfIt) {
  const std::vector<float> pooled = pooled_scores({2, INFINITY, 4, 6}, Pool::Average, 3);
  EXPECT_EQ(pooled, (std::vector<float>{2, INFINITY, 5, 5}));
  EXPECT_EQ(pooled_scores({2, INFINITY, 4}, Pool::Max, 3), (std::vector<float>{2, INFINITY, 4}));
}

TEST(Score, TheDeviationIsThatOfWhatEachProbeGave) {
  // Probes gave .1, .3 and .8: mean .4, variance (.09 + .01 + .16) / 3.
  EXPECT_NEAR(score_deviation(1.2f, .74f, 3), std::sqrt(.26 / 3), 1e-6);
  EXPECT_EQ(score_deviation(.5f, .25f, 1), 0);
  EXPECT_EQ(score_deviation(0, 0, 0), 0);
}

TEST(Score, UncertainTokensAreKeptWhateverTheirScore) {
  const std::vector<float> scores = {.1f, .5f, .3f, .2f}, deviations = {.9f, .1f, .2f, .3f};
  EXPECT_EQ(keep_uncertain(scores, deviations, 0), scores);
  EXPECT_EQ(keep_uncertain(scores, deviations, 2),
            (std::vector<float>{INFINITY, .5f, .3f, INFINITY}));
  // Two are kept: the uncertain first token, then the best of the others.
  EXPECT_EQ(allocate(keep_uncertain(scores, deviations, 1), std::array{2}),
            (std::vector<uint8_t>{0, 0, 1, 1}));
}

TEST(Score, DivisorsAreProbesAllRowsOrNothing) {
  EXPECT_FLOAT_EQ(normalized_score(0.5f, 2, 4, Norm::ProbeNnz), 0.25f);
  EXPECT_FLOAT_EQ(normalized_score(0.5f, 2, 4, Norm::FullCausal), 0.125f);
  EXPECT_FLOAT_EQ(normalized_score(0.5f, 2, 4, Norm::None), 0.5f);
  for (const Norm norm : {Norm::ProbeNnz, Norm::FullCausal, Norm::None}) {
    EXPECT_EQ(normalized_score(0, 0, 9, norm), INFINITY);
  }
}

}  // namespace
}  // namespace zipcache
