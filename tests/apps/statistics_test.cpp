// Divergence, agreement and perplexity against numbers worked out by hand.
#include "statistics.hpp"

#include <gtest/gtest.h>

#include <cmath>

namespace zipcache::cli {
namespace {

std::vector<float> logits_of(const std::vector<double>& probabilities, float shift) {
  std::vector<float> out;
  for (const double p : probabilities) out.push_back(static_cast<float>(std::log(p)) + shift);
  return out;
}

// Logits are 32-bit: their logarithms carry half a unit in the last place of a number near 10.
constexpr double kLogitError = 1e-6;

TEST(Statistics, SoftmaxIgnoresAShiftOfAllLogits) {
  Distribution d;
  softmax(logits_of({0.5, 0.25, 0.25}, 10), d);
  EXPECT_NEAR(d.probability[0], 0.5, kLogitError);
  EXPECT_NEAR(d.log_probability[2], std::log(0.25), kLogitError);
  EXPECT_EQ(d.top, 0u);
}

TEST(Statistics, SoftmaxOfHugeLogitsStaysFinite) {
  Distribution d;
  softmax(std::vector<float>{3e38F, 0, -3e38F}, d);
  EXPECT_EQ(d.probability[0], 1);
  EXPECT_EQ(d.probability[1], 0);
}

TEST(Statistics, ScoreIsTheSumOfPLogPOverQ) {
  Distribution reference;
  softmax(logits_of({0.5, 0.25, 0.25}, 0), reference);
  const TokenScore s = score(reference, logits_of({0.25, 0.5, 0.25}, -7), 1);
  EXPECT_NEAR(s.kld, 0.5 * std::log(2.0) - 0.25 * std::log(2.0), kLogitError);
  EXPECT_NEAR(s.surprise, std::log(2.0), kLogitError);
  EXPECT_FALSE(s.same_top);
}

TEST(Statistics, EqualLogitsDivergeByZero) {
  const std::vector<float> logits = {1, 5, -3, 2};
  Distribution reference;
  softmax(logits, reference);
  const TokenScore s = score(reference, logits, 0);
  EXPECT_NEAR(s.kld, 0, 1e-15);
  EXPECT_TRUE(s.same_top);
}

TEST(Statistics, ATokenThatBothExcludeAddsNothing) {
  const float out = -std::numeric_limits<float>::infinity();
  Distribution reference;
  softmax(std::vector<float>{0, 0, out}, reference);
  EXPECT_NEAR(score(reference, std::vector<float>{0, 0, out}, 0).kld, 0, 1e-15);
}

TEST(Statistics, PercentileInterpolatesLikeLlamaPerplexity) {
  const std::vector<double> sorted = {0, 10, 20, 30};
  EXPECT_DOUBLE_EQ(percentile(sorted, 0), 0);
  EXPECT_DOUBLE_EQ(percentile(sorted, 0.5), 15);
  EXPECT_DOUBLE_EQ(percentile(sorted, 0.999), 29.97);
  EXPECT_DOUBLE_EQ(percentile(sorted, 1), 30);
  EXPECT_EQ(percentile({}, 0.5), 0);
}

TEST(Statistics, StandardErrorIsTheSampleDeviationOverRootN) {
  // 1, 2, 3, 4: sample variance 5/3, over n = 4.
  EXPECT_NEAR(standard_error(10, 30, 4), std::sqrt(5.0 / 3 / 4), 1e-12);
  EXPECT_EQ(standard_error(5, 25, 1), 0);
}

TEST(Statistics, SummaryAgreesWithItsTokens) {
  Divergence divergence;
  divergence.add({0.1, std::log(2.0), true});
  divergence.add({0.3, std::log(8.0), false});
  const Summary s = divergence.summary();
  EXPECT_EQ(s.tokens, 2u);
  EXPECT_NEAR(s.ppl, 4, 1e-12);
  EXPECT_NEAR(s.kld_mean, 0.2, 1e-12);
  EXPECT_NEAR(s.kld_mean_se, 0.1, 1e-12);
  EXPECT_NEAR(s.kld_p999, 0.2998, 1e-12);
  EXPECT_EQ(s.kld_max, 0.3);
  EXPECT_EQ(s.same_top, 0.5);
  EXPECT_EQ(s.same_top_se, 0.5);
}

TEST(Statistics, SummaryOfNothingIsZero) { EXPECT_EQ(Divergence().summary().ppl, 0); }

}  // namespace
}  // namespace zipcache::cli
