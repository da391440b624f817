#include "cache/layer_store.hpp"

#include <algorithm>
#include <cstring>

#include "codec/low_rank.hpp"

namespace zipcache {

uint8_t* LayerStore::raw_for_write(int slot, Arena& arena) {
  StoredBlock& stored = block(slot);
  if (!stored.raw) {
    stored.raw = arena.take(raw.bytes);
    if (stored.raw) std::memset(stored.raw, 0, raw.bytes);
  }
  return stored.raw;
}

void LayerStore::become_packed(int slot, const StoredBlock& packed_block, Arena& arena) {
  StoredBlock& stored = block(slot);
  arena.give(stored.raw, raw.bytes);
  waiting_keys.erase(slot);
  stored = packed_block;
  stored.raw = nullptr;
  if (stored.shared >= 0) ++shared_[size_t(stored.shared)].users;
}

void LayerStore::release(int slot, Arena& arena) {
  StoredBlock& stored = block(slot);
  waiting_keys.erase(slot);
  arena.give(stored.raw, raw.bytes);
  arena.give(stored.packed, stored.bytes.total);
  if (stored.shared >= 0) {
    SharedSet& set = shared_[size_t(stored.shared)];
    if (--set.users == 0) {
      arena.give(set.piece, set.bytes);
      set = SharedSet{};
    }
  }
  stored = StoredBlock{};
}

bool LayerStore::copy(const LayerStore& from, const StreamLog& log, Arena& arena) {
  moments = from.moments;
  const auto copied = [&](const uint8_t* piece, size_t bytes) {
    uint8_t* own = arena.take(bytes);
    if (own) std::memcpy(own, piece, bytes);
    return own;
  };
  std::map<int, int> shared;  // index there to index here
  for (const int slot : log.order()) {
    const StoredBlock& block = from.block(slot);
    StoredBlock own = block;
    if (block.raw) own.raw = copied(block.raw, raw.bytes);
    if (block.packed) own.packed = copied(block.packed, block.bytes.total);
    if (block.shared >= 0 && !shared.count(block.shared)) {
      const SharedSet& set = from.shared_[size_t(block.shared)];
      shared[block.shared] = add_shared({copied(set.piece, set.bytes), set.bytes, 0});
    }
    if (block.shared >= 0) own.shared = shared[block.shared];
    if (own.shared >= 0) ++shared_[size_t(own.shared)].users;
    this->block(slot) = own;
    if ((block.raw && !own.raw) || (block.packed && !own.packed) ||
        (own.shared >= 0 && !shared_piece(own)))
      return false;
  }
  return true;
}

void LayerStore::forget() {
  std::fill(blocks_.begin(), blocks_.end(), StoredBlock{});
  shared_.clear();
  waiting_keys.clear();
  for (QueryMoment& moment : moments) moment.forget();
}

int LayerStore::add_shared(SharedSet set) {
  const auto empty =
      std::find_if(shared_.begin(), shared_.end(), [](const SharedSet& s) { return !s.piece; });
  const auto index = empty - shared_.begin();
  if (empty == shared_.end())
    shared_.push_back(set);
  else
    *empty = set;
  return int(index);
}

PackedHead LayerStore::head(const StoredBlock& stored, int head_index) const {
  return packed.head(stored.packed, head_index, stored.n_coded, int(stored.sinks.count()),
                     shared_piece(stored));
}

HeadRotation LayerStore::rotation(SideId side, int head_index) const {
  const bool is_k = side == SideId::K;
  const Rotation kind = (is_k ? packed.policy().k : packed.policy().v).rotation;
  if (kind != Rotation::File) return {kind, nullptr};
  const int dim = is_k ? raw.shape.k_dim : raw.shape.v_dim;
  const std::vector<float>& matrices = is_k ? rotations_->k : rotations_->v;
  return {kind, matrices.data() + ptrdiff_t(head_index) * dim * dim};
}

BlockBits LayerStore::held(int slot, int head_index) const {
  BlockBits rows;
  if (!packed.policy().evicts()) return rows.set();
  const StoredBlock& stored = block(slot);
  if (stored.packed) {
    uint8_t order[kMaxTierColumns];
    const PackedHead found = head(slot, head_index);
    packed_order(found, stored.sinks, order);
    for (int i = 0; i < tier_columns(found); ++i) {
      if (order[i] != kNoRow) rows.set(order[i]);
    }
    return rows | stored.sinks;
  }
  if (!stored.raw) return rows;
  const uint8_t* present = raw.present(stored.raw, head_index);
  for (int row = 0; row < kBlockTokens; ++row)
    rows.set(size_t(row), (present[row / 8] >> (row % 8)) & 1);
  return rows;
}

void LayerStore::count(const StreamLog& log, Bytes& bytes) const {
  for (const int slot : log.order()) {
    const StoredBlock& stored = block(slot);
    if (stored.raw) {
      bytes.raw += raw.row_bytes() * size_t(log.block(slot).n_rows);
      bytes.scores += raw.bytes - raw.sums_at;
    }
    bytes.codes += stored.bytes.codes;
    bytes.params += stored.bytes.params;
    bytes.tags += stored.bytes.tags;
    bytes.raw += stored.bytes.sinks;
    bytes.map += stored.turns.bytes();
  }
  for (const SharedSet& set : shared_) bytes.params += set.bytes;
  bytes.map += packed.moment_bytes();
}

namespace {

void decode_packed(const LayerStore& store, const StoredBlock& stored, SideId side, int head_index,
                   int n_rows, float* out) {
  const PackedHead head = store.head(stored, head_index);
  const PackedSide& packed = side == SideId::K ? head.k : head.v;
  const int dim = packed.tiers[0].shape.dim;
  std::vector<float> rows(size_t(kMaxTierColumns) * size_t(dim));
  const auto places = tier_places(head);
  for (size_t tier = 0; tier < store.packed.policy().tiers.size(); ++tier) {
    float* tier_rows = rows.data() + size_t(places[tier]) * size_t(dim);
    decode_tile(best_kernels(), packed.tiers[tier], tier_rows);
    add_low_rank(packed.tiers[tier], tier_rows);
  }
  store.rotation(side, head_index).turn_back(rows.data(), tier_columns(head), dim, dim);
  uint8_t order[kMaxTierColumns];
  packed_order(head, stored.sinks, order);
  std::fill_n(out, n_rows * dim, 0.0f);  // what evicted rows read as
  for (int i = 0; i < tier_columns(head); ++i) {
    if (order[i] >= n_rows) continue;
    std::copy_n(&rows[size_t(i) * size_t(dim)], dim, out + order[i] * dim);
  }
  if (side == SideId::K) stored.turns.apply(out, n_rows, dim);
  const half* sinks = side == SideId::K ? head.k_sinks : head.v_sinks;
  for (int row = 0, sink = 0; row < n_rows; ++row) {
    if (!stored.sinks.test(size_t(row))) continue;
    best_kernels().halves(sinks + sink++ * dim, out + row * dim, dim);
  }
}

}  // namespace

void decode_rows(const LayerStore& store, int slot, SideId side, int head, int n_rows, float* out) {
  decode_rows(store, store.block(slot), side, head, n_rows, out);
}

void decode_rows(const LayerStore& store, const StoredBlock& stored, SideId side, int head,
                 int n_rows, float* out) {
  const LayerShape& shape = store.raw.shape;
  const int dim = side == SideId::K ? shape.k_dim : shape.v_dim;
  if (stored.packed) return decode_packed(store, stored, side, head, n_rows, out);
  if (!stored.raw) {
    std::fill_n(out, n_rows * dim, 0.0f);
    return;
  }
  const half* rows = store.raw.rows(stored.raw, side, head);
  for (int i = 0; i < n_rows * dim; ++i) out[i] = to_float(rows[i]);
}

std::vector<float> decode_rows(const LayerStore& store, const StoredBlock& block, SideId side,
                               int n_rows) {
  const LayerShape& shape = store.raw.shape;
  const int dim = side == SideId::K ? shape.k_dim : shape.v_dim;
  const size_t n_heads = size_t(shape.n_heads), width = size_t(dim);
  std::vector<float> rows(size_t(n_rows) * n_heads * width);
  std::vector<float> head_rows(size_t(n_rows) * width);
  for (size_t head = 0; head < n_heads; ++head) {
    decode_rows(store, block, side, int(head), n_rows, head_rows.data());
    for (size_t t = 0; t < size_t(n_rows); ++t)
      std::copy_n(&head_rows[t * width], width, &rows[(t * n_heads + head) * width]);
  }
  return rows;
}

void read_cells(const StreamLog& log, const LayerStore& store, SideId side, int first_cell,
                int n_cells, float* rows) {
  const LayerShape& shape = store.raw.shape;
  const size_t width =
      size_t(shape.n_heads) * size_t(side == SideId::K ? shape.k_dim : shape.v_dim);
  // Neighbouring cells may stand in blocks by turns, and a block is decoded as a whole: once.
  std::map<int, std::vector<float>> blocks;  // by slot
  for (int i = 0; i < n_cells; ++i, rows += width) {
    const RowId id = log.find(first_cell + i);
    if (id.slot < 0) {
      std::fill_n(rows, width, 0.0f);
      continue;
    }
    const auto [block, fresh] = blocks.try_emplace(id.slot);
    if (fresh)
      block->second = decode_rows(store, store.block(id.slot), side, log.block(id.slot).n_rows);
    std::copy_n(&block->second[size_t(id.row) * width], width, rows);
  }
}

void read_cells(const StreamLog& log, const LayerStore& store, SideId side, int first_cell,
                int n_cells, half* rows) {
  const LayerShape& shape = store.raw.shape;
  const int width = shape.n_heads * (side == SideId::K ? shape.k_dim : shape.v_dim);
  std::vector<float> values(size_t(n_cells) * size_t(width));
  read_cells(log, store, side, first_cell, n_cells, values.data());
  std::transform(values.begin(), values.end(), rows, finite_half);
}

}  // namespace zipcache
