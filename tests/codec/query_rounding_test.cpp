#include "codec/query_rounding.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <random>

#include "codec/tile.hpp"

namespace zipcache {
namespace {

// Query rows [n, dim] that look mostly along a few directions, and key rows that do not care.
std::vector<float> narrow_rows(int n, int dim, uint32_t seed) {
  std::mt19937 engine(seed);
  std::normal_distribution<float> normal;
  const int n_directions = 6;
  std::mt19937 fixed(7);
  std::vector<float> directions(size_t(n_directions * dim));
  for (float& x : directions) x = normal(fixed);
  normal.reset();
  std::vector<float> rows(size_t(n * dim));
  for (int r = 0; r < n; ++r) {
    for (int k = 0; k < n_directions; ++k) {
      const float weight = normal(engine) * 3;
      for (int c = 0; c < dim; ++c)
        rows[size_t(r * dim + c)] += weight * directions[size_t(k * dim + c)];
    }
    for (int c = 0; c < dim; ++c) rows[size_t(r * dim + c)] += normal(engine);
  }
  return rows;
}

std::vector<float> plain_rows(int n, int dim, uint32_t seed) {
  std::mt19937 engine(seed);
  std::normal_distribution<float> normal;
  std::vector<float> rows(size_t(n * dim));
  for (float& x : rows) x = normal(engine);
  return rows;
}

std::vector<float> decoded(const std::vector<float>& x, int dim, const std::vector<SetFit>& fits,
                           int bits) {
  std::vector<float> out(x.size());
  for (size_t i = 0; i < x.size(); ++i) {
    const SetFit& fit = fits[i % size_t(dim)];
    out[i] = decode(code_of(x[i], fit, bits), fit.step, fit.floor);
  }
  return out;
}

double score_error(const std::vector<float>& queries, const std::vector<float>& keys,
                   const std::vector<float>& coded, int dim) {
  double sum = 0;
  for (size_t q = 0; q < queries.size(); q += size_t(dim)) {
    for (size_t k = 0; k < keys.size(); k += size_t(dim)) {
      double error = 0;
      for (size_t c = 0; c < size_t(dim); ++c)
        error += double(queries[q + c]) * (double(coded[k + c]) - keys[k + c]);
      sum += error * error;
    }
  }
  return sum;
}

TEST(QueryRounding, ScoresOfQueriesOfTheSameKindComeOutCloser) {
  for (const int dim : {16, 64, 80, 128}) {
    for (const int bits : {2, 4}) {
      QueryMoment moment(dim);
      moment.learn(narrow_rows(384, dim, 1).data(), 384, dim);
      const auto keys = plain_rows(124, dim, 2);
      const auto fits = fit_channels(keys.data(), 124, dim, bits, Fit::Unbiased);
      const auto nearest = decoded(keys, dim, fits, bits);
      auto moved = keys;
      QueryRounding(moment).round(moved.data(), 124, fits, bits);
      const auto rounded = decoded(moved, dim, fits, bits);
      const auto later = narrow_rows(200, dim, 3);  // queries that were not learnt from
      EXPECT_LT(score_error(later, keys, rounded, dim),
                0.7 * score_error(later, keys, nearest, dim))
          << dim << " channels, " << bits << " bits";
    }
  }
}

TEST(QueryRounding, QueriesWithoutDirectionChangeNoCode) {
  const int dim = 64;
  std::vector<float> axes(
      size_t(dim * dim));  // one query along each channel: no correlation at all
  for (int c = 0; c < dim; ++c) axes[size_t(c * dim + c)] = 1;
  QueryMoment moment(dim);
  moment.learn(axes.data(), dim, dim);
  const auto keys = plain_rows(50, dim, 4);
  const auto fits = fit_channels(keys.data(), 50, dim, 4, Fit::Endpoint);
  auto moved = keys;
  QueryRounding(moment).round(moved.data(), 50, fits, 4);
  EXPECT_EQ(decoded(moved, dim, fits, 4), decoded(keys, dim, fits, 4));
}

// Rows on grid points are found again by the vectorised rounding of a tile.
TEST(QueryRounding, MovedRowsLieOnTheirCodes) {
  const int dim = 80, n = 37, bits = 4;
  QueryMoment moment(dim);
  moment.learn(narrow_rows(64, dim, 5).data(), 64, dim);
  const auto keys = plain_rows(n, dim, 6);
  const auto fits = fit_channels(keys.data(), n, dim, bits, Fit::Unbiased);
  auto moved = keys;
  QueryRounding(moment).round(moved.data(), n, fits, bits);
  const TileShape tile{n, dim, bits, Axis::Channel, 0, Lanes::Tokens};
  std::vector<uint8_t> codes(code_bytes(tile));
  encode_with(tile, fits, moved.data(), codes.data());
  for (int i = 0; i < n * dim; ++i) {
    const SetFit& fit = fits[size_t(i % dim)];
    const float code = (moved[size_t(i)] - fit.code_floor) / fit.code_step;
    ASSERT_EQ(read_code(tile, codes.data(), i / dim, i % dim), std::lround(code)) << i;
  }
}

TEST(QueryMoment, KeepsSecondMomentsToAHundredthOfTheirScale) {
  const int dim = 80;  // a group of 64 and one of 16
  const auto rows = narrow_rows(200, dim, 8);
  QueryMoment moment(dim);
  EXPECT_FALSE(moment.known());
  moment.learn(rows.data(), 200, dim);
  ASSERT_TRUE(moment.known());
  for (const int first : {0, 64}) {
    const size_t size = first == 0 ? 64 : 16;
    const auto kept = moment.group(first);
    ASSERT_EQ(kept.size(), size * size);
    for (size_t i = 0; i < size; ++i) {
      for (size_t j = 0; j < size; ++j) {
        double sum = 0, ii = 0, jj = 0;
        for (size_t r = 0; r < 200; ++r) {
          const float* row = &rows[r * size_t(dim) + size_t(first)];
          sum += double(row[i]) * row[j] / 200;
          ii += double(row[i]) * row[i] / 200;
          jj += double(row[j]) * row[j] / 200;
        }
        ASSERT_NEAR(kept[i * size + j], sum, 0.01 * std::sqrt(ii * jj)) << i << " " << j;
      }
    }
  }
}

TEST(QueryMoment, LaterRowsAreBlendedInAndForgetStartsAnew) {
  const int dim = 16;
  std::vector<float> ones(size_t(64 * dim), 1.0f), threes(size_t(64 * dim), 3.0f);
  QueryMoment moment(dim);
  moment.learn(ones.data(), 64, dim);
  EXPECT_NEAR(moment.group(0)[1], 1.0, 0.02);
  moment.learn(threes.data(), 64, dim);
  EXPECT_NEAR(moment.group(0)[1], 5.0, 0.1);  // the mean of 1 and 9
  moment.forget();
  EXPECT_FALSE(moment.known());
  moment.learn(threes.data(), 64, dim);
  EXPECT_NEAR(moment.group(0)[1], 9.0, 0.1);
}

TEST(QueryMoment, SilentChannelsAndHugeQueriesDoNoHarm) {
  const int dim = 64;
  auto rows = plain_rows(64, dim, 9);
  for (size_t i = 0; i < rows.size(); ++i) {
    if (i % size_t(dim) < 10) rows[i] = 0;
    if (i % size_t(dim) == 20) rows[i] = 6e4f;
  }
  QueryMoment moment(dim);
  moment.learn(rows.data(), 64, dim);
  const auto keys = plain_rows(30, dim, 10);
  const auto fits = fit_channels(keys.data(), 30, dim, 4, Fit::Unbiased);
  auto moved = keys;
  QueryRounding(moment).round(moved.data(), 30, fits, 4);
  for (const float x : moved) ASSERT_TRUE(std::isfinite(x));
}

TEST(QueryMoment, QueriesThatAreNoNumbersTeachNothing) {
  const int dim = 64;
  for (const float bad : {NAN, INFINITY, -1e5f}) {
    auto rows = plain_rows(64, dim, 11);
    QueryMoment moment(dim);
    moment.learn(rows.data(), 64, dim);
    const auto before = moment.group(0);
    rows[777] = bad;
    moment.learn(rows.data(), 64, dim);
    EXPECT_EQ(moment.group(0), before) << bad;
    QueryMoment fresh(dim);
    fresh.learn(rows.data(), 64, dim);
    EXPECT_FALSE(fresh.known()) << bad;
  }
}

TEST(QueryMoment, BytesAreWhatItHolds) {
  EXPECT_EQ(QueryMoment::bytes(64), 64u * 2 + 64 * 63 / 2);
  EXPECT_EQ(QueryMoment::bytes(80), 80u * 2 + 64 * 63 / 2 + 16 * 15 / 2);
}

}  // namespace
}  // namespace zipcache
