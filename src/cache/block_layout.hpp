// Where everything of a block lies: the one owner of the layout of raw and packed blocks of a
// layer.
//
// Raw block (all heads of one layer):
//   K rows    f16  [head, token, k_dim]
//   V rows    f16  [head, token, v_dim]
//   only when the policy ranks by scores:
//   sums      f32  [head, token]   attention received from probes
//   squares   f32  [head, token]   attention of each probe squared; for Statistic::MeanStd
//   seen      u32  [2, token]      probe rows, then all rows, that could see the token
//   only when the policy evicts, since rows may move here after their heads' rows were evicted:
//   present   u8   [head, 16]      bit t of byte t/8: token t is there
//
// Packed block (docs/formats.md):
//   offsets   u32  [head]          where the head's own parts begin
//   counts    u16  [head, n]       tokens in each tier but the last; in the tier, where it is alone
//   tags      u8   [head, n, 16]   bit t of byte t/8 is bit n of the number of tiers after token
//                                  t's: 0 for the last, 1 for the one before it and so on; n = 0
//                                  for one tier, 1 for two, 2 for more
//   sinks     f16  [head, n_sinks, k_dim], then [head, n_sinks, v_dim]
//   per head, for K and then V: channel factors, then for each tier params, token factors, low-rank
//   factors and codes (codec/tile.hpp, Side::channel_factors); K has tokens in its lanes, V
//   channels. Tiers of one width have one set of channel params, the first one's, over the tokens
//   of all.
// Parameters shared by several blocks (Cadence::Prompt) stand in a piece of their own:
//   per head, for K and then V: factors, then each tier's params
// Every part of a packed block begins at a multiple of 64 bytes.
//
// Inside a tier tokens keep their order, so a token's place is its rank among those of its tags.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string_view>
#include <vector>

#include "cache/log.hpp"
#include "codec/query_rounding.hpp"
#include "codec/tile.hpp"

namespace zipcache {

struct RawLayout {
  RawLayout(const LayerShape& shape, const Policy& policy);
  LayerShape shape;
  size_t v_at = 0, sums_at = 0, squares_at = 0, seen_at = 0, present_at = 0, bytes = 0;

  half* k(uint8_t* block, int head) const;
  half* v(uint8_t* block, int head) const;
  half* rows(uint8_t* block, SideId side, int head) const {
    return side == SideId::K ? k(block, head) : v(block, head);
  }
  float* sums(uint8_t* block, int head) const;
  // [kBlockTokens] of a head, or null when the policy does not ask for them.
  float* squares(uint8_t* block, int head) const;
  uint32_t* probes_seen(uint8_t* block) const;
  uint32_t* rows_seen(uint8_t* block) const;
  // [16] of a head, or null when the policy does not evict.
  uint8_t* present(uint8_t* block, int head) const;
  size_t row_bytes() const {
    return sizeof(half) * size_t(shape.n_heads) * size_t(shape.k_dim + shape.v_dim);
  }
};

// One side of one head of a packed block.
struct PackedSide {
  TileView tiers[kMaxTiers];
  half* factors = nullptr;  // [dim] or null
};

struct PackedHead {
  int n_tiers = 1;
  TierCounts held = {};     // tokens held in each tier: none in one of 0 bits
  uint8_t* tags = nullptr;  // [tag_planes(n_tiers), 16] or null with one tier
  half* k_sinks = nullptr;  // [n_sinks, k_dim]
  half* v_sinks = nullptr;  // [n_sinks, v_dim]
  PackedSide k, v;

  // Tier of a coded row, of 0 bits or not.
  int tier_of(int row) const;
};

// Bits that tell a token's tier, each in a plane of its own.
constexpr int tag_planes(int n_tiers) { return n_tiers == 1 ? 0 : n_tiers == 2 ? 1 : 2; }
// Marks a row as one of `tier` in planes of zeros.
void set_tags(uint8_t* tags, int n_tiers, int row, int tier);

// Bytes of a packed block by kind.
struct PackedBytes {
  size_t codes = 0, params = 0, tags = 0, sinks = 0, total = 0;
};

class PackedLayout {
 public:
  PackedLayout(const LayerShape& shape, const Policy& policy) : shape_(shape), policy_(policy) {}

