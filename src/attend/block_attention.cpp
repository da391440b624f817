#include "attend/block_attention.hpp"

#include <algorithm>
#include <numeric>

#include "codec/low_rank.hpp"

namespace zipcache {
namespace {

constexpr float kHidden = -std::numeric_limits<float>::infinity();

// Columns that only fill a tier up to whole units must not take part in the softmax.
void hide_filling(int rows, const PackedHead& head, int n, float* scores) {
  const auto places = tier_places(head);
  for (size_t tier = 0; tier < size_t(head.n_tiers); ++tier) {
    const int filling = places[tier] + head.held[tier], end = places[tier + 1];
    for (int r = 0; r < rows && filling != end; ++r)
      std::fill(scores + r * n + filling, scores + r * n + end, kHidden);
  }
}

// Rows of a raw block that were evicted, where `present` says so, and columns beyond its n rows.
void hide_absent(int rows, const uint8_t* present, int n, int ld, float* scores) {
  for (int i = present ? 0 : n; i < ld; ++i) {
    if (i < n && ((present[i / 8] >> (i % 8)) & 1)) continue;
    for (int r = 0; r < rows; ++r) scores[r * ld + i] = kHidden;
  }
}

}  // namespace

Precision precision_in_use(const Policy& policy, const Kernels& kernels) {
  return policy.precision == Precision::Auto ? kernels.precision : policy.precision;
}

BlockAttention::BlockAttention(const Attention& step, const StreamLog& log, const LayerStore& store,
                               const Kernels& kernels)
    : step_(step),
      log_(log),
      store_(store),
      kernels_(kernels),
      precision_(precision_in_use(store.packed.policy(), kernels)),
      group_(step.n_heads / store.raw.shape.n_heads) {}

void BlockAttention::gather(int head, int first_query, int n_queries, Scratch& scratch) const {
  scratch.query_numbers.resize(size_t(n_queries));
  std::iota(scratch.query_numbers.begin(), scratch.query_numbers.end(), first_query);
  gather_queries(step_, scratch.query_numbers, head, group_, store_.raw.shape.k_dim,
                 store_.rotation(SideId::K, head), scratch.queries);
  scratch.turn = nullptr;
}

void BlockAttention::reset(const QueryTile& queries, TaskSums& sums) const {
  const int dim = padded_to(store_.raw.shape.v_dim, kUnitRows);
  sums.raw.reset(queries.n_rows(), dim);
  sums.packed.reset(queries.n_rows(), dim);
}

const uint8_t* BlockAttention::start_of(int head, int index) const {
  const StoredBlock& stored = store_.block(log_.order()[size_t(index)]);
  if (stored.packed) return store_.packed.head_start(stored.packed, head);
  if (!stored.raw) return nullptr;
  return reinterpret_cast<const uint8_t*>(store_.raw.k(stored.raw, head));
}

void BlockAttention::add_block(const QueryTile& queries, int head, int index, const uint8_t* next,
                               Scratch& scratch, TaskSums& sums) const {
  const int slot = log_.order()[size_t(index)];
  const StoredBlock& stored = store_.block(slot);
  if (!stored.raw && !stored.packed) return;
  const Visible view = view_of(step_, log_.block(slot), queries.first_query, queries.n_queries);
  if (view == Visible::None) return;
  if (stored.packed)
    add_packed(head, queries, slot, view, next, scratch, sums);
  else
    add_raw(head, queries, slot, view, scratch, sums.raw);
}

void BlockAttention::finish(int head, TaskSums& sums) const {
  // The sum over rotated values is turned back once, instead of turning every value.
  store_.rotation(SideId::V, head)
      .turn_back(sums.packed.out.data(), sums.packed.n_rows, store_.raw.shape.v_dim,
                 sums.packed.dim);
  sums.raw.merge(sums.packed);
}

// What the block's view leaves open, for the columns in `order`; fills scratch.bias for Some.
Visible BlockAttention::look(const QueryTile& queries, int slot, Visible view, const uint8_t* order,
                             int n, Scratch& scratch) const {
  if (view != Visible::Some) return view;
  scratch.bias.resize(size_t(queries.n_queries) * size_t(n));
  return mask_tile(step_, log_.block(slot), queries.first_query, queries.n_queries, order, n,
                   scratch.bias.data());
}

// Scores [rows, n of ld] in scratch become probabilities against the raised peaks; ld is n filled
// up to whole units. hide(scores) hides what is no token.
template <class Hide>
void BlockAttention::softmax(const QueryTile& queries, Visible visible, int n, int ld,
                             Scratch& scratch, Partial& sums, Hide&& hide) const {
  float* scores = scratch.scores.data();
  finish_scores(step_, queries.first_head, group_, queries.n_queries, visible, scratch.bias.data(),
                n, scores, ld);
  hide(scores);
  scratch.rescale.resize(size_t(queries.n_rows()));
  kernels_.softmax(scores, queries.n_rows(), ld, ld, sums.peak.data(), sums.mass.data(),
                   scratch.rescale.data());
  for (int r = 0; r < queries.n_rows(); ++r) sums.rescale(r, scratch.rescale[size_t(r)]);
}

// n rows of 16-bit keys and values; `present` says which of them are there, null for all.
void BlockAttention::add_halves(const QueryTile& queries, const half* keys, const half* values,
                                const uint8_t* present, int n, Visible visible, Scratch& scratch,
                                Partial& sums) const {
  const int ld = padded_to(n, kUnitRows);
  scratch.scores.resize(size_t(queries.n_rows()) * size_t(ld));
  half_scores(kernels_, queries, keys, n, scratch.turned, scratch.scores.data(), ld);
  softmax(queries, visible, n, ld, scratch, sums,
          [&](float* scores) { hide_absent(queries.n_rows(), present, n, ld, scores); });
  sum_halves(queries.n_rows(), scratch.scores.data(), ld, values, n, scratch, sums);
}

// Adds weights [rows, n of ld] times 16-bit values [n, v_dim].
void BlockAttention::sum_halves(int rows, const float* weights, int ld, const half* values, int n,
                                Scratch& scratch, Partial& sums) const {
  const int dim = store_.raw.shape.v_dim;
  if (rows <= kDecodeRows) {
    return kernels_.half_sums(rows, n, dim, weights, ld, values, sums.out.data(), sums.dim);
  }
  scratch.values.resize(size_t(n) * size_t(dim));
  kernels_.halves(values, scratch.values.data(), n * dim);
  kernels_.gemm(rows, dim, n, weights, ld, scratch.values.data(), dim, sums.out.data(), sums.dim,
                true);
}

void BlockAttention::add_raw(int head, const QueryTile& queries, int slot, Visible view,
                             Scratch& scratch, Partial& sums) const {
  const LogBlock& block = log_.block(slot);
  uint8_t order[kBlockTokens];
  std::iota(order, order + block.n_rows, uint8_t{0});
  const Visible visible = look(queries, slot, view, order, block.n_rows, scratch);
  if (visible == Visible::None) return;
  uint8_t* raw = store_.block(slot).raw;
  add_halves(queries, store_.raw.k(raw, head), store_.raw.v(raw, head),
             store_.raw.present(raw, head), block.n_rows, visible, scratch, sums);
}

void BlockAttention::add_packed(int head_index, const QueryTile& queries, int slot, Visible view,
                                const uint8_t* next, Scratch& scratch, TaskSums& sums) const {
  const StoredBlock& stored = store_.block(slot);
  const PackedHead head = store_.head(slot, head_index);
  if (stored.sinks.any()) add_sinks(queries, slot, head, view, scratch, sums.raw);
  const int n = tier_columns(head);
  if (n == 0) return;
  uint8_t order[kMaxTierColumns];
  if (view == Visible::Some) packed_order(head, stored.sinks, order);
  const Visible visible = look(queries, slot, view, order, n, scratch);
  if (visible == Visible::None) return;
  if (stored.turns.any())
    scores_of_moved(queries, head_index, head, log_.block(slot), stored, n, scratch);
  else
    packed_scores(queries, head, n, scratch);
  softmax(queries, visible, n, n, scratch, sums.packed,
          [&](float* scores) { hide_filling(queries.n_rows(), head, n, scores); });
  const Policy& policy = store_.packed.policy();
  if (queries.n_rows() <= kDecodeRows && codes_are_numbers(policy.v.codec))
    sum_codes(queries.n_rows(), head, n, next, scratch, sums.packed);
  else
    sum_expanded(queries.n_rows(), head, n, scratch, sums.packed);
  if (policy.v.rank > 0) correct_sums(queries.n_rows(), head, n, scratch, sums.packed);
}

void BlockAttention::add_sinks(const QueryTile& queries, int slot, const PackedHead& head,
                               Visible view, Scratch& scratch, Partial& sums) const {
  const BlockBits& sinks = store_.block(slot).sinks;
  uint8_t order[kBlockTokens];
  int n = 0;
  for (int row = 0; row < kBlockTokens; ++row) {
    if (sinks.test(size_t(row))) order[n++] = uint8_t(row);
  }
  const Visible visible = look(queries, slot, view, order, n, scratch);
  if (visible == Visible::None) return;
  add_halves(queries, head.k_sinks, head.v_sinks, nullptr, n, visible, scratch, sums);
}

// Calls visit(tile, first column of the tier) for each tier that holds tokens.
template <class Visit>
void BlockAttention::for_tiers(const PackedSide& side, const PackedHead& head,
                               Visit&& visit) const {
  const auto places = tier_places(head);
  for (size_t tier = 0; tier < size_t(head.n_tiers); ++tier) {
    const TileView& tile = side.tiers[tier];
    if (tile.shape.n_tokens > 0) visit(tile, places[tier]);
  }
}

// One part of a tile against up to kMaxRows rows at a time: x [rows, ldx], one number a column.
void BlockAttention::multiply(const CodePart& part, Weighting weighting, int rows, const float* x,
                              int ldx, float* out, int ld, bool add, const uint8_t* next,
                              Scratch& scratch) const {
  for (int first = 0; first < rows; first += kMaxRows) {
    const int n = std::min(kMaxRows, rows - first);
    kernels_.fold(part, weighting, x + first * ldx, ldx, n, scratch.folded);
    kernels_.products(part, weighting, scratch.folded, n, out + first * ld, ld, add, next);
  }
}

void BlockAttention::packed_scores(const QueryTile& queries, const PackedHead& head, int n,
                                   Scratch& scratch) const {
  scratch.scores.resize(size_t(queries.n_rows()) * size_t(n));
  const Side& side = store_.packed.policy().k;
  if (queries.n_rows() <= kDecodeRows && codes_are_numbers(side.codec))
    code_scores(queries, head, n, scratch);
  else
    expanded_scores(queries, head, n, scratch);
  if (side.rank > 0) correct_scores(queries, head, n, scratch);
}

// Rows that moved alike have scores of queries turned alike; each distance takes its rows' columns.
void BlockAttention::scores_of_moved(const QueryTile& queries, int head_index,
                                     const PackedHead& head, const LogBlock& block,
                                     const StoredBlock& stored, int n, Scratch& scratch) const {
  const BlockTurns& turns = stored.turns;
  // Columns that are no token's may hold anything finite.
  const BlockBits unmoved = coded_rows(block, stored.sinks) & turns.unmoved();
  const auto scores_of = [&](const BlockTurns::Moved& moved) {
    packed_scores(moved_queries(queries, head_index, *turns.turn, moved.by, scratch), head, n,
                  scratch);
  };
  if (turns.moved.size() == 1 && unmoved.none()) return scores_of(turns.moved[0]);
  uint8_t order[kMaxTierColumns];
  packed_order(head, stored.sinks, order);
  std::vector<float>& all = scratch.moved_scores;
  all.assign(size_t(queries.n_rows()) * size_t(n), 0.0f);
  const auto take = [&](const BlockBits& rows) {
    for (int i = 0; i < n; ++i) {
      if (order[i] == kNoRow || !rows.test(order[i])) continue;
      for (int r = 0; r < queries.n_rows(); ++r)
        all[size_t(r * n + i)] = scratch.scores[size_t(r * n + i)];
    }
  };
  if (unmoved.any()) {
    packed_scores(queries, head, n, scratch);
    take(unmoved);
  }
  for (const BlockTurns::Moved& moved : turns.moved) {
    scores_of(moved);
    take(moved.rows);
  }
  scratch.scores.swap(all);
}

// Kept from block to block: neighbouring blocks mostly moved alike.
const QueryTile& BlockAttention::moved_queries(const QueryTile& queries, int head,
                                               const KeyTurn& turn, int32_t by,
                                               Scratch& scratch) const {
  QueryTile& moved = scratch.moved_queries;
  if (scratch.turn == &turn && scratch.moved_by == by) return moved;
  moved = queries;
  turn.apply(moved.rows.data(), moved.n_rows(), moved.ld, int32_t(-uint32_t(by)));
  const HeadRotation rotation = store_.rotation(SideId::K, head);
  if (rotation.turns()) {
    moved.rotated = moved.rows;
    rotation.turn(moved.rotated.data(), moved.n_rows(), moved.dim, moved.ld);
  }
  scratch.turn = &turn;
  scratch.moved_by = by;
  return moved;
}

void BlockAttention::code_scores(const QueryTile& queries, const PackedHead& head, int n,
                                 Scratch& scratch) const {
  for_tiers(head.k, head, [&](const TileView& tile, int at) {
    float* out = scratch.scores.data() + at;
    if (tile.shape.bits == 16) {
      return kernels_.half_dots(queries.n_rows(), tile.shape.n_tokens, queries.dim,
                                queries.for_packed(), queries.ld,
                                reinterpret_cast<const half*>(tile.codes), out, n);
    }
    for (int i = 0; i < n_parts(tile.shape); ++i) {
      const PlacedPart placed = part_of(tile, i);
      multiply(placed.part, weighting(SideId::K, tile.shape.bits), queries.n_rows(),
               queries.for_packed() + placed.first_column, queries.ld, out + placed.first_row, n,
               placed.first_column > 0, nullptr, scratch);
    }
  });
}

void BlockAttention::sum_codes(int rows, const PackedHead& head, int n, const uint8_t* next,
                               Scratch& scratch, Partial& sums) const {
  const int end = tier_columns(head);
  for_tiers(head.v, head, [&](const TileView& tile, int at) {
    const float* weights = scratch.scores.data() + at;
    if (tile.shape.bits == 16) {
      return sum_halves(rows, weights, n, reinterpret_cast<const half*>(tile.codes),
                        tile.shape.n_tokens, scratch, sums);
    }
    const bool last = at + padded_to(tile.shape.n_tokens, kUnitRows) == end;
    for (int i = 0; i < n_parts(tile.shape); ++i) {
      const PlacedPart placed = part_of(tile, i);
      multiply(placed.part, weighting(SideId::V, tile.shape.bits), rows,
               weights + placed.first_column, n, sums.out.data() + placed.first_row, sums.dim, true,
               last ? next : nullptr, scratch);
    }
  });
}

void BlockAttention::expanded_scores(const QueryTile& queries, const PackedHead& head, int n,
                                     Scratch& scratch) const {
  scratch.keys.assign(size_t(queries.dim) * size_t(n), 0.0f);
  for_tiers(head.k, head, [&](const TileView& tile, int at) {
    if (tile.shape.bits != 16) return expand_tile(kernels_, tile, scratch.keys.data() + at, n);
    const half* keys = reinterpret_cast<const half*>(tile.codes);
    for (int t = 0; t < tile.shape.n_tokens; ++t) {
      for (int c = 0; c < queries.dim; ++c)
        scratch.keys[size_t(c * n + at + t)] = to_float(keys[t * queries.dim + c]);
    }
  });
  kernels_.gemm(queries.n_rows(), n, queries.dim, queries.for_packed(), queries.ld,
                scratch.keys.data(), n, scratch.scores.data(), n, false);
}

void BlockAttention::sum_expanded(int rows, const PackedHead& head, int n, Scratch& scratch,
                                  Partial& sums) const {
  const int dim = store_.raw.shape.v_dim, ld = sums.dim;
  scratch.values.assign(size_t(n) * size_t(ld), 0.0f);
  for_tiers(head.v, head, [&](const TileView& tile, int at) {
    float* out = scratch.values.data() + at * ld;
    if (tile.shape.bits != 16) return expand_tile(kernels_, tile, out, ld);
    const half* values = reinterpret_cast<const half*>(tile.codes);
    for (int t = 0; t < tile.shape.n_tokens; ++t)
      kernels_.halves(values + t * dim, out + t * ld, dim);
  });
  kernels_.gemm(rows, ld, n, scratch.scores.data(), n, scratch.values.data(), ld, sums.out.data(),
                ld, true);
}

// What low-rank factors of keys add to scores: (q · channels) · tokens.
void BlockAttention::correct_scores(const QueryTile& queries, const PackedHead& head, int n,
                                    Scratch& scratch) const {
  for_tiers(head.k, head, [&](const TileView& tile, int at) {
    const LowRank factors = low_rank_of(tile);
    if (factors.rank == 0) return;
    const int ld = padded_to(factors.rank, kUnitRows);
    scratch.turned.resize(size_t(queries.n_rows()) * size_t(ld));
    kernels_.half_dots(queries.n_rows(), factors.rank, queries.dim, queries.for_packed(),
                       queries.ld, factors.channels, scratch.turned.data(), ld);
    kernels_.half_sums(queries.n_rows(), factors.rank, padded_to(tile.shape.n_tokens, kUnitRows),
                       scratch.turned.data(), ld, factors.tokens, scratch.scores.data() + at, n);
  });
}

// What those of values add to the weighted sums: (weights · tokens) · channels.
void BlockAttention::correct_sums(int rows, const PackedHead& head, int n, Scratch& scratch,
                                  Partial& sums) const {
  for_tiers(head.v, head, [&](const TileView& tile, int at) {
    const LowRank factors = low_rank_of(tile);
    if (factors.rank == 0) return;
    const int ld = padded_to(factors.rank, kUnitRows);
    scratch.turned.resize(size_t(rows) * size_t(ld));
    kernels_.half_dots(rows, factors.rank, padded_to(tile.shape.n_tokens, kUnitRows),
                       scratch.scores.data() + at, n, factors.tokens, scratch.turned.data(), ld);
    kernels_.half_sums(rows, factors.rank, tile.shape.dim, scratch.turned.data(), ld,
                       factors.channels, sums.out.data(), sums.dim);
  });
}

// Codes of 8 bits leave no room for a second byte in a product, steps that may be negative none for
// probabilities without a sign.
Weighting BlockAttention::weighting(SideId side, int bits) const {
  if (bits == 8 || precision_ == Precision::Exact) return Weighting::Words;
  if (side == SideId::V) {
    const bool affine = store_.packed.policy().v.codec == Codec::Affine;
    return affine ? Weighting::UnsignedBytes : Weighting::Words;
  }
  return precision_ == Precision::K2 ? Weighting::Words : Weighting::SignedBytes;
}

}  // namespace zipcache
