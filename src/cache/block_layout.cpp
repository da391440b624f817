#include "cache/block_layout.hpp"

#include <cstring>

namespace zipcache {
namespace {

constexpr size_t align8(size_t bytes) { return (bytes + 7) / 8 * 8; }
constexpr size_t align64(size_t bytes) { return (bytes + 63) / 64 * 64; }

enum class Part { Counts, Tags, KSinks, VSinks, Factors, Params, TokenFactors, Codes };

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
  visit(Part::Counts, heads * (sizeof(uint32_t) + sizeof(uint16_t)));
  visit(Part::Tags, two_tiers() ? heads * 16 : 0);
  visit(Part::KSinks, heads * size_t(n_sinks) * size_t(shape_.k_dim) * sizeof(half));
  visit(Part::VSinks, heads * size_t(n_sinks) * size_t(shape_.v_dim) * sizeof(half));
}

bool PackedLayout::tiers_share_params(SideId side) const {
  const bool is_k = side == SideId::K;
  const auto bits = [&](const Tier& tier) { return is_k ? tier.k_bits : tier.v_bits; };
  const Side& spec = is_k ? policy_.k : policy_.v;
  return two_tiers() && spec.axis == Axis::Channel && spec.codec == Codec::Affine &&
         bits(policy_.tiers[0]) == bits(policy_.tiers[1]) && coded(bits(policy_.tiers[0]));
}

// Calls visit(part, side, tier, shape_of_tile, bytes) for every part of one head.
template <class Visit>
void PackedLayout::walk_head(int n_high, int n_coded, Visit&& visit) const {
  for (int side = 0; side < 2; ++side) {
    const Side& spec = side == 0 ? policy_.k : policy_.v;
    const int dim = side == 0 ? shape_.k_dim : shape_.v_dim;
    const bool one_set = tiers_share_params(side == 0 ? SideId::K : SideId::V);
    const TileShape none;
    visit(Part::Factors, side, 0, none,
          spec.channel_factors() ? size_t(padded_to(dim, kUnitRows)) * sizeof(half) : 0);
    for (size_t tier = 0; tier < policy_.tiers.size(); ++tier) {
      const TileShape tile{!holds(tier) ? 0
                           : tier == 0  ? n_high
                                        : n_coded - n_high,
                           dim,
                           side == 0 ? policy_.tiers[tier].k_bits : policy_.tiers[tier].v_bits,
                           spec.axis,
                           spec.group,
                           side == 0 ? Lanes::Tokens : Lanes::Channels,
                           spec.codec};
      TileShape covered = tile;  // by this tier's parameters
      if (one_set) covered.n_tokens = tier == 0 ? n_coded : 0;
      visit(Part::Params, side, int(tier), tile, param_bytes(covered));
      visit(Part::TokenFactors, side, int(tier), tile,
            spec.token_factors() && coded(tile.bits)
                ? size_t(padded_to(tile.n_tokens, kUnitRows)) * sizeof(half)
                : 0);
      visit(Part::Codes, side, int(tier), tile, code_bytes(tile));
    }
  }
}

namespace {

// Parts that blocks with shared parameters do not hold themselves.
bool belongs_to_set(Part part, const TileShape& tile) {
  return part == Part::Factors || (part == Part::Params && tile.axis == Axis::Channel);
}

}  // namespace

PackedBytes PackedLayout::bytes(std::span<const int> n_high, int n_coded, int n_sinks,
                                bool shared) const {
  PackedBytes sum;
  walk_front(n_sinks, [&](Part part, size_t size) {
    (part == Part::KSinks || part == Part::VSinks ? sum.sinks : sum.tags) += size;
    sum.total += align64(size);
  });
  for (const int count : n_high) {
    walk_head(count, n_coded, [&](Part part, int, int, const TileShape& tile, size_t size) {
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
  walk_head(1, int(policy_.tiers.size()),
            [&](Part part, int, int, const TileShape& tile, size_t size) {
              if (belongs_to_set(part, tile)) total += align64(size);
            });
  return total;
}

size_t PackedLayout::shared_bytes() const { return shared_head_bytes() * size_t(shape_.n_heads); }

void PackedLayout::begin(uint8_t* block, std::span<const int> n_high, int n_coded, int n_sinks,
                         bool shared) const {
  auto* offsets = reinterpret_cast<uint32_t*>(block);
  auto* counts = reinterpret_cast<uint16_t*>(offsets + n_high.size());
  size_t at = 0;
  walk_front(n_sinks, [&](Part, size_t size) { at += align64(size); });
  for (size_t head = 0; head < n_high.size(); ++head) {
    offsets[head] = uint32_t(at);
    counts[head] = uint16_t(n_high[head]);
    walk_head(n_high[head], n_coded, [&](Part part, int, int, const TileShape& tile, size_t size) {
      if (!shared || !belongs_to_set(part, tile)) at += align64(size);
    });
  }
}

PackedHead PackedLayout::head(uint8_t* block, int wanted, int n_coded, int n_sinks,
                              uint8_t* shared_set) const {
  const auto* offsets = reinterpret_cast<const uint32_t*>(block);
  PackedHead found;
  const int n_high = reinterpret_cast<const uint16_t*>(offsets + shape_.n_heads)[wanted];
  found.n_high = holds(0) ? n_high : 0;
  found.n_low = holds(1) ? n_coded - n_high : 0;
  Cursor front;
  walk_front(n_sinks, [&](Part part, size_t size) {
    uint8_t* here = block + front.take(size, false);
    const size_t sink_rows = size_t(wanted) * size_t(n_sinks);
    if (part == Part::Tags && size) found.tags = here + 16 * wanted;
    if (part == Part::KSinks)
      found.k_sinks = reinterpret_cast<half*>(here) + sink_rows * size_t(shape_.k_dim);
    if (part == Part::VSinks)
      found.v_sinks = reinterpret_cast<half*>(here) + sink_rows * size_t(shape_.v_dim);
  });
  Cursor cursor{offsets[wanted], shared_set ? shared_head_bytes() * size_t(wanted) : 0};
  walk_head(
      n_high, n_coded, [&](Part part, int side, int tier, const TileShape& tile, size_t size) {
        const bool from_shared = shared_set && belongs_to_set(part, tile);
        // A shared set holds every tier's channel parameters, also those that this block has
        // no token for.
        const bool first_serves =
            tier == 1 && tiers_share_params(side == 0 ? SideId::K : SideId::V);
        if (from_shared && part == Part::Params && size == 0 && coded(tile.bits) && !first_serves) {
          size = 2 * sizeof(half) * size_t(padded_to(tile.dim, kUnitRows));
        }
        uint8_t* here = (from_shared ? shared_set : block) + cursor.take(size, from_shared);
        PackedSide& out = side == 0 ? found.k : found.v;
        TileView& view = out.tiers[tier];
        if (part == Part::Factors) {
          if (size) out.factors = reinterpret_cast<half*>(here);
        } else if (part == Part::Params) {
          const half* params = first_serves ? out.tiers[0].params : reinterpret_cast<half*>(here);
          view = {tile, nullptr, params, out.factors};
        } else if (part == Part::TokenFactors) {
          if (size) view.token_factors = reinterpret_cast<half*>(here);
        } else {
          view.codes = here;
        }
      });
  return found;
}

int tier_columns(const PackedHead& head) {
  return padded_to(head.n_high, kUnitRows) + padded_to(head.n_low, kUnitRows);
}

void packed_order(const PackedHead& head, const BlockBits& sinks, uint8_t* order) {
  std::memset(order, kNoRow, size_t(tier_columns(head)));
  int high = 0, low = padded_to(head.n_high, kUnitRows);
  for (int row = 0; row < kBlockTokens; ++row) {
    if (sinks.test(size_t(row))) continue;
    const bool is_high = !head.tags || ((head.tags[row / 8] >> (row % 8)) & 1);
    if ((is_high ? head.n_high : head.n_low) == 0) continue;  // evicted
    order[is_high ? high++ : low++] = uint8_t(row);
  }
}

}  // namespace zipcache
