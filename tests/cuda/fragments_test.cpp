// Records hold what packed blocks hold, there and back.
#include "cuda/fragments.hpp"

#include <gtest/gtest.h>

#include <array>
#include <bit>
#include <set>
#include <string>

#include "codec/low_rank.hpp"
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

// What a GPU may hold, beside the rows of the table.
constexpr const char* kMorePolicies[] = {
    "zip,bits=8/3/2,ratio=0.3/0.4",
    "uniform4,bits=8",
    "zipcache,k=16/2,v=16/2",
    "zipcache,k=4/4/2,v=4/2/2,ratio=0.3/0.3",  // key parameters of two tiers
    "uniform4,v_axis=channel",                 // values by channel
    "zipcache,k=4/2/2,v=4/4/2,ratio=0.3/0.3,v_axis=channel,dual=2",
    "kivi2,k_axis=channel48,bits=4/2,ratio=0.3",  // the last groups are short
    "kivi4,v_axis=channel32,k_axis=token,rank=3",
    "sym4,k_axis=channel128,v_axis=channel32,bits=8/3,ratio=0.5",
    "turbo-k4v4,bits=4/3/2,ratio=0.3/0.3,codec=lloyd",
    "fp8,k_axis=token,v_axis=cst",
    "nvfp4,k_axis=channel16,v_axis=token",
    "kvarn-k4v2,k_axis=token,bits=16/4/2/0,ratio=0.2/0.2/0.2",
};

// Rows of the table that no record holds.
const std::set<std::string_view> kRefused = {"f16", "oscar2", "skvq"};

std::vector<std::string> policies() {
  std::vector<std::string> texts(std::begin(kMorePolicies), std::end(kMorePolicies));
  for (const PolicyRow& row : policy_rows()) {
    if (!kRefused.contains(row.name)) texts.emplace_back(row.name);
  }
  return texts;
}

// Without probes a seeded draw stands in for scores.
Policy drawn(const std::string& text) {
  const Result<Policy> parsed = parse_policy(text);
  if (!parsed.ok()) throw std::runtime_error(parsed.status().message());
  Policy policy = *parsed;
  policy.saliency.statistic = Statistic::Random;
  return policy;
}

class Records : public ::testing::TestWithParam<std::string> {
 protected:
  static constexpr int kDims[] = {64, 128, 256};
};

TEST_P(Records, ComeBackAsTheyWere) {
  const Policy policy = drawn(GetParam());
  for (const int dim : kDims) {
    const auto layout = RecordLayout::create({1, dim, dim}, policy);
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
      EXPECT_TRUE(std::equal(copy.begin(), copy.end(), stored.packed))
          << "dim " << dim << " sinks " << n_sinks;
    }
  }
}

// What the block's tiles decode to, tier after tier: [tokens, dim].
std::vector<float> decoded_tiles(const PackedHead& head, const PackedSide& side) {
  std::vector<float> all;
  for (int t = 0; t < head.n_tiers; ++t) {
    const TileView& tile = side.tiers[t];
    if (tile.shape.n_tokens == 0) continue;
    std::vector<float> rows(size_t(tile.shape.n_tokens * tile.shape.dim));
    decode_tile(best_kernels(), tile, rows.data());
    add_low_rank(tile, rows.data());
    all.insert(all.end(), rows.begin(), rows.end());
  }
  return all;
}

TEST_P(Records, DecodeToWhatTheBlockDecodesTo) {
  const Policy policy = drawn(GetParam());
  for (const int dim : kDims) {
    const auto layout = RecordLayout::create({1, dim, dim}, policy);
    ASSERT_TRUE(layout.ok()) << layout.status().message();
    const auto owned = packed_rig(policy, dim, 3);
    const PackedHead head = owned->store.head(owned->log.order()[0], 0);
    std::vector<uint8_t> record(layout->bytes(head.held));
    write_record(*layout, head, record.data());
    std::vector<float> k, v;
    decode_record(layout->form(), record.data(), k, v);
    EXPECT_EQ(k, decoded_tiles(head, head.k)) << "dim " << dim;
    EXPECT_EQ(v, decoded_tiles(head, head.v)) << "dim " << dim;
  }
}

INSTANTIATE_TEST_SUITE_P(Policies, Records, ::testing::ValuesIn(policies()));

// A record's parts have the sizes of a tile's.
void expect_tile_sizes(const SideForm& side, const TileShape& tile) {
  const int n = tile.n_tokens;
  EXPECT_EQ(sets_of(side, tile.dim, n), n_sets(tile));
  EXPECT_EQ(size_t(param_bytes(side, tile.dim, n)), param_bytes(tile));
  EXPECT_EQ(size_t(low_rank_bytes(side, tile.dim, n)), low_rank_bytes(tile));
  EXPECT_EQ(size_t(token_factor_bytes(side, n)), size_t(padded_to(n, kUnitRows)) * sizeof(half));
}

