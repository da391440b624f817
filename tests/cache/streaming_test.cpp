// Properties 13 and 15 of the method: what a stream of tokens leaves behind, and when.
#include <gtest/gtest.h>

#include <algorithm>

#include "support/harness.hpp"

namespace zipcache {
namespace {

using test::Harness;

const std::vector<LayerShape> kLayers = {{2, 64, 64}, {1, 80, 96}};

TEST(Streaming, StepsModuloTheBlockWaitBeyondTheWindow) {
  for (const int recent : {0, 40, 128}) {
    Harness harness({1, 600, kLayers}, "uniform,recent=" + std::to_string(recent), 1);
    ASSERT_TRUE(harness.prompt(200, 100).ok());
    for (int n = 201; n <= 500; ++n) {
      ASSERT_TRUE(harness.feed(1).ok());
      const CacheStats stats = harness.stats();
      ASSERT_EQ(stats.rows_live, uint64_t(n));
      const int packed = std::max(0, n - recent) / kBlockTokens;
      ASSERT_EQ(stats.rows_packed, uint64_t(packed * kBlockTokens));
      ASSERT_EQ(stats.blocks.packed, uint64_t(packed));
      ASSERT_EQ(stats.blocks.raw, uint64_t((n + kBlockTokens - 1) / kBlockTokens - packed));
      // Five blocks of cells; twice as many places and six more.
      ASSERT_EQ(stats.blocks.free, 16u - stats.blocks.packed - stats.blocks.raw);
    }
  }
}

TEST(Streaming, TheNewestRowsStayExactAndPackedOnesDoNot) {
  Harness harness({1, 600, kLayers}, "uniform,bits=2,recent=100", 1);
  for (int n = 0; n < 600; n += 37) {
    ASSERT_TRUE(harness.feed(std::min(37, 600 - n)).ok());
    const int total = harness.tokens(), first = std::max(0, total - 100);
    for (const int layer : {0, 1}) {
      for (const SideId side : {SideId::K, SideId::V}) {
        ASSERT_EQ(harness.read(layer, side, first), harness.written(layer, side, first)) << total;
      }
    }
  }
  EXPECT_NE(harness.read(0, SideId::K, 0, 128), harness.written(0, SideId::K, 0, 128));
}

TEST(Streaming, PromptsTeachHowKeysAreRoundedAndSingleTokensDoNot) {
  for (const bool prompt : {true, false}) {
    Harness nearest({1, 300, kLayers}, "uniform", 2),
        query({1, 300, kLayers}, "uniform,k_round=query", 2);
    for (Harness* harness : {&nearest, &query}) {
      for (int n = 0; n < 256; n += prompt ? 128 : 1)
        ASSERT_TRUE(harness->feed(prompt ? 128 : 1).ok());
      ASSERT_EQ(harness->stats().rows_packed, 256u);
    }
    for (const int layer : {0, 1}) {
      const bool same = nearest.read(layer, SideId::K) == query.read(layer, SideId::K);
      EXPECT_EQ(same, !prompt);
      EXPECT_EQ(nearest.read(layer, SideId::V), query.read(layer, SideId::V));
    }
  }
}

TEST(Streaming, SinksStayExactForEver) {
  for (const int sinks : {1, 4, 128}) {
    Harness harness({1, 500, kLayers}, "zipcache,sinks=" + std::to_string(sinks), 1);
    ASSERT_TRUE(harness.prompt(450, 150).ok());
    ASSERT_TRUE(harness.feed(1).ok());
    for (const int layer : {0, 1}) {
      for (const SideId side : {SideId::K, SideId::V}) {
        EXPECT_EQ(harness.read(layer, side, 0, sinks), harness.written(layer, side, 0, sinks));
        EXPECT_NE(harness.read(layer, side, sinks, 200), harness.written(layer, side, sinks, 200));
      }
    }
    EXPECT_EQ(harness.stats().rows_packed, 384u - uint64_t(sinks));
  }
}

TEST(Streaming, EverySequenceHasItsOwnSinks) {
  Harness harness({1, 400, {{1, 64, 64}}}, "uniform,bits=2,sinks=3", 1);
  for (int sequence = 0; sequence < 2; ++sequence) {
    std::vector<int64_t> cells;
    for (int i = 0; i < 150; ++i) cells.push_back(2 * i + sequence);
    ASSERT_TRUE(harness.step(0, sequence, 0, cells).ok());
  }
  EXPECT_EQ(harness.stats().rows_packed, 256u - 6);
  EXPECT_EQ(harness.read(0, SideId::V, 0, 6), harness.written(0, SideId::V, 0, 6));
  EXPECT_NE(harness.read(0, SideId::V, 6, 6), harness.written(0, SideId::V, 6, 6));
}

TEST(Streaming, OlderBlocksAreByteIdenticalLater) {
  for (const char* policy : {"zipcache", "zip,recent=20", "uniform,k_axis=group16"}) {
    Harness harness({1, 700, kLayers}, policy, 2);
    ASSERT_TRUE(harness.prompt(300, 150).ok());
    const int settled = int(harness.stats().rows_packed) / kBlockTokens * kBlockTokens;
    ASSERT_GE(settled, 128);
    std::vector<std::vector<half>> before;
    for (const int layer : {0, 1}) {
      for (const SideId side : {SideId::K, SideId::V})
        before.push_back(harness.read(layer, side, 0, settled));
    }
    for (int i = 0; i < 150; ++i) ASSERT_TRUE(harness.feed(1).ok());
    ASSERT_TRUE(harness.feed(200).ok());
    size_t i = 0;
    for (const int layer : {0, 1}) {
      for (const SideId side : {SideId::K, SideId::V}) {
        EXPECT_EQ(harness.read(layer, side, 0, settled), before[i++]) << policy;
      }
    }
  }
}

TEST(Streaming, SameSeedGivesTheSameBytesAndAnotherSeedOtherTiers) {
  for (const char* policy : {"zipcache", "random-tiers"}) {
    const auto run = [&](const char* seed) {
      Harness harness({1, 400, kLayers}, std::string(policy) + ",seed=" + seed, 2);
      EXPECT_TRUE(harness.prompt(400, 130).ok());
      auto rows = harness.read(0, SideId::K);
      const auto values = harness.read(1, SideId::V);
      rows.insert(rows.end(), values.begin(), values.end());
      return rows;
    };
    EXPECT_EQ(run("7"), run("7")) << policy;
    EXPECT_NE(run("7"), run("8")) << policy;
  }
}

TEST(Streaming, AStreamDoesNotDependOnTheOthers) {
  Harness alone({3, 300, kLayers}, "zipcache", 2), company({3, 300, kLayers}, "zipcache", 2);
  for (const int n : {100, 60, 1, 1, 90}) {
    ASSERT_TRUE(company.step(0, 5, company.tokens(1), {company.tokens(1) % 300}).ok());
    ASSERT_TRUE(company.feed(n, 2).ok());
    ASSERT_TRUE(company.feed(n, 1).ok());
    ASSERT_TRUE(alone.feed(n, 1).ok());
    EXPECT_EQ(company.out(0), alone.out(0));
  }
  for (const int layer : {0, 1}) {
    EXPECT_EQ(company.read(layer, SideId::K, 0, -1, 1), alone.read(layer, SideId::K, 0, -1, 1));
    EXPECT_EQ(company.read(layer, SideId::V, 0, -1, 1), alone.read(layer, SideId::V, 0, -1, 1));
  }
}

TEST(Streaming, ClearForgetsEverythingAndTheNextRunIsTheSame) {
  for (const char* policy : {"zipcache", "uniform,k_round=query"}) {
    Harness harness({1, 300, kLayers}, policy, 2);
    ASSERT_TRUE(harness.prompt(300, 100).ok());
    const auto keys = harness.read(1, SideId::K), values = harness.read(1, SideId::V);
    const Bytes bytes = harness.stats().bytes;
    harness.cache().clear();
    harness.forget();
    EXPECT_EQ(harness.stats().rows_live, 0u);
    EXPECT_EQ(harness.stats().bytes.allocated(), harness.stats().bytes.map);
    ASSERT_TRUE(harness.prompt(300, 100).ok());
    EXPECT_EQ(harness.read(1, SideId::K), keys) << policy;
    EXPECT_EQ(harness.read(1, SideId::V), values) << policy;
    EXPECT_EQ(harness.stats().bytes.allocated(), bytes.allocated());
  }
}

// Every step has a newest row, whatever the probes are.
TEST(Streaming, TheNewestRowOfEachStepScoresWhereThePolicySaysSo) {
  Harness harness({1, 300, kLayers}, "tova,probes=0+0", 1);
  ASSERT_TRUE(harness.prompt(200, 50).ok());
  for (int i = 0; i < 60; ++i) ASSERT_TRUE(harness.feed(1).ok());
  const CacheStats stats = harness.stats();
  EXPECT_EQ(stats.unscored_blocks, 0u);
  const uint64_t per_row = 2 * 128 + 176;
  EXPECT_EQ(stats.evicted_elements, 2u * 96 * per_row);  // a quarter of two blocks is kept
}

TEST(Cadence, PromptOutputsAreThoseOf16BitsUntilTheFirstShortStep) {
  Harness raw({1, 700, kLayers}, "f16", 2), prompt({1, 700, kLayers}, "zipcache,cadence=prompt", 2);
  for (const int n : {256, 200, 20}) {
    ASSERT_TRUE(raw.feed(n).ok());
    ASSERT_TRUE(prompt.feed(n).ok());
    for (const int layer : {0, 1})
      ASSERT_EQ(prompt.out(layer), raw.out(layer)) << "bit-identical at " << n;
    EXPECT_EQ(prompt.stats().rows_packed, 0u);
  }
  ASSERT_TRUE(raw.feed(19).ok());
  ASSERT_TRUE(prompt.feed(19).ok());
  EXPECT_NE(prompt.out(0), raw.out(0)) << "the first short step reads the packed prompt";
  EXPECT_EQ(prompt.stats().rows_packed, 384u);
}

TEST(Cadence, StreamOutputsAreThoseOf16BitsUntilAPackedBlockIsRead) {
  Harness raw({1, 700, kLayers}, "f16", 2), stream({1, 700, kLayers}, "zipcache,recent=64", 2);
  for (const int n : {100, 91, 1, 1}) {  // the first block leaves the window with token 192
    ASSERT_TRUE(raw.feed(n).ok());
    ASSERT_TRUE(stream.feed(n).ok());
    const bool packed_before = stream.tokens() == 193;
    EXPECT_EQ(stream.out(0) == raw.out(0), !packed_before) << stream.tokens();
  }
}

TEST(Cadence, WholePromptRanksOnceAndSharesItsParameters) {
  Harness stream({1, 600, {{1, 64, 64}}}, "zipcache", 1),
      prompt({1, 600, {{1, 64, 64}}}, "zipcache,cadence=prompt", 1);
  for (Harness* harness : {&stream, &prompt}) {
    ASSERT_TRUE(harness->prompt(512, 128).ok());
    ASSERT_TRUE(harness->feed(1).ok());
    EXPECT_EQ(harness->stats().rows_packed, 512u);
  }
  // Four blocks with two tiers of K parameters and V factors each, against one set: 3 * (2 * 2 * 64
  // + 64) numbers of 2 bytes less. What one ranking over all blocks gives a block is no whole
  // number of units, so that V's tokenwise parameters and all codes are filled up: by at most 15
  // tokens for each tier of each block.
  const size_t saved = 3u * (4 * 64 + 64) * 2, filling = 4u * 2 * 15;
  const size_t less = stream.stats().bytes.params - prompt.stats().bytes.params;
  EXPECT_LE(less, saved);
  EXPECT_GE(less + filling * 4, saved);
  // 304 of 512 tokens are in stream's high tier (19 portions of 16), 308 in prompt's.
  const size_t codes = (304u * 4 + 208 * 2) * 64 * 2 / 8;
  EXPECT_EQ(stream.stats().bytes.codes, codes);
  EXPECT_GE(prompt.stats().bytes.codes, codes + 4u * 2 * 64 * 2 / 8);
  EXPECT_LE(prompt.stats().bytes.codes, codes + (4u * 2 + filling * 4) * 64 * 2 / 8);
}

TEST(Cadence, BlocksFilledAfterThePromptArePackedByThemselves) {
  Harness harness({1, 700, kLayers}, "zipcache,cadence=prompt", 1);
  ASSERT_TRUE(harness.prompt(256, 128).ok());
  for (int i = 0; i < 128; ++i) ASSERT_TRUE(harness.feed(1).ok());
  EXPECT_EQ(harness.stats().rows_packed, 384u);
  ASSERT_TRUE(harness.feed(300).ok());  // a second turn
  EXPECT_EQ(harness.stats().rows_packed, 384u);
  ASSERT_TRUE(harness.feed(1).ok());
  EXPECT_EQ(harness.stats().rows_packed, 640u);
}

}  // namespace
}  // namespace zipcache
