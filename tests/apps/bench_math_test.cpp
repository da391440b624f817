// The pure parts of `zipcache bench`.
#include "bench_math.hpp"

#include <gtest/gtest.h>

#include <cmath>

namespace zipcache::cli {
namespace {

TEST(BenchMath, SpreadIsTheMedianTheLeastAndTheMiddleHalf) {
  const Spread spread = spread_of({5, 1, 3, 2, 4});
  EXPECT_EQ(spread.median, 3);
  EXPECT_EQ(spread.least, 1);
  EXPECT_EQ(spread.iqr, 2);
  EXPECT_EQ(spread_of({}).median, 0);
}

TEST(BenchMath, ExactAttentionOfEqualKeysIsTheMeanOfValues) {
  const std::vector<float> q = {1, 2, -1, 3}, keys = {1, 1, 1, 1, 1, 1},
                           values = {1, 0, 2, 0, 6, 3};
  const auto out = exact_attention(q, keys, values, 2, 1, 2, 0.5f);
  EXPECT_NEAR(out[0], 3, 1e-12);
  EXPECT_NEAR(out[1], 1, 1e-12);
  EXPECT_NEAR(out[2], 3, 1e-12);
}

TEST(BenchMath, ExactAttentionWeighsByTheExponentOfTheProduct) {
  const auto out = exact_attention({2}, {0, 1}, {0, 1}, 1, 1, 1, 0.5f);
  EXPECT_NEAR(out[0], std::exp(1.0) / (1 + std::exp(1.0)), 1e-12);
}

TEST(BenchMath, ErrorIsThatOfTheWorstHead) {
  const std::vector<double> exact = {3, 4, 1, 0};
  EXPECT_NEAR(worst_head_error(std::vector<float>{3, 4, 1, 0.5f}, exact, 2), 0.5, 1e-12);
  EXPECT_NEAR(worst_head_error(std::vector<float>{3, 4.5f, 1, 0}, exact, 2), 0.1, 1e-12);
}

TEST(BenchMath, QueriesGiveLogitsOfStandardDeviationTwo) {
  const auto keys = synthetic_rows(512, 2, 64, true, 1);
  const auto q = synthetic_queries(keys, 4, 2, 64, 0.125f, 2);
  double squares = 0;
  for (size_t t = 0; t < 512; ++t) {
    double dot = 0;
    for (size_t c = 0; c < 64; ++c) dot += double(q[3 * 64 + c]) * keys[t * 128 + 64 + c];
    squares += dot * dot / 64;
  }
  EXPECT_NEAR(std::sqrt(squares / 512), 2.0, 1e-3);
}

TEST(BenchMath, KeysHaveLoudChannelsAndValuesHaveNot) {
  const auto width = [](const std::vector<float>& rows, size_t channel) {
    double squares = 0;
    for (size_t t = 0; t < 256; ++t)
      squares += double(rows[t * 64 + channel]) * rows[t * 64 + channel];
    return std::sqrt(squares / 256);
  };
  const auto keys = synthetic_rows(256, 1, 64, true, 1),
             values = synthetic_rows(256, 1, 64, false, 1);
  EXPECT_GT(width(keys, 5) / width(keys, 6), 2.0);
  EXPECT_NEAR(width(values, 5), 1.0, 0.2);
}

TEST(BenchMath, BandwidthIsAPositiveNumberForAnyNumberOfThreads) {
  const std::vector<uint64_t> buffer(1 << 20, 1);
  for (const int threads : {1, 3}) EXPECT_GT(read_bandwidth(buffer, threads), 0.01);
}

}  // namespace
}  // namespace zipcache::cli
