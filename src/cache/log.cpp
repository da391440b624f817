#include "cache/log.hpp"

#include <algorithm>

namespace zipcache {

// Room for all cells, for as many dead rows as compaction lets stand, and for a write of all cells
// at once, as a restored state is.
int StreamLog::max_blocks(int n_cells) {
  const int cell_blocks = (n_cells + kBlockTokens - 1) / kBlockTokens;
  return 2 * cell_blocks + cell_blocks / 8 + 6;
}

StreamLog::StreamLog(int n_cells, int n_layers)
    : row_of_cell_(size_t(n_cells)),
      blocks_(size_t(max_blocks(n_cells))),
      written_(2 * size_t(n_layers)) {
  clear();
}

void StreamLog::clear() {
  std::fill(row_of_cell_.begin(), row_of_cell_.end(), RowId{});
  std::fill(written_.begin(), written_.end(), uint8_t{0});
  order_.clear();
  step_rows_.clear();
  free_slots_.clear();
  for (int slot = int(blocks_.size()) - 1; slot >= 0; --slot) free_slots_.push_back(slot);
  appended_ = place_ = rows_live_ = rows_dead_ = 0;
  writer_ = Writer::Model;
  attended_ = step_placed_ = continues_ = false;
}

bool StreamLog::begin_write(int layer, SideId side, Writer writer) {
  uint8_t& mark = written_[2 * size_t(layer) + (side == SideId::V)];
  const bool host = writer == Writer::Host, first = layer == 0 && side == SideId::K;
  const bool new_step = mark != 0 || writer != writer_ || (host && (attended_ || first));
  if (new_step) {
    continues_ = host && writer == writer_ && !attended_ && mark != 0 && first_write_of_step();
    std::fill(written_.begin(), written_.end(), uint8_t{0});
    ++step_;
    attended_ = step_placed_ = false;
    step_rows_.clear();
  }
  writer_ = writer;
  mark = 1;
  return new_step;
}

bool StreamLog::open(int slot) const {
  const uint64_t sealed = blocks_[size_t(slot)].sealed_in;
  return sealed == 0 || sealed == step_;
}

void StreamLog::seal(int slot) {
  LogBlock& block = blocks_[size_t(slot)];
  if (block.sealed_in == 0) block.sealed_in = step_;
}

int StreamLog::take_slot() {
  const int slot = free_slots_.back();
  free_slots_.pop_back();
  LogBlock& block = blocks_[size_t(slot)];
  block = LogBlock{};
  block.first = place_;
  block.begun = appended_;
  block.cells.fill(-1);
  order_.push_back(slot);
  return slot;
}

RowId StreamLog::append(int64_t cell) {
  const bool fresh = order_.empty() || blocks_[size_t(order_.back())].n_rows == kBlockTokens;
  const int slot = fresh ? take_slot() : order_.back();
  LogBlock& block = blocks_[size_t(slot)];
  const RowId id{slot, block.n_rows};
  block.cells[size_t(id.row)] = int32_t(cell);
  block.consecutive &= block.cells[0] + id.row == int32_t(cell);
  ++block.n_rows;
  ++block.n_live;
  ++appended_;
  ++place_;
  ++rows_live_;
  row_of_cell_[size_t(cell)] = id;
  return id;
}

void StreamLog::kill(RowId id) {
  LogBlock& block = blocks_[size_t(id.slot)];
  block.cells[size_t(id.row)] = -1;
  block.consecutive = false;
  --block.n_live;
  --rows_live_;
  ++rows_dead_;
}

// Closes every block, the newest one by filling it up with dead rows.
void StreamLog::close_all() {
  for (const int slot : order_) seal(slot);
  if (order_.empty()) return;
  LogBlock& block = blocks_[size_t(order_.back())];
  const int n = kBlockTokens - block.n_rows;
  if (n == 0) return;
  block.n_rows = kBlockTokens;
  block.consecutive = false;
  appended_ += uint64_t(n);
  rows_dead_ += uint64_t(n);
}

bool StreamLog::first_write_of_step() const {
  return std::count(written_.begin(), written_.end(), uint8_t{1}) == 1;
}

bool StreamLog::stands(int64_t first_cell, int n, uint64_t first) const {
  for (int i = 0; i < n; ++i) {
    const RowId id = find(int(first_cell) + i);
    if (id.slot < 0 || id.row != i % kBlockTokens) return false;
    const LogBlock& block = blocks_[size_t(id.slot)];
    const int begin = i - id.row;
    if (!block.consecutive || block.first != first + uint64_t(begin) ||
        block.cells[0] != first_cell + begin || block.n_rows < std::min(n - begin, kBlockTokens))
      return false;
  }
  return true;
}

bool StreamLog::stands_last(int64_t first_cell, int n, uint64_t first) const {
  if (place_ != first + uint64_t(n)) return false;
  if (n == 0) return order_.empty() || blocks_[size_t(order_.back())].n_rows == kBlockTokens;
  for (int i = 0; i < n; i += kBlockTokens) {
    const RowId id = find(int(first_cell) + i);
    if (id.slot < 0 || !open(id.slot)) return false;
  }
  return stands(first_cell, n, first);
}

std::vector<int64_t> StreamLog::evacuate(int slot) {
  std::vector<int64_t> cells;
  const LogBlock& block = blocks_[size_t(slot)];
  for (int row = 0; row < block.n_rows; ++row) {
    const int32_t cell = block.cells[size_t(row)];
    if (cell < 0) continue;
    cells.push_back(cell);
    row_of_cell_[size_t(cell)] = RowId{};
    kill({slot, row});
  }
  return cells;
}

void StreamLog::free_slot(int slot) {
  rows_dead_ -= uint64_t(blocks_[size_t(slot)].n_rows);
  order_.erase(std::find(order_.begin(), order_.end(), slot));
  free_slots_.push_back(slot);
}

bool StreamLog::due(int slot, int recent) const {
  const LogBlock& block = blocks_[size_t(slot)];
  return block.n_rows == kBlockTokens &&
         appended_ - (block.begun + kBlockTokens) >= uint64_t(recent);
}

int StreamLog::most_dead() const {
  int found = -1, most = 0;
  for (const int slot : order_) {
    const LogBlock& block = blocks_[size_t(slot)];
    const int dead = block.n_rows - block.n_live;
    if (block.sealed_in == 0 || dead <= most) continue;
    most = dead;
    found = slot;
  }
  return found;
}

size_t StreamLog::bytes() const {
  return row_of_cell_.size() * sizeof(RowId) + blocks_.size() * sizeof(LogBlock);
}

}  // namespace zipcache
