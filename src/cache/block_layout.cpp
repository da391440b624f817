#include "cache/block_layout.hpp"

#include <algorithm>
#include <bit>
#include <cstring>

#include "policy/knapsack.hpp"

namespace zipcache {
namespace {

constexpr size_t align8(size_t bytes) { return (bytes + 7) / 8 * 8; }
constexpr size_t align64(size_t bytes) { return (bytes + 63) / 64 * 64; }

constexpr size_t kPlaneBytes = kBlockTokens / 8;
// Counts that a block stores of each head.
constexpr size_t n_counts(int n_tiers) { return size_t(std::max(1, n_tiers - 1)); }

enum class Part { Counts, Tags, KSinks, VSinks, Factors, Params, TokenFactors, LowRank, Codes };

// Hands out consecutive parts of a block and of a shared parameter set.
struct Cursor {
  size_t block = 0;
  size_t shared = 0;

  size_t take(size_t bytes, bool from_shared) {
    size_t& at = from_shared ? shared : block;
    const size_t begin = at;
    at += align64(bytes);
    return begin;
  }
};

}  // namespace

RawLayout::RawLayout(const LayerShape& layer, const Policy& policy) : shape(layer) {
  const bool scores = policy.needs_scores();
  const size_t rows = size_t(kBlockTokens) * size_t(shape.n_heads);
  v_at = align8(rows * size_t(shape.k_dim) * sizeof(half));
  sums_at = v_at + align8(rows * size_t(shape.v_dim) * sizeof(half));
  squares_at = sums_at + (scores ? rows * sizeof(float) : 0);
  seen_at = squares_at + (policy.needs_squares() ? rows * sizeof(float) : 0);
  present_at = seen_at + (scores ? 2 * size_t(kBlockTokens) * sizeof(uint32_t) : 0);
  bytes = present_at + (policy.evicts() ? size_t(shape.n_heads) * kBlockTokens / 8 : 0);
}

half* RawLayout::k(uint8_t* block, int head) const {
  return reinterpret_cast<half*>(block) + size_t(head) * kBlockTokens * size_t(shape.k_dim);
}
half* RawLayout::v(uint8_t* block, int head) const {
  return reinterpret_cast<half*>(block + v_at) + size_t(head) * kBlockTokens * size_t(shape.v_dim);
}
float* RawLayout::sums(uint8_t* block, int head) const {
  return reinterpret_cast<float*>(block + sums_at) + size_t(head) * kBlockTokens;
}
float* RawLayout::squares(uint8_t* block, int head) const {
  if (squares_at == seen_at) return nullptr;
  return reinterpret_cast<float*>(block + squares_at) + size_t(head) * kBlockTokens;
}
uint32_t* RawLayout::probes_seen(uint8_t* block) const {
  return reinterpret_cast<uint32_t*>(block + seen_at);
}
uint32_t* RawLayout::rows_seen(uint8_t* block) const { return probes_seen(block) + kBlockTokens; }
uint8_t* RawLayout::present(uint8_t* block, int head) const {
  return bytes == present_at ? nullptr : block + present_at + size_t(head) * kBlockTokens / 8;
}

// Calls visit(part, bytes) for what stands before the heads, in the order of the layout.
template <class Visit>
void PackedLayout::walk_front(int n_sinks, Visit&& visit) const {
  const size_t heads = size_t(shape_.n_heads);
  visit(Part::Counts, heads * (sizeof(uint32_t) + n_counts(n_tiers()) * sizeof(uint16_t)));
  visit(Part::Tags, heads * size_t(tag_planes(n_tiers())) * kPlaneBytes);
  visit(Part::KSinks, heads * size_t(n_sinks) * size_t(shape_.k_dim) * sizeof(half));
  visit(Part::VSinks, heads * size_t(n_sinks) * size_t(shape_.v_dim) * sizeof(half));
}

size_t PackedLayout::params_tier(SideId side, size_t tier) const {
  const bool is_k = side == SideId::K;
  const auto bits = [&](size_t t) {
    return is_k ? policy_.tiers[t].k_bits : policy_.tiers[t].v_bits;
  };
  const Side& spec = is_k ? policy_.k : policy_.v;
  if (spec.axis != Axis::Channel || spec.codec != Codec::Affine || !coded(bits(tier))) return tier;
  while (tier > 0 && bits(tier - 1) == bits(tier)) --tier;
  return tier;
}

TileShape PackedLayout::tile_shape(SideId side, size_t tier, int n_tokens) const {
  const bool is_k = side == SideId::K;
  const Side& spec = is_k ? policy_.k : policy_.v;
  return {holds(tier) ? n_tokens : 0,
          is_k ? shape_.k_dim : shape_.v_dim,
          is_k ? policy_.tiers[tier].k_bits : policy_.tiers[tier].v_bits,
          spec.axis,
          spec.group,
          is_k ? Lanes::Tokens : Lanes::Channels,
          spec.codec,
          spec.rank};
}

// Calls visit(part, side, tier, shape_of_tile, bytes) for every part of one head.
template <class Visit>
void PackedLayout::walk_head(const TierCounts& counts, Visit&& visit) const {
  const size_t n_tiers = policy_.tiers.size();
  for (const SideId side : {SideId::K, SideId::V}) {
    const Side& spec = side == SideId::K ? policy_.k : policy_.v;
    const int dim = side == SideId::K ? shape_.k_dim : shape_.v_dim;
    visit(Part::Factors, side, size_t{0}, TileShape{},
          spec.channel_factors() ? size_t(padded_to(dim, kUnitRows)) * sizeof(half) : 0);
    for (size_t tier = 0; tier < n_tiers; ++tier) {
      const TileShape tile = tile_shape(side, tier, counts[tier]);
      TileShape covered = tile;  // by this tier's parameters
      if (params_tier(side, tier) != tier) covered.n_tokens = 0;
      for (size_t t = tier + 1; t < n_tiers && params_tier(side, t) == tier; ++t)
        covered.n_tokens += counts[t];
      visit(Part::Params, side, tier, tile, param_bytes(covered));
      visit(Part::TokenFactors, side, tier, tile,
            spec.token_factors() && coded(tile.bits)
                ? size_t(padded_to(tile.n_tokens, kUnitRows)) * sizeof(half)
                : 0);
      visit(Part::LowRank, side, tier, tile, low_rank_bytes(tile));
      visit(Part::Codes, side, tier, tile, code_bytes(tile));
    }
  }
}

namespace {

// Parts that blocks with shared parameters do not hold themselves.
bool belongs_to_set(Part part, const TileShape& tile) {
  return part == Part::Factors || (part == Part::Params && tile.axis == Axis::Channel);
}

}  // namespace

PackedBytes PackedLayout::bytes(std::span<const TierCounts> counts, int n_sinks,
                                bool shared) const {
  PackedBytes sum;
  walk_front(n_sinks, [&](Part part, size_t size) {
    (part == Part::KSinks || part == Part::VSinks ? sum.sinks : sum.tags) += size;
    sum.total += align64(size);
  });
  for (const TierCounts& count : counts) {
    walk_head(count, [&](Part part, SideId, size_t, const TileShape& tile, size_t size) {
      if (shared && belongs_to_set(part, tile)) return;
      (part == Part::Codes ? sum.codes : sum.params) += size;
      sum.total += align64(size);
    });
  }
  return sum;
}

// Every tier of a shared set has parameters, empty in one block or not.
size_t PackedLayout::shared_head_bytes() const {
  size_t total = 0;
  TierCounts one_each;
  one_each.fill(1);
  walk_head(one_each, [&](Part part, SideId, size_t, const TileShape& tile, size_t size) {
    if (belongs_to_set(part, tile)) total += align64(size);
  });
  return total;
}

size_t PackedLayout::shared_bytes() const { return shared_head_bytes() * size_t(shape_.n_heads); }

void PackedLayout::begin(uint8_t* block, std::span<const TierCounts> counts, int n_sinks,
                         bool shared) const {
  auto* offsets = reinterpret_cast<uint32_t*>(block);
  auto* stored = reinterpret_cast<uint16_t*>(offsets + counts.size());
  size_t at = 0;
  walk_front(n_sinks, [&](Part, size_t size) { at += align64(size); });
  for (size_t head = 0; head < counts.size(); ++head) {
    offsets[head] = uint32_t(at);
    for (size_t tier = 0; tier < n_counts(n_tiers()); ++tier)
      *stored++ = uint16_t(counts[head][tier]);
    walk_head(counts[head], [&](Part part, SideId, size_t, const TileShape& tile, size_t size) {
      if (!shared || !belongs_to_set(part, tile)) at += align64(size);
    });
  }
}

// The counts of a head as begin() wrote them; what they leave is in the last tier.
TierCounts PackedLayout::stored_counts(const uint8_t* block, int head, int n_coded) const {
  const auto* stored =
      reinterpret_cast<const uint16_t*>(block + sizeof(uint32_t) * size_t(shape_.n_heads)) +
      size_t(head) * n_counts(n_tiers());
  TierCounts counts = {};
  int left = n_coded;
  for (size_t tier = 0; tier < n_counts(n_tiers()); ++tier) left -= counts[tier] = stored[tier];
  if (n_tiers() > 1) counts[policy_.tiers.size() - 1] = left;
  return counts;
}

std::optional<std::vector<TierCounts>> PackedLayout::counts(std::string_view block, int n_heads,
                                                            int n_coded) const {
  const size_t front =
      size_t(n_heads) * (sizeof(uint32_t) + n_counts(n_tiers()) * sizeof(uint16_t));
  if (block.size() < front) return {};
  std::vector<TierCounts> found;
  for (int head = 0; head < n_heads; ++head) {
    TierCounts& one = found.emplace_back(
        stored_counts(reinterpret_cast<const uint8_t*>(block.data()), head, n_coded));
    int sum = 0;
    for (const int n : one) {
      if (n < 0 || n > n_coded) return {};
      sum += n;
    }
    if (sum != n_coded) return {};
  }
  return found;
}

PackedHead PackedLayout::head(uint8_t* block, int wanted, int n_coded, int n_sinks,
                              uint8_t* shared_set) const {
  const TierCounts counts = stored_counts(block, wanted, n_coded);
  PackedHead found;
  found.n_tiers = n_tiers();
  for (size_t tier = 0; tier < policy_.tiers.size(); ++tier)
    found.held[tier] = holds(tier) ? counts[tier] : 0;
  Cursor front;
  walk_front(n_sinks, [&](Part part, size_t size) {
    uint8_t* here = block + front.take(size, false);
    const size_t sink_rows = size_t(wanted) * size_t(n_sinks);
    if (part == Part::Tags && size)
      found.tags = here + size_t(tag_planes(n_tiers()) * wanted) * kPlaneBytes;
    if (part == Part::KSinks)
      found.k_sinks = reinterpret_cast<half*>(here) + sink_rows * size_t(shape_.k_dim);
    if (part == Part::VSinks)
      found.v_sinks = reinterpret_cast<half*>(here) + sink_rows * size_t(shape_.v_dim);
  });
  Cursor cursor{reinterpret_cast<const uint32_t*>(block)[wanted],
                shared_set ? shared_head_bytes() * size_t(wanted) : 0};
  walk_head(counts, [&](Part part, SideId side, size_t tier, const TileShape& tile, size_t size) {
    const bool from_shared = shared_set && belongs_to_set(part, tile);
    const bool own_params = part == Part::Params && params_tier(side, tier) == tier;
    // A shared set holds every tier's channel parameters, also those that this block has no token
    // for.
    if (from_shared && own_params && size == 0 && coded(tile.bits))
      size = 2 * sizeof(half) * size_t(padded_to(tile.dim, kUnitRows));
    uint8_t* here = (from_shared ? shared_set : block) + cursor.take(size, from_shared);
    PackedSide& out = side == SideId::K ? found.k : found.v;
    TileView& view = out.tiers[tier];
    if (part == Part::Factors) {
      if (size) out.factors = reinterpret_cast<half*>(here);
    } else if (part == Part::Params) {
      const half* params =
          own_params ? reinterpret_cast<half*>(here) : out.tiers[params_tier(side, tier)].params;
      view = {tile, nullptr, params, out.factors};
    } else if (part == Part::TokenFactors) {
      if (size) view.token_factors = reinterpret_cast<half*>(here);
    } else if (part == Part::LowRank) {
      if (size) view.low_rank = reinterpret_cast<half*>(here);
    } else {
      view.codes = here;
    }
  });
  return found;
}

TierCounts PackedLayout::counts_of_budget(std::span<const float> weights) const {
  const int n = int(weights.size());
  Knapsack sack;
  for (size_t tier = 0; tier < policy_.tiers.size(); ++tier) {
    sack.errors.push_back(distortion(policy_.k, policy_.tiers[tier].k_bits) +
                          distortion(policy_.v, policy_.tiers[tier].v_bits));
    std::vector<size_t>& bytes = sack.bytes.emplace_back();
    for (int tokens = 0; tokens <= n; ++tokens) {
      bytes.push_back(code_bytes(tile_shape(SideId::K, tier, tokens)) +
                      code_bytes(tile_shape(SideId::V, tier, tokens)));
    }
  }
  // A block that sinks leave short may spend what whole steps of codes hold.
  const size_t room = size_t(padded_to(n, step_columns(3))) * size_t(shape_.k_dim + shape_.v_dim);
  sack.budget = room * size_t(policy_.target_millibits) / (8 * 1000);
  return fill_knapsack(
      sack, knapsack_weights(weights, policy_.allocation == Allocation::KnapsackSquares));
}

namespace {

// Bit r: row word * 64 + r is in the tier.
uint64_t rows_of_tier(const PackedHead& head, int tier, int word) {
  const int after = head.n_tiers - 1 - tier;
  uint64_t rows = ~uint64_t{0};
  for (int plane = 0; plane < tag_planes(head.n_tiers); ++plane) {
    uint64_t bits;
    std::memcpy(&bits, head.tags + size_t(plane) * kPlaneBytes + size_t(word) * 8, sizeof bits);
    rows &= (after >> plane) & 1 ? bits : ~bits;
  }
  return rows;
}

uint64_t word_of(const BlockBits& rows, int word) {
  constexpr BlockBits kWord(~uint64_t{0});
  return ((rows >> size_t(word * 64)) & kWord).to_ullong();
}

}  // namespace

int PackedHead::tier_of(int row) const {
  int after = 0;
  for (int plane = 0; plane < tag_planes(n_tiers); ++plane)
    after |= ((tags[plane * int(kPlaneBytes) + row / 8] >> (row % 8)) & 1) << plane;
  return n_tiers - 1 - after;
}

void set_tags(uint8_t* tags, int n_tiers, int row, int tier) {
  const int after = n_tiers - 1 - tier;
  for (int plane = 0; plane < tag_planes(n_tiers); ++plane)
    tags[plane * int(kPlaneBytes) + row / 8] |= uint8_t(((after >> plane) & 1) << (row % 8));
}

std::array<int, kMaxTiers + 1> tier_places(const PackedHead& head) {
  std::array<int, kMaxTiers + 1> places = {};
  for (size_t tier = 0; tier < kMaxTiers; ++tier)
    places[tier + 1] = places[tier] + padded_to(head.held[tier], kUnitRows);
  return places;
}

int tier_columns(const PackedHead& head) { return tier_places(head).back(); }

void packed_order(const PackedHead& head, const BlockBits& sinks, uint8_t* order) {
  std::memset(order, kNoRow, size_t(tier_columns(head)));
  const auto places = tier_places(head);
  for (size_t tier = 0; tier < size_t(head.n_tiers); ++tier) {
    if (head.held[tier] == 0) continue;  // evicted, or empty
    uint8_t* next = order + places[tier];
    for (int word = 0; word < kBlockTokens / 64; ++word) {
      for (uint64_t rows = rows_of_tier(head, int(tier), word) & ~word_of(sinks, word); rows != 0;
           rows &= rows - 1)
        *next++ = uint8_t(word * 64 + std::countr_zero(rows));
    }
  }
}

}  // namespace zipcache
