// Every kernel set that this machine runs, against the oracle in double precision.
#include "codec/kernels.hpp"

#include <gtest/gtest.h>

#include <algorithm>
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

TEST_P(KernelSet, FloatsBecomeTheNearestHalves) {
  std::vector<float> in;
  for (int i = 0; i < 0x7C00; ++i) {
    const float low = to_float(half(i)), high = to_float(half(i + 1 < 0x7C00 ? i + 1 : i));
    for (const float value : {low, -low, 0.5f * (low + high), 0.25f * low + 0.75f * high}) {
      in.push_back(value);
    }
  }
  in.push_back(1.0f);  // an odd count
  std::vector<half> out(in.size() + 1, 0x1234);
  kernels.to_halves(in.data(), out.data(), int(in.size()));
  for (size_t i = 0; i < in.size(); ++i) ASSERT_EQ(out[i], to_half(in[i])) << in[i];
  EXPECT_EQ(out.back(), 0x1234);
}

constexpr Axis kAxes[] = {Axis::Channel,      Axis::Token, Axis::Group,
                          Axis::ChannelGroup, Axis::Cst,   Axis::None};

// What check() of policies allows.
bool fits(Codec codec, Axis axis, int bits) {
  if (!has_width(codec, bits)) return false;
  if (axis == Axis::None) return codec == Codec::E4m3;
  return codec == Codec::Affine || axis != Axis::Channel;
}

// Calls check(tile) for tiles of a codec with every axis, width, lane order and awkward size.
template <class Check>
void for_tiles(Codec codec, Check&& check) {
  for (const Axis axis : kAxes) {
    for (const int bits : {2, 3, 4, 8}) {
      if (!fits(codec, axis, bits)) continue;
      for (const Lanes lanes : {Lanes::Tokens, Lanes::Channels}) {
        for (const int dim : {24, 64, 80, 96, 128, 256}) {
          if (axis == Axis::Group && dim % 32 != 0) continue;
          if (codec != Codec::Affine && dim > 80 && dim < 256) continue;
          for (const int n : {1, 7, 17, 48, 128}) {
            check(test::code_tile(test::random_rows(n, dim, uint64_t(dim + n)), n, dim, bits, axis,
                                  32, Fit::Endpoint, {}, lanes, codec));
          }
        }
      }
    }
  }
}

// For tiles whose codes are numbers.
template <class Check>
void for_tiles_of_numbers(Check&& check) {
  for (const Codec codec : {Codec::Affine, Codec::Symmetric}) for_tiles(codec, check);
}

std::string name_of(const TileShape& s) {
  return std::to_string(int(s.codec)) + " codec, " + std::to_string(int(s.axis)) + " axis, " +
         std::to_string(s.bits) + " bits, lanes " + std::to_string(int(s.lanes)) + ", " +
         std::to_string(s.n_tokens) + " x " + std::to_string(s.dim);
}

TEST_P(KernelSet, ExpandDecodesEveryCodecAxisWidthAndSize) {
  const auto check = [&](const test::CodedTile& tile) {
    const TileShape& shape = tile.shape;
    const int ld = padded_to(shape.n_rows(), kUnitRows);
    std::vector<float> out(size_t(shape.n_columns() * ld) + 1, -7.0f);
    expand_tile(kernels, tile.view(), out.data(), ld);
    for (int i = 0; i < shape.n_tokens * shape.dim; ++i) {
      const int t = i / shape.dim, c = i % shape.dim;
      const double product = double(tile.step(t, c)) * tile.level(tile.codes[size_t(i)]);
      const double exact = (product + tile.floor(t, c)) * tile.factor(c);
      // Product, sum and factor round once each, relative to the larger of their operands.
      const double size = (std::fabs(product) + std::fabs(tile.floor(t, c))) * tile.factor(c);
      const size_t at = size_t(shape.lanes == Lanes::Tokens ? c * ld + t : t * ld + c);
      ASSERT_NEAR(out[at], exact, 3 * 0x1p-24 * size) << name_of(shape);
    }
    ASSERT_EQ(out.back(), -7.0f);
  };
  for (const Codec codec :
       {Codec::Affine, Codec::Symmetric, Codec::Lloyd, Codec::E4m3, Codec::E2m1})
    for_tiles(codec, check);
}

