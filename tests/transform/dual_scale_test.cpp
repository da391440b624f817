#include "transform/dual_scale.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "support/random_rows.hpp"

namespace zipcache {
namespace {

constexpr int kTokens = 128, kDim = 64;

std::vector<double> scaled(const std::vector<float>& x, const DualScale& scale) {
  std::vector<double> y(x.begin(), x.end());
  for (size_t i = 0; i < y.size(); ++i)
    y[i] /= double(scale.channels[i % kDim]) * scale.tokens[i / kDim];
  return y;
}

// Standard deviation of every `stride`-th of n numbers.
double spread(const double* y, int n, int stride) {
  double mean = 0, variance = 0;
  for (int i = 0; i < n; ++i) mean += y[i * stride] / n;
  for (int i = 0; i < n; ++i) variance += (y[i * stride] - mean) * (y[i * stride] - mean) / n;
  return std::sqrt(variance);
}

// Rows whose tokens and channels differ in size by factors of up to 64.
std::vector<float> uneven_rows() {
  std::vector<float> x = test::random_rows(kTokens, kDim, 1);
  for (size_t i = 0; i < x.size(); ++i)
    x[i] *= std::exp2(float(i % kDim % 7)) * std::exp2(-float(i / kDim % 5));
  return x;
}

TEST(DualScale, EveryChannelAndTokenComesToASpreadOfOne) {
  const std::vector<float> x = uneven_rows();
  const auto y = scaled(x, dual_scale(x.data(), kTokens, kDim, 16));
  for (int c = 0; c < kDim; ++c) EXPECT_NEAR(spread(&y[size_t(c)], kTokens, kDim), 1, 0.01) << c;
  for (int t = 0; t < kTokens; ++t) EXPECT_NEAR(spread(&y[size_t(t * kDim)], kDim, 1), 1, 0.01);
}

TEST(DualScale, WithoutARoundNothingIsScaled) {
  const std::vector<float> x = uneven_rows();
  const DualScale scale = dual_scale(x.data(), kTokens, kDim, 0);
  EXPECT_EQ(scale.channels, std::vector<float>(kDim, 1.0f));
  EXPECT_EQ(scale.tokens, std::vector<float>(kTokens, 1.0f));
}

TEST(DualScale, AChannelOrATokenWithoutSpreadKeepsItsFactor) {
  std::vector<float> x = uneven_rows();
  for (int t = 0; t < kTokens; ++t) x[size_t(t * kDim + 5)] = 0, x[size_t(t * kDim + 9)] = 1000;
  const DualScale scale = dual_scale(x.data(), kTokens, kDim, 1);
  EXPECT_EQ(scale.channels[5], 1.0f);
  EXPECT_EQ(scale.channels[9], 1.0f);
  for (const float value : scaled(x, dual_scale(x.data(), kTokens, kDim, 16)))
    ASSERT_TRUE(std::isfinite(value));
  const std::vector<float> zeros(size_t(kTokens * kDim), 0.0f);
  EXPECT_EQ(dual_scale(zeros.data(), kTokens, kDim, 8).tokens, std::vector<float>(kTokens, 1.0f));
}

TEST(DualScale, AChannelTimesFourHasFourTimesTheFactorAndLeavesTheOthersAlone) {
  std::vector<float> x = uneven_rows();
  const DualScale before = dual_scale(x.data(), kTokens, kDim, 8);
  for (int t = 0; t < kTokens; ++t) x[size_t(t * kDim + 3)] *= 4;
  const DualScale after = dual_scale(x.data(), kTokens, kDim, 8);
  EXPECT_EQ(after.tokens, before.tokens);
  for (int c = 0; c < kDim; ++c)
    EXPECT_EQ(after.channels[size_t(c)], before.channels[size_t(c)] * (c == 3 ? 4 : 1));
}

}  // namespace
}  // namespace zipcache
