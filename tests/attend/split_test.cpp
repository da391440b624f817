// A step's work is cut into ranges of heads and blocks, one for each thread: wherever the cuts
// fall, the answer is the same.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "support/block_rig.hpp"
#include "support/random_rows.hpp"

namespace zipcache {
namespace {

using test::BlockRig;

constexpr int kRows = 1100, kDim = 128, kHeads = 5, kGroup = 3;

class SplitOver : public testing::TestWithParam<const char*> {
 protected:
  // Eight packed blocks and a raw one, which weighs more; five heads, so that cuts fall inside
  // them.
  void SetUp() override {
    for (BlockRig* rig : {&whole, &cut}) {
      rig->scale = 0.09f;
      rig->append(kRows, test::random_rows(kRows, kHeads * kDim, 1),
                  test::random_rows(kRows, kHeads * kDim, 2, 3.0f));
      rig->pack();
    }
  }
  BlockRig whole{{kHeads, kDim, kDim}, *parse_policy(GetParam()), kRows};
  BlockRig cut{{kHeads, kDim, kDim}, *parse_policy(GetParam()), kRows};
  const std::vector<float> q_ = test::random_rows(3, kGroup* kHeads* kDim, 3, 1.0f);
};

INSTANTIATE_TEST_SUITE_P(Policies, SplitOver, testing::Values("f16", "uniform", "zip"),
                         [](const auto& info) { return std::string(info.param); });

TEST_P(SplitOver, AnyNumberOfThreadsTheAnswerIsTheSame) {
  const Kernels& kernels = *runnable_kernels().front();
  for (const int n_queries : {1, 3}) {
    const int last = kRows - n_queries;
    const auto expected = whole.attend(q_, n_queries, kGroup * kHeads, last, kernels, 1);
    double largest = 0;
    for (const float x : expected) largest = std::max(largest, double(std::fabs(x)));
    for (const int threads : {2, 3, 4, 5, 7, 11, 16, 64}) {
      const auto out = cut.attend(q_, n_queries, kGroup * kHeads, last, kernels, threads);
      // Sums in float in another order: at most one rounding for each of the rows and parts.
      for (size_t i = 0; i < out.size(); ++i)
        ASSERT_NEAR(out[i], expected[i], largest * kRows * 0x1p-24) << threads << " threads, " << i;
    }
  }
}

TEST_P(SplitOver, AFewVisibleTokensAreEnough) {
  const Kernels& kernels = *runnable_kernels().front();
  for (const int last : {0, 5, 127, 128, 700}) {
    const auto expected = whole.attend(q_, 1, kGroup * kHeads, last, kernels, 1);
    const auto out = cut.attend(q_, 1, kGroup * kHeads, last, kernels, 16);
    for (size_t i = 0; i < out.size(); ++i) ASSERT_NEAR(out[i], expected[i], 1e-3) << last;
  }
}

TEST(SplitScores, AnyNumberOfThreadsTheScoresAreTheSame) {
  const auto k = test::random_rows(kRows, kHeads * kDim, 1), v = k;
  const auto q = test::random_rows(40, kGroup * kHeads * kDim, 3, 1.0f);
  std::vector<float> sums;
  for (const int threads : {1, 2, 7}) {
    BlockRig rig({kHeads, kDim, kDim}, *parse_policy("zipcache"), kRows);
    rig.scale = 0.09f;
    rig.append(kRows, k, v);
    rig.attend(q, 40, kGroup * kHeads, kRows - 40, *runnable_kernels().front(), threads);
    rig.score({3, 17, 39});
    std::vector<float> found;
    for (int cell = 0; cell < kRows; cell += 13) {
      for (int head = 0; head < kHeads; ++head) found.push_back(rig.sum(cell, head));
      EXPECT_EQ(rig.probes_seen(cell), 3u - (cell > kRows - 37) - (cell > kRows - 23)) << cell;
    }
    if (sums.empty()) sums = found;
    EXPECT_EQ(found, sums) << threads << " threads";
  }
}

}  // namespace
}  // namespace zipcache
