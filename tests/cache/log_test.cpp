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
  log.begin_write(layer, side, Writer::Model);
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

TEST(StreamLog, OnlySealedBlocksAreCompacted) {
  StreamLog log(300, 1);
  std::vector<int64_t> cells(150);
  std::iota(cells.begin(), cells.end(), 0);
  write_cells(log, cells);
  log.forget(140, [](int) {});
  EXPECT_EQ(log.most_dead(), -1);
  log.seal(log.order()[0]);
  log.forget(3, [](int) {});
  EXPECT_EQ(log.most_dead(), log.order()[0]);
}

TEST(StreamLog, PiecesThatAHostPutsBackAreTold) {
  StreamLog log(300, 2);
  log.begin_write(0, SideId::K, Writer::Host);
  EXPECT_FALSE(log.continues_pieces());
  EXPECT_TRUE(log.begin_write(0, SideId::K, Writer::Host));
  EXPECT_TRUE(log.continues_pieces());
  EXPECT_FALSE(log.begin_write(1, SideId::K, Writer::Host));
  EXPECT_TRUE(log.begin_write(1, SideId::K, Writer::Host));
  // The next state.
  EXPECT_TRUE(log.begin_write(0, SideId::K, Writer::Host));
  EXPECT_FALSE(log.continues_pieces());
  log.note_attention();
  EXPECT_TRUE(log.begin_write(0, SideId::K, Writer::Host));
  EXPECT_FALSE(log.continues_pieces());
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

TEST(BlockLayout, RegionsListEveryCodedRowOnceBestTierFirst) {
  for (const int n_tiers : {1, 2, 3, 4}) {
    SCOPED_TRACE(n_tiers);
    std::vector<uint8_t> tags(32);
    BlockBits sinks;
    for (const int row : {0, 1, 64}) sinks.set(size_t(row));
    PackedHead head;
    head.n_tiers = n_tiers;
    head.tags = n_tiers > 1 ? tags.data() : nullptr;
    std::vector<std::vector<int>> rows(static_cast<size_t>(n_tiers));
    for (int row = 0; row < kBlockTokens; ++row) {
      if (sinks.test(size_t(row))) continue;
      const int tier = (row * row / 7) % n_tiers;
      rows[size_t(tier)].push_back(row);
      if (head.tags) set_tags(head.tags, n_tiers, row, tier);
      EXPECT_EQ(head.tier_of(row), tier);
    }
    std::vector<int> expected;
    for (size_t tier = 0; tier < rows.size(); ++tier) {
      head.held[tier] = int(rows[tier].size());
      expected.insert(expected.end(), rows[tier].begin(), rows[tier].end());
      expected.resize(size_t(padded_to(int(expected.size()), kUnitRows)), kNoRow);
    }
    uint8_t order[kMaxTierColumns];
    packed_order(head, sinks, order);
    EXPECT_EQ(std::vector<int>(order, order + tier_columns(head)), expected);
  }
}

// Golden bytes of the head of a block (docs/formats.md), written out by hand.
TEST(BlockLayout, TagsAreThoseOfTheFormat) {
  uint8_t two[16] = {}, four[32] = {};
  set_tags(two, 2, 9, 0);
  set_tags(two, 2, 10, 1);
  EXPECT_EQ(two[1], 0x02);  // the high tier is marked, the low one is not
  for (int tier = 0; tier < 4; ++tier) set_tags(four, 4, 8 + tier, tier);
  EXPECT_EQ(four[1], 0x05);       // tiers 0 and 2 have 3 and 1 tiers after them
  EXPECT_EQ(four[16 + 1], 0x03);  // tiers 0 and 1 have 3 and 2
  uint8_t three[32] = {};
  for (int tier = 0; tier < 3; ++tier) set_tags(three, 3, tier, tier);
  EXPECT_EQ(three[0], 0x02);
  EXPECT_EQ(three[16], 0x01);
}

TEST(BlockLayout, PartsOfABlockDoNotOverlap) {
  for (const char* text :
       {"zipcache", "zip", "uniform,k_axis=group16,v_axis=channel", "zipcache,k=16/4",
        "zipcache,dual=2,v_axis=token", "zipcache,k=4,v=4/2",
        "zipcache,k=4,v=4/2,dual=1,v_axis=token", "zipcache,k=8/4,v=16/4/2,ratio=0.1/0.1",
        "zipcache,bits=16/4/2/0,ratio=0.1/0.1/0.1",
        "zipcache,k=16/4,v=8/8/4/2,ratio=0.1/0.1/0.1,v_axis=channel"}) {
    for (const int n_sinks : {0, 5, 128}) {
      const LayerShape shape{3, 80, 96};
      const Result<Policy> policy = parse_policy(text);
      ASSERT_TRUE(policy.ok()) << policy.status().message();
      const PackedLayout layout(shape, *policy);
      const int n_coded = kBlockTokens - n_sinks;
      const size_t n_tiers = size_t(layout.n_tiers());
      // All tokens in the first tier, spread over all, and in the last.
      std::vector<TierCounts> counts(3);
      counts[0][0] = counts[2][n_tiers - 1] = n_coded;
      for (int token = 0; token < n_coded; ++token) ++counts[1][size_t(token * token) % n_tiers];
      const PackedBytes bytes = layout.bytes(counts, n_sinks, false);
      std::vector<uint8_t> block(bytes.total + 8);
      layout.begin(block.data(), counts, n_sinks, false);
      std::vector<int> owner(bytes.total, 0);
      const auto claim = [&](const void* at, size_t size) {
        const size_t begin = size_t(static_cast<const uint8_t*>(at) - block.data());
        ASSERT_LE(begin + size, bytes.total);
        for (size_t i = begin; i < begin + size; ++i)
          ASSERT_EQ(owner[i]++, 0) << text << " byte " << i;
      };
      size_t claimed = 3 * (sizeof(uint32_t) + std::max<size_t>(1, n_tiers - 1) * sizeof(uint16_t));
      claim(block.data(), claimed);
      for (int head = 0; head < 3; ++head) {
        const PackedHead found = layout.head(block.data(), head, n_coded, n_sinks, nullptr);
        const TierCounts& count = counts[size_t(head)];
        for (size_t tier = 0; tier < n_tiers; ++tier)
          EXPECT_EQ(found.held[tier], layout.holds(tier) ? count[tier] : 0);
        const size_t tag_bytes = n_tiers == 1 ? 0 : n_tiers == 2 ? 16 : 32;
        if (found.tags) claim(found.tags, tag_bytes);
        claimed += tag_bytes;
        claim(found.k_sinks, size_t(n_sinks) * 80 * 2);
        claim(found.v_sinks, size_t(n_sinks) * 96 * 2);
        claimed += size_t(n_sinks) * 176 * 2;
        for (const PackedSide* side : {&found.k, &found.v}) {
          const size_t dim = side == &found.k ? 80 : 96;
          if (side->factors) claim(side->factors, dim * 2), claimed += dim * 2;
          for (size_t tier = 0; tier < n_tiers; ++tier) {
            const TileView& tile = side->tiers[tier];
            EXPECT_EQ((reinterpret_cast<uintptr_t>(tile.params) -
                       reinterpret_cast<uintptr_t>(block.data())) %
                          64,
                      0u);
            claim(tile.codes, code_bytes(tile.shape));
            claimed += code_bytes(tile.shape);
            // Tiers of one width share what the first of them holds for the tokens of all.
            const SideId id = side == &found.k ? SideId::K : SideId::V;
            TileShape covered = tile.shape;
            if (layout.params_tier(id, tier) != tier) {
              EXPECT_EQ(tile.params, side->tiers[layout.params_tier(id, tier)].params) << text;
              covered.n_tokens = 0;
            }
            for (size_t other = tier + 1; other < n_tiers; ++other)
              covered.n_tokens += layout.params_tier(id, other) == tier ? count[other] : 0;
            claim(tile.params, param_bytes(covered)), claimed += param_bytes(covered);
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

TEST(BlockLayout, TiersOfOneWidthShareChannelParameters) {
  const LayerShape shape{1, 64, 64};
  const auto tiers = [&](const char* text, SideId side) {
    const PackedLayout layout(shape, *parse_policy(text));
    std::vector<size_t> out;
    for (size_t tier = 0; tier < size_t(layout.n_tiers()); ++tier)
      out.push_back(layout.params_tier(side, tier));
    return out;
  };
  EXPECT_EQ(tiers("zip", SideId::K), (std::vector<size_t>{0, 0}));
  EXPECT_EQ(tiers("zip", SideId::V), (std::vector<size_t>{0, 1}));
  EXPECT_EQ(tiers("zipcache,k=16/4,v=8/4/2,ratio=0.1/0.1", SideId::K),
            (std::vector<size_t>{0, 1, 1}));
  EXPECT_EQ(tiers("zipcache,k=16/16/4,v=8/4/2,ratio=0.1/0.1", SideId::K),
            (std::vector<size_t>{0, 1, 2}));
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
