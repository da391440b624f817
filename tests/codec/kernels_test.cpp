// Every kernel set that this machine runs, against the oracle in double precision.
#include "codec/kernels.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <cstdlib>

#include "support/random_rows.hpp"
#include "support/tiles.hpp"

namespace zipcache {
namespace {

constexpr int kSizes[] = {0, 1, 7, 8, 9, 15, 16, 17, 80, 96, 256};

class KernelSet : public testing::TestWithParam<const Kernels*> {
 protected:
  const Kernels& kernels = *GetParam();
};

INSTANTIATE_TEST_SUITE_P(Machine, KernelSet, testing::ValuesIn(runnable_kernels()),
                         [](const auto& info) { return std::string(info.param->name); });

TEST_P(KernelSet, HalvesBecomeFloatsForEveryPatternAndLength) {
  std::vector<half> all(65536);
  std::vector<float> out(65536);
  for (size_t i = 0; i < all.size(); ++i) all[i] = half(i);
  kernels.halves(all.data(), out.data(), 65536);
  for (size_t i = 0; i < all.size(); ++i) {
    const float expected = to_float(all[i]);
    ASSERT_TRUE(out[i] == expected || (std::isnan(out[i]) && std::isnan(expected))) << i;
  }
  for (const int n : kSizes) {
    std::vector<float> guarded(size_t(n) + 1, -7.0f);
    kernels.halves(all.data() + 0x3C00, guarded.data(), n);
    for (int i = 0; i < n; ++i) ASSERT_EQ(guarded[size_t(i)], to_float(half(0x3C00 + i)));
    ASSERT_EQ(guarded.back(), -7.0f);
  }
}

TEST_P(KernelSet, ExpandDecodesEveryAxisWidthAndSize) {
  for (const Axis axis : {Axis::Channel, Axis::Token, Axis::Group, Axis::Cst}) {
    for (const int bits : {2, 3, 4, 8, 16}) {
      for (const int dim : {8, 16, 24, 64, 80, 96, 128, 256}) {
        for (const int n : {0, 1, 7, 17}) {
          const auto tile = test::code_tile(test::random_rows(n, dim, uint64_t(dim)), n, dim,
                                            bits == 16 ? 8 : bits, axis, 8);
          std::vector<float> out(size_t(n * dim) + 1, -7.0f);
          if (bits == 16) {
            const std::vector<half> rows = test::to_halves(tile.values);
            kernels.expand(kernel_args({{n, dim, 16, axis, 8},
                                        reinterpret_cast<const uint8_t*>(rows.data()),
                                        nullptr,
                                        nullptr}),
                           out.data());
            for (size_t i = 0; i < rows.size(); ++i) ASSERT_EQ(out[i], to_float(rows[i]));
          } else {
            kernels.expand(kernel_args(tile.view()), out.data());
            for (int i = 0; i < n * dim; ++i) {
              const int t = i / dim, c = i % dim;
              const double product = double(tile.step(t, c)) * tile.codes[size_t(i)];
              const double exact = (product + tile.floor(t, c)) * tile.factor(c);
              // Product, sum and factor round once each, relative to the larger of their operands.
              const double size = (product + std::fabs(tile.floor(t, c))) * tile.factor(c);
              ASSERT_NEAR(out[size_t(i)], exact, 3 * 0x1p-24 * size) << int(axis) << bits << dim;
            }
          }
          ASSERT_EQ(out.back(), -7.0f);
        }
      }
    }
  }
}

// A sum of k products of floats, in any order, is off by at most k * 2^-24 of the sum of their
// sizes.
double product_error(double size, int k) { return double(k + 1) * 0x1p-24 * size; }

void expect_product(const Kernels& kernels, int m, int n, int k, bool add) {
  const int lda = k + 3, ldb = n + 5, ldc = n + 2;
  const auto a = test::random_rows(m, lda, 1), b = test::random_rows(k, ldb, 2);
  const auto before = test::random_rows(m, ldc, 3);
  auto c = before;
  kernels.gemm(m, n, k, a.data(), lda, b.data(), ldb, c.data(), ldc, add);
  for (int r = 0; r < m; ++r) {
    for (int j = 0; j < ldc; ++j) {
      const size_t at = size_t(r * ldc + j);
      double sum = add ? before[at] : 0.0, size = std::fabs(sum);
      for (int i = 0; i < k && j < n; ++i) {
        const double product = double(a[size_t(r * lda + i)]) * b[size_t(i * ldb + j)];
        sum += product;
        size += std::fabs(product);
      }
      if (j >= n) sum = before[at], size = 0;  // beyond the row nothing may change
      ASSERT_NEAR(c[at], sum, product_error(size, k))
          << m << " " << n << " " << k << " " << r << " " << j;
    }
  }
}

TEST_P(KernelSet, GemmEqualsTheSumOfProducts) {
  for (const bool add : {false, true}) {
    for (const int m : {0, 1, 3, 4, 5, 8, 9}) {
      for (const int k : {0, 1, 7, 17, 96}) {
        for (const int n : kSizes) expect_product(kernels, m, n, k, add);
      }
    }
  }
}

TEST_P(KernelSet, DotsEqualTheSumOfProducts) {
  for (const int dim : kSizes) {
    for (const int rows_a : {1, 3, 7}) {
      for (const int rows_b : {0, 1, 9, 17}) {
        const int lda = dim + 1, ldb = dim + 2, ld_out = rows_b + 1;
        const auto a = test::random_rows(rows_a, lda, 4), b = test::random_rows(rows_b, ldb, 5);
        std::vector<float> out(size_t(rows_a * ld_out), -7.0f);
        kernels.dots(rows_a, rows_b, dim, a.data(), lda, b.data(), ldb, out.data(), ld_out);
        for (int i = 0; i < rows_a; ++i) {
          ASSERT_EQ(out[size_t(i * ld_out + rows_b)], -7.0f);
          for (int j = 0; j < rows_b; ++j) {
            double sum = 0, size = 0;
            for (int c = 0; c < dim; ++c) {
              const double product = double(a[size_t(i * lda + c)]) * b[size_t(j * ldb + c)];
              sum += product;
              size += std::fabs(product);
            }
            ASSERT_NEAR(out[size_t(i * ld_out + j)], sum, product_error(size, dim)) << dim;
          }
        }
      }
    }
  }
}

TEST_P(KernelSet, ExpRowIsAccurateOverItsRangeAndSumsItself) {
  for (const int n : kSizes) {
    std::vector<float> row(size_t(n) + 1), in(size_t(n) + 1);
    for (int i = 0; i <= n; ++i) in[size_t(i)] = 2.5f - float(i) * 89.0f / float(n + 1);
    row = in;
    const float sum = kernels.exp_row(row.data(), n, 2.5f);
    double expected_sum = 0;
    for (int i = 0; i < n; ++i) {
      const double x = double(in[size_t(i)]) - 2.5;
      const double expected = x < -87 ? 0.0 : std::exp(x);
      expected_sum += expected;
      // The header states 3e-7 for the polynomial; rounding row - peak to float moves x by |x| *
      // 2^-24.
      ASSERT_NEAR(row[size_t(i)], expected, expected * (3e-7 + std::fabs(x) * 0x1p-24) + 1.7e-38)
          << x;
    }
    ASSERT_EQ(row[size_t(n)], in[size_t(n)]);
    ASSERT_NEAR(sum, expected_sum, expected_sum * (1e-6 + n * 0x1p-24));
  }
}

TEST_P(KernelSet, ExpRowGivesZeroWhereHiddenAndOneAtThePeak) {
  std::vector<float> row(33, -INFINITY);
  row[20] = 1e4f;
  row[32] = -1e30f;
  EXPECT_EQ(kernels.exp_row(row.data(), 33, 1e4f), 1.0f);
  for (size_t i = 0; i < 33; ++i) EXPECT_EQ(row[i], i == 20 ? 1.0f : 0.0f);
}

class ForcedIsa : public testing::Test {
 protected:
  void SetUp() override {
    if (const char* before = std::getenv("ZIPCACHE_ISA")) before_ = before;
  }
  void TearDown() override {
    if (before_.empty())
      unsetenv("ZIPCACHE_ISA");
    else
      setenv("ZIPCACHE_ISA", before_.c_str(), 1);
  }
  std::string before_;
};

TEST_F(ForcedIsa, EachRunnableSetCanBeForced) {
  for (const Kernels* kernels : runnable_kernels()) {
    setenv("ZIPCACHE_ISA", kernels->name, 1);
    ASSERT_TRUE(pick_kernels().ok());
    EXPECT_EQ(*pick_kernels(), kernels);
  }
  EXPECT_STREQ(runnable_kernels().back()->name, "plain");
}

TEST_F(ForcedIsa, UnsetOrEmptyTakesTheBest) {
  unsetenv("ZIPCACHE_ISA");
  EXPECT_EQ(*pick_kernels(), runnable_kernels().front());
  setenv("ZIPCACHE_ISA", "", 1);
  EXPECT_EQ(*pick_kernels(), runnable_kernels().front());
}

TEST_F(ForcedIsa, AnUnknownSetIsAnErrorThatListsTheRunnableOnes) {
  for (const char* wrong : {"sse9", "AVX2", "plain ", "avx"}) {
    setenv("ZIPCACHE_ISA", wrong, 1);
    const auto picked = pick_kernels();
    ASSERT_FALSE(picked.ok()) << wrong;
    EXPECT_EQ(picked.status().code(), Code::Incompatible);
    EXPECT_NE(picked.status().message().find(wrong), std::string::npos);
    EXPECT_NE(picked.status().message().find("plain"), std::string::npos);
  }
}

}  // namespace
}  // namespace zipcache
