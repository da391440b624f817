#include "cache/block_layout.hpp"

#include <cstring>

namespace zipcache {
namespace {

constexpr size_t align8(size_t bytes) { return (bytes + 7) / 8 * 8; }

enum class Part { Counts, Tags, KSinks, VSinks, Factors, Params, Codes };

// Hands out consecutive parts of a block and of a shared parameter set.
struct Cursor {
  size_t block = 0;
  size_t shared = 0;

  size_t take(size_t bytes, bool from_shared) {
    size_t& at = from_shared ? shared : block;
    const size_t begin = at;
    at += align8(bytes);
    return begin;
  }
};

}  // namespace

RawLayout::RawLayout(const LayerShape& layer, bool scores) : shape(layer) {
  const size_t rows = size_t(kBlockTokens) * size_t(shape.n_heads);
  v_at = align8(rows * size_t(shape.k_dim) * sizeof(half));
  sums_at = v_at + align8(rows * size_t(shape.v_dim) * sizeof(half));
  seen_at = sums_at + (scores ? rows * sizeof(float) : 0);
  bytes = seen_at + (scores ? 2 * size_t(kBlockTokens) * sizeof(uint32_t) : 0);
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
uint32_t* RawLayout::probes_seen(uint8_t* block) const {
  return reinterpret_cast<uint32_t*>(block + seen_at);
}
uint32_t* RawLayout::rows_seen(uint8_t* block) const { return probes_seen(block) + kBlockTokens; }

// Calls visit(part, head, side, tier, shape_of_tile, bytes) for every part in the order of the
// layout.
template <class Visit>
void PackedLayout::walk(std::span<const int> n_high, int n_coded, int n_sinks,
                        Visit&& visit) const {
  const size_t heads = size_t(shape_.n_heads);
  const TileShape none;
  visit(Part::Counts, 0, 0, 0, none, heads * sizeof(uint16_t));
  visit(Part::Tags, 0, 0, 0, none, two_tiers() ? heads * 16 : 0);
  visit(Part::KSinks, 0, 0, 0, none, heads * size_t(n_sinks) * size_t(shape_.k_dim) * sizeof(half));
  visit(Part::VSinks, 0, 1, 0, none, heads * size_t(n_sinks) * size_t(shape_.v_dim) * sizeof(half));
  for (int head = 0; head < shape_.n_heads; ++head) {
    for (int side = 0; side < 2; ++side) {
      const Side& spec = side == 0 ? policy_.k : policy_.v;
      const int dim = side == 0 ? shape_.k_dim : shape_.v_dim;
      visit(Part::Factors, head, side, 0, none,
            spec.axis == Axis::Cst ? size_t(dim) * sizeof(half) : 0);
      for (size_t tier = 0; tier < policy_.tiers.size(); ++tier) {
        const int high = n_high[size_t(head)];
        TileShape tile{tier == 0 ? high : n_coded - high, dim,
                       side == 0 ? policy_.tiers[tier].k_bits : policy_.tiers[tier].v_bits,
                       spec.axis, spec.group};
        visit(Part::Params, head, side, int(tier), tile, param_bytes(tile));
        visit(Part::Codes, head, side, int(tier), tile, code_bytes(tile));
      }
    }
  }
}

PackedBytes PackedLayout::bytes(std::span<const int> n_high, int n_coded, int n_sinks,
                                bool shared) const {
  PackedBytes sum;
  walk(n_high, n_coded, n_sinks, [&](Part part, int, int, int, const TileShape& tile, size_t size) {
    const bool elsewhere =
        shared && (part == Part::Factors || (part == Part::Params && tile.axis == Axis::Channel));
    if (elsewhere) return;
    switch (part) {
      case Part::Counts:
      case Part::Tags:
        sum.tags += size;
        break;
      case Part::KSinks:
      case Part::VSinks:
        sum.sinks += size;
        break;
      case Part::Factors:
      case Part::Params:
        sum.params += size;
        break;
      case Part::Codes:
        sum.codes += size;
        break;
    }
    sum.total += align8(size);
  });
  return sum;
}

size_t PackedLayout::shared_bytes() const {
  // Every tier of a shared set has parameters, empty in one block or not.
  const std::vector<int> n_high(size_t(shape_.n_heads), 1);
  size_t total = 0;
  walk(n_high, int(policy_.tiers.size()), 0,
       [&](Part part, int, int, int, const TileShape& tile, size_t size) {
         if (part == Part::Factors || (part == Part::Params && tile.axis == Axis::Channel))
           total += align8(size);
       });
  return total;
}

void PackedLayout::begin(uint8_t* block, std::span<const int> n_high) const {
  auto* counts = reinterpret_cast<uint16_t*>(block);
  for (size_t head = 0; head < n_high.size(); ++head) counts[head] = uint16_t(n_high[head]);
}

int PackedLayout::n_high(const uint8_t* block, int head) const {
  return reinterpret_cast<const uint16_t*>(block)[head];
}

PackedHead PackedLayout::head(uint8_t* block, int wanted, int n_coded, int n_sinks,
                              uint8_t* shared_set) const {
  std::vector<int> counts(size_t(shape_.n_heads));
  for (int h = 0; h < shape_.n_heads; ++h) counts[size_t(h)] = n_high(block, h);
  PackedHead found;
  found.n_high = counts[size_t(wanted)];
  found.n_low = n_coded - found.n_high;
  Cursor cursor;
  walk(counts, n_coded, n_sinks,
       [&](Part part, int head, int side, int tier, const TileShape& tile, size_t size) {
         const bool own_set =
             part == Part::Factors || (part == Part::Params && tile.axis == Axis::Channel);
         const bool from_shared = shared_set && own_set;
         // A shared set holds every tier's channel parameters, also those that this block has no
         // token for.
         if (from_shared && part == Part::Params && size == 0 && tile.bits != 16) {
           size = 2 * sizeof(half) * size_t(tile.dim);
         }
         const size_t at = cursor.take(size, from_shared);
         uint8_t* here = (from_shared ? shared_set : block) + at;
         PackedSide& out = side == 0 ? found.k : found.v;
         switch (part) {
           case Part::Counts:
             break;
           case Part::Tags:
             found.tags = size ? here + 16 * wanted : nullptr;
             break;
           case Part::KSinks:
             found.k_sinks = reinterpret_cast<half*>(here) +
                             size_t(wanted) * size_t(n_sinks) * size_t(shape_.k_dim);
             break;
           case Part::VSinks:
             found.v_sinks = reinterpret_cast<half*>(here) +
                             size_t(wanted) * size_t(n_sinks) * size_t(shape_.v_dim);
             break;
           case Part::Factors:
             if (head == wanted && size) out.factors = reinterpret_cast<half*>(here);
             break;
           case Part::Params:
             if (head == wanted) {
               out.tiers[tier].shape = tile;
               out.tiers[tier].params = reinterpret_cast<half*>(here);
               out.tiers[tier].factors = out.factors;
             }
             break;
           case Part::Codes:
             if (head == wanted) out.tiers[tier].codes = here;
             break;
         }
       });
  return found;
}

void packed_order(const uint8_t* tags, const BlockBits& sinks, int n_rows, uint8_t* order) {
  int n = 0;
  for (int tier = 0; tier < (tags ? 2 : 1); ++tier) {
    for (int row = 0; row < n_rows; ++row) {
      if (sinks.test(size_t(row))) continue;
      const bool high = !tags || ((tags[row / 8] >> (row % 8)) & 1);
      if (high == (tier == 0)) order[n++] = uint8_t(row);
    }
  }
}

}  // namespace zipcache
