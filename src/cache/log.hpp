// The log of one stream: which cell is stored in which row of which block, in the order of writing.
//
// A cell written for the first time gets the next row. Written again, it keeps its row as long as
// that row is 16-bit; once the row's block is sealed (some layer packed it in an earlier step) the
// cell gets a new row and the old one is dead. All layers of a stream share the log: a step is one
// pass of writes through the layers, and a block sealed during a step still counts as open until
// the next one, so that every layer sees the same rows. Rows that a host puts back are steps of
// their own. Not thread-safe.
#pragma once

#include <array>
#include <bitset>
#include <cstdint>
#include <span>
#include <vector>

#include "zipcache/cache.hpp"

namespace zipcache {

using BlockBits = std::bitset<kBlockTokens>;

// Who writes: a pass of the model through its layers, or a host that puts rows back, which come in
// any order and in any number of pieces.
enum class Writer : uint8_t { Model, Host };

// A place in the log: block slot and row inside the block.
struct RowId {
  int32_t slot = -1;
  int32_t row = 0;
  bool operator==(const RowId&) const = default;
};

struct LogBlock {
  uint64_t first = 0;                       // place in the text of its first row: rows before it,
                                            // which a restored block keeps
  uint64_t begun = 0;                       // rows appended to this log before its first
  int n_rows = 0;                           // rows in use, dead ones included
  int n_live = 0;                           // rows that a cell refers to
  uint64_t sealed_in = 0;                   // step in which a layer first packed it, 0 while open
  std::array<int32_t, kBlockTokens> cells;  // cell of each row, -1 when dead
  BlockBits sinks;                          // rows that stay 16-bit when the block is packed
  bool consecutive = true;                  // row i holds cell cells[0] + i
  bool operator==(const LogBlock&) const = default;
};

class StreamLog {
 public:
  StreamLog(int n_cells, int n_layers);
  bool operator==(const StreamLog&) const = default;

  // Starts a write of one side of one layer; true when it begins a new step: when this side of this
  // layer was written before, when another writer did so, and for a host after attention or with
  // keys of the first layer.
  bool begin_write(int layer, SideId side, Writer writer);
  // The step begins with one more piece of the first layer's keys that a host puts back. Hosts put
  // all pieces of a layer back, then those of the next.
  bool continues_pieces() const { return continues_; }
  // Attention read the rows, which may have packed some.
  void note_attention() { attended_ = true; }
  // Rows for `cells` [n], which must be in range. Calls free_block(slot) for blocks that die.
  template <class FreeBlock>
  void place(std::span<const int64_t> cells, std::vector<RowId>& rows, FreeBlock&& free_block);
  // Nothing else was written in this step yet.
  bool first_write_of_step() const;
  void set_sinks(int slot, const BlockBits& sinks) { blocks_[size_t(slot)].sinks = sinks; }
  // Cells first_cell .. + n stand in blocks of their own, row by row, the first one at `first` of
  // the text.
  bool stands(int64_t first_cell, int n, uint64_t first) const;
  // The same, as the newest rows of the log, of which nothing is packed.
  bool stands_last(int64_t first_cell, int n, uint64_t first) const;
  // Makes them stand so, as the newest rows. No other block takes another row: what is written next
  // comes behind them, also to cells that have a row. False, and nothing has changed, when there
  // are not blocks enough.
  template <class FreeBlock>
  bool place_anew(int64_t first_cell, int n, uint64_t first, FreeBlock&& free_block);
  // Takes a cell's row away from it.
  template <class FreeBlock>
  void forget(int64_t cell, FreeBlock&& free_block);
  // Takes all live cells off a block, for compaction; the block is freed by the caller.
  std::vector<int64_t> evacuate(int slot);
  void free_slot(int slot);
  void seal(int slot);
  // Forgets the rows placed since the step began, so that rows moved by compaction do not count as
  // the step's own.
  void restart_step() { step_placed_ = false, step_rows_.clear(); }
  void clear();

  RowId find(int cell) const { return row_of_cell_[size_t(cell)]; }
  const LogBlock& block(int slot) const { return blocks_[size_t(slot)]; }
  void mark_sink(RowId id, bool is_sink = true) {
    blocks_[size_t(id.slot)].sinks.set(size_t(id.row), is_sink);
  }
  const std::vector<int>& order() const { return order_; }  // slots, oldest block first
  // Writes to its rows go in place: no layer packed it in an earlier step.
  bool open(int slot) const;
  // Full, and older than the newest `recent` rows.
  bool due(int slot, int recent) const;
  // Rows written in the current step, in the order of the write.
  const std::vector<RowId>& step_rows() const { return step_rows_; }

  int n_cells() const { return int(row_of_cell_.size()); }
  uint64_t rows_live() const { return rows_live_; }
  uint64_t rows_dead() const { return rows_dead_; }
  uint64_t next_place() const { return place_; }  // in the text, of the next row
  // Sealed block with the most dead rows, -1 if none has any.
  int most_dead() const;
  size_t bytes() const;
  static int max_blocks(int n_cells);

 private:
  RowId append(int64_t cell);
  void kill(RowId id);
  void close_all();
  int take_slot();

  std::vector<RowId> row_of_cell_;  // [n_cells]
  std::vector<LogBlock> blocks_;    // [max_blocks], by slot
  std::vector<int> free_slots_;
  std::vector<int> order_;
  std::vector<RowId> step_rows_;
  std::vector<uint8_t> written_;  // [2 * n_layers] sides written in this step
  uint64_t step_ = 1;
  uint64_t appended_ = 0;
  uint64_t place_ = 0;
  uint64_t rows_live_ = 0;
  uint64_t rows_dead_ = 0;
  Writer writer_ = Writer::Model;  // of this step
  bool attended_ = false;          // in this step
  bool step_placed_ = false;
  bool continues_ = false;
};

template <class FreeBlock>
void StreamLog::place(std::span<const int64_t> cells, std::vector<RowId>& rows,
                      FreeBlock&& free_block) {
  rows.clear();
  rows.reserve(cells.size());
  for (const int64_t cell : cells) {
    const RowId old = row_of_cell_[size_t(cell)];
    if (old.slot >= 0 && open(old.slot)) {
      rows.push_back(old);
      continue;
    }
    rows.push_back(append(cell));
    if (old.slot < 0) continue;
    kill(old);
    if (blocks_[size_t(old.slot)].n_live == 0) free_block(old.slot);
  }
  if (!step_placed_) step_rows_ = rows;
  step_placed_ = true;
}

template <class FreeBlock>
void StreamLog::forget(int64_t cell, FreeBlock&& free_block) {
  RowId& old = row_of_cell_[size_t(cell)];
  if (old.slot < 0) return;
  kill(old);
  if (blocks_[size_t(old.slot)].n_live == 0) free_block(old.slot);
  old = RowId{};
}

template <class FreeBlock>
bool StreamLog::place_anew(int64_t first_cell, int n, uint64_t first, FreeBlock&& free_block) {
  // As many must be left as one write of all cells may take.
  const size_t n_new = size_t(n + kBlockTokens - 1) / kBlockTokens;
  if (free_slots_.size() < n_new + row_of_cell_.size() / kBlockTokens + 2) return false;
  for (int64_t cell = first_cell; cell < first_cell + n; ++cell) forget(cell, free_block);
  close_all();
  place_ = first;
  for (int64_t cell = first_cell; cell < first_cell + n; ++cell) append(cell);
  return true;
}

}  // namespace zipcache