// Rounding a weight to a multiple of s moves a row's sum by s/2 for each code beyond the middle
// one.
double folding_error(const test::CodedTile& tile, int row, const std::vector<float>& x,
                     Weighting weighting) {
  const TileShape& shape = tile.shape;
  const double limit = weighting == Weighting::Words         ? 32512
                       : weighting == Weighting::SignedBytes ? 127
                                                             : 255;
  double largest = 0, error = 0;
  for (const bool measure : {true, false}) {
    for (int i = 0; i < shape.n_columns(); ++i) {
      const int t = shape.lanes == Lanes::Tokens ? row : i;
      const int c = shape.lanes == Lanes::Tokens ? i : row;
      // A step that belongs to the row multiplies the sum, not the weight: same bound either way.
      const double weight = std::fabs(double(x[size_t(i)]) * tile.factor(c) * tile.step(t, c));
      if (measure)
        largest = std::max(largest, weight);
      else
        error += 0.5 * largest / limit * 0.5 * top_code(shape.bits) * 1.001;
    }
  }
  return error;
}

TEST_P(KernelSet, ProductsOfCodesEqualTheSumOfProducts) {
  for (const Weighting weighting :
       {Weighting::Words, Weighting::SignedBytes, Weighting::UnsignedBytes}) {
    for_tiles_of_numbers([&](const test::CodedTile& tile) {
      const TileShape& shape = tile.shape;
      if (shape.bits == 8 && weighting != Weighting::Words) return;
      // Steps of either sign make weights of either sign.
      if (shape.codec == Codec::Symmetric && weighting == Weighting::UnsignedBytes) return;
      const int n_rows = shape.n_rows(), n_columns = shape.n_columns();
      const int ld = padded_to(n_rows, kUnitRows), ldx = padded_to(n_columns, kUnitRows);
      for (int n = 1; n <= kMaxRows; ++n) {
        std::vector<float> x(size_t(n * ldx), 0.0f);
        for (int r = 0; r < n; ++r) {
          const auto row = test::random_rows(1, n_columns, uint64_t(r + 9));
          for (int i = 0; i < n_columns; ++i) {
            x[size_t(r * ldx + i)] =
                weighting == Weighting::UnsignedBytes ? std::fabs(row[size_t(i)]) : row[size_t(i)];
          }
        }
        std::vector<float> out(size_t(n * ld) + 1, -7.0f);
        std::vector<FoldedRow> folded(kMaxRows);
        for (int i = 0; i < n_parts(shape); ++i) {
          const PlacedPart placed = part_of(tile.view(), i);
          kernels.fold(placed.part, weighting, &x[size_t(placed.first_column)], ldx, n,
                       folded.data());
          kernels.products(placed.part, weighting, folded.data(), n, &out[size_t(placed.first_row)],
                           ld, placed.first_column > 0, nullptr);
        }
        ASSERT_EQ(out.back(), -7.0f);
        for (int r = 0; r < n; ++r) {
          const std::vector<float> weights(x.begin() + r * ldx, x.begin() + r * ldx + n_columns);
          for (int row = 0; row < n_rows; ++row) {
            double sum = 0, size = 0;
            for (int i = 0; i < n_columns; ++i) {
              const int t = shape.lanes == Lanes::Tokens ? row : i;
              const int c = shape.lanes == Lanes::Tokens ? i : row;
              const double step = tile.step(t, c), floor = tile.floor(t, c);
              const double weight = double(weights[size_t(i)]) * tile.factor(c);
              sum += weight * (floor + step * tile.codes[size_t(t * shape.dim + c)]);
              size +=
                  std::fabs(weight) * (std::fabs(floor) + std::fabs(step) * top_code(shape.bits));
            }
            ASSERT_NEAR(out[size_t(r * ld + row)], sum,
                        folding_error(tile, row, weights, weighting) + 1e-5 * size)
                << name_of(shape) << " weighting " << int(weighting) << " row " << row;
          }
        }
      }
    });
  }
}

