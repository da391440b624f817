// Property 8 of the method, the part about bytes: predicted, reported and allocated bytes are the
// same.
#include <gtest/gtest.h>

#include "support/block_rig.hpp"
#include "support/harness.hpp"
#include "support/random_rows.hpp"

namespace zipcache {
namespace {

using test::Harness;

void expect_same_bytes(const Bytes& found, const Bytes& expected) {
  EXPECT_EQ(found.codes, expected.codes);
  EXPECT_EQ(found.params, expected.params);
  EXPECT_EQ(found.tags, expected.tags);
  EXPECT_EQ(found.raw, expected.raw);
  EXPECT_EQ(found.scores, expected.scores);
  EXPECT_EQ(found.map, expected.map);
  EXPECT_EQ(found.padding, expected.padding);
}

TEST(Footprint, PredictedBytesAreThoseOfACacheFedInMicroBatches) {
  const char* const policies[] = {"f16",
                                  "uniform",
                                  "zipcache",
                                  "zip",
                                  "recency-tiers",
                                  "zipcache,sinks=5,recent=40",
                                  "uniform,bits=3,k_axis=group32",
                                  "zip,sinks=128,recent=0",
                                  "kivi2,sinks=3",
                                  "mikv,recent=20",
                                  "kvarn-k4v2,sinks=2",
                                  "sym4",
                                  "nvfp4",
                                  "fp8",
                                  "turbo-k4v4",
                                  "roco",
                                  "rotatekv",
                                  "gear2-l",
                                  "zip,k_rank=3,sinks=5,recent=0",
                                  "zipcache,bits=16/4/2/0,ratio=0.05/0.3/0.3,v_rank=16",
                                  "zipcache,score=max",
                                  "zipcache,dual=2,v_axis=channel",
                                  "random+pin",
                                  "streaming,recent=100",
                                  "h2o,recent=0,bits=4/0",
                                  "zipcache,ratio=0.7",
                                  "zip,k=4,v=16/4/2,ratio=0.1/0.3,recent=0",
                                  "zipcache,bits=16/4/2/0,ratio=0.05/0.3/0.3",
                                  "zip,bits=8/4/3/2,ratio=0.1/0.1/0.2,sinks=9,recent=30",
                                  "oscar2,sinks=4,recent=40",
                                  "zip2,k_rotate=file,2:v_rotate=file"};
  const std::pair<int, int> lengths[] = {
      {1, 1},     {127, 127}, {128, 64}, {129, 43}, {300, 100},
      {513, 256}, {400, 400}, {384, 192}};  // a step that packs more raw blocks than it leaves
  for (const char* text : policies) {
    for (const auto& [n, ubatch] : lengths) {
      const std::vector<LayerShape> layers = {{2, 64, 64}, {1, 64, 128}, {2, 64, 64}};
      SCOPED_TRACE(testing::Message() << text << " " << n << " by " << ubatch);
      Harness harness({1, n, layers}, text, 1);
      ASSERT_TRUE(harness.prompt(n, ubatch).ok());
      const auto predicted = footprint(harness.cache().policy(), layers, n, ubatch);
      ASSERT_TRUE(predicted.ok());
      expect_same_bytes(harness.stats().bytes, *predicted);
    }
  }
}

TEST(LongRunBits, AreThoseOfAnOldCachesPackedRows) {
  const std::vector<LayerShape> layers = {{2, 64, 64}, {1, 64, 128}};
  constexpr int kTokens = 10 * kBlockTokens;  // shares of 0.7 and 0.6 come out even over ten blocks
  for (const char* text :
       {"zip,recent=0,sinks=0", "zipcache,ratio=0.7", "zipcache", "uniform3",
        "zip,recent=0,sinks=0,0:k=8,1:v=16", "zip,recent=0,sinks=0,v=4/3/2,ratio=0.1/0.2"}) {
    Harness harness({1, kTokens, layers}, text, 1);
    ASSERT_TRUE(harness.prompt(kTokens, 256).ok());
    const auto bits = long_run_bits(harness.cache().policy(), layers);
    ASSERT_TRUE(bits.ok()) << text;
    const Bytes bytes = harness.stats().bytes;
    const double held = double(bytes.codes + bytes.params + bytes.tags + bytes.raw);
    EXPECT_NEAR(*bits, 8 * held / double(harness.stats().elements), 1e-9) << text;
  }
}

TEST(LongRunBits, WindowAndSinksDoNotCount) {
  const std::vector<LayerShape> layers = {{3, 64, 64}};
  EXPECT_EQ(*long_run_bits(*parse_policy("f16"), layers), 16);
  EXPECT_DOUBLE_EQ(*long_run_bits(*parse_policy("zip"), layers),
                   *long_run_bits(*parse_policy("zip,sinks=0,recent=100000"), layers));
  // K: 4 and one step and floor for the 128 tokens of both tiers; V: a tenth of tokens at 4, the
  // others at 2, and both for 64 channels; and a bit of tag a token.
  EXPECT_NEAR(*long_run_bits(*parse_policy("zip"), layers),
              (4 + 0.25 + 2 + 0.1 * 2 + 0.5) / 2 + 1 / 128.0, 0.005);
}

TEST(Footprint, DecodingOneByOneKeepsThePrediction) {
  for (const char* text : {"zipcache", "zip,recent=16", "f16"}) {
    const std::vector<LayerShape> layers = {{1, 64, 64}, {1, 64, 64}};
    Harness harness({1, 270, layers}, text, 1);
    for (int n = 1; n <= 270; ++n) {
      ASSERT_TRUE(harness.feed(1).ok());
      Bytes found = harness.stats().bytes;
      Bytes expected = *footprint(harness.cache().policy(), layers, n, 1);
      found.map = expected.map = 0;  // the map is that of all cells from the start
      SCOPED_TRACE(testing::Message() << text << " " << n);
      expect_same_bytes(found, expected);
    }
  }
}

TEST(Footprint, KindsSumToWhatTheArenaHolds) {
  for (const char* text : {"f16", "zipcache", "uniform,k_axis=group16", "kivi4", "zip",
                           "random+pin", "streaming", "zipcache,rank=3"}) {
    for (const bool shared : {false, true}) {
      test::BlockRig rig({2, 80, 96}, *parse_policy(text), 300);
      rig.append(300, test::random_rows(300, 160, 1), test::random_rows(300, 192, 2));
      if (!rig.store.packed.policy().raw()) rig.pack(shared);
      size_t pieces = 0;
      Bytes bytes;
      rig.store.count(rig.log, bytes);
      for (const int slot : rig.log.order()) {
        const StoredBlock& block = rig.store.block(slot);
        EXPECT_NE(block.raw == nullptr, block.packed == nullptr);
        if (block.raw) pieces += Arena::rounded(rig.store.raw.bytes);
        if (block.packed) pieces += Arena::rounded(block.bytes.total);
        if (block.packed) {
          // Every part begins at a multiple of 8: 4 parts and 5 of each head and side.
          const size_t kinds =
              block.bytes.codes + block.bytes.params + block.bytes.tags + block.bytes.sinks;
          EXPECT_LE(kinds, block.bytes.total);
          EXPECT_LT(block.bytes.total - kinds, 8u * (4 + 5 * 2 * 2));
        }
      }
      if (shared && !rig.store.packed.policy().raw())
        pieces += Arena::rounded(rig.store.packed.shared_bytes());
      EXPECT_EQ(rig.arena.used(), pieces) << text;
      EXPECT_LE(bytes.codes + bytes.params + bytes.tags + bytes.raw + bytes.scores,
                rig.arena.used());
    }
  }
}

TEST(Footprint, StatsAddUpAndStayBelowThePlan) {
  for (const char* text : {"f16", "zipcache", "zip,recent=64", "uniform"}) {
    const CacheShape shape{2, 1024, {{2, 64, 64}, {2, 64, 64}}};
    Harness harness(shape, text, 1);
    for (int stream = 0; stream < 2; ++stream) ASSERT_TRUE(harness.prompt(1024, 128, stream).ok());
    const CacheStats stats = harness.stats();
    EXPECT_EQ(stats.rows_live, 2048u);
    EXPECT_EQ(stats.elements, 2048u * 2 * 2 * 128);
    EXPECT_LE(stats.coded_elements, stats.elements);
    EXPECT_GE(stats.bytes_peak, stats.bytes.allocated());
    EXPECT_LE(stats.bytes_peak, *planned_bytes(harness.cache().policy(), shape, 128)) << text;
    EXPECT_EQ(stats.bytes_planned, *planned_bytes(harness.cache().policy(), shape, 512));
    EXPECT_NEAR(stats.bits_per_element() * stats.ratio_resident(), 16.0, 1e-9);
    const Bytes& b = stats.bytes;
    EXPECT_EQ(b.allocated(), b.codes + b.params + b.tags + b.raw + b.scores + b.map + b.padding);
    if (harness.cache().policy().raw()) continue;
    EXPECT_NEAR(stats.ratio_params(),
                2.0 * double(stats.coded_elements) / double(b.codes + b.params + b.tags), 1e-9);
  }
}

// Text decides what a budget is spent on, never how much.
TEST(Footprint, CodesOfABudgetNeverExceedIt) {
  for (const auto& [text, bits] :
       {std::pair{"zip,v=16/4/2,alloc=knapsack,target_bits=3.25,recent=0", 3.25},
        {"zip,bits=16/4/2/0,alloc=knapsack_squares,target_bits=1.5,recent=0,sinks=0", 1.5},
        {"zip,v=4/3/2,alloc=knapsack,target_bits=3,score=random,recent=0,sinks=128", 3},
        {"rdkv,recent=0", 2},
        {"rdkv,recent=0,cadence=prompt", 2}}) {
    SCOPED_TRACE(text);
    const std::vector<LayerShape> layers = {{2, 64, 64}, {1, 64, 128}};
    Harness harness({1, 512, layers}, text, 1);
    ASSERT_TRUE(harness.prompt(511, 73).ok());
    ASSERT_TRUE(harness.feed(1).ok());
    const Bytes bytes = harness.stats().bytes;
    // Blocks of sinks hold codes for less than what is counted here.
    const double elements = double(harness.stats().rows_packed) * (2 * 128 + 192);
    EXPECT_LE(8.0 * double(bytes.codes), bits * elements);
    EXPECT_GE(8.0 * double(bytes.codes), 0.7 * bits * elements);
    EXPECT_LE(harness.stats().bytes_peak, harness.stats().bytes_planned * 1.2);
    if (harness.cache().policy().cadence == Cadence::Prompt) continue;
    const Bytes predicted = *footprint(harness.cache().policy(), layers, 512, 73);
    EXPECT_NEAR(double(predicted.codes), double(bytes.codes), 0.15 * double(bytes.codes));
  }
}

// What a tier of 0 bits drops is given back, and told.
TEST(Footprint, EvictedTokensTakeNoSpace) {
  const CacheShape shape{1, 1024, {{2, 64, 64}, {2, 64, 64}}};
  const size_t per_row = 2 * 2 * 128;  // numbers of a token in both layers
  Harness streaming(shape, "streaming,sinks=4,recent=128", 1), random(shape, "random+pin", 1);
  for (Harness* harness : {&streaming, &random}) ASSERT_TRUE(harness->prompt(1024, 128).ok());
  CacheStats stats = streaming.stats();
  EXPECT_EQ(stats.rows_live, 1024u);
  EXPECT_EQ(stats.evicted_elements, (896u - 4) * per_row);
  EXPECT_EQ(stats.bytes.codes + stats.bytes.params, 0u);
  EXPECT_EQ(stats.bytes.raw, (128u + 4) * per_row * 2);
  // Headers of 7 blocks, and the raw blocks of one step; 16 bits would be 1 MiB.
  EXPECT_LT(stats.bytes.allocated() - stats.bytes.map, 400u * 1024);
  EXPECT_LT(stats.bits_per_element(), 8.0);
  stats = random.stats();
  EXPECT_EQ(stats.evicted_elements, (896u - 4 - 896 / 4) * per_row);
  EXPECT_EQ(stats.bytes.codes, 896u / 4 * per_row * 2);
}

TEST(Footprint, BitsOfABlockAreThoseOfTheFormula) {
  // Two regions, own K parameters each, channel-separable V: avg + 40/T + 16/d + 0.5/d bits per
  // element, with tiers of whole units, and 6 bytes of count and offset for a head.
  for (const int dim : {64, 128}) {
    const PackedLayout layout({1, dim, dim}, *parse_policy("zipcache"));
    const int low = 48, high = 80;
    const PackedBytes bytes = layout.bytes(std::vector{TierCounts{high, low}}, 0, false);
    const double elements = 2.0 * 128 * dim;
    const double average = (4.0 * high + 2.0 * low) / 128;
    const double expected = average + 40.0 / 128 + 16.0 / dim + 0.5 / dim;
    const double bits = 8.0 * double(bytes.codes + bytes.params + bytes.tags - 6) / elements;
    EXPECT_NEAR(bits, expected, 1e-12);
  }
}

// Codes, and for K and V each 128 steps, floors and factors of the other axis.
TEST(Footprint, BytesOfAKvarnTileAreThePublishedOnes) {
  const auto tile = [](const char* text) {
    const PackedLayout layout({1, 128, 128}, *parse_policy(text));
    const PackedBytes bytes = layout.bytes(std::vector{TierCounts{128}}, 0, false);
    return bytes.codes + bytes.params;
  };
  EXPECT_EQ(tile("kvarn-k2v2"), 9728u);
  EXPECT_EQ(tile("kvarn-k4v2"), 13824u);
  EXPECT_EQ(tile("kvarn-k4v4"), 17920u);
}

// Bits per element of K and of V, parameters included, of a block of 128 tokens of 128 channels.
TEST(Footprint, BitsOfCodecsWithoutFloorsAreThePublishedOnes) {
  const auto bits = [](const char* text) {
    const PackedLayout layout({1, 128, 128}, *parse_policy(text));
    const PackedBytes bytes = layout.bytes(std::vector{TierCounts{128}}, 0, false);
    return 8.0 * double(bytes.codes + bytes.params) / (2 * 128 * 128);
  };
  EXPECT_EQ(bits("sym8"), 8.5);  // 34 bytes for 32 channels
  EXPECT_EQ(bits("sym4"), 4.5);  // 18 bytes
  EXPECT_EQ(bits("fp8"), 8.0);
  EXPECT_EQ(bits("nvfp4"), 4.5);                         // 9 bytes for 16 channels
  EXPECT_EQ(bits("turbo-k4v4"), 8.0 * (66 + 68) / 256);  // bytes of a key and of a value
  EXPECT_EQ(bits("turbo-k4v4,bits=3"), 8.0 * (50 + 52) / 256);
}

TEST(Footprint, ImpossibleArgumentsAreRefused) {
  const Policy policy = *parse_policy("zipcache");
  EXPECT_FALSE(footprint(policy, {}, 10, 1).ok());
  EXPECT_FALSE(footprint(policy, {{1, 64, 64}}, -1, 1).ok());
  EXPECT_FALSE(footprint(policy, {{1, 64, 64}}, 10, 0).ok());
  EXPECT_FALSE(planned_bytes(policy, {1, 10, {{1, 20, 64}}}, 512).ok());
  EXPECT_TRUE(footprint(policy, {{1, 64, 64}}, 0, 1).ok());
}

}  // namespace
}  // namespace zipcache
