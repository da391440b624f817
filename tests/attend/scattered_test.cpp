// Rows of a block whose cells do not follow one another: each is seen as its own cell is.
#include <gtest/gtest.h>

#include "support/random_rows.hpp"
#include "zipcache/cache.hpp"

namespace zipcache {
namespace {

constexpr int kDim = 32, kCells = 2 * kBlockTokens;

// Attention of one query that is the same to every key: the mean of the values that it sees.
std::vector<float> mean_of_visible(Cache& cache, const std::vector<half>& mask) {
  const std::vector<float> q(kDim, 0.0f);
  std::vector<float> out(kDim);
  Attention step;
  step.n_queries = step.n_heads = 1;
  step.q = q.data(), step.out = out.data();
  step.mask = mask.data(), step.mask_stride = step.n_cells = kCells;
  EXPECT_TRUE(cache.attend(step).ok());
  return out;
}

TEST(ScatteredCells, AreHiddenAndSeenOneByOne) {
  auto cache = std::move(*Cache::create({1, kCells, {{1, kDim, kDim}}}, *parse_policy("f16")));
  std::vector<int64_t> even;
  for (int i = 0; i < kBlockTokens; ++i) even.push_back(2 * i);
  const auto rows = test::random_rows(kBlockTokens, kDim, 1, 1.0f);
  for (const SideId side : {SideId::K, SideId::V})
    ASSERT_TRUE(cache->write(0, 0, side, even, rows.data(), kDim).ok());
  // As many cells as the block has rows are open, or hidden; half of its rows stand there.
  for (const bool first_half : {true, false}) {
    std::vector<half> mask(kCells, first_half ? kHalfNegInf : half{0});
    std::fill_n(mask.begin(), kBlockTokens, first_half ? half{0} : kHalfNegInf);
    const auto found = mean_of_visible(*cache, mask);
    for (int c = 0; c < kDim; ++c) {
      double sum = 0;
      for (int i = 0; i < kBlockTokens / 2; ++i)
        sum += rows[size_t((i + (first_half ? 0 : kBlockTokens / 2)) * kDim + c)];
      EXPECT_NEAR(found[size_t(c)], sum / (kBlockTokens / 2), 1e-5) << first_half << " " << c;
    }
  }
}

TEST(CellsBehindTheMask, AreSeenByNobody) {
  constexpr int kSeen = 100;
  const auto rows = test::random_rows(kCells, kDim, 1, 1.0f);
  std::vector<int64_t> cells;
  for (int cell = 0; cell < kCells; ++cell) cells.push_back(cell);
  for (const bool masked : {true, false}) {
    auto cache = std::move(
        *Cache::create({1, kCells, {{1, kDim, kDim}}}, *parse_policy("zipcache,recent=200")));
    for (const SideId side : {SideId::K, SideId::V})
      ASSERT_TRUE(cache->write(0, 0, side, cells, rows.data(), kDim).ok());
    // 40 rows of queries, of which some are probes; what lies behind the mask is not hidden.
    const int n_queries = 40;
    const std::vector<half> mask(size_t(kCells), half{0});
    const std::vector<float> q(size_t(n_queries * kDim), 0.0f);
    std::vector<float> out(q.size());
    Attention step;
    step.n_queries = n_queries, step.n_heads = 1;
    step.q = q.data(), step.q_row_stride = step.out_row_stride = kDim, step.out = out.data();
    step.mask = masked ? mask.data() : nullptr, step.n_cells = kSeen;
    ASSERT_TRUE(cache->attend(step).ok());
    for (int c = 0; c < kDim; ++c) {
      double sum = 0;
      for (int i = 0; i < kSeen; ++i) sum += rows[size_t(i * kDim + c)];
      EXPECT_NEAR(out[size_t(c)], sum / kSeen, 1e-5) << masked << " " << c;
    }
    std::vector<float> sums(size_t(kCells), -1.0f);
    std::vector<uint32_t> seen(size_t(kCells), 99);
    ASSERT_TRUE(cache->read_scores(0, 0, 0, kCells, sums.data(), seen.data()).ok());
    for (int cell = 0; cell < kCells; ++cell)
      EXPECT_EQ(seen[size_t(cell)] > 0, cell < kSeen) << masked << " " << cell;
  }
}

}  // namespace
}  // namespace zipcache
