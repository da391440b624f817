// What Cache::keep takes out of a cache: rows of one side of one layer, whole packed blocks as the
// bytes that they are. Where saved_blocks hides a block in 16-bit rows, this holds the block
// instead.
#pragma once

#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "cache/layer_store.hpp"

namespace zipcache {

// A copy of a packed block, both sides.
struct KeptBlock {
  KeptBlock(const StoredBlock& stored, uint64_t first);
  KeptBlock(const KeptBlock&) = delete;
  bool holds(const StoredBlock& other) const;

  const uint64_t first;  // its place in the text
  std::vector<uint8_t> bytes;
  StoredBlock stored;  // `packed` is bytes.data()
};

class LayerRows final : public KeptRows {
 public:
  // Rows of cells first_cell .. + n_cells of `store`, which outlives its cache here, since it knows
  // how its blocks are read. `other` as in Cache::keep.
  LayerRows(const StreamLog& log, std::shared_ptr<const LayerStore> store, SideId side,
            int first_cell, int n_cells, const LayerRows* other);

  int n_rows() const override { return n_rows_; }
  size_t bytes() const override;
  void read(int first, int n, half* rows) const override;

  size_t width() const { return width_; }  // numbers of a row
  SideId side() const { return side_; }
  const LayerStore& store() const { return *store_; }

  struct Part {
    int first = 0;  // row
    int n = 0;
    std::vector<half> rows = {};                  // [n, width], or none
    std::shared_ptr<const KeptBlock> block = {};  // instead of them
  };
  // One behind the other.
  std::span<const Part> parts() const { return parts_; }
  // What Cache::restore needs to put 16-bit rows behind the last block: their first row, its place
  // in the text where they stand as they were written, and what their numbers do not say.
  int tail_first() const { return tail_first_; }
  std::optional<uint64_t> tail_place() const { return tail_place_; }
  const std::string& tail() const { return tail_; }

 private:
  void add_rows(const StreamLog& log, int first_cell, int first, int n);
  void add_block(const StoredBlock& stored, uint64_t place, int first, const LayerRows* other);
  void note_tail(const StreamLog& log, int first_cell);

  const std::shared_ptr<const LayerStore> store_;
  const SideId side_;
  const int n_rows_;
  const size_t width_;
  std::vector<Part> parts_;
  int tail_first_ = 0;
  std::optional<uint64_t> tail_place_;
  std::string tail_;
};

}  // namespace zipcache
