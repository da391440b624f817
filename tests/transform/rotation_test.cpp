#include "transform/rotation.hpp"

#include <gtest/gtest.h>

#include <cmath>

#include "support/random_rows.hpp"
#include "support/rotations.hpp"
#include "transform/hadamard.hpp"

namespace zipcache {
namespace {

class RotationOfSize : public testing::TestWithParam<int> {
 protected:
  const int dim = GetParam();
  const std::vector<float> matrix =
      test::random_rotations({{1, dim, dim}}, uint64_t(dim)).layers[0].k;
  const HeadRotation rotation{Rotation::File, matrix.data()};
};

TEST_P(RotationOfSize, TurningMultipliesWithTheMatrix) {
  const std::vector<float> before = test::random_rows(3, dim, 5);
  std::vector<float> after = before;
  rotation.turn(after.data(), 3, dim, dim);
  for (int r = 0; r < 3; ++r) {
    for (int i = 0; i < dim; ++i) {
      double expected = 0, magnitude = 0;
      for (int c = 0; c < dim; ++c) {
        const double term = double(matrix[size_t(i * dim + c)]) * before[size_t(r * dim + c)];
        expected += term;
        magnitude += std::fabs(term);
      }
      // dim products and sums, each rounded once.
      EXPECT_NEAR(after[size_t(r * dim + i)], expected, dim * 0x1p-24 * magnitude);
    }
  }
}

TEST_P(RotationOfSize, TurningBackGivesTheRowsAgain) {
  const std::vector<float> before = test::random_rows(4, dim, 6);
  std::vector<float> after = before;
  rotation.turn(after.data(), 4, dim, dim);
  EXPECT_NE(after, before);
  rotation.turn_back(after.data(), 4, dim, dim);
  for (size_t i = 0; i < after.size(); ++i) EXPECT_NEAR(after[i], before[i], 1e-4);
}

TEST_P(RotationOfSize, ScoresStayTheSameWhenBothSidesAreTurned) {
  const std::vector<float> keys = test::random_rows(1, dim, 1),
                           queries = test::random_rows(1, dim, 2);
  std::vector<float> k = keys, q = queries;
  rotation.turn(k.data(), 1, dim, dim);
  rotation.turn(q.data(), 1, dim, dim);
  double before = 0, after = 0, size = 0;
  for (size_t c = 0; c < size_t(dim); ++c) {
    before += double(keys[c]) * queries[c];
    after += double(k[c]) * q[c];
    size += std::fabs(double(keys[c]) * queries[c]);
  }
  EXPECT_NEAR(after, before, 1e-5 * size);
}

INSTANTIATE_TEST_SUITE_P(Transform, RotationOfSize, testing::Values(16, 24, 64, 80, 128, 256));

TEST(HeadRotation, OnlyTheRowsAtTheStrideChange) {
  const std::vector<float> matrix = test::random_rotations({{1, 16, 16}}).layers[0].k;
  std::vector<float> rows(3 * 20, 1.0f);
  HeadRotation(Rotation::File, matrix.data()).turn(rows.data(), 3, 16, 20);
  for (size_t r = 0; r < 3; ++r) {
    EXPECT_NE(rows[r * 20], 1.0f);
    for (size_t c = 16; c < 20; ++c) EXPECT_EQ(rows[r * 20 + c], 1.0f);
  }
}

TEST(HeadRotation, HadamardAndNoneAreWhatTheirNamesSay) {
  const std::vector<float> before = test::random_rows(2, 64, 3);
  std::vector<float> expected = before, found = before;
  hadamard(expected.data(), 2, 64, 64);
  HeadRotation(Rotation::Hadamard, nullptr).turn(found.data(), 2, 64, 64);
  EXPECT_EQ(found, expected);
  HeadRotation(Rotation::Hadamard, nullptr).turn_back(found.data(), 2, 64, 64);
  hadamard(expected.data(), 2, 64, 64);
  EXPECT_EQ(found, expected);
  found = before;
  EXPECT_FALSE(HeadRotation().turns());
  HeadRotation().turn(found.data(), 2, 64, 64);
  HeadRotation().turn_back(found.data(), 2, 64, 64);
  EXPECT_EQ(found, before);
}

}  // namespace
}  // namespace zipcache
