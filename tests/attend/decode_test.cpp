// Attention through the public cache: every policy, against the oracle over the rows that it holds.
#include <gtest/gtest.h>

#include <cmath>
#include <numeric>

#include "base/random.hpp"
#include "support/harness.hpp"
#include "support/random_rows.hpp"

namespace zipcache {
namespace {

using test::Harness;
using test::OracleOut;

void expect_outputs(const Harness& harness, int layer, bool over_written) {
  const OracleOut expected = harness.expected(layer, over_written);
  // Over written rows nothing was rounded but sums in float: 1e-5 of the largest value times score
  // sizes.
  const double tolerance = over_written
                               ? 1e-5 * expected.largest_value * (1 + expected.largest_score)
                               : test::rounded_rows_error(expected);
  ASSERT_EQ(harness.out(layer).size(), expected.out.size());
  for (size_t i = 0; i < expected.out.size(); ++i) {
    ASSERT_NEAR(harness.out(layer)[i], expected.out[i], tolerance)
        << "layer " << layer << " at " << i;
  }
}

struct Geometry {
  int dim, group, kv_heads;
};

class AttentionOfShape : public testing::TestWithParam<Geometry> {};

TEST_P(AttentionOfShape, RawPrefillAndDecodeEqualTheOracle) {
  const auto [dim, group, heads] = GetParam();
  Harness harness({1, 200, {{heads, dim, dim}}}, "f16", group);
  ASSERT_TRUE(harness.feed(70).ok());
  expect_outputs(harness, 0, true);
  ASSERT_TRUE(harness.feed(1).ok());
  expect_outputs(harness, 0, true);
  ASSERT_TRUE(harness.feed(100).ok());
  expect_outputs(harness, 0, true);
}

TEST_P(AttentionOfShape, PackedAttentionEqualsTheOracleOverDecodedRows) {
  const auto [dim, group, heads] = GetParam();
  for (const char* policy : {"zipcache", "zip,recent=0"}) {
    Harness harness({1, 320, {{heads, dim, dim}}}, policy, group);
    ASSERT_TRUE(harness.prompt(256, 128).ok());
    ASSERT_TRUE(harness.feed(3).ok());
    EXPECT_GT(harness.stats().rows_packed, 0u);
    expect_outputs(harness, 0, false);
    ASSERT_TRUE(harness.feed(21).ok());
    expect_outputs(harness, 0, false);
  }
}

INSTANTIATE_TEST_SUITE_P(HeadSizes, AttentionOfShape,
                         testing::Values(Geometry{64, 3, 1}, Geometry{80, 1, 2}, Geometry{96, 4, 1},
                                         Geometry{128, 8, 1}, Geometry{256, 1, 1},
                                         Geometry{16, 2, 2}),
                         [](const auto& info) {
                           return "dim" + std::to_string(info.param.dim) + "_group" +
                                  std::to_string(info.param.group);
                         });

class AttentionOfPolicy : public testing::TestWithParam<const char*> {};

TEST_P(AttentionOfPolicy, OutputsEqualTheOracleOverWhatTheCacheHolds) {
  Harness harness({1, 420, {{2, 64, 64}, {1, 64, 96}}}, GetParam(), 2);
  ASSERT_TRUE(harness.prompt(300, 150).ok());
  ASSERT_TRUE(harness.feed(1).ok());
  for (const int layer : {0, 1}) expect_outputs(harness, layer, false);
  for (int i = 0; i < 90; ++i) ASSERT_TRUE(harness.feed(1).ok());
  for (const int layer : {0, 1}) expect_outputs(harness, layer, false);
}

INSTANTIATE_TEST_SUITE_P(
    Rows, AttentionOfPolicy,
    testing::Values(
        "f16", "uniform", "zipcache", "zipcache-code", "zip", "random-tiers", "recency-tiers",
        "kivi2", "kivi4", "had4", "wkvquant", "rotatekv,sinks=3",
        "gear2-l,v_axis=group32,recent=30", "zip,rank=3,recent=0", "h2o,bits=4/0,k_rank=16",
        "turbo-k4v4,v_rank=1,cadence=prompt", "sym8,rank=2,precision=fast", "h2o,score=max",
        "qserve4", "mikv", "h2o", "tova", "snapkv", "streaming,recent=64", "random+pin",
        "random+pin,bits=4/0", "sym8", "sym8-had", "sym4", "sym4-had", "turbo-k4v4", "fp8", "nvfp4",
        "roco", "turbo-k4v4,bits=4/2,v_codec=lloyd,cadence=prompt", "roco,scope=layer",
        "sym4,precision=fast", "sym4,precision=k2", "kvarn-k4v2,sinks=5", "kvarn-k2v2",
        "kvarn-k4v4,cadence=prompt,sinks=0", "zipcache,dual=2,v_axis=token",
        "h2o,bits=4/0,dual=1,v_axis=channel", "h2o,scope=layer", "h2o,cadence=prompt", "zip2",
        "zip3", "zip4", "uniform,bits=3", "uniform,bits=8", "uniform,bits=2,fit=midpoint",
        "uniform,bits=2,fit=mse", "zipcache,k=16/4", "uniform,k_axis=group32,v_axis=group16",
        "uniform,k_axis=token,v_axis=channel", "uniform,k_axis=cst", "zipcache,k_rotate=hadamard",
        "zipcache,rotate=hadamard", "zipcache,scope=layer", "zipcache,cadence=prompt",
        "zipcache,ratio=0", "zipcache,ratio=1", "zipcache,sinks=128", "zip,recent=77,sinks=3",
        "rdkv", "zip,rotate=file,recent=0", "oscar2,recent=64,sinks=5", "skvq,recent=20",
        "zip2,k_rotate=file", "zip2,v_rotate=file,cadence=prompt", "h2o,bits=4/0,rotate=file",
        "turbo-k4v4,rotate=file", "zip,rotate=none,1:rotate=file", "rdkv,cadence=prompt",
        "zip,v=16/4/2,ratio=0.05/0.1,recent=20", "zipcache,bits=16/4/2/0,ratio=0.1/0.2/0.3",
        "zipcache,bits=8/4/3/2,ratio=0.1/0.2/0.3,cadence=prompt",
        "zip,v=4/3/2,alloc=knapsack,target_bits=3.2,scope=layer",
        "roco,bits=16/8/2/0,ratio=0.1/0.1/0.2,k_axis=token,v_axis=token"),
    [](const auto& info) {
      std::string name;
      for (const char c : std::string(info.param))
        name += std::isalnum(static_cast<unsigned char>(c)) ? c : '_';
      return name;
    });

TEST(Attention, AlibiSoftCapAndSinkLogitsEqualTheOracle) {
  for (const char* policy : {"f16", "zipcache", "zip,recent=20"}) {
    for (const int group : {2, 3}) {  // 6 heads are no power of two: interleaved slopes
      Harness harness({1, 300, {{2, 64, 64}}}, policy, group);
      harness.max_bias = 8;
      harness.soft_cap = 5;
      for (int head = 0; head < 2 * group; ++head) harness.sinks.push_back(float(head) - 2.0f);
      ASSERT_TRUE(harness.prompt(256, 64).ok());
      ASSERT_TRUE(harness.feed(2).ok());  // packs nothing, so that what it read is still there
      expect_outputs(harness, 0, harness.cache().policy().raw());
    }
  }
}

// A soft cap makes finite numbers of hidden ones. One ranking over 128 tokens leaves 77 and 51 of
// them in the tiers, filled up to 80 and 64 columns; values of 1 show whether these took a share.
TEST(Attention, FillingStaysHiddenUnderASoftCap) {
  const Policy policy = *parse_policy("random-tiers,cadence=prompt");
  auto cache = std::move(*Cache::create({1, 128, {{1, 64, 64}}}, policy));
  std::vector<int64_t> cells(128);
  std::iota(cells.begin(), cells.end(), 0);
  const auto keys = test::random_rows(128, 64, 1), q = test::random_rows(1, 64, 2, 1.0f);
  const std::vector<float> ones(128 * 64, 1.0f);
  ASSERT_TRUE(cache->write(0, 0, SideId::K, cells, keys.data(), 64).ok());
  ASSERT_TRUE(cache->write(0, 0, SideId::V, cells, ones.data(), 64).ok());
  std::vector<float> out(64);
  Attention step;
  step.n_queries = step.n_heads = 1, step.q = q.data(), step.out = out.data();
  step.q_row_stride = step.q_head_stride = step.out_row_stride = step.out_head_stride = 64;
  step.n_cells = 128, step.scale = 0.125f, step.soft_cap = 0.5f;
  ASSERT_TRUE(cache->attend(step).ok());
  EXPECT_EQ(cache->stats().rows_packed, 128u);
  // Constant values have no step, so that only sums in float round.
  for (const float value : out) EXPECT_NEAR(value, 1.0f, 1e-5f);
}

TEST(Attention, InterleavedSequencesInOneStreamSeeOnlyThemselves) {
  for (const char* policy : {"f16", "zipcache"}) {
    Harness harness({1, 400, {{2, 64, 64}}}, policy, 1);
    int next[3] = {0, 0, 0};
    for (int round = 0; round < 130; ++round) {
      const int sequence = round % 3;
      const int64_t cell = (round * 7) % 200;
      ASSERT_TRUE(harness.step(0, sequence, next[sequence], {cell, cell + 200}).ok());
      next[sequence] += 2;
      if (round % 40 == 39) expect_outputs(harness, 0, harness.cache().policy().raw());
    }
  }
}

TEST(Attention, StreamsAndThreadsDoNotChangeTheAnswer) {
  for (const char* policy : {"f16", "zipcache", "zip,recent=32"}) {
    Harness one({3, 300, {{2, 64, 64}}}, policy, 2), two({3, 300, {{2, 64, 64}}}, policy, 2);
    two.n_threads = 2;
    for (const int n : {140, 60, 1, 3, 1}) {
      for (int stream = 0; stream < 3; ++stream) {
        ASSERT_TRUE(one.feed(n, stream).ok());
        ASSERT_TRUE(two.feed(n, stream).ok());
        if (n < 60)
          expect_outputs(two, 0, two.cache().policy().raw());  // longer steps pack a block
        const OracleOut scale = one.expected(0, false);
        for (size_t i = 0; i < one.out(0).size(); ++i) {
          // The same sums in another order.
          ASSERT_NEAR(two.out(0)[i], one.out(0)[i],
                      1e-5 * scale.largest_value * (1 + scale.largest_score));
        }
      }
    }
  }
}

TEST(Attention, HiddenRowsGiveZerosAndRandomMasksEqualTheOracle) {
  const int dim = 64, n_cells = 150, n_queries = 40;
  auto cache =
      std::move(*Cache::create({1, n_cells, {{1, dim, dim}}}, *parse_policy("uniform,bits=8")));
  const auto k = test::random_rows(n_cells, dim, 1), v = test::random_rows(n_cells, dim, 2);
  std::vector<int64_t> cells;
  for (int i = 0; i < n_cells; ++i) cells.push_back((i * 11) % n_cells);
  ASSERT_TRUE(cache->write(0, 0, SideId::K, cells, k.data(), dim).ok());
  ASSERT_TRUE(cache->write(0, 0, SideId::V, cells, v.data(), dim).ok());
  const auto q = test::random_rows(n_queries, dim, 3, 1.0f);
  std::vector<half> mask(size_t(n_queries * n_cells));
  Random random(4);
  for (int r = 0; r < n_queries; ++r) {
    for (int c = 0; c < n_cells; ++c) {
      const bool hidden = r % 5 == 0 || random.below(10) < 8;
      mask[size_t(r * n_cells + c)] = hidden ? kHalfNegInf : half{0};
    }
  }
  std::vector<float> out(size_t(n_queries * dim), NAN);
  Attention step;
  step.n_queries = n_queries, step.n_heads = 1, step.n_cells = n_cells;
  step.q = q.data(), step.q_row_stride = dim, step.q_head_stride = dim;
  step.mask = mask.data(), step.mask_stride = n_cells, step.scale = 0.125f;
  step.out = out.data(), step.out_row_stride = dim, step.out_head_stride = dim;
  for (int round = 0; round < 2; ++round) {  // the second time the first block is packed
    test::OracleStep oracle{n_queries, 1,  1,  dim,   dim, n_cells, test::to_doubles(q),
                            {},        {}, {}, 0.125, 0,   0,       {}};
    std::vector<half> rows(size_t(n_cells * dim));
    ASSERT_TRUE(cache->read_half(0, 0, SideId::K, 0, n_cells, rows.data()).ok());
    oracle.keys = test::to_doubles(test::to_floats(rows));
    ASSERT_TRUE(cache->read_half(0, 0, SideId::V, 0, n_cells, rows.data()).ok());
    oracle.values = test::to_doubles(test::to_floats(rows));
    for (const half value : mask) oracle.mask.push_back(value ? test::kHidden : 0.0);
    const OracleOut expected = test::attention(oracle);
    ASSERT_TRUE(cache->attend(step).ok());
    for (size_t i = 0; i < out.size(); ++i) {
      ASSERT_NEAR(out[i], expected.out[i], test::rounded_rows_error(expected));
      ASSERT_TRUE(i / dim % 5 != 0 || out[i] == 0.0f) << "a row that sees nothing";
    }
  }
}

}  // namespace
}  // namespace zipcache