// A sharp softmax leaves whole tiers with weights whose inverse overflows.
TEST_P(KernelSet, ProductsOfTheSmallestWeightsAreNumbers) {
  for (const Weighting weighting :
       {Weighting::Words, Weighting::SignedBytes, Weighting::UnsignedBytes}) {
    for_tiles_of_numbers([&](const test::CodedTile& tile) {
      const TileShape& shape = tile.shape;
      if (shape.bits == 8 && weighting != Weighting::Words) return;
      // Steps of either sign make weights of either sign.
      if (shape.codec == Codec::Symmetric && weighting == Weighting::UnsignedBytes) return;
      std::vector<float> out(size_t(padded_to(shape.n_rows(), kUnitRows)));
      std::vector<FoldedRow> folded(kMaxRows);
      for (const float weight : {1e-30f, 1e-34f, 1e-36f, 1e-38f, 1e-42f, 0.0f}) {
        std::vector<float> x(size_t(padded_to(shape.n_columns(), kUnitRows)), 0.0f);
        std::fill_n(x.begin(), shape.n_columns() / 2, weight);
        for (int i = 0; i < n_parts(shape); ++i) {
          const PlacedPart placed = part_of(tile.view(), i);
          kernels.fold(placed.part, weighting, &x[size_t(placed.first_column)], int(x.size()), 1,
                       folded.data());
          kernels.products(placed.part, weighting, folded.data(), 1, &out[size_t(placed.first_row)],
                           int(out.size()), placed.first_column > 0, nullptr);
        }
        // 1e-30 times a few hundred values of at most a few hundred is far below 1e-20.
        for (const float value : out)
          ASSERT_LT(std::fabs(value), 1e-20f) << name_of(shape) << " weight " << weight;
      }
    });
  }
}

TEST_P(KernelSet, HalfProductsEqualTheSumOfProducts) {
  for (const int dim : {8, 24, 64, 80, 128, 256}) {
    for (const int n : {1, 5, 16, 128}) {
      for (const int rows : {1, 2, 3, 4, 6, 16}) {
        const auto q = test::random_rows(rows, dim, 1), b = test::random_rows(n, dim, 2);
        const auto keys = test::to_halves(b);
        std::vector<float> scores(size_t(rows * (n + 1)), -7.0f);
        kernels.half_dots(rows, n, dim, q.data(), dim, keys.data(), scores.data(), n + 1);
        const auto p = test::random_rows(rows, n, 3);
        auto sums = test::random_rows(rows, dim, 4);
        const auto before = sums;
        kernels.half_sums(rows, n, dim, p.data(), n, keys.data(), sums.data(), dim);
        for (int r = 0; r < rows; ++r) {
          for (int t = 0; t < n; ++t) {
            double sum = 0, size = 0;
            for (int c = 0; c < dim; ++c) {
              const double product = double(q[size_t(r * dim + c)]) * b[size_t(t * dim + c)];
              sum += product, size += std::fabs(product);
            }
            ASSERT_NEAR(scores[size_t(r * (n + 1) + t)], sum, (dim + 1) * 0x1p-24 * size);
          }
          ASSERT_EQ(scores[size_t(r * (n + 1) + n)], -7.0f);
          for (int c = 0; c < dim; ++c) {
            double sum = before[size_t(r * dim + c)], size = std::fabs(sum);
            for (int t = 0; t < n; ++t) {
              const double product = double(p[size_t(r * n + t)]) * b[size_t(t * dim + c)];
              sum += product, size += std::fabs(product);
            }
            ASSERT_NEAR(sums[size_t(r * dim + c)], sum, (n + 1) * 0x1p-24 * size);
          }
        }
      }
    }
  }
}

// Packed bytes must not depend on the machine: every set finds what the portable reference finds.
TEST_P(KernelSet, SearchFindsTheFitOfTheReferenceBitForBit) {
  for (const int bits : {2, 3, 4, 8}) {
    for (const int n : {1, 5, 64, 128}) {
      auto x = test::random_rows(n, kUnitRows, uint64_t(bits * n));
      for (int i = 0; i < n; ++i) x[size_t(i * kUnitRows + 3)] = 2.5f;  // a constant set
      for (const Fit fit : {Fit::Endpoint, Fit::Midpoint, Fit::Unbiased, Fit::Mse}) {
        SetSearch found;
        kernels.search_sets({x.data(), n, kUnitRows, bits, fit}, found);
        for (int lane = 0; lane < kUnitRows; ++lane) {
          std::vector<float> set;
          for (int i = 0; i < n; ++i) set.push_back(x[size_t(i * kUnitRows + lane)]);
          const SetFit expected = fit_set(set.data(), n, bits, fit);
          const SetFit is = finish_fit(found, lane, bits, fit);
          ASSERT_EQ(is.code_step, expected.code_step) << int(fit) << " lane " << lane;
          ASSERT_EQ(is.code_floor, expected.code_floor);
          ASSERT_EQ(is.step, expected.step);
          ASSERT_EQ(is.floor, expected.floor);
        }
      }
    }
  }
}