  // Sizes of a block of `n_sinks` raw tokens and counts[head] coded ones, evicted ones among them.
  // `shared` blocks keep no channel parameters of their own.
  PackedBytes bytes(std::span<const TierCounts> counts, int n_sinks, bool shared) const;
  size_t shared_bytes() const;

  // Writes the head of the block, after which head() finds its way.
  void begin(uint8_t* block, std::span<const TierCounts> counts, int n_sinks, bool shared) const;
  // The counts of each head that a block of `n_coded` coded tokens says it has; none when it is too
  // short to say it or they do not add up.
  std::optional<std::vector<TierCounts>> counts(std::string_view block, int n_heads,
                                                int n_coded) const;
  // First byte of a head's own parts.
  const uint8_t* head_start(const uint8_t* block, int head) const {
    return block + reinterpret_cast<const uint32_t*>(block)[head];
  }
  // `shared_set` is the piece of shared parameters, or null.
  PackedHead head(uint8_t* block, int head, int n_coded, int n_sinks, uint8_t* shared_set) const;

  // Tokens of a tier are held, as codes or raw.
  bool holds(size_t tier) const {
    return tier < policy_.tiers.size() && !policy_.tiers[tier].evicts();
  }
  int n_tiers() const { return int(policy_.tiers.size()); }
  // The counts that fill the policy's budget of bits best for coded tokens of these weights.
  TierCounts counts_of_budget(std::span<const float> weights) const;
  // Keys become codes with the help of their queries' moments.
  bool rounds_by_queries() const { return policy_.k_rounding == Rounding::Query && !policy_.raw(); }
  // Bytes of these moments in one layer of one stream.
  size_t moment_bytes() const {
    return rounds_by_queries() ? size_t(shape_.n_heads) * QueryMoment::bytes(shape_.k_dim) : 0;
  }
  // Bytes of the matrices that turn the layer's rows, for all streams together.
  size_t rotation_bytes() const {
    const auto bytes = [&](const Side& side, int dim) {
      return side.rotation != Rotation::File
                 ? size_t{0}
                 : sizeof(float) * size_t(shape_.n_heads) * size_t(dim) * size_t(dim);
    };
    return bytes(policy_.k, shape_.k_dim) + bytes(policy_.v, shape_.v_dim);
  }
  // The tier whose channel parameters a tier of a side is coded on: the first of its width.
  size_t params_tier(SideId side, size_t tier) const;
  const Policy& policy() const { return policy_; }
  const LayerShape& shape() const { return shape_; }

 private:
  template <class Visit>
  void walk_front(int n_sinks, Visit&& visit) const;
  template <class Visit>
  void walk_head(const TierCounts& counts, Visit&& visit) const;
  size_t shared_head_bytes() const;
  TileShape tile_shape(SideId side, size_t tier, int n_tokens) const;
  TierCounts stored_counts(const uint8_t* block, int head, int n_coded) const;

  LayerShape shape_;
  Policy policy_;
};

// Attention works on the columns of all tiers side by side, each filled up to whole units.
inline constexpr uint8_t kNoRow = 255;  // a column that only fills up
inline constexpr int kMaxTierColumns = kBlockTokens + (kMaxTiers - 1) * kUnitRows;
// Where each tier's columns begin, and after them where the last tier's end.
std::array<int, kMaxTiers + 1> tier_places(const PackedHead& head);
int tier_columns(const PackedHead& head);
// The block's row behind each column: order [tier_columns], kNoRow where there is none.
void packed_order(const PackedHead& head, const BlockBits& sinks, uint8_t* order);

}  // namespace zipcache
