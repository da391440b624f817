// Fitted rotations: orthogonal, and doing what they are for.
#include "rotation_fit.hpp"

#include <gtest/gtest.h>

#include <cmath>

#include "support/random_rows.hpp"

namespace zipcache::cli {
namespace {

// Sum of x x' over rows [n, dim] whose channels differ in size and go together.
std::vector<double> moment_of(int n, int dim, uint64_t seed) {
  const std::vector<float> rows = test::random_rows(n, dim, seed);
  std::vector<double> moment(size_t(dim) * size_t(dim));
  for (int r = 0; r < n; ++r) {
    const float* x = &rows[size_t(r) * size_t(dim)];
    const auto mixed = [&](int c) { return x[c] + (c > 0 ? 0.8 * x[c - 1] : 0.0); };
    for (int i = 0; i < dim; ++i) {
      for (int j = 0; j < dim; ++j) moment[size_t(i * dim + j)] += mixed(i) * mixed(j);
    }
  }
  return moment;
}

// R M R' [dim, dim].
std::vector<double> turned(const std::vector<float>& r, const std::vector<double>& m, int dim) {
  std::vector<double> half(m.size()), out(m.size());
  const auto n = size_t(dim);
  for (size_t i = 0; i < n; ++i) {
    for (size_t k = 0; k < n; ++k) {
      for (size_t j = 0; j < n; ++j) half[i * n + j] += double(r[i * n + k]) * m[k * n + j];
    }
  }
  for (size_t i = 0; i < n; ++i) {
    for (size_t j = 0; j < n; ++j) {
      for (size_t k = 0; k < n; ++k) out[i * n + j] += half[i * n + k] * r[j * n + k];
    }
  }
  return out;
}

TEST(RotationFit, EveryChannelGetsTheSameShareOfAMoment) {
  for (const int dim : {16, 64, 128}) {
    const std::vector<double> moment = moment_of(300, dim, uint64_t(dim));
    const std::vector<float> rotation = spread_evenly(moment, dim);
    ASSERT_TRUE(check(Rotations{"", {{{1, dim, dim}, rotation, rotation}}}).ok());
    double trace = 0;
    for (int c = 0; c < dim; ++c) trace += moment[size_t(c * dim + c)];
    const std::vector<double> after = turned(rotation, moment, dim);
    for (int c = 0; c < dim; ++c)
      EXPECT_NEAR(after[size_t(c * dim + c)], trace / dim, 1e-4 * trace) << dim << " " << c;
  }
}

// Blocks of 16 of 80 channels: the largest directions go to different blocks, which stay close.
TEST(RotationFit, BlocksOfOtherHeadSizesGetDirectionsInTurn) {
  const int dim = 80;
  std::vector<double> moment(80 * 80);
  for (int c = 0; c < dim; ++c) moment[size_t(c * dim + c)] = c == 7 ? 10000 : 80 - c;
  const std::vector<float> rotation = spread_evenly(moment, dim);
  ASSERT_TRUE(check(Rotations{"", {{{1, dim, dim}, rotation, rotation}}}).ok());
  const std::vector<double> after = turned(rotation, moment, dim);
  for (int c = 0; c < dim; ++c) {
    const double rest = after[size_t(c * dim + c)] - (c < 16 ? 10000.0 / 16 : 0);
    EXPECT_NEAR(rest, 40, 6) << c;
  }
}

// H of size 4 with rows 1 and 2 exchanged, over unit vectors in the order of their sizes.
TEST(RotationFit, ASmallRotationIsTheOneOfTheFormula) {
  std::vector<double> moment(16);
  for (const auto& [channel, size] : {std::pair{0, 3.0}, {1, 1.0}, {2, 4.0}, {3, 2.0}})
    moment[size_t(channel * 5)] = size;
  const float h = 0.5f;
  const std::vector<float> expected = {h,  h,  h, h,    // + + + + over channels 2, 0, 3, 1
                                       h,  -h, h, -h,   // + + - -
                                       -h, -h, h, h,    // + - + -
                                       -h, h,  h, -h};  // + - - +
  const std::vector<float> found = spread_evenly(moment, 4);
  for (size_t i = 0; i < 16; ++i) EXPECT_NEAR(found[i], expected[i], 1e-6) << i;
}

TEST(RotationFit, ChannelsAreSortedByTheirSize) {
  const std::vector<double> squares = {1, 9, 4, 9};
  EXPECT_EQ(sort_channels(squares),
            (std::vector<float>{0, 1, 0, 0, 0, 0, 0, 1, 0, 0, 1, 0, 1, 0, 0, 0}));
}

TEST(RotationFit, SidesAreFittedToTheirOwnMoments) {
  HeadMoments head(16, 24);
  head.queries = moment_of(100, 16, 1), head.values = moment_of(100, 24, 2);
  for (size_t c = 0; c < 16; ++c) head.k_squares[c] = double(c);
  for (size_t c = 0; c < 24; ++c) head.v_squares[c] = double(24 - c);
  const HeadMoments heads[] = {head, head};
  const auto oscar = fit_rotations({2, 16, 24}, heads, RotationMethod::Oscar);
  ASSERT_TRUE(check(Rotations{"", {oscar}}).ok());
  EXPECT_EQ(std::vector<float>(oscar.k.begin() + 256, oscar.k.end()),
            spread_evenly(head.queries, 16));
  EXPECT_EQ(std::vector<float>(oscar.v.begin(), oscar.v.begin() + 576),
            spread_evenly(head.values, 24));
  const auto permuted = fit_rotations({2, 16, 24}, heads, RotationMethod::Permute);
  ASSERT_TRUE(check(Rotations{"", {permuted}}).ok());
  EXPECT_EQ(permuted.k[15], 1);  // the last channel first
  EXPECT_EQ(permuted.v[0], 1);
}

TEST(RotationFit, OtherMethodsAreRefused) {
  EXPECT_EQ(*parse_method("permute"), RotationMethod::Permute);
  const Status status = parse_method("haar").status();
  EXPECT_EQ(status.code(), Code::BadArgument);
  EXPECT_NE(status.message().find("oscar or permute"), std::string::npos);
}

}  // namespace
}  // namespace zipcache::cli
