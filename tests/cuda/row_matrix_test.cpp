// Products of rows and matrices as a GPU makes them, run on the host: turned rows are the CPU's bit
// for bit.
#include "cuda/row_matrix.hpp"

#include <gtest/gtest.h>

#include "support/random_rows.hpp"
#include "support/rotations.hpp"
#include "transform/rotation.hpp"

namespace zipcache::cuda {
namespace {

using zipcache::test::random_rows;

constexpr int kRows = 8;

// What a matrix makes of rows [kRows, kDim].
template <int kDim, bool kBack>
std::vector<float> product(const std::vector<float>& rows, const std::vector<float>& matrix) {
  const auto out = std::make_unique<float[][kDim]>(kRows);
  multiply_rows<kBack>(rows.data(), kDim, kDim, matrix.data(),
                       reinterpret_cast<float(&)[kRows][kDim]>(out[0]));
  return {out[0], out[0] + kRows * kDim};
}

template <int kDim>
void expect_the_cpus() {
  const auto matrix = zipcache::test::random_rotations({{1, kDim, kDim}}, 3).layers[0].k;
  const HeadRotation rotation(Rotation::File, matrix.data());
  const std::vector<float> rows = random_rows(kRows, kDim, 7);
  std::vector<float> expected = rows;
  rotation.turn(expected.data(), kRows, kDim, kDim);
  EXPECT_EQ((product<kDim, false>(rows, turned_over(matrix, kDim))), expected) << kDim;

  const std::vector<float> back = product<kDim, true>(expected, matrix);
  for (size_t i = 0; i < back.size(); ++i)
    ASSERT_NEAR(back[i], rows[i], 1e-4) << kDim << ", number " << i;
}

TEST(RowMatrix, TurnsRowsAsTheCpuDoes) {
  expect_the_cpus<64>();
  expect_the_cpus<128>();
  expect_the_cpus<256>();
}

TEST(RowMatrix, IsTurnedOverHeadByHead) {
  EXPECT_EQ(turned_over(std::vector<float>{1, 2, 3, 4, 5, 6, 7, 8}, 2),
            (std::vector<float>{1, 3, 2, 4, 5, 7, 6, 8}));
}

}  // namespace
}  // namespace zipcache::cuda
