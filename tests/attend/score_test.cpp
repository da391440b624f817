// Properties 9, 10 and 11 of the method: scores through the probe pass.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <memory>
#include <numeric>

#include "saliency/probes.hpp"
#include "support/block_rig.hpp"
#include "support/random_rows.hpp"

namespace zipcache {
namespace {

using test::BlockRig;

Policy scoring_policy(Norm norm) {
  Policy policy = *parse_policy("zipcache");
  policy.saliency.norm = norm;
  return policy;
}

// A rig of n tokens whose causal softmax rows are those of `logits` [n, n]: key i is the i-th unit
// vector, so the product of query q with it is the query's channel i. One KV head, one query head.
std::unique_ptr<BlockRig> rig_of_logits(const std::vector<double>& logits, int n,
                                        const Policy& policy) {
  const int dim = 64;
  auto rig = std::make_unique<BlockRig>(LayerShape{1, dim, 16}, policy, 128);
  std::vector<float> k(size_t(n * dim)), v(size_t(n * 16)), q(size_t(n * dim));
  for (int i = 0; i < n; ++i) {
    k[size_t(i * dim + i)] = 1;
    for (int j = 0; j <= i; ++j) q[size_t(i * dim + j)] = float(logits[size_t(i * n + j)]);
  }
  rig->append(n, k, v);
  rig->attend(q, n, 1, 0, *runnable_kernels().back());
  return rig;
}

std::unique_ptr<BlockRig> rig_of_logits(const std::vector<double>& logits, int n, Norm norm) {
  return rig_of_logits(logits, n, scoring_policy(norm));
}

std::vector<double> toy_logits() {
  std::vector<double> logits(16);
  const double a[4][4] = {{1}, {.6, .4}, {.5, .2, .3}, {.4, .1, .2, .3}};
  for (int q = 0; q < 4; ++q) {
    for (int i = 0; i <= q; ++i) logits[size_t(q * 4 + i)] = std::log(a[q][i]);
  }
  return logits;
}

void expect_scores(const std::vector<int>& probes, Norm norm, const std::vector<double>& expected,
                   const std::vector<int>& order) {
  const auto made = rig_of_logits(toy_logits(), 4, norm);
  BlockRig& rig = *made;
  rig.score(probes);
  std::vector<float> scores;
  for (int i = 0; i < 4; ++i) {
    scores.push_back(normalized_score(rig.sum(i, 0), rig.probes_seen(i), rig.rows_seen(i), norm));
    // Logs of the given probabilities are rounded to float, exp is right to 3e-7.
    EXPECT_NEAR(scores.back(), expected[size_t(i)], 2e-6);
  }
  std::vector<int> ranked = {0, 1, 2, 3};
  std::sort(ranked.begin(), ranked.end(),
            [&](int a, int b) { return scores[size_t(a)] > scores[size_t(b)]; });
  EXPECT_EQ(ranked, order);
}

TEST(Saliency, ToyExampleWithAllRowsAsProbes) {
  expect_scores({0, 1, 2, 3}, Norm::ProbeNnz, {.625, .7 / 3, .25, .3}, {0, 3, 2, 1});
  expect_scores({0, 1, 2, 3}, Norm::FullCausal, {.625, .7 / 3, .25, .3}, {0, 3, 2, 1});
  expect_scores({0, 1, 2, 3}, Norm::None, {2.5, .7, .5, .3}, {0, 1, 2, 3});
}

TEST(Saliency, ToyExampleWithTwoProbesAndAllThreeNormalisers) {
  expect_scores({1, 3}, Norm::ProbeNnz, {.5, .25, .2, .3}, {0, 3, 1, 2});
  expect_scores({1, 3}, Norm::FullCausal, {.25, .5 / 3, .1, .3}, {3, 0, 1, 2});
  expect_scores({1, 3}, Norm::None, {1, .5, .2, .3}, {0, 1, 3, 2});
}

TEST(Saliency, AProbeThatStandsTwiceCountsTwice) {
  const auto once = rig_of_logits(toy_logits(), 4, Norm::ProbeNnz);
  const auto twice = rig_of_logits(toy_logits(), 4, Norm::ProbeNnz);
  once->score({2});
  twice->score({2, 2});
  for (int i = 0; i < 3; ++i) {
    EXPECT_FLOAT_EQ(twice->sum(i, 0), 2 * once->sum(i, 0));
    EXPECT_EQ(twice->probes_seen(i), 2u);
  }
  EXPECT_EQ(once->probes_seen(3), 0u);
}

// With score=last a row's sum is what the newest probe gave, once it sees the row.
TEST(Saliency, TheNewestRowAloneCountsWhereThePolicySaysSo) {
  Policy policy = *parse_policy("tova");
  const auto made = rig_of_logits(toy_logits(), 4, policy);
  made->score({2});
  made->score({3});
  const float row[] = {.4f, .1f, .2f, .3f};
  for (int i = 0; i < 4; ++i) EXPECT_NEAR(made->sum(i, 0), row[i], 2e-6);
  made->score({1});  // sees tokens 0 and 1 only
  EXPECT_NEAR(made->sum(0, 0), .6, 2e-6);
  EXPECT_NEAR(made->sum(1, 0), .4, 2e-6);
  EXPECT_NEAR(made->sum(2, 0), .2, 2e-6);
}

// With score=max a row's sum is the most that one probe gave with one of its query heads.
TEST(Saliency, TheLargestShareOfOneProbeCountsWhereThePolicySaysSo) {
  const auto made = rig_of_logits(toy_logits(), 4, *parse_policy("zipcache,score=max"));
  made->score({1});
  made->score({2, 3});
  const double largest[] = {.6, .4, .3, .3};
  for (int i = 0; i < 4; ++i) EXPECT_NEAR(made->sum(i, 0), largest[i], 2e-6);
  BlockRig rig({1, 16, 16}, *parse_policy("zipcache,score=max"), 128);
  std::vector<float> keys(32), q(2 * 16);
  keys[16] = 1, q[16] = float(std::log(3.0));  // the second head: 1 to 3; the first: 1 to 1
  rig.append(2, keys, std::vector<float>(32, 0.0f));
  rig.attend(q, 1, 2, 1, *runnable_kernels().front());
  rig.score({0});
  EXPECT_NEAR(rig.sum(0, 0), .5, 1e-5);
  EXPECT_NEAR(rig.sum(1, 0), .75, 1e-5);
}

TEST(Saliency, SquaresAreThoseOfWhatEachProbeGave) {
  const auto made = rig_of_logits(toy_logits(), 4, *parse_policy("roco"));
  made->score({1, 3});
  const double squares[] = {.36 + .16, .16 + .01, .04, .09};
  const double sums[] = {1, .5, .2, .3};
  for (int i = 0; i < 4; ++i) {
    EXPECT_NEAR(made->squares(i, 0), squares[i], 2e-6);
    EXPECT_NEAR(made->sum(i, 0), sums[i], 2e-6);
  }
}

// Two query heads share a KV head: what they give together is one probe's attention.
TEST(Saliency, SquaresTakeTheQueryHeadsOfAGroupTogether) {
  BlockRig rig({1, 16, 16}, *parse_policy("roco"), 128);
  rig.append(2, std::vector<float>(32, 0.0f), std::vector<float>(32, 0.0f));
  rig.attend(std::vector<float>(2 * 2 * 16, 1.0f), 2, 2, 0, *runnable_kernels().front());
  rig.score({0, 1});
  // Keys of zeros: the first row gives token 0 all of both heads, the second a half of each.
  EXPECT_NEAR(rig.squares(0, 0), 4 + 1, 1e-5);
  EXPECT_NEAR(rig.squares(1, 0), 1, 1e-5);
}

TEST(Saliency, IdenticalLogitsGiveHarmonicNumbers) {
  const int n = 60;
  const auto made = rig_of_logits(std::vector<double>(size_t(n * n), 0.5), n, Norm::ProbeNnz);
  BlockRig& rig = *made;
  std::vector<int> all(n);
  std::iota(all.begin(), all.end(), 0);
  rig.score(all);
  double harmonic_n = 0, harmonic_i = 0;
  for (int i = 1; i <= n; ++i) harmonic_n += 1.0 / i;
  for (int i = 0; i < n; ++i) {
    const double expected = harmonic_n - harmonic_i;  // H_n - H_i
    EXPECT_NEAR(rig.sum(i, 0), expected, 1e-5 * expected);
    EXPECT_EQ(rig.probes_seen(i), uint32_t(n - i));
    EXPECT_NEAR(normalized_score(rig.sum(i, 0), rig.probes_seen(i), 0, Norm::ProbeNnz),
                expected / (n - i), 1e-5);
    harmonic_i += 1.0 / (i + 1);
  }
  EXPECT_GE(rig.sum(0, 0), 1.0f);
  EXPECT_NEAR(rig.sum(n - 1, 0), 1.0 / n, 1e-6);
}

TEST(Saliency, TheLastTokenCanBeatTheFirstOnlyWhenNormalised) {
  const int n = 8;
  std::vector<double> logits(size_t(n * n), 0.0);
  for (int q = 1; q < n; ++q) logits[size_t(q * n + q)] = 6.0;  // every row looks at itself
  const auto made = rig_of_logits(logits, n, Norm::ProbeNnz);
  BlockRig& rig = *made;
  std::vector<int> all(n);
  std::iota(all.begin(), all.end(), 0);
  rig.score(all);
  const auto score = [&](int i, Norm norm) {
    return normalized_score(rig.sum(i, 0), rig.probes_seen(i), 0, norm);
  };
  EXPECT_GE(score(0, Norm::None), 1.0f);
  EXPECT_LE(score(n - 1, Norm::None), 1.0f);
  EXPECT_GT(score(n - 1, Norm::ProbeNnz), score(0, Norm::ProbeNnz));
}

TEST(Saliency, ScoresEqualTheOracleAndConserveMass) {
  const int n = 100, dim = 64, group = 3, kv_heads = 2;
  BlockRig rig({kv_heads, dim, dim}, scoring_policy(Norm::FullCausal), 128);
  rig.scale = 0.125f;
  const auto k = test::random_rows(n, kv_heads * dim, 1),
             v = test::random_rows(n, kv_heads * dim, 2);
  const auto q = test::random_rows(n, kv_heads * group * dim, 3, 1.0f);
  rig.append(n, k, v);
  rig.attend(q, n, kv_heads * group, 0, *runnable_kernels().front());
  const std::vector<int> probes = choose_probes(n, Saliency{}, Random(5));
  rig.score(probes);

  test::OracleStep step{n,
                        kv_heads * group,
                        kv_heads,
                        dim,
                        dim,
                        n,
                        test::to_doubles(q),
                        test::to_doubles(k),
                        test::to_doubles(v),
                        std::vector<double>(size_t(n * n)),
                        0.125,
                        0,
                        0,
                        {}};
  for (int row = 0; row < n; ++row) {
    for (int i = row + 1; i < n; ++i) step.mask[size_t(row * n + i)] = test::kHidden;
  }
  const auto expected = test::attention(step);
  for (int head = 0; head < kv_heads; ++head) {
    double mass = 0;
    for (int i = 0; i < n; ++i) {
      double sum = 0;
      uint32_t seen = 0;
      for (const int row : probes) {
        seen += i <= row;
        for (int h = 0; h < group; ++h) {
          sum += expected.weights[size_t((row * kv_heads * group + head * group + h) * n + i)];
        }
      }
      // exp of a float score: scores reach 60, each off by its terms * dim roundings.
      ASSERT_NEAR(rig.sum(i, head), sum, 1e-4 * sum + 1e-7) << i;
      ASSERT_EQ(rig.probes_seen(i), seen);
      ASSERT_EQ(rig.rows_seen(i), uint32_t(n - i));
      const float score = normalized_score(rig.sum(i, head), seen, 0, Norm::ProbeNnz);
      ASSERT_TRUE(score >= 0 && score <= float(group) * 1.0001f);
      mass += double(score) * seen;
    }
    EXPECT_NEAR(mass, double(probes.size()) * group, 1e-4 * double(probes.size()) * group);
  }
  for (int i = 1; i < n; ++i) EXPECT_LE(rig.probes_seen(i), rig.probes_seen(i - 1));
  EXPECT_GE(rig.probes_seen(n - 1), 1u);
}

}  // namespace
}  // namespace zipcache
