#include "cache/turns.hpp"

#include <algorithm>
#include <map>

namespace zipcache {

RowShifts shifts_of(const LogBlock& block, std::span<const int32_t> shift) {
  RowShifts by = {};
  for (int row = 0; row < block.n_rows; ++row) {
    const int32_t cell = block.cells[size_t(row)];
    if (cell >= 0 && size_t(cell) < shift.size()) by[size_t(row)] = shift[size_t(cell)];
  }
  return by;
}

bool moves(const RowShifts& by) {
  return std::any_of(by.begin(), by.end(), [](int32_t n) { return n != 0; });
}

BlockBits coded_rows(const LogBlock& block, const BlockBits& sinks) {
  BlockBits rows;
  for (size_t row = 0; row < size_t(block.n_rows); ++row) rows.set(row, block.cells[row] >= 0);
  return rows & ~sinks;
}

BlockBits BlockTurns::unmoved() const {
  BlockBits rows;
  for (const Moved& one : moved) rows |= one.rows;
  return ~rows;
}

void BlockTurns::apply(float* keys, int n_rows, int dim) const {
  for (const Moved& one : moved) {
    for (int row = 0, n = 0; row < n_rows; row += n + 1) {
      for (n = 0; row + n < n_rows && one.rows.test(size_t(row + n));) ++n;
      if (n > 0) turn->apply(keys + ptrdiff_t(row) * dim, n, dim, one.by);
    }
  }
}

std::optional<BlockTurns> moved_on(const BlockTurns& before, std::shared_ptr<const KeyTurn> turn,
                                   const RowShifts& by, const BlockBits& coded) {
  if (before.any() && *before.turn != *turn) return {};
  RowShifts total = by;
  for (const BlockTurns::Moved& one : before.moved) {
    for (size_t row = 0; row < total.size(); ++row) {
      // Distances far beyond any text may wrap around; they must not be undefined.
      if (one.rows.test(row)) total[row] = int32_t(uint32_t(total[row]) + uint32_t(one.by));
    }
  }
  std::map<int32_t, BlockBits> by_distance;
  for (size_t row = 0; row < total.size(); ++row) {
    if (total[row] != 0 && coded.test(row)) by_distance[total[row]].set(row);
  }
  if (by_distance.size() > kMostTurns) return {};
  BlockTurns after;
  if (!by_distance.empty()) after.turn = std::move(turn);
  for (const auto& [distance, rows] : by_distance) after.moved.push_back({distance, rows});
  return after;
}

}  // namespace zipcache
