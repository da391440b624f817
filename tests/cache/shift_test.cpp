// Context shifts: keys that move to other positions.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "base/random.hpp"
#include "cache/turns.hpp"
#include "codec/quantize.hpp"
#include "support/harness.hpp"
#include "support/text.hpp"

namespace zipcache {
namespace {

using test::Harness;
using test::turn_of;

const std::vector<LayerShape> kLayers = {{2, 64, 64}, {1, 80, 96}};
constexpr int kCells = 400, kTokens = 370;

std::vector<float> keys(const Cache& cache, int layer) {
  const LayerShape& shape = kLayers[size_t(layer)];
  std::vector<float> rows(size_t(kTokens * shape.n_heads * shape.k_dim));
  EXPECT_TRUE(cache.read(layer, 0, SideId::K, 0, kTokens, rows.data()).ok());
  return rows;
}

// The same in double precision, moved.
std::vector<double> moved(const std::vector<float>& rows, int layer,
                          const std::vector<int64_t>& by) {
  const int n_heads = kLayers[size_t(layer)].n_heads, dim = kLayers[size_t(layer)].k_dim;
  std::vector<double> out(rows.begin(), rows.end());
  for (int cell = 0; cell < kTokens; ++cell) {
    for (int head = 0; head < n_heads; ++head) {
      double* row = &out[size_t((cell * n_heads + head) * dim)];
      for (int c = 0; c < dim / 2; ++c) {
        const double angle = double(by[size_t(cell)]) * std::pow(10000.0, -2.0 * c / dim);
        const double a = row[c], b = row[c + dim / 2];
        row[c] = a * std::cos(angle) - b * std::sin(angle);
        row[c + dim / 2] = a * std::sin(angle) + b * std::cos(angle);
      }
    }
  }
  return out;
}

void shift(Cache& cache, const std::vector<int32_t>& by) {
  ASSERT_TRUE(cache.check_rotation(0, 0, by).ok());
  for (const int layer : {0, 1}) {
    const Status status = cache.rotate_keys(layer, 0, by, turn_of(kLayers[size_t(layer)].k_dim));
    ASSERT_TRUE(status.ok()) << status.message();
  }
}

std::vector<int32_t> from_cell(int first, int32_t by) {
  std::vector<int32_t> shift(kCells, 0);
  std::fill(shift.begin() + first, shift.end(), by);
  return shift;
}

const char* const kPolicies[] = {"f16",
                                 "zip",
                                 "zipcache,recent=30",
                                 "zipcache,cadence=prompt",
                                 "uniform,bits=2,recent=0",
                                 "turbo-k4v4",
                                 "fp8",
                                 "uniform,bits=2,rank=2",
                                 "zip,k=16/8,v=8/4/2,ratio=0.2/0.3,recent=0",
                                 "h2o,bits=4/0,ratio=0.5,recent=40",
                                 "zip,rotate=file"};

class ShiftedCacheOf : public testing::TestWithParam<const char*> {
 protected:
  ShiftedCacheOf() : harness({1, kCells, kLayers}, GetParam(), 2) {
    EXPECT_TRUE(harness.prompt(kTokens - 1, 126).ok());
    EXPECT_TRUE(harness.feed(1).ok());
  }
  Harness harness;
};
INSTANTIATE_TEST_SUITE_P(Policies, ShiftedCacheOf, testing::ValuesIn(kPolicies),
                         [](const auto& info) { return "policy" + std::to_string(info.index); });

// 16-bit rows are rounded at each shift; codes never. Angles are 32-bit numbers: 600 positions
// are known to 600 * 2^-24 radians.
TEST_P(ShiftedCacheOf, TurnsKeysByAllShiftsAndRoundsNoCode) {
  const std::vector<float> before[] = {keys(harness.cache(), 0), keys(harness.cache(), 1)};
  const auto values = harness.read(0, SideId::V);
  std::vector<int64_t> total(kCells, 0);
  Random random(1);
  const int n_shifts = 20;
  for (int i = 0; i < n_shifts; ++i) {
    // Of all, or from a place inside a block on, which parts its rows into two distances.
    const auto by = from_cell(i % 4 ? 0 : 200, int32_t(random.below(60)) - 30);
    shift(harness.cache(), by);
    for (int cell = 0; cell < kCells; ++cell) total[size_t(cell)] += by[size_t(cell)];
  }
  EXPECT_EQ(harness.read(0, SideId::V), values);
  for (const int layer : {0, 1}) {
    const auto expected = moved(before[layer], layer, total);
    const auto found = keys(harness.cache(), layer);
    const int width = int(found.size()) / kTokens;
    double largest = 0;
    for (const double key : expected) largest = std::max(largest, std::abs(key));
    const bool raw = harness.cache().policy().raw();
    for (int i = 0; i < int(found.size()); ++i) {
      // The first block is packed in all policies but one; it may have sinks.
      const bool coded = !raw && i / width >= 4 && i / width < 128;
      const double bound = largest * (coded ? 1e-4 : n_shifts * 0x1p-10);
      ASSERT_NEAR(found[size_t(i)], expected[size_t(i)], bound) << "layer " << layer << " at " << i;
    }
  }
}

// Attention turns queries where it is read that keys moved.
TEST_P(ShiftedCacheOf, AttentionSeesKeysWhereTheyAre) {
  shift(harness.cache(), from_cell(0, 77));
  shift(harness.cache(), from_cell(100, -31));
  shift(harness.cache(), from_cell(100, 40));
  for (const int n : {1, 12}) {  // 12 rows of two heads: expanded tiles; no block falls due
    ASSERT_TRUE(harness.feed(n).ok());
    for (const int layer : {0, 1}) {
      const auto expected = harness.expected(layer, false);
      const double tolerance = test::rounded_rows_error(expected);
      for (size_t i = 0; i < expected.out.size(); ++i)
        ASSERT_NEAR(harness.out(layer)[i], expected.out[i], tolerance) << layer << " at " << i;
    }
  }
}

// Positions that are divided move every token by its own distance.
TEST_P(ShiftedCacheOf, ManyDistancesInABlockAreCodedOnceMore) {
  if (harness.cache().policy().cadence == Cadence::Prompt) return;
  std::vector<int32_t> by(kCells);
  std::vector<int64_t> total(kCells);
  for (int cell = 0; cell < kCells; ++cell) total[size_t(cell)] = by[size_t(cell)] = -cell / 2;
  const auto before = keys(harness.cache(), 0);
  shift(harness.cache(), by);
  const auto expected = moved(before, 0, total);
  const auto found = keys(harness.cache(), 0);
  double error = 0, size = 0;
  for (size_t i = 0; i < found.size(); ++i) {
    error += (found[i] - expected[i]) * (found[i] - expected[i]);
    size += expected[i] * expected[i];
  }
  // 2 bits with a range of about 5 deviations leave a quarter of a normal number's variance.
  EXPECT_LT(error, 0.3 * size);
  // What was coded again counts as unmoved: a shift of all is one distance.
  shift(harness.cache(), from_cell(0, 9));
  const auto after = moved(found, 0, std::vector<int64_t>(kCells, 9));
  const auto now = keys(harness.cache(), 0);
  for (int i = 0; i < 128 * 128; ++i) ASSERT_NEAR(now[size_t(i)], after[size_t(i)], 0.02) << i;
}

TEST(Shift, SharedKeyParametersAreRefusedInAllLayersOrNone) {
  Harness harness({1, kCells, kLayers}, "zipcache,cadence=prompt", 1);
  ASSERT_TRUE(harness.feed(kTokens - 1).ok());
  ASSERT_TRUE(harness.feed(1).ok());
  const std::vector<float> before[] = {keys(harness.cache(), 0), keys(harness.cache(), 1)};
  // The first block could move; in the second every token moves by its own distance.
  auto by = from_cell(0, 5);
  for (int cell = 128; cell < 256; ++cell) by[size_t(cell)] = cell;
  const Status status = harness.cache().check_rotation(0, 0, by);
  EXPECT_EQ(status.code(), Code::Incompatible);
  EXPECT_NE(status.message().find("cadence=stream"), std::string::npos);
  EXPECT_EQ(harness.cache().check_rotation(1, 0, by).code(), Code::Incompatible);
  for (const int layer : {0, 1}) {
    const KeyTurn turn = turn_of(kLayers[size_t(layer)].k_dim);
    EXPECT_EQ(harness.cache().rotate_keys(layer, 0, by, turn).code(), Code::Incompatible);
    EXPECT_EQ(keys(harness.cache(), layer), before[layer]);
  }
  // The cache goes on, and moves what can move.
  shift(harness.cache(), from_cell(0, 5));
  ASSERT_TRUE(harness.feed(1).ok());
}

TEST(Shift, TurnsThatNameNoChannelsAreRefused) {
  Harness harness({1, kCells, kLayers}, "zip", 1);
  ASSERT_TRUE(harness.prompt(300, 100).ok());
  for (const KeyTurn::Pair& pair :
       {KeyTurn::Pair{0, 64, 1}, {-1, 2, 1}, {3, 3, 1}, {0, 1, NAN}, {0, 1, 1e9f}}) {
    const KeyTurn turn{{pair}};
    EXPECT_EQ(harness.cache().rotate_keys(0, 0, from_cell(0, 1), turn).code(), Code::BadArgument);
  }
  EXPECT_EQ(harness.cache().check_rotation(2, 0, {}).code(), Code::BadArgument);
  EXPECT_EQ(harness.cache().check_rotation(0, 1, {}).code(), Code::BadArgument);
}

// Turning in another way what moved before: coded again, since one block can wait for one turn.
TEST(Shift, AnotherTurnThanBeforeIsDoneToo) {
  Harness harness({1, kCells, kLayers}, "zip,k=8", 1);
  ASSERT_TRUE(harness.prompt(kTokens, 126).ok());
  const auto before = keys(harness.cache(), 0);
  shift(harness.cache(), from_cell(0, 3));
  KeyTurn back = turn_of(64);
  for (KeyTurn::Pair& pair : back.pairs) pair.angle = -pair.angle;
  ASSERT_TRUE(harness.cache().rotate_keys(0, 0, from_cell(0, 3), back).ok());
  const auto after = keys(harness.cache(), 0);
  for (size_t i = 0; i < before.size(); ++i) ASSERT_NEAR(after[i], before[i], 0.1) << i;
}

// An evicted key that moved on as a 16-bit row is zeros, of which turning makes some -0. Saved and
// restored it must still count as evicted.
TEST(Shift, EvictedKeysStayEvicted) {
  const char* policy = "h2o,bits=4/0,ratio=0.5,recent=0,sinks=0";
  Harness harness({1, kCells, kLayers}, policy, 1);
  ASSERT_TRUE(harness.prompt(256, 128).ok());
  // Values written anew take their cells out of the packed blocks, with their keys and what of them
  // was evicted.
  for (int cell = 0; cell < 100; cell += 2) {
    auto value = harness.read(0, SideId::V, cell, 1);
    value[0] = value[0] ^ 0x8000 ^ 1;
    ASSERT_TRUE(harness.cache().write_half(0, 0, SideId::V, cell, 1, value.data()).ok());
  }
  const uint64_t evicted = harness.stats().evicted_elements;
  ASSERT_GT(evicted, 0u);
  shift(harness.cache(), from_cell(0, 2));  // cosine below 0, sine above
  EXPECT_EQ(harness.stats().evicted_elements, evicted);
  size_t n_negative = 0;
  Harness fresh({1, kCells, kLayers}, policy, 1);
  for (const int layer : {0, 1}) {
    for (const SideId side : {SideId::K, SideId::V}) {
      const auto rows = harness.read(layer, side, 0, 256);
      n_negative += side == SideId::K ? size_t(std::count(rows.begin(), rows.end(), 0x8000)) : 0;
      ASSERT_TRUE(fresh.cache().write_half(layer, 0, side, 0, 256, rows.data()).ok());
    }
  }
  EXPECT_GT(n_negative, 0u);
  EXPECT_EQ(fresh.stats().evicted_elements, evicted);
}

TEST(BlockTurns, AddUpPartAndGo) {
  const auto turn = std::make_shared<const KeyTurn>(turn_of(64));
  BlockBits coded;
  coded.set().reset(0).reset(1);  // a sink and a dead row
  RowShifts by;
  by.fill(7);
  const auto once = moved_on({}, turn, by, coded);
  ASSERT_TRUE(once && once->moved.size() == 1u);
  EXPECT_EQ(once->moved[0].by, 7);
  EXPECT_EQ(once->moved[0].rows, coded);
  EXPECT_EQ(once->unmoved(), ~coded);
  RowShifts back;
  back.fill(-7);
  EXPECT_FALSE(moved_on(*once, turn, back, coded)->any());
  std::fill_n(by.begin(), 50, 0);
  const auto parted = moved_on(*once, turn, by, coded);
  ASSERT_TRUE(parted && parted->moved.size() == 2u);
  EXPECT_EQ(parted->moved[0].rows.count(), 48u);
  EXPECT_EQ(parted->moved[1].by, 14);
  for (int row = 0; row < kBlockTokens; ++row) by[size_t(row)] = row % int(kMostTurns + 1);
  EXPECT_TRUE(moved_on({}, turn, by, coded)) << "those that stay are no distance";
  for (int& n : by) n += 1;
  EXPECT_FALSE(moved_on({}, turn, by, coded));
}

}  // namespace
}  // namespace zipcache