TEST(Record, PartsAreAsLargeAsThoseOfTiles) {
  for (const Axis axis :
       {Axis::Channel, Axis::Token, Axis::Group, Axis::ChannelGroup, Axis::Cst, Axis::None}) {
    for (const Codec codec :
         {Codec::Affine, Codec::Symmetric, Codec::Lloyd, Codec::E4m3, Codec::E2m1}) {
      for (const int group : {16, 32, 48, 64, 128}) {
        for (const int dim : {64, 128, 256}) {
          if (axis == Axis::Group && dim % group != 0) continue;
          for (int n = 1; n <= kRecordTokens; ++n) {
            const int rank = n % 4;
            SideForm side;
            side.axis = axis, side.codec = codec, side.group = uint16_t(group);
            side.rank = uint8_t(rank), side.token_factors = true;
            const TileShape tile{n, dim, 4, axis, group, Lanes::Tokens, codec, rank};
            expect_tile_sizes(side, tile);
            // The first and the last number of a tier, and some between them. Axis::None has no
            // sets.
            for (int i = 0; axis != Axis::None && i < 8; ++i) {
              const int token = i * (n - 1) / 7, channel = i * (dim - 1) / 7;
              ASSERT_EQ(cuda::set_of(side, dim, n, token, channel),
                        zipcache::set_of(tile, token, channel));
            }
          }
        }
      }
    }
  }
}

TEST(Record, RowsOf16BitsStandInIt) {
  const int dim = 64, n = 21;
  const auto k = zipcache::test::to_halves(random_rows(n, dim, 5)),
             v = zipcache::test::to_halves(random_rows(n, dim, 6));
  std::vector<uint8_t> record(raw_record_bytes(dim, n));
  write_raw_record(dim, n, k.data(), v.data(), record.data());
  std::vector<float> keys, values;
  RecordForm form;
  form.dim = dim;
  decode_record(form, record.data(), keys, values);
  EXPECT_EQ(keys, zipcache::test::to_floats(k));
  EXPECT_EQ(values, zipcache::test::to_floats(v));
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
  const auto message = [](const char* text, int k_dim, int v_dim) {
    const auto layout = RecordLayout::create({1, k_dim, v_dim}, *parse_policy(text));
    EXPECT_FALSE(layout.ok()) << text;
    if (layout.ok()) return std::string();
    EXPECT_EQ(layout.status().code(), Code::Incompatible);
    return layout.status().message();
  };
  const auto says = [&](const std::string& text, const char* part) {
    EXPECT_NE(text.find(part), std::string::npos) << text;
  };
  says(message("zipcache,cadence=prompt", 128, 128), "found cadence=prompt");
  says(message("uniform4,0-3:k=8", 128, 128), "found fields of single layers");
  says(message("f16", 128, 128), "packs nothing");
  says(message("kivi2,v_axis=group128", 64, 64), "v_axis=group128 and heads of 64");
  says(message("zip", 96, 96), "found heads of 96 and 96 channels");
  says(message("zip", 128, 64), "found heads of 128 and 64 channels");
}

// Where parameters stand for the fast kernels, and where as in a tile.
TEST(RecordLayout, KeepsTilesForWhatOperandsAreNot) {
  const auto as_tile = [](const char* text) {
    const RecordForm form = RecordLayout::create({1, 128, 128}, *parse_policy(text))->form();
    return std::pair(form.k.as_tile, form.v.as_tile);
  };
  using Sides = std::pair<bool, bool>;
  EXPECT_EQ(as_tile("zip"), Sides(false, false));
  EXPECT_EQ(as_tile("rotatekv"), Sides(false, false));
  EXPECT_EQ(as_tile("h2o"), Sides(false, false));  // no codes
  EXPECT_EQ(as_tile("kvarn-k4v2"), Sides(true, false));
  EXPECT_EQ(as_tile("turbo-k4v4"), Sides(true, false));
  EXPECT_EQ(as_tile("qserve4"), Sides(true, false));
  EXPECT_EQ(as_tile("kivi2"), Sides(true, true));
  EXPECT_EQ(as_tile("uniform4,v_axis=channel"), Sides(false, true));
  EXPECT_EQ(as_tile("uniform4,k_rank=2"), Sides(true, false));
}

TEST(Plan, CoversEveryRecordOnce) {
  const std::vector<StreamRecords> streams = {{10, 3}, {0, 1}, {0, 0}, {100, 4}};
  for (int c = 0; c < 10; ++c) {
    const int n_blocks = std::array{1, 8, 64, 264, 5000}[size_t(c / 2)];
    const int large_warps = c % 2 == 0 ? kLargeWarps : kMostWarps;
    const auto [items, n_warps] =
        plan_decode(streams, 8, {n_blocks, n_blocks / 2, large_warps, 9 + c % 2 * 2});
    EXPECT_EQ(n_warps, n_blocks == 64 || n_blocks == 264 ? large_warps : kSmallWarps) << n_blocks;
    std::vector<std::vector<int>> seen(streams.size());
    for (size_t i = 0; i < items.size(); ++i) {
      const WorkItem& item = items[i];
      EXPECT_GE(int(i), item.part_first);
      EXPECT_LT(int(i), item.part_first + item.part_count);
      EXPECT_EQ(std::popcount(unsigned(item.sharing)), 1);
      EXPECT_EQ(n_warps % item.sharing, 0);
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
