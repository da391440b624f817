// From raw rows to packed blocks: what becomes of rows and of storage.
#include "cache/pack.hpp"

#include <gtest/gtest.h>

#include <cmath>

#include "support/block_rig.hpp"
#include "support/random_rows.hpp"

namespace zipcache {
namespace {

using test::BlockRig;
using test::random_rows;

constexpr int kDim = 64, kHeads = 2;
constexpr LayerShape kShape{kHeads, kDim, kDim};

std::unique_ptr<BlockRig> filled(const char* policy, int n_blocks) {
  const int n = n_blocks * kBlockTokens;
  auto rig = std::make_unique<BlockRig>(kShape, *parse_policy(policy), n);
  rig->append(n, random_rows(n, kHeads * kDim, 1), random_rows(n, kHeads * kDim, 2));
  return rig;
}

// Of packed keys and values from what they were, relative to their size.
double distance_packed(const char* policy) {
  const auto rig = filled(policy, 1);
  rig->pack();
  double distance = 0, size = 0;
  for (const SideId side : {SideId::K, SideId::V}) {
    const auto rows = random_rows(kBlockTokens, kHeads * kDim, side == SideId::K ? 1 : 2);
    const auto found = rig->decoded(side);
    for (size_t i = 0; i < rows.size(); ++i) {
      distance += (found[i] - double(rows[i])) * (found[i] - double(rows[i]));
      size += double(rows[i]) * double(rows[i]);
    }
  }
  return std::sqrt(distance / size);
}

TEST(Pack, RowsComeBackNearToWhatTheyWereTurnedOrNot) {
  for (const char* policy :
       {"uniform4,bits=8", "uniform4,bits=8,rotate=hadamard", "uniform4,bits=8,rotate=file"})
    EXPECT_LT(distance_packed(policy), 0.02) << policy;
}

// Of errors without any order four of 64 directions hold a sixth.
TEST(Pack, ALowRankCorrectionBringsRowsNearer) {
  EXPECT_LT(distance_packed("uniform,bits=2,rank=4"), 0.95 * distance_packed("uniform,bits=2"));
}

TEST(Pack, SharedParametersGoWithTheirLastBlock) {
  const auto rig = filled("zipcache,cadence=prompt,score=random", 3);
  rig->pack(true);
  const std::vector<int> slots = rig->log.order();
  for (const int slot : slots) {
    EXPECT_GT(rig->arena.used(), 0u);
    rig->store.release(slot, rig->arena);
  }
  EXPECT_EQ(rig->arena.used(), 0u);
}

TEST(Pack, RawRowsGoWhenTheirBlockIsPacked) {
  const auto rig = filled("zipcache,score=random", 2);
  rig->pack();
  size_t packed = 0;
  for (const int slot : rig->log.order())
    packed += Arena::rounded(rig->store.block(slot).bytes.total);
  EXPECT_EQ(rig->arena.used(), packed);
}

TEST(Pack, ARefusedJobGivesItsStorageBack) {
  const auto rig = filled("zipcache,score=random", 2);
  // An arena with room for both raw blocks and one packed one.
  const Policy policy = *parse_policy("zipcache,score=random");
  LayerStore store(kShape, policy, StreamLog::max_blocks(2 * kBlockTokens));
  Arena arena;
  const size_t raw = Arena::rounded(store.raw.bytes), some = raw / 3;
  ASSERT_TRUE(arena.reserve(2 * raw + some).ok());
  for (const int slot : rig->log.order()) ASSERT_NE(store.raw_for_write(slot, arena), nullptr);
  const size_t before = arena.used();
  const auto packed = pack_blocks({0, rig->log.order(), false, {}, 1}, rig->log, store, arena);
  ASSERT_FALSE(packed.ok());
  EXPECT_EQ(packed.status().code(), Code::OverLimit);
  EXPECT_EQ(arena.used(), before);
}

TEST(Pack, LayersDrawTiersOfTheirOwn) {
  std::vector<std::vector<uint8_t>> tags;
  for (const int layer : {0, 1}) {
    const auto rig = filled("zipcache,score=random", 1);
    ASSERT_TRUE(
        pack_blocks({layer, rig->log.order(), false, {}, 1}, rig->log, rig->store, rig->arena)
            .ok());
    const uint8_t* planes = rig->store.head(rig->log.order()[0], 0).tags;
    tags.emplace_back(planes, planes + kBlockTokens / 8);
  }
  EXPECT_NE(tags[0], tags[1]);
}

}  // namespace
}  // namespace zipcache
