#include "transform/hadamard.hpp"

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <vector>

#include "support/random_rows.hpp"

namespace zipcache {
namespace {

class HadamardOfSize : public testing::TestWithParam<int> {};

TEST_P(HadamardOfSize, EqualsTheMatrixOfSignsInBlocks) {
  const int dim = GetParam(), size = hadamard_block(dim), n = 3;
  const std::vector<float> before = test::random_rows(n, dim, 5);
  std::vector<float> after = before;
  hadamard(after.data(), n, dim, dim);
  for (int r = 0; r < n; ++r) {
    for (int c = 0; c < dim; ++c) {
      double expected = 0, magnitude = 0;
      for (int i = 0; i < size; ++i) {
        const float value = before[size_t(r * dim + c / size * size + i)];
        expected += std::popcount(unsigned(c % size & i)) % 2 ? -value : value;
        magnitude += std::fabs(value);
      }
      // Each of log2(size) <= 8 additions and the final product rounds once: 9 * 2^-24 of the sum
      // of sizes.
      EXPECT_NEAR(after[size_t(r * dim + c)], expected / std::sqrt(size),
                  9 * 0x1p-24 * magnitude / std::sqrt(size));
    }
  }
}

TEST_P(HadamardOfSize, TwiceIsTheIdentityAndLengthsStay) {
  const int dim = GetParam();
  const std::vector<float> before = test::random_rows(4, dim, 6);
  std::vector<float> after = before;
  hadamard(after.data(), 4, dim, dim);
  for (int r = 0; r < 4; ++r) {
    double length_before = 0, length_after = 0;
    for (int c = 0; c < dim; ++c) {
      length_before += std::pow(before[size_t(r * dim + c)], 2);
      length_after += std::pow(after[size_t(r * dim + c)], 2);
    }
    EXPECT_NEAR(length_after, length_before, 1e-5 * length_before);
  }
  hadamard(after.data(), 4, dim, dim);
  for (size_t i = 0; i < after.size(); ++i) EXPECT_NEAR(after[i], before[i], 1e-4);
}

INSTANTIATE_TEST_SUITE_P(Transform, HadamardOfSize, testing::Values(16, 24, 64, 80, 96, 128, 256));

TEST(Hadamard, ProductsStayTheSameWhenBothSidesAreRotated) {
  const std::vector<float> keys = test::random_rows(1, 128, 1),
                           queries = test::random_rows(1, 128, 2);
  std::vector<float> k = keys, q = queries;
  hadamard(k.data(), 1, 128, 128);
  hadamard(q.data(), 1, 128, 128);
  double before = 0, after = 0, size = 0;
  for (size_t c = 0; c < 128; ++c) {
    before += double(keys[c]) * queries[c];
    after += double(k[c]) * q[c];
    size += std::fabs(double(keys[c]) * queries[c]);
  }
  EXPECT_NEAR(after, before, 1e-5 * size);
}

TEST(Hadamard, OnlyTheRowsAtTheStrideChange) {
  std::vector<float> rows(3 * 20, 1.0f);
  hadamard(rows.data(), 3, 16, 20);
  for (int r = 0; r < 3; ++r) {
    EXPECT_FLOAT_EQ(rows[size_t(r * 20)], 4.0f);
    EXPECT_FLOAT_EQ(rows[size_t(r * 20 + 1)], 0.0f);
    for (int c = 16; c < 20; ++c) EXPECT_EQ(rows[size_t(r * 20 + c)], 1.0f);
  }
}

}  // namespace
}  // namespace zipcache
