// Cells written again, states saved and restored, and compaction.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <numeric>

#include "base/random.hpp"
#include "codec/quantize.hpp"
#include "support/harness.hpp"
#include "support/random_rows.hpp"

namespace zipcache {
namespace {

using test::Harness;

const std::vector<LayerShape> kLayers = {{2, 64, 64}, {1, 80, 96}};
constexpr SideId kSides[] = {SideId::K, SideId::V};

// All rows of a stream, as a state that is saved.
std::vector<std::vector<half>> saved(const Harness& harness, int first, int n) {
  std::vector<std::vector<half>> state;
  for (const int layer : {0, 1}) {
    for (const SideId side : kSides) state.push_back(harness.read(layer, side, first, n));
  }
  return state;
}

Status restore(Harness& harness, const std::vector<std::vector<half>>& state, int first, int n) {
  for (const int layer : {0, 1}) {
    for (const SideId side : kSides) {
      const auto& rows = state[size_t(2 * layer + (side == SideId::V))];
      ZC_TRY(harness.cache().write_half(layer, 0, side, first, n, rows.data()));
    }
  }
  return ok();
}

std::vector<int64_t> cells_from(int first, int n) {
  std::vector<int64_t> cells(size_t(n), 0);
  std::iota(cells.begin(), cells.end(), int64_t(first));
  return cells;
}

TEST(Rewrite, WritingBackWhatWasReadChangesNothing) {
  for (const char* policy : {"f16", "zipcache", "zip", "uniform,bits=2", "zipcache,rotate=hadamard",
                             "zip,rotate=file", "zip,rank=4"}) {
    Harness harness({1, 400, kLayers}, policy, 1);
    ASSERT_TRUE(harness.prompt(330, 110).ok());
    const CacheStats before = harness.stats();
    const auto state = saved(harness, 0, 330);
    for (const int first : {0, 100, 250}) {
      ASSERT_TRUE(restore(harness, saved(harness, first, 330 - first), first, 330 - first).ok());
    }
    EXPECT_EQ(saved(harness, 0, 330), state) << policy;
    const CacheStats after = harness.stats();
    EXPECT_EQ(after.rows_live, before.rows_live);
    EXPECT_EQ(after.rows_dead, before.rows_dead);
    EXPECT_EQ(after.rows_packed, before.rows_packed);
    EXPECT_EQ(after.bytes.allocated(), before.bytes.allocated());
    EXPECT_EQ(after.bytes.codes, before.bytes.codes);
  }
}

TEST(Rewrite, ARestoredStateReadsAsItWasSaved) {
  for (const char* policy :
       {"f16", "zipcache", "zip", "zipcache,bits=16/8/4/2,ratio=0.1/0.2/0.3", "zipcache,rank=2"}) {
    Harness harness({1, 400, kLayers}, policy, 1);
    ASSERT_TRUE(harness.prompt(300, 100).ok());
    const auto state = saved(harness, 0, 300);
    ASSERT_TRUE(
        harness.step(0, 1, 0, cells_from(50, 200)).ok());  // another sequence takes the cells
    ASSERT_TRUE(restore(harness, state, 0, 300).ok());
    EXPECT_EQ(saved(harness, 0, 300), state) << policy;
    Harness fresh({1, 400, kLayers}, policy, 1);
    ASSERT_TRUE(restore(fresh, state, 0, 300).ok());
    EXPECT_EQ(saved(fresh, 0, 300), state) << policy;
  }
}

// Attention of one query to the first n cells of layer 0.
std::vector<float> attend_to(Cache& cache, int n) {
  const auto q = test::random_rows(1, 128, 9, 1.0f);
  std::vector<float> out(128);
  Attention step;
  step.n_queries = 1, step.n_heads = 2, step.q = q.data();
  step.q_row_stride = step.out_row_stride = 128, step.q_head_stride = step.out_head_stride = 64;
  step.out = out.data(), step.n_cells = n, step.scale = 0.125f;
  EXPECT_TRUE(cache.attend(step).ok());
  return out;
}

// Evicted rows are saved as zeros; where they come back they must stay away.
TEST(Rewrite, ARestoredStateOfAnEvictingPolicyHidesWhatWasEvicted) {
  for (const char* policy :
       {"random+pin,recent=0", "streaming,recent=60", "rdkv,recent=0,precision=exact",
        "random+pin,bits=16/8/4/0,ratio=0.1/0.2/0.3,precision=exact"}) {
    Harness harness({1, 400, kLayers}, policy, 1);
    ASSERT_TRUE(harness.prompt(300, 100).ok());
    const auto state = saved(harness, 0, 300);
    const uint64_t evicted = harness.stats().evicted_elements;
    EXPECT_GT(evicted, 0u);
    Harness moved({1, 400, kLayers}, policy, 1);
    ASSERT_TRUE(moved.prompt(300, 100).ok());
    ASSERT_TRUE(moved.step(0, 1, 0, cells_from(50, 200)).ok());
    ASSERT_TRUE(restore(moved, state, 0, 300).ok());
    EXPECT_EQ(saved(moved, 0, 300), state) << policy;
    EXPECT_EQ(moved.stats().evicted_elements, evicted) << policy;
    Harness fresh({1, 400, kLayers}, policy, 1);
    ASSERT_TRUE(restore(fresh, state, 0, 300).ok());
    EXPECT_EQ(saved(fresh, 0, 300), state) << policy;
    const auto expected = attend_to(harness.cache(), 300);
    const auto after_move = attend_to(moved.cache(), 300), anew = attend_to(fresh.cache(), 300);
    // The same 16-bit rows in another order; values are below 100.
    for (size_t i = 0; i < expected.size(); ++i) {
      ASSERT_NEAR(after_move[i], expected[i], 1e-3) << policy;
      ASSERT_NEAR(anew[i], expected[i], 1e-3) << policy;
    }
  }
}

TEST(Rewrite, RestoringChangedRowsKeepsTheSidesAndLayersThatDidNotChange) {
  // Layer 0 often depends on the token alone: a restored state can agree with the cache there and
  // differ in later layers, or agree in K and differ in V.
  for (const int changed : {1, 2, 3}) {
    Harness harness({1, 400, kLayers}, "uniform", 1);
    ASSERT_TRUE(harness.prompt(256, 128).ok());
    auto state = saved(harness, 0, 256);
    for (half& value : state[size_t(changed)]) value = to_half(0.5f * to_float(value) + 1.0f);
    ASSERT_TRUE(restore(harness, state, 0, 256).ok());
    EXPECT_EQ(saved(harness, 0, 256), state) << "changed part " << changed;
  }
}

// llama.cpp puts a sequence of scattered cells back run by run: all keys, then all values. The text
// that follows must not be taken for a part of that, or a block that one layer packs loses the rows
// that the next layers have yet to write.
TEST(Rewrite, ATextAfterAStateInPiecesKeepsItsRowsInAllLayers) {
  Harness harness({1, 400, kLayers}, "uniform,bits=8", 1);
  ASSERT_TRUE(harness.prompt(120, 120).ok());
  for (const SideId side : kSides) {
    for (const int layer : {0, 1}) {
      for (const int first : {0, 60}) {
        const auto rows = harness.read(layer, side, first, 20);
        ASSERT_TRUE(harness.cache().write_half(layer, 0, side, first, 20, rows.data()).ok());
      }
    }
  }
  ASSERT_TRUE(harness.prompt(40, 40).ok());  // the first block is full and packed on the way
  ASSERT_GT(harness.stats().rows_packed, 100u);
  for (const int layer : {0, 1}) {
    for (const SideId side : kSides) {
      const auto found = harness.read(layer, side), written = harness.written(layer, side);
      const auto [low, high] = std::minmax_element(
          written.begin(), written.end(), [](half a, half b) { return to_float(a) < to_float(b); });
      // No step of 8 bits is wider than a 255th of all numbers' range.
      const float step = (to_float(*high) - to_float(*low)) / 255;
      for (size_t i = 0; i < written.size(); ++i)
        ASSERT_NEAR(to_float(found[i]), to_float(written[i]), step)
            << "layer " << layer << ", " << i;
    }
  }
}

TEST(Rewrite, RawCellsKeepTheirRowAndPackedOnesMoveToTheEnd) {
  Harness harness({1, 400, kLayers}, "uniform", 1);
  ASSERT_TRUE(harness.feed(200).ok());
  ASSERT_TRUE(harness.step(0, 1, 0, cells_from(150, 20)).ok());  // in the block that is still raw
  EXPECT_EQ(harness.stats().rows_dead, 0u);
  EXPECT_EQ(harness.stats().rows_live, 200u);
  EXPECT_EQ(harness.read(0, SideId::K, 128), harness.written(0, SideId::K, 128));
  ASSERT_TRUE(harness.step(0, 2, 0, cells_from(10, 30)).ok());  // in the packed one
  EXPECT_EQ(harness.stats().rows_dead, 30u);
  EXPECT_EQ(harness.stats().rows_live, 200u);
  EXPECT_EQ(harness.read(1, SideId::V, 10, 30), harness.written(1, SideId::V, 10, 30));
}

TEST(Rewrite, ABlockWithoutLiveRowsIsFreedAtOnce) {
  Harness harness({1, 600, kLayers}, "uniform", 1);
  ASSERT_TRUE(harness.prompt(256, 128).ok());
  const size_t codes = harness.stats().bytes.codes;
  ASSERT_TRUE(harness.step(0, 1, 0, cells_from(0, 127)).ok());
  EXPECT_EQ(harness.stats().rows_dead, 127u);
  EXPECT_EQ(harness.stats().bytes.codes, codes);
  ASSERT_TRUE(harness.step(0, 1, 127, {127}).ok());
  EXPECT_EQ(harness.stats().rows_dead, 0u);
  EXPECT_EQ(harness.stats().bytes.codes, codes);  // one block freed, the new one packed
}

// Each round leaves a packed block of another size, by its number of sinks, in place of the last.
TEST(Rewrite, BlocksOfManySizesOneAfterTheOtherDoNotUseStorageUp) {
  Harness harness({1, kBlockTokens, {{1, 64, 64}}}, "uniform,bits=2,recent=0,sinks=1", 1);
  for (int round = 0; round < 80; ++round) {
    const int n_alone = round % 60, sequence = 100 * round;
    for (int i = 0; i < n_alone; ++i) ASSERT_TRUE(harness.step(0, sequence + i, 0, {i}).ok());
    const Status status =
        harness.step(0, sequence + n_alone, 0, cells_from(n_alone, kBlockTokens - n_alone));
    ASSERT_TRUE(status.ok()) << "round " << round << ": " << status.message();
    ASSERT_EQ(harness.stats().blocks.packed, 1u) << round;
  }
}

TEST(Rewrite, PackedRowsThatAreCountedAreLive) {
  Harness harness({1, 600, kLayers}, "uniform", 1);
  ASSERT_TRUE(harness.prompt(256, 128).ok());
  ASSERT_TRUE(harness.step(0, 1, 0, cells_from(0, 60)).ok());
  const CacheStats stats = harness.stats();
  EXPECT_EQ(stats.rows_live, 256u);
  EXPECT_EQ(stats.rows_packed, 256u - 60) << "60 of the packed rows are dead";
  EXPECT_LE(stats.coded_elements, stats.elements);
}

TEST(Rewrite, RowsWrittenAgainHaveNoScores) {
  Harness harness({1, 300, {{2, 64, 64}}}, "zip,recent=256", 1);
  ASSERT_TRUE(harness.feed(100).ok());
  std::vector<float> sums(2 * 20);
  std::vector<uint32_t> seen(20);
  ASSERT_TRUE(harness.cache().read_scores(0, 0, 10, 20, sums.data(), seen.data()).ok());
  EXPECT_GT(*std::min_element(sums.begin(), sums.end()), 0.0f);
  EXPECT_GT(*std::min_element(seen.begin(), seen.end()), 0u);
  const auto rows = test::random_rows(20, 2 * 64, 5);
  for (const SideId side : kSides) {
    ASSERT_TRUE(harness.cache().write(0, 0, side, cells_from(10, 20), rows.data(), 2 * 64).ok());
  }
  ASSERT_TRUE(harness.cache().read_scores(0, 0, 10, 20, sums.data(), seen.data()).ok());
  EXPECT_EQ(sums, std::vector<float>(sums.size()));
  EXPECT_EQ(seen, std::vector<uint32_t>(seen.size()));
}

TEST(Compaction, DeadRowsStayBoundedAndValuesWithinTwoCodings) {
  Harness harness({1, 1024, {{1, 64, 64}}}, "uniform,bits=8,k_axis=token,v_axis=token", 1);
  ASSERT_TRUE(harness.prompt(1024, 128).ok());
  Random random(3);
  for (int round = 0; round < 150; ++round) {
    std::vector<int64_t> cells;
    for (const int cell : random.sample(1024, 24)) cells.push_back(cell);
    ASSERT_TRUE(harness.step(0, 1 + round, 0, cells).ok());
    // Allowed before a step: an eighth of the cells; the step itself adds its own.
    ASSERT_LE(harness.stats().rows_dead, 128u + 24);
    ASSERT_EQ(harness.stats().rows_live, 1024u);
  }
  EXPECT_GT(harness.stats().compactions, 0u);
  for (const SideId side : kSides) {
    const auto found = test::to_floats(harness.read(0, side, 0, 1024));
    const auto exact = test::to_floats(harness.written(0, side, 0, 1024));
    for (size_t t = 0; t < 1024; ++t) {
      const auto row = exact.begin() + ptrdiff_t(t * 64);
      const auto [lo, hi] = std::minmax_element(row, row + 64);
      // Coded once, and again for each compaction that moved it (a handful at most; coding a
      // decoded row moves it by less than rounding of its parameters).
      const float bound =
          2 * error_bound(*lo, *hi, 8, Fit::Endpoint) + std::max(std::abs(*lo), *hi) * 0x1p-10f;
      for (size_t c = 0; c < 64; ++c) ASSERT_NEAR(found[t * 64 + c], exact[t * 64 + c], bound) << t;
    }
  }
}

TEST(Compaction, SinksStayExact) {
  Harness harness({1, 1024, {{1, 64, 64}}}, "uniform,bits=2,sinks=4", 1);
  ASSERT_TRUE(harness.prompt(1024, 128).ok());
  ASSERT_EQ(harness.read(0, SideId::K, 0, 4), harness.written(0, SideId::K, 0, 4));
  for (int round = 0; round < 12; ++round) {  // everything but the first eight cells of each block
    for (int block = 0; block < 8; ++block) {
      ASSERT_TRUE(harness.step(0, 1, 100 + round, {int64_t(block * 128 + 8 + round * 10)}).ok());
      ASSERT_TRUE(
          harness.step(0, 1, 300 + round, cells_from(block * 128 + 9 + round * 10, 9)).ok());
    }
  }
  ASSERT_GT(harness.stats().compactions, 0u);
  EXPECT_EQ(harness.read(0, SideId::K, 0, 4), harness.written(0, SideId::K, 0, 4));
  EXPECT_EQ(harness.read(0, SideId::V, 0, 4), harness.written(0, SideId::V, 0, 4));
}

// Rows that a compaction moves before a step are not the step's.
TEST(Compaction, FirstTokensOfSequencesAreSinksInTheStepBehindIt) {
  Harness harness({1, 1024, {{1, 64, 64}}}, "uniform,bits=2,sinks=4", 1);
  ASSERT_TRUE(harness.prompt(1024, 128).ok());
  std::vector<int> cells;
  for (int i = 0; i < 300; ++i) {
    cells.push_back(100 + 3 * i);
    ASSERT_TRUE(harness.step(0, 1 + i, 0, {cells.back()}).ok());
  }
  ASSERT_GT(harness.stats().compactions, 0u);
  for (const int cell : cells) {
    ASSERT_EQ(harness.read(0, SideId::K, cell, 1), harness.written(0, SideId::K, cell, 1)) << cell;
  }
}

TEST(Compaction, WritingEveryCellInTheWorstOrderNeverRunsOutOfBlocks) {
  // Dead rows in every block, then one write of all cells that leaves each old block alive to the
  // end.
  constexpr int kCells = 16384;
  const LayerShape shape{1, 16, 16};
  auto cache = std::move(*Cache::create({1, kCells, {shape}}, *parse_policy("uniform,bits=2")));
  const auto rows = test::random_rows(kCells, 16, 1);
  std::vector<float> q(16), out(16);
  Attention step;
  step.n_queries = step.n_heads = 1, step.q = q.data(), step.q_row_stride = step.q_head_stride = 16;
  step.out = out.data(), step.out_row_stride = step.out_head_stride = 16, step.n_cells = kCells;
  const auto write = [&](const std::vector<int64_t>& cells) {
    for (const SideId side : kSides)
      ASSERT_TRUE(cache->write(0, 0, side, cells, rows.data(), 16).ok());
    ASSERT_TRUE(cache->attend(step).ok());
  };
  write(cells_from(0, kCells));
  std::vector<int64_t> some, all, last;
  for (int cell = 0; cell < kCells; cell += 8) some.push_back(cell);
  write(some);
  ASSERT_EQ(cache->stats().rows_dead, some.size());
  for (int cell = 0; cell < kCells; ++cell)
    (cell % 128 == 1 || cell % 1024 == 1016 ? last : all).push_back(cell);
  all.insert(all.end(), last.begin(), last.end());
  write(all);
  EXPECT_EQ(cache->stats().rows_live, uint64_t(kCells));
}

TEST(Extremes, TheLargestRowsDecodeToFiniteNumbers) {
  for (const char* policy :
       {"uniform", "zip,recent=0,sinks=0", "uniform,rotate=hadamard,bits=2", "uniform,fit=midpoint",
        "uniform,fit=unbiased,bits=2", "uniform,fit=mse,bits=2", "uniform,k_axis=cst", "sym4-had",
        "sym8", "turbo-k4v4", "nvfp4", "fp8", "kvarn-k4v2,sinks=0"}) {
    auto cache = std::move(*Cache::create({1, 128, {{1, 64, 64}}}, *parse_policy(policy)));
    std::vector<float> rows(128 * 64);
    for (size_t i = 0; i < rows.size(); ++i) rows[i] = i % 5 < 3 ? 65504.0f : -65504.0f;
    for (const SideId side : kSides)
      ASSERT_TRUE(cache->write(0, 0, side, cells_from(0, 128), rows.data(), 64).ok());
    std::vector<float> q(64), out(64, NAN);
    Attention step;
    step.n_queries = step.n_heads = 1, step.q = q.data(),
    step.q_row_stride = step.q_head_stride = 64;
    step.out = out.data(), step.out_row_stride = step.out_head_stride = 64, step.n_cells = 128;
    ASSERT_TRUE(cache->attend(step).ok());
    EXPECT_EQ(cache->stats().rows_packed, 128u);
    ASSERT_TRUE(cache->attend(step).ok());
    // Rotation may gather a head's whole norm in one channel, beyond what parameters can say.
    const bool rotated = parse_policy(policy)->v.rotation == Rotation::Hadamard;
    const float most = (rotated ? 128 : 2) * 65504.0f;
    for (const float value : out)
      ASSERT_TRUE(std::abs(value) <= most) << policy << " gives " << value;
    std::vector<half> back(128 * 64);
    ASSERT_TRUE(cache->read_half(0, 0, SideId::V, 0, 128, back.data()).ok());
    for (const half value : back) ASSERT_NE(value & 0x7C00, 0x7C00) << policy;
  }
}

TEST(Rewrite, RowsAreReadAsAttentionSeesThemBeforeTheyAreRounded) {
  Harness harness({1, 320, kLayers}, "zip");
  ASSERT_TRUE(harness.prompt(300, 128).ok());
  for (const SideId side : kSides) {
    const auto rounded = harness.read(1, side, 0, 300);
    std::vector<float> rows(rounded.size());
    ASSERT_TRUE(harness.cache().read(1, 0, side, 0, 300, rows.data()).ok());
    size_t between = 0;
    for (size_t i = 0; i < rows.size(); ++i) {
      ASSERT_EQ(to_half(rows[i]), rounded[i]) << i;
      between += rows[i] != to_float(rounded[i]);
    }
    EXPECT_GT(between, 0u) << "packed rows are not 16-bit numbers";
  }
  std::vector<float> none(1);
  EXPECT_EQ(harness.cache().read(1, 0, SideId::K, 300, 21, none.data()).code(), Code::BadArgument);
}

}  // namespace
}  // namespace zipcache
