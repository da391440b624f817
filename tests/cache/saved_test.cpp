// Saved states that carry their packed blocks: what comes back, where, and from what.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "base/random.hpp"
#include "cache/carried_bits.hpp"
#include "cache/saved_blocks.hpp"
#include "support/block_rig.hpp"
#include "support/random_rows.hpp"
#include "support/text.hpp"

namespace zipcache {
namespace {

using test::cache_of;
using test::expect_same;
using test::kSides;
using test::read;
using test::restore;
using test::save;
using test::State;
using test::Text;

// One of each kind of packed block.
const char* const kPolicies[] = {"zip",
                                 "zipcache",
                                 "kivi2",
                                 "uniform,bits=2,recent=0",
                                 "zipcache,bits=4/3,recent=70",
                                 "zip,rotate=file",
                                 "zip,k=4,v=4/3/2,ratio=0.1/0.3",
                                 "roco,bits=4/0,ratio=0.5,recent=40,sinks=3",
                                 "zip2,score=last,probes=5+5",
                                 "uniform,bits=2,rank=2"};

class SavedStateOf : public testing::TestWithParam<const char*> {};
INSTANTIATE_TEST_SUITE_P(Policies, SavedStateOf, testing::ValuesIn(kPolicies),
                         [](const auto& info) { return "policy" + std::to_string(info.index); });

constexpr int kTokens = 450;

// The state of a text, and what the text says when it goes on as if nothing had been saved.
struct Reference {
  State state;
  std::vector<float> outputs;
  std::unique_ptr<Cache> cache;
};

Reference reference(const char* policy) {
  Reference made;
  made.cache = cache_of(policy, 1, 2048);
  Text text(*made.cache, 0, 0);
  text.go_on(kTokens, 128);
  made.state = save(*made.cache, 0, 0, kTokens);
  made.outputs = text.go_on(300);
  EXPECT_GT(made.cache->stats().rows_packed, 500u);
  return made;
}

TEST_P(SavedStateOf, GoesOnInAnotherCacheAsIfItHadNotBeenSaved) {
  const Reference expected = reference(GetParam());
  const auto fresh = cache_of(GetParam(), 1, 1024);
  restore(*fresh, expected.state, 0, 0);
  EXPECT_EQ(Text(*fresh, 0, 0, kTokens).go_on(300), expected.outputs);
}

TEST_P(SavedStateOf, GoesOnBesideWhatWasThere) {
  const Reference expected = reference(GetParam());
  // In another stream, in cells of which some hold an older text, of which some stays.
  const auto other = cache_of(GetParam(), 2, 2048);
  Text(*other, 1, 0).go_on(333, 111);
  restore(*other, expected.state, 1, 200);
  expect_same(Text(*other, 1, 200, kTokens).go_on(300), expected.outputs);
  // And where the text itself went on.
  for (const auto& [n_more, first] : {std::pair{1, 0}, {150, 0}, {300, 0}, {150, 600}}) {
    SCOPED_TRACE(testing::Message() << n_more << " tokens later, at cell " << first);
    const auto same = cache_of(GetParam(), 1, 2048);
    Text text(*same, 0, 0);
    text.go_on(kTokens, 128);
    text.go_on(n_more);
    restore(*same, expected.state, 0, first);
    expect_same(Text(*same, 0, first, kTokens).go_on(300), expected.outputs);
  }
}

// A sequence copied to another stream is the same, and both go on alike.
TEST_P(SavedStateOf, IsNotNeededToCopyAStream) {
  const Reference expected = reference(GetParam());
  const auto cache = cache_of(GetParam(), 3, 2048);
  Text(*cache, 1, 0).go_on(kTokens, 128);
  Text(*cache, 2, 0).go_on(700, 100);  // what the copy takes the place of
  const CacheStats before = cache->stats();
  for (const int layer : {0, 1}) {
    for (int side = 0; side < 2; ++side) ASSERT_TRUE(cache->copy(layer, 1, 2).ok());
  }
  const CacheStats copied = cache->stats();
  EXPECT_EQ(copied.rows_live, 2 * uint64_t(kTokens));
  EXPECT_LT(copied.bytes.codes, before.bytes.codes);
  EXPECT_EQ(save(*cache, 2, 0, kTokens), save(*cache, 1, 0, kTokens));
  EXPECT_EQ(Text(*cache, 2, 0, kTokens).go_on(300), expected.outputs);
  EXPECT_EQ(Text(*cache, 1, 0, kTokens).go_on(300), expected.outputs);
  // Nothing is held for the copy when its stream is emptied again.
  for (const int layer : {0, 1}) ASSERT_TRUE(cache->copy(layer, 0, 2).ok());
  const auto alone = cache_of(GetParam(), 3, 2048);
  Text other(*alone, 1, 0);
  other.go_on(kTokens, 128);
  other.go_on(300);
  const CacheStats emptied = cache->stats(), once = alone->stats();
  EXPECT_EQ(emptied.bytes.codes, once.bytes.codes);
  EXPECT_EQ(emptied.bytes.params, once.bytes.params);
  EXPECT_EQ(emptied.bytes.raw, once.bytes.raw);
}

TEST(SavedState, StreamsWithSharedParametersAreCopied) {
  const auto cache = cache_of("zipcache,cadence=prompt", 2, 1024);
  Text(*cache, 0, 0).go_on(kTokens, 150);
  Text(*cache, 0, 0, kTokens).go_on(1);
  for (const int layer : {0, 1}) ASSERT_TRUE(cache->copy(layer, 0, 1).ok());
  EXPECT_EQ(read(*cache, 1, 0, kTokens), read(*cache, 0, 0, kTokens));
  EXPECT_EQ(Text(*cache, 1, 0, kTokens + 1).go_on(200), Text(*cache, 0, 0, kTokens + 1).go_on(200));
  EXPECT_EQ(cache->copy(0, 0, 2).code(), Code::BadArgument);
  EXPECT_EQ(cache->copy(2, 0, 1).code(), Code::BadArgument);
}

// Keys that moved since they were coded, in another process that never moved one.
TEST_P(SavedStateOf, KnowsHowFarItsKeysMoved) {
  const auto cache = cache_of(GetParam(), 2, 2048);
  Text text(*cache, 0, 0);
  text.go_on(kTokens, 128);
  const auto shift = [&](Cache& moved, int stream, int first_cell, int by) {
    std::vector<int32_t> all(2048, 0);
    std::fill(all.begin() + first_cell, all.end(), by);
    for (const int layer : {0, 1}) {
      const KeyTurn turn = test::turn_of(test::kTextLayers[size_t(layer)].k_dim);
      ASSERT_TRUE(moved.rotate_keys(layer, stream, all, turn).ok());
    }
  };
  shift(*cache, 0, 0, 50);
  shift(*cache, 0, 200, -20);
  const State state = save(*cache, 0, 0, kTokens), rows = read(*cache, 0, 0, kTokens);
  const auto fresh = cache_of(GetParam(), 2, 2048);
  restore(*fresh, state, 1, 0);
  EXPECT_EQ(read(*fresh, 1, 0, kTokens), rows);
  EXPECT_EQ(save(*fresh, 1, 0, kTokens), state);
  for (const int layer : {0, 1}) ASSERT_TRUE(cache->copy(layer, 0, 1).ok());
  shift(*fresh, 1, 0, -7);
  for (const int stream : {0, 1}) {
    shift(*cache, stream, 0, -7);
    EXPECT_EQ(read(*cache, stream, 0, kTokens), read(*fresh, 1, 0, kTokens));
  }
  const auto outputs = text.go_on(200);
  EXPECT_EQ(Text(*fresh, 1, 0, kTokens).go_on(200), outputs);
  EXPECT_EQ(Text(*cache, 1, 0, kTokens).go_on(200), outputs);
}

TEST_P(SavedStateOf, ReadsAndIsSavedAsBefore) {
  const auto cache = cache_of(GetParam(), 1, 1024);
  Text(*cache, 0, 0).go_on(kTokens, 128);
  const State rows = read(*cache, 0, 0, kTokens), state = save(*cache, 0, 0, kTokens);
  const CacheStats before = cache->stats();
  for (int round = 0; round < 10; ++round) {
    restore(*cache, state, 0, 0);
    ASSERT_EQ(save(*cache, 0, 0, kTokens), state) << round;
  }
  EXPECT_EQ(cache->stats().rows_dead, before.rows_dead);
  EXPECT_EQ(cache->stats().bytes.codes, before.bytes.codes);
  const auto fresh = cache_of(GetParam(), 1, 1024);
  restore(*fresh, state, 0, 0);
  EXPECT_EQ(read(*fresh, 0, 0, kTokens), rows);
  EXPECT_EQ(save(*fresh, 0, 0, kTokens), state);
  EXPECT_EQ(fresh->stats().bytes.codes, before.bytes.codes);
}

// What another cache reads: rows that moved little, and those that were 16-bit not at all.
TEST_P(SavedStateOf, IsRowsToAnyOtherCache) {
  const auto cache = cache_of(GetParam(), 1, 1024);
  Text(*cache, 0, 0).go_on(kTokens, 128);
  const State rows = read(*cache, 0, 0, kTokens), state = save(*cache, 0, 0, kTokens);
  size_t n_moved = 0;
  for (size_t part = 0; part < rows.size(); ++part) {
    for (size_t i = 0; i < rows[part].size(); ++i) {
      const float is = to_float(rows[part][i]), saved = to_float(state[part][i]);
      ASSERT_LE(std::abs(saved - is), std::abs(is) / 8 + 0x1p-17f);
      n_moved += saved != is;
    }
  }
  EXPECT_GT(n_moved, 0u);
  const auto plain = cache_of("f16", 1, 1024);
  restore(*plain, state, 0, 0);
  EXPECT_EQ(read(*plain, 0, 0, kTokens), state);
  const auto other = cache_of("uniform,bits=8,recent=1000", 1, 1024);
  restore(*other, state, 0, 0);
  EXPECT_EQ(read(*other, 0, 0, kTokens), state);
}

// Each row is one of two: as the damaged state has it, or as the block had it that came through
// whole.
void expect_rows_of_either(const State& found, const State& damaged, const State& whole) {
  for (size_t part = 0; part < found.size(); ++part) {
    const size_t w = found[part].size() / kTokens;
    for (size_t at = 0; at < found[part].size(); at += w) {
      const auto equal = [&](const State& other) {
        return std::equal(&found[part][at], &found[part][at] + w, &other[part][at]);
      };
      ASSERT_TRUE(equal(damaged) || equal(whole)) << "part " << part << ", row " << at / w;
    }
  }
}

TEST_P(SavedStateOf, DamagedStatesAreRowsAndTouchNothingElse) {
  const auto cache = cache_of(GetParam(), 2, 1024);
  Text(*cache, 0, 0).go_on(kTokens, 128);
  const State state = save(*cache, 0, 0, kTokens);
  Text(*cache, 1, 0).go_on(kTokens, 128);
  const State other = read(*cache, 0, 0, kTokens);
  Random random(7);
  for (int round = 0; round < 60; ++round) {
    State damaged = state;
    for (int i = 0; i < 1 + round % 3 * 50; ++i) {
      auto& rows = damaged[random.below(4)];
      half& number = rows[random.below(uint32_t(rows.size()))];
      number = half((number ^ (1u << random.below(16))) & 0xBFFF);  // stays finite
    }
    restore(*cache, damaged, 1, 0);
    expect_rows_of_either(read(*cache, 1, 0, kTokens), damaged, other);
    Text(*cache, 1, 0, kTokens).go_on(3);
    ASSERT_EQ(read(*cache, 0, 0, kTokens), other) << round;
  }
  restore(*cache, state, 1, 0);
  EXPECT_EQ(read(*cache, 1, 0, kTokens), other);
}

// The keys alone, or the keys of some layers and no more.
TEST_P(SavedStateOf, HalfAStateLeavesTheCacheInOrder) {
  const Reference expected = reference(GetParam());
  const auto cache = cache_of(GetParam(), 1, 2048);
  for (size_t n_parts = 1; n_parts < expected.state.size(); ++n_parts) {
    for (size_t part = 0; part < n_parts; ++part) {
      const int layer = int(part % 2);
      const SideId side = part < 2 ? SideId::K : SideId::V;
      ASSERT_TRUE(cache->restore(layer, 0, side, 100, kTokens, expected.state[part].data()).ok());
    }
    Text(*cache, 0, 1000).go_on(140, 70);
  }
  restore(*cache, expected.state, 0, 100);
  expect_same(Text(*cache, 0, 100, kTokens).go_on(300), expected.outputs);
}

// Its head, the block's part and what it says of the rows behind it.
TEST(SavedState, AFrameWithOneWrongBitIsNoFrame) {
  constexpr int kDim = 64, kCells = kBlockTokens + 40;
  test::BlockRig rig({1, kDim, kDim}, *parse_policy("zipcache"), kCells);
  rig.append(kCells, test::random_rows(kCells, kDim, 1), test::random_rows(kCells, kDim, 2));
  rig.pack();
  const uint64_t identity = saved_identity(rig.store);
  for (const SideId side : kSides) {
    std::vector<half> rows(size_t(kCells) * kDim);
    for (size_t i = 0; i < rows.size(); ++i) rows[i] = to_half(1 + float(i % 97) / 97);
    put_blocks(rig.log, rig.store, side, 0, kCells, rows.data());
    const auto own = std::span(rows).first(size_t(kBlockTokens) * kDim);
    const auto found = find_block(own, side, identity);
    ASSERT_TRUE(found.has_value());
    EXPECT_EQ(found->tail.empty(), side == SideId::K);
    const size_t n_bits = (72 + found->part.size() + found->tail.size() + 8) * 8;
    const size_t per_number = (n_bits + own.size() - 1) / own.size();
    for (size_t bit = 0; bit < n_bits; bit += 5) {
      half& number = own[bit / per_number];
      const half before = number;
      number ^= half(1 << (bit % per_number));
      EXPECT_FALSE(find_block(own, side, identity).has_value()) << "bit " << bit;
      number = before;
    }
  }
}

TEST(SavedState, OfAnotherPolicyShapeOrRotationIsTakenAsRows) {
  const auto cache = cache_of("zip", 1, 1024);
  Text(*cache, 0, 0).go_on(kTokens, 128);
  const State state = save(*cache, 0, 0, kTokens);
  const auto other = cache_of("zip,seed=5", 1, 1024);
  restore(*other, state, 0, 0);
  EXPECT_EQ(other->stats().rows_packed, 0u);
  const auto same = cache_of("zip", 1, 1024);
  restore(*same, state, 0, 0);
  EXPECT_GT(same->stats().rows_packed, 200u);
}

// The first block has so many sinks that it leaves no room for half of what stands behind both.
TEST(SavedState, ABlockThatLeavesLittleRoomIsCarriedAllTheSame) {
  for (const int n_alone : {0, 20, 24, 26}) {
    const auto cache = cache_of("zip", 1, 1024);
    Text text(*cache, 0, 0);
    text.n_alone = n_alone;
    if (n_alone > 0) text.go_on(n_alone, n_alone);
    text.go_on(kTokens - n_alone, 128);
    ASSERT_EQ(cache->stats().blocks.packed, 2u);
    const State state = save(*cache, 0, 0, kTokens);
    const auto fresh = cache_of("zip", 1, 1024);
    restore(*fresh, state, 0, 0);
    EXPECT_EQ(fresh->stats().blocks.packed, 2u) << n_alone;
    EXPECT_EQ(save(*fresh, 0, 0, kTokens), state) << n_alone;
  }
}

// A block whose keys were damaged goes on as rows, and its values still look like a frame's.
TEST(SavedState, AFrameWithoutItsOtherSideTakesNothingFromTheOthers) {
  const auto donor = cache_of("zip", 1, 1024), cache = cache_of("zip", 1, 1024);
  Text(*donor, 0, 0).go_on(kTokens, 128);
  State damaged = save(*donor, 0, 0, kTokens);
  damaged[0][size_t(kBlockTokens) * test::width(0, SideId::K)] ^= 1;
  restore(*cache, damaged, 0, 0);
  ASSERT_EQ(cache->stats().blocks.packed, 1u);
  Text(*cache, 0, 0, kTokens).go_on(3);
  const State state = save(*cache, 0, 0, kTokens + 3);
  const auto fresh = cache_of("zip", 1, 1024);
  restore(*fresh, state, 0, 0);
  EXPECT_EQ(save(*fresh, 0, 0, kTokens + 3), state);
}

TEST(SavedState, RestoringNeedsNoRawBlocks) {
  const auto cache = cache_of("zip,recent=0", 1, 4096);
  Text(*cache, 0, 0).go_on(3840, 128);
  const State state = save(*cache, 0, 0, 3840);
  const auto fresh = cache_of("zip,recent=0", 1, 4096);
  restore(*fresh, state, 0, 0);
  EXPECT_EQ(fresh->stats().bytes.raw, cache->stats().bytes.raw);
  EXPECT_LT(fresh->stats().bytes_peak, cache->stats().bytes_peak);
}

TEST(SavedState, RestoringAgainAndAgainElsewhereStaysBounded) {
  const auto cache = cache_of("zip", 1, 2048);
  Text(*cache, 0, 0).go_on(kTokens, 128);
  const State state = save(*cache, 0, 0, kTokens);
  Random random(3);
  for (int round = 0; round < 200; ++round) {
    const int first = int(random.below(2048 - kTokens - 20));
    restore(*cache, state, 0, first);
    if (round % 3 == 0) Text(*cache, 0, first, kTokens).go_on(2);
    ASSERT_LE(cache->stats().rows_live, 2048u);
    // An eighth of the cells, and what one restored state leaves behind.
    ASSERT_LE(cache->stats().rows_dead, 2048u / 8 + 2048) << round;
  }
}

// Zeros carry nothing, so a block could be looked for too early.
TEST(SavedState, ZerosBeforeABlockDoNotMoveIt) {
  const auto cache = cache_of("roco,bits=4/0,ratio=0.5,recent=40", 1, 1024);
  Text(*cache, 0, 0).go_on(kTokens, 128);
  const State rows = read(*cache, 0, 0, kTokens);
  State state = save(*cache, 0, 0, kTokens);
  for (size_t part = 0; part < state.size(); ++part) {
    const size_t n = 7 * state[part].size() / kTokens;
    state[part].insert(state[part].begin(), n, half{0});
  }
  const auto fresh = cache_of("roco,bits=4/0,ratio=0.5,recent=40", 1, 1024);
  restore(*fresh, state, 0, 100);
  EXPECT_EQ(read(*fresh, 0, 107, kTokens), rows);
  EXPECT_EQ(fresh->stats().rows_live, uint64_t(kTokens));
}

// What llama.cpp removed without a word is gone when its stream is restored.
TEST(SavedState, TakesTheWholeStreamWhereEachSequenceHasItsOwn) {
  const auto cache = cache_of("zip", 2, 1024);
  Text(*cache, 0, 0).go_on(kTokens, 128);
  const State state = save(*cache, 0, 0, kTokens);
  const CacheStats alone = cache->stats();
  Text(*cache, 0, 0, kTokens).go_on(400);
  restore(*cache, state, 0, 0);
  EXPECT_EQ(cache->stats().rows_live, uint64_t(kTokens));
  EXPECT_EQ(cache->stats().rows_dead, 0u);
  EXPECT_EQ(cache->stats().bytes.codes, alone.bytes.codes);
  restore(*cache, state, 0, 500);
  EXPECT_EQ(cache->stats().rows_live, uint64_t(kTokens));
}

TEST(CarriedBits, ComeBackAndMoveNumbersByHalfOfWhatTheyCanSay) {
  Random random(1);
  for (const int n_bytes : {1, 60, 128, 400, 700}) {
    std::vector<half> numbers(1024);
    for (half& number : numbers)
      number = random.below(9) ? to_half(4 * random.unit() - 2) : half(random.below(2) << 15);
    const std::vector<half> before = numbers;
    std::string bytes;
    for (int i = 0; i < n_bytes; ++i) bytes += char(random.below(256));
    ASSERT_TRUE(carry(bytes, numbers));
    EXPECT_EQ(carried(numbers, bytes.substr(0, 1), bytes.size()), bytes);
    const int n_bits = n_bytes == 1 ? 1 : n_bytes * 8 / 900 + 1;
    for (size_t i = 0; i < numbers.size(); ++i) {
      if ((before[i] & 0x7FFF) == 0) {
        ASSERT_EQ(numbers[i], before[i]);
      }
      // A number near 0 may have to move by all of it.
      const int moved = std::abs(int(numbers[i]) - int(before[i]));
      ASSERT_LE(moved, before[i] % 0x8000 < (2 << n_bits) ? 1 << n_bits : 1 << (n_bits - 1));
    }
  }
}

TEST(CarriedBits, WhatDoesNotFitLeavesTheNumbersAlone) {
  std::vector<half> numbers(100, to_half(1.0f));
  const auto before = numbers;
  EXPECT_FALSE(carry(std::string(100 * kMostCarriedBits / 8 + 1, 'x'), numbers));
  EXPECT_EQ(numbers, before);
  EXPECT_TRUE(carry(std::string(100 * kMostCarriedBits / 8, 'x'), numbers));
  EXPECT_FALSE(carried(numbers, "y", 1));
}

TEST(CarriedBits, TheLargestNumbersStayFinite) {
  std::vector<half> numbers(64, to_half(65504.0f));
  ASSERT_TRUE(carry(std::string(40, '\0'), numbers));
  for (const half number : numbers) EXPECT_NE(number & 0x7C00, 0x7C00);
}

}  // namespace
}  // namespace zipcache
