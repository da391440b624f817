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

TEST(Statistics, PerplexityRatioIsOverTheSameTokens) {
  Distribution reference;
  softmax(logits_of({0.5, 0.25, 0.25}, 3), reference);
  const std::vector<float> logits = logits_of({0.25, 0.5, 0.25}, 0);
  EXPECT_NEAR(score(reference, logits, 0).excess, std::log(2.0), kLogitError);
  EXPECT_NEAR(score(reference, logits, 1).excess, -std::log(2.0), kLogitError);
  Divergence divergence;
  divergence.add({0, 5, true, std::log(2.0)});
  divergence.add({0, 1, true, std::log(8.0)});
  const Summary s = divergence.summary();
  EXPECT_NEAR(s.ppl_ratio, 4, 1e-12);
  // Two logarithms that lie log(4) apart: their standard error is half of that.
  EXPECT_NEAR(s.ppl_ratio_se, 4 * std::log(2.0), 1e-12);
}

TEST(DivergenceByDepth, TokensGoToTheBinOfTheirPosition) {
  DivergenceByDepth bins(4);
  bins.add(3, {0.5, 0, true});
  bins.add(4, {0.1, 0, true});
  bins.add(7, {0.3, 0, false});
  bins.add(12, {1, 0, true});
  const std::vector<DepthSummary> out = bins.summary();
  ASSERT_EQ(out.size(), 4u);
  EXPECT_EQ(out[1].begin, 4);
  EXPECT_EQ(out[1].end, 8);
  EXPECT_EQ(out[0].summary.tokens, 1u);
  EXPECT_EQ(out[1].summary.tokens, 2u);
  EXPECT_NEAR(out[1].summary.kld_mean, 0.2, 1e-12);
  EXPECT_EQ(out[2].summary.tokens, 0u);
  EXPECT_EQ(out[3].summary.kld_max, 1);
}

// The figures are those of the table in Newcombe (1998), method 3.
TEST(Wilson, GivesThePublishedIntervals) {
  EXPECT_NEAR(wilson(81, 263).low, 0.2553, 5e-5);
  EXPECT_NEAR(wilson(81, 263).high, 0.3662, 5e-5);
  EXPECT_NEAR(wilson(15, 148).low, 0.0624, 5e-5);
  EXPECT_NEAR(wilson(15, 148).high, 0.1605, 5e-5);
  EXPECT_NEAR(wilson(1, 29).low, 0.0061, 5e-5);
  EXPECT_NEAR(wilson(1, 29).high, 0.1718, 5e-5);
}

TEST(Wilson, StaysInsideZeroToOne) {
  EXPECT_EQ(wilson(0, 20).low, 0);
  EXPECT_NEAR(wilson(0, 20).high, 0.1611, 5e-5);
  EXPECT_NEAR(wilson(20, 20).low, 1 - 0.1611, 5e-5);
  EXPECT_EQ(wilson(20, 20).high, 1);
  EXPECT_EQ(wilson(0, 0).low, 0);
  EXPECT_EQ(wilson(0, 0).high, 1);
}

TEST(Statistics, AMeanHasItsStandardError) {
  const std::vector<double> values = {1, 2, 3, 4};
  EXPECT_EQ(mean_of(values).value, 2.5);
  // Variance of the sample 5/3, over 4 values.
  EXPECT_NEAR(mean_of(values).error, std::sqrt(5.0 / 3 / 4), 1e-12);
  EXPECT_EQ(mean_of({}).value, 0);
}

TEST(Statistics, LogProbabilityOfLargeLogits) {
  const std::vector<float> logits = {1000, 1000 + std::log(3.0f), -1000};
  EXPECT_NEAR(log_probability_of(logits, 1), std::log(0.75), 1e-4);
  EXPECT_NEAR(log_probability_of(logits, 2), -2000 - std::log(4.0), 1e-3);
}

TEST(Statistics, SummaryOfNothingIsZero) { EXPECT_EQ(Divergence().summary().ppl, 0); }

}  // namespace
}  // namespace zipcache::cli
