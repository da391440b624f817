// Records hold what packed blocks hold, there and back.
#include "cuda/fragments.hpp"

#include <gtest/gtest.h>

#include <bit>
#include <set>

#include "cuda/record_set.hpp"
#include "support/block_rig.hpp"
#include "support/random_rows.hpp"

namespace zipcache::cuda {
namespace {

using zipcache::test::BlockRig;
using zipcache::test::random_rows;

std::unique_ptr<BlockRig> packed_rig(const Policy& policy, int dim, int n_sinks) {
  auto rig = std::make_unique<BlockRig>(LayerShape{1, dim, dim}, policy, kBlockTokens);
  rig->append(kBlockTokens, random_rows(kBlockTokens, dim, 3), random_rows(kBlockTokens, dim, 4));
  for (int row = 0; row < n_sinks; ++row) rig->log.mark_sink({rig->log.order()[0], row});
  rig->pack();
  return rig;
}

class Records : public ::testing::TestWithParam<std::tuple<const char*, int>> {};

TEST_P(Records, ComeBackAsTheyWere) {
  const auto [text, dim] = GetParam();
  const Policy policy = *parse_policy(text);
  const LayerShape shape{1, dim, dim};
  const auto layout = RecordLayout::create(shape, policy);
  ASSERT_TRUE(layout.ok()) << layout.status().message();
  for (const int n_sinks : {0, 5}) {
    const auto owned = packed_rig(policy, dim, n_sinks);
    const BlockRig& rig = *owned;
    const int slot = rig.log.order()[0];
    const StoredBlock& stored = rig.store.block(slot);
    const PackedHead head = rig.store.head(slot, 0);
    std::vector<uint8_t> record(layout->bytes(head.held));
    write_record(*layout, head, record.data());

    // Into a block that has all but codes and parameters.
    std::vector<uint8_t> copy(stored.packed, stored.packed + stored.bytes.total);
    const PackedHead again =
        rig.store.packed.head(copy.data(), 0, stored.n_coded, n_sinks, nullptr);
    uint8_t* codes_begin =
        copy.data() + (rig.store.packed.head_start(stored.packed, 0) - stored.packed);
    std::fill(codes_begin, copy.data() + copy.size(), uint8_t{0});
    read_record(*layout, record.data(), again);
    EXPECT_TRUE(std::equal(copy.begin(), copy.end(), stored.packed)) << "sinks " << n_sinks;
  }
}

INSTANTIATE_TEST_SUITE_P(
    Policies, Records,
    ::testing::Combine(::testing::Values("zipcache,score=random", "zip,score=random", "uniform2",
                                         "uniform3", "uniform4", "uniform4,bits=8", "had4",
                                         "zip,bits=8/3/2,ratio=0.3/0.4,score=random",
                                         "zipcache,k=16/2,v=16/2,score=random"),
                       ::testing::Values(64, 128, 256)));

TEST(Record, RowsOf16BitsStandInIt) {
  const int dim = 64, n = 21;
  const auto k = zipcache::test::to_halves(random_rows(n, dim, 5)),
             v = zipcache::test::to_halves(random_rows(n, dim, 6));
  std::vector<uint8_t> record(raw_record_bytes(dim, n));
  write_raw_record(dim, n, k.data(), v.data(), record.data());
  std::vector<float> keys, values;
  decode_record(dim, record.data(), keys, values);
  EXPECT_EQ(keys, zipcache::test::to_floats(k));
  EXPECT_EQ(values, zipcache::test::to_floats(v));
}

TEST(Record, DecodesToWhatTheBlockDecodesTo) {
  const Policy policy = *parse_policy("zipcache,score=random");
  const auto owned = packed_rig(policy, 64, 0);
  const BlockRig& rig = *owned;
  const auto layout = RecordLayout::create({1, 64, 64}, policy);
  ASSERT_TRUE(layout.ok());
  RecordSet set(64, 1, 1, 1);
  const int slot = rig.log.order()[0];
  set.add_packed(0, 0, *layout, rig.store.head(slot, 0), {}, 0);
  std::vector<float> k, v;
  decode_record(64, set.bytes(set.record(0, 0, 0)), k, v);
  const auto expected_k = rig.decoded(SideId::K), expected_v = rig.decoded(SideId::V);
  const uint8_t* rows = set.bytes(set.record(0, 0, 0)) + size_t(set.record(0, 0, 0).size) * 16;
  size_t token = 0;
  for (int column = 0; token < size_t(kBlockTokens); ++column) {
    if (rows[column] == kNoRow) continue;
    for (size_t c = 0; c < 64; ++c) {
      EXPECT_NEAR(k[token * 64 + c], expected_k[rows[column] * 64u + c], 1e-5);
      EXPECT_NEAR(v[token * 64 + c], expected_v[rows[column] * 64u + c], 1e-5);
    }
    ++token;
  }
}

TEST(Record, NoTwoNumbersShareAPlace) {
  for (const int bits : {2, 3, 4, 8, 16}) {
    for (const bool is_k : {false, true}) {
      std::set<std::pair<int, int>> taken;
      for (int token = 0; token < kUnitTokens; ++token) {
        for (int c = 0; c < 128; ++c) {
          const Place at = code_place(is_k, 128, bits, token, c);
          for (int bit = 0; bit < std::min(bits, bits == 3 ? 2 : bits); ++bit)
            EXPECT_TRUE(taken.emplace(at.word, at.shift + bit).second) << bits;
          const Place top = top_bit_place(is_k, token, c);
          if (bits == 3) {
            EXPECT_TRUE(taken.emplace(top.word, top.shift).second);
          }
        }
      }
      EXPECT_EQ(taken.size(), size_t(unit_bytes(128, bits)) * 8);
      EXPECT_EQ(taken.rbegin()->first, unit_bytes(128, bits) / 4 - 1);
    }
  }
}

TEST(Record, TwoWarpsShareItByUnitsOrByTiers) {
  const auto half_of = [](std::initializer_list<int> counts) {
    TierHeader headers[kRecordTiers] = {};
    int n = 0;
    for (const int count : counts) headers[n++].count = uint8_t(count);
    return first_half(headers, n);
  };
  EXPECT_EQ(half_of({128}), 4);
  EXPECT_EQ(half_of({77, 51}), 5);  // 5 units and 4
  EXPECT_EQ(half_of({51, 77}), 4);
  EXPECT_EQ(half_of({20, 108}), 4);  // 2 units and 7: a tier's end is too far away
  EXPECT_EQ(half_of({40, 40, 48}), 3);
  EXPECT_EQ(half_of({16, 0}), 0);  // no tier's end stands between two warps
  EXPECT_EQ(half_of({}), 0);
}

TEST(RecordLayout, SaysWhatNoRecordHolds) {
  for (const char* text : {"kivi2", "turbo-k4v4", "gear2-l", "f16", "kvarn-k4v2", "sym4"}) {
    const auto layout = RecordLayout::create({1, 128, 128}, *parse_policy(text));
    ASSERT_FALSE(layout.ok()) << text;
    EXPECT_EQ(layout.status().code(), Code::Incompatible);
  }
  EXPECT_FALSE(RecordLayout::create({1, 96, 96}, *parse_policy("zip")).ok());
  EXPECT_FALSE(RecordLayout::create({1, 128, 64}, *parse_policy("zip")).ok());
}

TEST(Plan, CoversEveryRecordOnce) {
  const std::vector<StreamRecords> streams = {{10, 3}, {0, 1}, {0, 0}, {100, 4}};
  for (const int n_blocks : {1, 8, 64, 264, 5000}) {
    const auto [items, n_warps] = plan_decode(streams, 8, {n_blocks, n_blocks / 2});
    EXPECT_EQ(n_warps, n_blocks == 64 || n_blocks == 264 ? kLargeWarps : kSmallWarps) << n_blocks;
    std::vector<std::vector<int>> seen(streams.size());
    for (size_t i = 0; i < items.size(); ++i) {
      const WorkItem& item = items[i];
      EXPECT_GE(int(i), item.part_first);
      EXPECT_LT(int(i), item.part_first + item.part_count);
      EXPECT_EQ(std::popcount(unsigned(item.sharing)), 1);
      EXPECT_LE(item.sharing, n_warps);
      for (int r = item.first; r < item.first + item.count; ++r)
        seen[size_t(item.stream)].push_back(r);
    }
    for (size_t s = 0; s < streams.size(); ++s) {
      EXPECT_EQ(seen[s].size(), size_t(streams[s].all()));
      EXPECT_EQ(std::set<int>(seen[s].begin(), seen[s].end()).size(), seen[s].size());
    }
    EXPECT_TRUE(std::any_of(items.begin(), items.end(),
                            [](const WorkItem& item) { return item.stream == 2; }));
  }
}

}  // namespace
}  // namespace zipcache::cuda
