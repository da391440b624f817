// Properties 1, 2 and 6 of the method: error bound, the worked example, outliers.
#include "codec/quantize.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "support/oracle.hpp"
#include "support/random_rows.hpp"
#include "support/tiles.hpp"

namespace zipcache {
namespace {

using test::code_tile;
using test::CodedTile;

struct Scheme {
  Axis axis;
  int bits;
};

std::string scheme_name(const testing::TestParamInfo<Scheme>& info) {
  const char* const names[] = {"Channel", "Token", "Group", "ChannelGroup", "Cst"};
  return std::string(names[int(info.param.axis)]) + std::to_string(info.param.bits);
}

std::vector<Scheme> all_schemes() {
  std::vector<Scheme> schemes;
  for (const Axis axis : {Axis::Channel, Axis::Token, Axis::Group, Axis::ChannelGroup, Axis::Cst}) {
    for (const int bits : {2, 3, 4, 8}) schemes.push_back({axis, bits});
  }
  return schemes;
}

class Quantize : public testing::TestWithParam<Scheme> {};
INSTANTIATE_TEST_SUITE_P(Schemes, Quantize, testing::ValuesIn(all_schemes()), scheme_name);

// Step and floor are rounded to 16 bits (relative 2^-11, absolute 2^-25 below the normal range), so
// the top level is off by at most L * step * 2^-11 and the floor by |floor| * 2^-11; a value just
// outside the moved grid clamps to its end. The factor of a channel scales everything; float
// rounding of the division and of the decoder adds 4 roundings of the largest value.
double allowed_error(const CodedTile& tile, int t, int c) {
  const double top = top_code(tile.shape.bits), step = tile.step(t, c),
               floor = std::fabs(tile.floor(t, c));
  const double params = (top * step + floor) * 0x1p-11 + top * 0x1p-25;
  return tile.factor(c) * (step / 2 + params + 4 * 0x1p-24 * (floor + top * step));
}

TEST_P(Quantize, ErrorStaysWithinTheStatedBound) {
  const auto [axis, bits] = GetParam();
  for (const float scale : {1.0f, 300.0f, 0x1p-12f}) {
    const int n = 40, dim = 64;
    std::vector<float> x = test::random_rows(n, dim, uint64_t(bits));
    for (float& value : x) value *= scale;
    const CodedTile tile = code_tile(x, n, dim, bits, axis);
    for (int t = 0; t < n; ++t) {
      for (int c = 0; c < dim; ++c) {
        const size_t i = size_t(t * dim + c);
        ASSERT_LE(std::fabs(tile.values[i] - x[i]), allowed_error(tile, t, c)) << t << " " << c;
      }
    }
  }
}

TEST_P(Quantize, CodesAreThoseOfTheOracle) {
  const auto [axis, bits] = GetParam();
  const int n = 33, dim = 96;
  const std::vector<float> x = test::random_rows(n, dim, 77 + uint64_t(bits));
  const CodedTile tile = code_tile(x, n, dim, bits, axis);
  const auto expected = test::quantize_tile(test::to_doubles(x), n, dim, bits, axis, 32, true);
  for (size_t i = 0; i < x.size(); ++i) {
    if (tile.codes[i] == expected.codes[i]) {
      ASSERT_NEAR(tile.values[i], expected.values[i], 1e-5 * (1 + std::fabs(x[i]))) << i;
      continue;
    }
    // Float and double may disagree on a value that lies half way between two levels, or on
    // parameters that lie half way between two 16-bit numbers; then both answers are equally near,
    // to 2^-10.
    const double ours = std::fabs(tile.values[i] - x[i]),
                 theirs = std::fabs(expected.values[i] - x[i]);
    const double step = tile.step(int(i) / dim, int(i) % dim) * tile.factor(int(i) % dim);
    ASSERT_NEAR(ours, theirs, 2e-3 * step * top_code(bits)) << i;
    ASSERT_LE(std::abs(tile.codes[i] - expected.codes[i]), 1) << i;
  }
}

TEST_P(Quantize, SmallestAndLargestOfEachSetComeBack) {
  const auto [axis, bits] = GetParam();
  if (axis == Axis::Cst) return;  // the extremes of a token are those after division
  const int n = 40, dim = 64;
  const std::vector<float> x = test::random_rows(n, dim, 3);
  const CodedTile tile = code_tile(x, n, dim, bits, axis);
  const int width = axis == Axis::Group ? 32 : dim;
  // The last group of 32 tokens is short.
  const bool per_channel = axis == Axis::Channel || axis == Axis::ChannelGroup;
  const int run = axis == Axis::ChannelGroup ? 32 : n;
  const int sets = per_channel ? (n + run - 1) / run * dim : n * dim / width;
  for (int s = 0; s < sets; ++s) {
    const int first = s / dim * run;
    size_t low = per_channel ? size_t(first * dim + s % dim) : size_t(s * width), high = low;
    for (int i = 0; i < (per_channel ? std::min(run, n - first) : width); ++i) {
      const size_t at = per_channel ? size_t((first + i) * dim + s % dim) : size_t(s * width + i);
      if (x[at] < x[low]) low = at;
      if (x[at] > x[high]) high = at;
    }
    EXPECT_EQ(tile.codes[low], 0);
    EXPECT_EQ(tile.codes[high], top_code(bits));
    const double range = x[high] - x[low];
    EXPECT_NEAR(tile.values[low], x[low], std::fabs(x[low]) * 0x1p-11 + 1e-6);
    EXPECT_NEAR(tile.values[high], x[high], (std::fabs(x[low]) + range) * 0x1p-11 + 1e-6);
  }
}

TEST(Quantize, StatedBoundCoversBothFitsThatKeepTheRange) {
  for (const Fit fit : {Fit::Endpoint, Fit::Midpoint}) {
    for (const int bits : {2, 3, 4, 8}) {
      for (uint64_t seed = 0; seed < 50; ++seed) {
        const std::vector<float> x = test::random_rows(1, 64, seed, 30.0f);
        const auto [lo, hi] = std::minmax_element(x.begin(), x.end());
        const SetFit chosen = fit_set(x.data(), 64, bits, fit);
        const float bound = error_bound(*lo, *hi, bits, fit);
        for (const float value : x) {
          ASSERT_LE(
              std::fabs(decode(code_of(value, chosen, bits), chosen.step, chosen.floor) - value),
              bound);
        }
      }
    }
  }
}

TEST(Quantize, UnbiasedFitHasRegressionSlopeOneAndKeepsTheMean) {
  for (const int bits : {2, 3, 4, 8}) {
    const std::vector<float> x = test::random_rows(1, 256, 21, 1.0f);
    const SetFit fit = fit_set(x.data(), 256, bits, Fit::Unbiased);
    double mean = 0, mean_out = 0, cov = 0, variance = 0;
    std::vector<double> out;
    for (const float value : x)
      out.push_back(decode(code_of(value, fit, bits), fit.step, fit.floor));
    for (size_t i = 0; i < x.size(); ++i) mean += x[i] / 256.0, mean_out += out[i] / 256.0;
    for (size_t i = 0; i < x.size(); ++i) {
      cov += (x[i] - mean) * (out[i] - mean_out);
      variance += (x[i] - mean) * (x[i] - mean);
    }
    // Only the rounding of step and floor to 16 bits stands between this and equality.
    EXPECT_NEAR(cov / variance, 1.0, 0x1p-10) << bits;
    EXPECT_NEAR(mean_out, mean,
                (std::fabs(to_float(fit.floor)) + top_code(bits) * to_float(fit.step)) * 0x1p-10);
  }
}

// Of the grids that the search tries, no other has less error: 5 % of the range apart, as far as
// half of it (2 bits), in double precision.
TEST(Quantize, LeastSquaresFitHasTheLeastErrorOfItsRanges) {
  for (const int bits : {2, 3, 4, 8}) {
    const int n_clips = bits == 2 ? 12 : bits == 3 ? 8 : bits == 4 ? 5 : 0;
    for (uint64_t seed = 0; seed < 40; ++seed) {
      const std::vector<float> x = test::random_rows(1, 128, seed);
      const auto [lo, hi] = std::minmax_element(x.begin(), x.end());
      const auto error_on = [&](double step, double floor) {
        double sum = 0;
        for (const float value : x) {
          const double code = std::nearbyint((value - floor) / step);
          const double back = floor + step * std::clamp(code, 0.0, double(top_code(bits)));
          sum += (value - back) * (value - back);
        }
        return sum;
      };
      double least = INFINITY;
      for (int clip = 0; clip <= n_clips; ++clip) {
        const double span = (double(*hi) - *lo) * (1 - 0.05 * clip);
        const double floor = 0.5 * (double(*hi) + *lo) - span / 2;
        least = std::min(least, error_on(span / top_code(bits), floor));
      }
      const SetFit fit = fit_set(x.data(), 128, bits, Fit::Mse);
      EXPECT_EQ(to_float(fit.step), fit.code_step);
      EXPECT_EQ(to_float(fit.floor), fit.code_floor);
      // Rounding step and floor to 16 bits moves every level by up to 2^-10 of the largest value;
      // the error is quadratic around its least.
      const double moved = 128 * std::pow(std::max(std::fabs(*lo), std::fabs(*hi)) * 0x1p-10, 2);
      const double allowed = least + 2 * std::sqrt(least * moved) + moved;
      ASSERT_LE(error_on(fit.code_step, fit.code_floor), allowed) << bits << " " << seed;
    }
  }
}

TEST(Quantize, ConstantSetsHaveNoStepAndDecodeToTheirValue) {
  for (const Fit fit : {Fit::Endpoint, Fit::Midpoint, Fit::Unbiased, Fit::Mse}) {
    for (const float value : {0.0f, -3.5f, 65504.0f, 0x1p-24f}) {
      const std::vector<float> x(5, value);
      const SetFit chosen = fit_set(x.data(), 5, 2, fit);
      EXPECT_EQ(chosen.step, 0);
      EXPECT_EQ(code_of(value, chosen, 2), 0);
      EXPECT_EQ(decode(0, chosen.step, chosen.floor), value);
    }
  }
}

TEST(Quantize, ExtremeRangesStayFinite) {
  for (const Fit fit : {Fit::Endpoint, Fit::Midpoint, Fit::Unbiased, Fit::Mse}) {
    for (const int bits : {2, 4, 8}) {
      for (const float size : {65504.0f, 0x1p-24f, 0x1p-20f}) {
        const std::vector<float> x = {-size, size, 0.0f, size};
        const SetFit chosen = fit_set(x.data(), 4, bits, fit);
        for (const float value : x) {
          const float back = decode(code_of(value, chosen, bits), chosen.step, chosen.floor);
          ASSERT_TRUE(std::isfinite(back)) << int(fit) << " " << bits << " " << size;
          // Steps below the 16-bit range are rounded to multiples of 2^-24, a level at a time.
          ASSERT_LE(std::fabs(back - value), 1.5f * size + float(top_code(bits)) * 0x1p-24f);
        }
      }
    }
  }
}

// The worked example of the method: three rows of four channels at 2 bits, padded to eight channels
// with copies, which changes no range.
const std::vector<float> kExample = {1, -2, 64, .25f, 1,  -2, 64,  .25f, 4,  1, 16,  -1,
                                     4, 1,  16, -1,   -2, 4,  -36, .5f,  -2, 4, -36, .5f};

std::vector<int> first_four(const std::vector<uint8_t>& codes) {
  std::vector<int> out;
  for (size_t i = 0; i < codes.size(); ++i) {
    if (i % 8 < 4) out.push_back(codes[i]);
  }
  return out;
}

TEST(Quantize, ChannelSeparableExampleGivesThePublishedCodes) {
  const CodedTile tile = code_tile(kExample, 3, 8, 2, Axis::Cst);
  for (int c = 0; c < 4; ++c)
    EXPECT_EQ(tile.factor(c), std::vector<float>({2, 2, 8, 1})[size_t(c)]);
  EXPECT_EQ(first_four(tile.codes), (std::vector<int>{0, 0, 3, 0, 3, 2, 3, 0, 2, 3, 0, 2}));
  const std::vector<float> expected = {-2, -2, 64, -1, 4, 2, 16, -1, -1 / 3.0f, 4, -36, -1 / 6.0f};
  for (size_t i = 0; i < 12; ++i) {
    // Rows 0 and 1 are exact in 16 bits; the step 13/6 of row 2 is off by 6.6e-4 a level, three
    // levels at most, before the channel's factor.
    EXPECT_NEAR(tile.values[i / 4 * 8 + i % 4], expected[i],
                i < 8 ? 1e-6 : 2e-3 * tile.factor(int(i % 4)))
        << i;
  }
}

TEST(Quantize, ExampleTokenwiseAndChannelwise) {
  const CodedTile tokenwise = code_tile(kExample, 3, 8, 2, Axis::Token);
  const std::vector<float> expected = {-2, -2, 64, -2, 14 / 3.0f, -1, 16, -1, 4, 4, -36, 4};
  for (size_t i = 0; i < 12; ++i) {
    EXPECT_NEAR(tokenwise.values[i / 4 * 8 + i % 4], expected[i], 64 * 0x1p-10) << i;
  }
  const CodedTile channelwise = code_tile(kExample, 3, 8, 2, Axis::Channel);
  const std::vector<int> columns = {2, 3, 0, 0, 2, 3, 3, 2, 0, 2, 0, 3};
  for (size_t c = 0; c < 4; ++c) {
    for (size_t t = 0; t < 3; ++t)
      EXPECT_EQ(channelwise.codes[t * 8 + c], columns[c * 3 + t]) << c << t;
  }
}

TEST(Quantize, DeadChannelsGetFactorOne) {
  std::vector<float> x = test::random_rows(4, 16, 1);
  for (size_t t = 0; t < 4; ++t) x[t * 16 + 3] = 0;
  const CodedTile tile = code_tile(x, 4, 16, 4, Axis::Cst);
  EXPECT_EQ(tile.factor(3), 1.0f);
  for (const float value : tile.values) EXPECT_TRUE(std::isfinite(value));
}

double error_beside_channel(const std::vector<float>& x, const std::vector<float>& values, int dim,
                            int loud) {
  double sum = 0;
  for (size_t i = 0; i < x.size(); ++i) {
    if (int(i % size_t(dim)) != loud) sum += std::pow(x[i] - values[i], 2);
  }
  return sum / double(x.size());
}

TEST(Quantize, ChannelSeparationProtectsChannelsBesideAnOutlier) {
  const int n = 64, dim = 64, loud = 17;
  std::vector<float> x = test::random_rows(n, dim, 8, 1.0f);
  const auto calm = code_tile(x, n, dim, 4, Axis::Channel);
  for (int t = 0; t < n; ++t) x[size_t(t * dim + loud)] *= 50;
  const double token =
      error_beside_channel(x, code_tile(x, n, dim, 4, Axis::Token).values, dim, loud);
  const double cst = error_beside_channel(x, code_tile(x, n, dim, 4, Axis::Cst).values, dim, loud);
  // The step shrinks from about 50 s to sqrt(50) s, the squared error by about 50; a tenth leaves
  // room.
  EXPECT_LT(cst, token / 10);
  const auto channel = code_tile(x, n, dim, 4, Axis::Channel);
  for (size_t i = 0; i < x.size(); ++i) {
    if (int(i % size_t(dim)) == loud) continue;
    EXPECT_EQ(channel.codes[i], calm.codes[i]);
  }
}

}  // namespace
}  // namespace zipcache
