// The map from cells to rows, and the layout of blocks.
#include "cache/log.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>
#include <set>

#include "cache/block_layout.hpp"
#include "support/harness.hpp"

namespace zipcache {
namespace {

std::vector<RowId> write_cells(StreamLog& log, const std::vector<int64_t>& cells, int layer = 0,
                               SideId side = SideId::K) {
  std::vector<RowId> rows;
  log.begin_write(layer, side);
  log.place(cells, rows, [&](int slot) { log.free_slot(slot); });
  return rows;
}

TEST(StreamLog, NewCellsGetConsecutiveRowsInTheOrderOfTheWrite) {
  StreamLog log(300, 1);
  const auto rows = write_cells(log, {7, 3, 299});
  for (int i = 0; i < 3; ++i) EXPECT_EQ(rows[size_t(i)].row, i);
  EXPECT_EQ(log.find(3).row, 1);
  EXPECT_EQ(log.find(0).slot, -1);
  EXPECT_EQ(log.rows_live(), 3u);
}

TEST(StreamLog, AllLayersAndSidesOfAStepShareTheirRows) {
  StreamLog log(300, 3);
  std::vector<int64_t> cells(150);
  std::iota(cells.begin(), cells.end(), 0);
  const auto first = write_cells(log, cells);
  log.seal(log.order()[0]);  // the first layer packs its block before the others are written
  for (const int layer : {0, 1, 2}) {
    for (const SideId side : {SideId::K, SideId::V}) {
      if (layer == 0 && side == SideId::K) continue;
      const auto rows = write_cells(log, cells, layer, side);
      for (size_t i = 0; i < rows.size(); ++i) {
        ASSERT_EQ(rows[i].slot, first[i].slot);
        ASSERT_EQ(rows[i].row, first[i].row);
      }
    }
  }
  EXPECT_EQ(log.rows_dead(), 0u);
  EXPECT_EQ(log.step_rows().size(), 150u);
  const auto next =
      write_cells(log, {0, 149});  // the same side again: a new step, the block is closed
  EXPECT_EQ(next[0].row, 22);
  EXPECT_EQ(next[1].row, 21);
  EXPECT_EQ(log.rows_dead(), 1u);
}

TEST(StreamLog, ABlockIsDueWhenFullAndOlderThanTheWindow) {
  StreamLog log(300, 1);
  std::vector<int64_t> cells(127);
  std::iota(cells.begin(), cells.end(), 0);
  write_cells(log, cells);
  const int slot = log.order()[0];
  EXPECT_FALSE(log.due(slot, 0));
  write_cells(log, {127});
  EXPECT_TRUE(log.due(slot, 0));
  EXPECT_FALSE(log.due(slot, 1));
  write_cells(log, {128, 129});
  EXPECT_TRUE(log.due(slot, 2));
  EXPECT_FALSE(log.due(slot, 3));
}

TEST(StreamLog, TheWorstSealedBlockIsTheOneToCompact) {
  StreamLog log(512, 1);
  std::vector<int64_t> cells(384);
  std::iota(cells.begin(), cells.end(), 0);
  write_cells(log, cells);
  EXPECT_EQ(log.most_dead(), -1);
  for (const int slot : log.order()) log.seal(slot);
  const int second = log.order()[1];
  write_cells(log, {1, 130, 131, 260});
  EXPECT_EQ(log.most_dead(), second);
  const auto moved = log.evacuate(second);
  EXPECT_EQ(moved.size(), 126u);
  log.free_slot(second);
  EXPECT_EQ(log.rows_dead(), 2u);
  EXPECT_EQ(std::count(log.order().begin(), log.order().end(), second), 0);
}

TEST(BlockLayout, RegionsListEveryCodedRowOnceHighTierFirst) {
  std::vector<uint8_t> tags(16);
  BlockBits sinks;
  for (const int row : {0, 1, 64}) sinks.set(size_t(row));
  std::set<int> high;
  for (int row = 0; row < kBlockTokens; row += 3) {
    if (sinks.test(size_t(row))) continue;
    tags[size_t(row / 8)] |= uint8_t(1 << (row % 8));
    high.insert(row);
  }
  PackedHead head;
  head.tags = tags.data();
  head.n_high = int(high.size());
  head.n_low = kBlockTokens - 3 - head.n_high;
  uint8_t order[kMaxTierColumns];
  packed_order(head, sinks, order);
  std::vector<int> expected(high.begin(), high.end());
  expected.resize(size_t(padded_to(head.n_high, kUnitRows)), kNoRow);
  for (int row = 0; row < kBlockTokens; ++row) {
    if (!high.count(row) && !sinks.test(size_t(row))) expected.push_back(row);
  }
  expected.resize(size_t(tier_columns(head)), kNoRow);
  EXPECT_EQ(std::vector<int>(order, order + tier_columns(head)), expected);
}

TEST(BlockLayout, PartsOfABlockDoNotOverlap) {
  for (const char* text : {"zipcache", "zip", "uniform,k_axis=group16,v_axis=channel",
                           "zipcache,k=16/4", "zipcache,dual=2,v_axis=token", "zipcache,k=4,v=4/2",
                           "zipcache,k=4,v=4/2,dual=1,v_axis=token"}) {
    for (const int n_sinks : {0, 5, 128}) {
      const LayerShape shape{3, 80, 96};
      const PackedLayout layout(shape, *parse_policy(text));
      const int n_coded = kBlockTokens - n_sinks;
      const bool two = layout.two_tiers();
      const std::vector<int> n_high = {n_coded, two ? n_coded / 2 : n_coded, two ? 0 : n_coded};
      const PackedBytes bytes = layout.bytes(n_high, n_coded, n_sinks, false);
      std::vector<uint8_t> block(bytes.total + 8);
      layout.begin(block.data(), n_high, n_coded, n_sinks, false);
      std::vector<int> owner(bytes.total, 0);
      const auto claim = [&](const void* at, size_t size) {
        const size_t begin = size_t(static_cast<const uint8_t*>(at) - block.data());
        ASSERT_LE(begin + size, bytes.total);
        for (size_t i = begin; i < begin + size; ++i)
          ASSERT_EQ(owner[i]++, 0) << text << " byte " << i;
      };
      claim(block.data(), 3 * (sizeof(uint32_t) + sizeof(uint16_t)));
      size_t claimed = 3 * (sizeof(uint32_t) + sizeof(uint16_t));
      for (int head = 0; head < 3; ++head) {
        const PackedHead found = layout.head(block.data(), head, n_coded, n_sinks, nullptr);
        EXPECT_EQ(found.n_high, n_high[size_t(head)]);
        if (found.tags) claim(found.tags, 16), claimed += 16;
        claim(found.k_sinks, size_t(n_sinks) * 80 * 2);
        claim(found.v_sinks, size_t(n_sinks) * 96 * 2);
        claimed += size_t(n_sinks) * 176 * 2;
        for (const PackedSide* side : {&found.k, &found.v}) {
          const size_t dim = side == &found.k ? 80 : 96;
          if (side->factors) claim(side->factors, dim * 2), claimed += dim * 2;
          for (int tier = 0; tier < (two ? 2 : 1); ++tier) {
            const TileView& tile = side->tiers[tier];
            EXPECT_EQ((reinterpret_cast<uintptr_t>(tile.params) -
                       reinterpret_cast<uintptr_t>(block.data())) %
                          64,
                      0u);
            claim(tile.codes, code_bytes(tile.shape));
            claimed += code_bytes(tile.shape);
            // Tiers of one width share what the first one holds for all tokens.
            const SideId id = side == &found.k ? SideId::K : SideId::V;
            if (layout.tiers_share_params(id)) {
              EXPECT_EQ(tile.params, side->tiers[0].params) << text;
              if (tier == 0) {
                TileShape all = tile.shape;
                all.n_tokens = n_coded;
                claim(tile.params, param_bytes(all)), claimed += param_bytes(all);
              }
            } else {
              claim(tile.params, param_bytes(tile.shape)), claimed += param_bytes(tile.shape);
            }
            if (!tile.token_factors) continue;
            const size_t factors = 2 * size_t(padded_to(tile.shape.n_tokens, kUnitRows));
            claim(tile.token_factors, factors), claimed += factors;
          }
        }
      }
      EXPECT_EQ(claimed, bytes.codes + bytes.params + bytes.tags + bytes.sinks) << text;
    }
  }
}

// Property 12 of the method through the cache.
TEST(Partition, AllHighAndAllLowEqualTheUniformWidths) {
  const CacheShape shape{1, 300, {{2, 64, 64}}};
  for (const auto& [mixed, uniform] : {std::pair{"zipcache,ratio=1", "uniform,bits=4"},
                                       std::pair{"zipcache,ratio=0", "uniform,bits=2"}}) {
    test::Harness a(shape, mixed, 1), b(shape, uniform, 1);
    ASSERT_TRUE(a.prompt(256, 64).ok());
    ASSERT_TRUE(b.prompt(256, 64).ok());
    EXPECT_EQ(a.read(0, SideId::K), b.read(0, SideId::K));
    EXPECT_EQ(a.read(0, SideId::V), b.read(0, SideId::V));
  }
}

TEST(Partition, ValuesOfOneWidthDoNotDependOnTheSalientSet) {
  const CacheShape shape{1, 300, {{2, 64, 64}}};
  test::Harness a(shape, "random-tiers,v=4,seed=1", 1), b(shape, "random-tiers,v=4,seed=2", 1);
  ASSERT_TRUE(a.prompt(256, 64).ok());
  ASSERT_TRUE(b.prompt(256, 64).ok());
  EXPECT_NE(a.read(0, SideId::K), b.read(0, SideId::K));
  EXPECT_EQ(a.read(0, SideId::V), b.read(0, SideId::V));
}

}  // namespace
}  // namespace zipcache