TEST_P(KernelSet, EncodeWritesTheCodesOfTheReferenceBitForBit) {
  for (const int bits : {2, 3, 4, 8}) {
    for (const bool by_column : {true, false}) {
      const int rows = 23, columns = 37, ld = 32;
      const TileShape shape{rows, columns, bits, Axis::Channel, 0, Lanes::Tokens};
      const auto x = test::random_rows(columns, ld, uint64_t(bits));
      std::vector<float> inverses(48), floors(48);
      for (size_t i = 0; i < 48; ++i)
        inverses[i] = i == 5 ? 0.0f : 1 + 0.1f * float(i), floors[i] = -1;
      std::vector<uint8_t> packed(code_bytes(shape), 0), expected(packed);
      kernels.encode({x.data(), ld, rows, columns, bits, by_column, inverses.data(), floors.data()},
                     packed.data(), shape.unit_bytes());
      for (int row = 0; row < rows; ++row) {
        for (int column = 0; column < columns; ++column) {
          const size_t grid = size_t(by_column ? column : row);
          const float scaled = (x[size_t(column * ld + row)] - floors[grid]) * inverses[grid];
          const float code = std::nearbyint(std::clamp(scaled, 0.0f, float(top_code(bits))));
          write_code(shape, expected.data(), row, column, uint8_t(code));
        }
      }
      ASSERT_EQ(packed, expected) << bits;
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
      // 2e-7 for the polynomial; row - peak and its product with log2(e) are rounded, which moves x
      // by |x| * 2^-24 each, and so is log2(e) itself, by less than a quarter of that.
      ASSERT_NEAR(row[size_t(i)], expected,
                  expected * (2e-7 + 2.25 * std::fabs(x) * 0x1p-24) + 1.7e-38)
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

// Two steps of an online softmax over scores with hidden columns, against one in double precision.
TEST_P(KernelSet, SoftmaxStepsAddUpToOneSoftmax) {
  for (const int n : {16, 48, 144}) {
    for (const int rows : {1, 2, 3, 4, 5, 16}) {
      const int ld = n + 16;
      const auto first = test::random_rows(rows, ld, 1), second = test::random_rows(rows, ld, 2);
      std::vector<float> peak(size_t(rows), -INFINITY), mass(size_t(rows), 0.0f);
      std::vector<float> rescale(size_t(rows), -7.0f);
      std::vector<double> sums(size_t(rows), 0.0);  // of probability times column number
      for (const auto* step : {&first, &second}) {
        auto scores = *step;
        for (int r = 0; r < rows; ++r) scores[size_t(r * ld + 3)] = -INFINITY;
        kernels.softmax(scores.data(), rows, n, ld, peak.data(), mass.data(), rescale.data());
        for (int r = 0; r < rows; ++r) {
          sums[size_t(r)] *= rescale[size_t(r)];
          for (int i = 0; i < n; ++i) sums[size_t(r)] += scores[size_t(r * ld + i)] * double(i);
          ASSERT_EQ(scores[size_t(r * ld + 3)], 0.0f);
          ASSERT_EQ(scores[size_t(r * ld + n)], (*step)[size_t(r * ld + n)]) << "beyond the row";
        }
      }
      for (int r = 0; r < rows; ++r) {
        double top = -INFINITY, total = 0, sum = 0;
        for (const bool find : {true, false}) {
          for (const auto* step : {&first, &second}) {
            for (int i = 0; i < n; ++i) {
              if (i == 3) continue;
              const double score = (*step)[size_t(r * ld + i)];
              if (find)
                top = std::max(top, score);
              else
                total += std::exp(score - top), sum += std::exp(score - top) * i;
            }
          }
        }
        ASSERT_EQ(peak[size_t(r)], float(top));
        ASSERT_NEAR(mass[size_t(r)], total, total * 1e-5);
        ASSERT_NEAR(sums[size_t(r)], sum, sum * 1e-5);
      }
    }
  }
}

TEST_P(KernelSet, SoftmaxOfHiddenRowsIsNothing) {
  std::vector<float> scores(2 * 16, -INFINITY);
  std::fill_n(scores.begin() + 16, 16, 1.0f);
  float peak[2] = {-INFINITY, 5.0f}, mass[2] = {0.0f, 2.0f}, rescale[2] = {-7.0f, -7.0f};
  kernels.softmax(scores.data(), 2, 16, 16, peak, mass, rescale);
  EXPECT_EQ(peak[0], -INFINITY);
  EXPECT_EQ(mass[0], 0.0f);
  EXPECT_EQ(rescale[0], 1.0f);
  for (int i = 0; i < 16; ++i) EXPECT_EQ(scores[size_t(i)], 0.0f);
  EXPECT_EQ(peak[1], 5.0f);
  EXPECT_EQ(rescale[1], 1.0f);
  EXPECT_NEAR(mass[1], 2 + 16 * std::exp(-4.0), 1e-5);
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
