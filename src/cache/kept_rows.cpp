#include "cache/kept_rows.hpp"

#include <algorithm>
#include <cstring>

#include "cache/saved_blocks.hpp"

namespace zipcache {

KeptBlock::KeptBlock(const StoredBlock& stored_block, uint64_t place)
    : first(place),
      bytes(stored_block.packed, stored_block.packed + stored_block.bytes.total),
      stored(stored_block) {
  stored.packed = bytes.data();
}

bool KeptBlock::holds(const StoredBlock& other) const {
  return other.packed && other.shared < 0 && other.bytes.total == bytes.size() &&
         other.sinks == stored.sinks && other.turns == stored.turns &&
         std::memcmp(other.packed, bytes.data(), bytes.size()) == 0;
}

LayerRows::LayerRows(const StreamLog& log, std::shared_ptr<const LayerStore> store, SideId side,
                     int first_cell, int n_cells, const LayerRows* other)
    : store_(std::move(store)),
      side_(side),
      n_rows_(n_cells),
      width_(size_t(store_->raw.shape.n_heads) *
             size_t(side == SideId::K ? store_->raw.shape.k_dim : store_->raw.shape.v_dim)) {
  // Scores of a file go by the order of tokens, which restoring does not keep.
  if (store_->packed.policy().saliency.statistic != Statistic::File) {
    for (const int cell : whole_blocks(log, *store_, first_cell, n_cells)) {
      const int first = cell - first_cell, slot = log.find(cell).slot;
      add_rows(log, first_cell, tail_first_, first - tail_first_);
      add_block(store_->block(slot), log.block(slot).first, first, other);
      tail_first_ = first + kBlockTokens;
    }
    note_tail(log, first_cell);
  }
  add_rows(log, first_cell, tail_first_, n_rows_ - tail_first_);
}

void LayerRows::add_block(const StoredBlock& stored, uint64_t place, int first,
                          const LayerRows* other) {
  Part part{.first = first, .n = kBlockTokens};
  for (size_t i = 0; other && i < other->parts_.size(); ++i) {
    const Part& there = other->parts_[i];
    if (there.first == first && there.block && there.block->holds(stored)) part.block = there.block;
  }
  if (!part.block) part.block = std::make_shared<KeptBlock>(stored, place);
  parts_.push_back(std::move(part));
}

void LayerRows::add_rows(const StreamLog& log, int first_cell, int first, int n) {
  if (n == 0) return;
  Part part{.first = first, .n = n};
  part.rows.resize(size_t(n) * width_);
  read_cells(log, *store_, side_, first_cell + first, n, part.rows.data());
  parts_.push_back(std::move(part));
}

// Behind the last block, or, where there is none, from a text's beginning or a block's.
void LayerRows::note_tail(const StreamLog& log, int first_cell) {
  const int cell = first_cell + tail_first_, n = n_rows_ - tail_first_;
  if (!parts_.empty()) {
    tail_place_ = parts_.back().block->first + kBlockTokens;
  } else if (n > 0 && log.find(cell).slot >= 0) {
    const uint64_t place = log.block(log.find(cell).slot).first;
    if (log.stands(cell, n, place)) tail_place_ = place;
  }
  if (tail_place_ && side_ == SideId::V) tail_ = tail_of(log, *store_, cell, n, *tail_place_);
}

size_t LayerRows::bytes() const {
  size_t n = sizeof *this + tail_.size() + parts_.size() * sizeof(Part);
  for (const Part& part : parts_) {
    n += part.rows.size() * sizeof(half);
    if (!part.block) continue;
    const size_t block =
        sizeof(KeptBlock) + part.block->bytes.size() + part.block->stored.turns.bytes();
    n += block / size_t(part.block.use_count());
  }
  return n;
}

void LayerRows::read(int first, int n, half* rows) const {
  for (const Part& part : parts_) {
    const int begin = std::max(first, part.first), end = std::min(first + n, part.first + part.n);
    if (begin >= end) continue;
    const size_t from = size_t(begin - part.first) * width_, count = size_t(end - begin) * width_;
    half* out = rows + size_t(begin - first) * width_;
    if (!part.block) {
      std::copy_n(&part.rows[from], count, out);
      continue;
    }
    const auto values = decode_rows(*store_, part.block->stored, side_, kBlockTokens);
    std::transform(&values[from], &values[from] + count, out, finite_half);
  }
}

}  // namespace zipcache
