// Chunks and micro-batches: which positions are decoded together, and which are scored.
#include "chunks.hpp"

#include <gtest/gtest.h>

namespace zipcache::cli {
namespace {

TEST(Chunks, SecondHalfIsScoredWithoutTheLastPosition) {
  const auto plan = plan_chunks(5000, 2048, 0, 128);
  ASSERT_TRUE(plan.ok());
  EXPECT_EQ(plan->chunks, 2);
  EXPECT_EQ(plan->first, 1024);
  EXPECT_EQ(plan->total, 1024);
  EXPECT_EQ(plan->scored_per_chunk(), 1023);  // as llama-perplexity: n_ctx - 1 - n_ctx / 2
}

TEST(Chunks, NoMoreChunksThanTheTextHas) {
  EXPECT_EQ(plan_chunks(5000, 512, 3, 128)->chunks, 3);
  EXPECT_EQ(plan_chunks(5000, 512, 30, 128)->chunks, 9);
}

TEST(Chunks, TextShorterThanOneChunkIsRefused) {
  EXPECT_TRUE(plan_chunks(512, 512, 1, 128).ok());
  const auto plan = plan_chunks(511, 512, 1, 128);
  ASSERT_FALSE(plan.ok());
  EXPECT_EQ(plan.status().code(), Code::BadData);
  EXPECT_NE(plan.status().message().find("511"), std::string::npos);
}

TEST(Chunks, SizesOutOfRangeAreRefused) {
  EXPECT_EQ(plan_chunks(5000, kShortestCtx - 1, 1, 128).status().code(), Code::BadArgument);
  EXPECT_EQ(plan_chunks(5000, 512, 1, 0).status().code(), Code::BadArgument);
  EXPECT_EQ(plan_chunks(5000, 512, -1, 128).status().code(), Code::BadArgument);
}

class MicroBatches : public testing::TestWithParam<std::pair<int, int>> {};

TEST_P(MicroBatches, CoverEveryPositionOnceAndWantLogitsOfTheSecondHalf) {
  const auto [ctx, ubatch] = GetParam();
  const auto plan = plan_chunks(ctx, ctx, 1, ubatch);
  ASSERT_TRUE(plan.ok());
  int position = 0, wanted = 0;
  for (const MicroBatch& batch : micro_batches(*plan)) {
    EXPECT_EQ(batch.begin, position);
    EXPECT_GE(batch.size(), 1);
    EXPECT_LE(batch.size(), ubatch);
    for (int p = batch.begin; p < batch.end; ++p) {
      EXPECT_EQ(p >= batch.logits_from, p >= ctx / 2) << "position " << p;
    }
    position = batch.end;
    wanted += batch.n_logits();
  }
  EXPECT_EQ(position, ctx);
  EXPECT_EQ(wanted, ctx - ctx / 2);
}

INSTANTIATE_TEST_SUITE_P(Sizes, MicroBatches,
                         testing::Values(std::pair{2048, 128}, std::pair{2048, 4096},
                                         std::pair{100, 7}, std::pair{9, 1}, std::pair{8, 8},
                                         std::pair{129, 128}));

}  // namespace
}  // namespace zipcache::cli
