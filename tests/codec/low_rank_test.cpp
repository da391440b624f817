// The product of thin matrices that makes up for what codes miss.
#include "codec/low_rank.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <numeric>

#include "support/oracle.hpp"
#include "support/random_rows.hpp"
#include "support/tiles.hpp"

namespace zipcache {
namespace {

// A coded tile with room for factors of some rank.
struct CorrectedTile {
  test::CodedTile tile;
  std::vector<half> low_rank;

  CorrectedTile(const std::vector<float>& x, int n, int dim, int bits, Axis axis, int rank)
      : tile(test::code_tile(x, n, dim, bits, axis)) {
    tile.shape.rank = rank;
    low_rank.assign(low_rank_bytes(tile.shape) / sizeof(half), half{0x1234});
    store_low_rank(view(), x);
  }
  TileView view() const {
    TileView view = tile.view();
    view.low_rank = low_rank.data();
    return view;
  }
  // What is left of x once the codes, and once the product too, are taken away: squares.
  double left(const std::vector<float>& x, bool with_product) const {
    std::vector<float> rows = tile.values;
    if (with_product) add_low_rank(view(), rows.data());
    double sum = 0;
    for (size_t i = 0; i < x.size(); ++i) sum += std::pow(double(x[i]) - rows[i], 2);
    return sum;
  }
};

std::vector<double> missed(const std::vector<float>& x, const test::CodedTile& tile) {
  std::vector<double> rest(x.begin(), x.end());
  for (size_t i = 0; i < rest.size(); ++i) rest[i] -= tile.values[i];
  return rest;
}

// A few rounds come within a tenth of what is left by the best matrix of that rank, and never
// below.
TEST(LowRank, LeavesLittleMoreThanTheBestProductOfItsRank) {
  for (const int bits : {2, 4}) {
    for (const Axis axis : {Axis::Channel, Axis::Token}) {
      for (const int rank : {1, 2, 4, 16}) {
        const auto x = test::random_rows(128, 32, uint64_t(rank), 2.0f);
        const CorrectedTile tile(x, 128, 32, bits, axis, rank);
        const auto squares = test::singular_squares(missed(x, tile.tile), 128, 32);
        const double best = std::accumulate(squares.begin() + rank, squares.end(), 0.0);
        EXPECT_LT(tile.left(x, true), 1.125 * best) << bits << " " << rank;
        // Rounded to 16 bits the factors are off by 2^-11 of what they hold.
        EXPECT_GT(tile.left(x, true), 0.999 * best) << bits << " " << rank;
        EXPECT_LT(best, tile.left(x, false));
      }
    }
  }
}

// Codes that miss a product of rank 3 (their range is that of other rows) are put right by it.
TEST(LowRank, AProductOfItsRankComesBack) {
  constexpr int kN = 100, kDim = 48;
  const auto a = test::random_rows(kN, 3, 1), b = test::random_rows(3, kDim, 2);
  const std::vector<float> zeros(kN * kDim, 0.0f);
  std::vector<float> x = zeros;
  double largest = 0;
  for (int t = 0; t < kN; ++t) {
    for (int c = 0; c < kDim; ++c) {
      for (int r = 0; r < 3; ++r)
        x[size_t(t * kDim + c)] += a[size_t(t * 3 + r)] * b[size_t(r * kDim + c)];
      largest = std::max(largest, double(std::abs(x[size_t(t * kDim + c)])));
    }
  }
  for (const int rank : {3, 5}) {
    CorrectedTile tile(zeros, kN, kDim, 4, Axis::Token, rank);
    store_low_rank(tile.view(), x);
    std::vector<float> rows = zeros;
    add_low_rank(tile.view(), rows.data());
    // Six factors of 11 bits each, none far larger than the product's largest number.
    for (size_t i = 0; i < x.size(); ++i)
      ASSERT_NEAR(rows[i], x[i], 6 * 0x1p-11 * 4 * largest) << i;
  }
}

TEST(LowRank, NothingMissedMakesFactorsOfZeros) {
  const std::vector<float> x(20 * 16, 0.5f);
  const CorrectedTile tile(x, 20, 16, 4, Axis::Token, 4);
  for (const half value : tile.low_rank) EXPECT_EQ(to_float(value), 0);
}

TEST(LowRank, MoreColumnsThanTokensAndTheLargestNumbersStayFinite) {
  std::vector<float> x = test::random_rows(3, 256, 5);
  for (size_t i = 0; i < x.size(); ++i)
    x[i] = i % 7 == 0 ? 65504.0f : i % 5 == 0 ? -65504.0f : x[i];
  const CorrectedTile tile(x, 3, 256, 2, Axis::Channel, 16);
  for (const half value : tile.low_rank) ASSERT_TRUE(std::isfinite(to_float(value)));
  EXPECT_LE(tile.left(x, true), tile.left(x, false));
}

TEST(LowRank, BytesAreThoseOfTheFactors) {
  TileShape shape{20, 64, 4};
  EXPECT_EQ(low_rank_bytes(shape), 0u);
  shape.rank = 3;
  EXPECT_EQ(low_rank_bytes(shape), 2u * 3 * (64 + 32));
  shape.bits = 16;
  EXPECT_EQ(low_rank_bytes(shape), 0u);
  shape.bits = 0;
  EXPECT_EQ(low_rank_bytes(shape), 0u);
  EXPECT_EQ(low_rank_bytes({0, 64, 4, Axis::Token, 0, Lanes::Tokens, Codec::Affine, 3}), 0u);
}

}  // namespace
}  // namespace zipcache
