// Packed keys that moved to other positions and kept their codes. Which rows of a block moved how
// far is all that is noted; attention turns its queries the other way (attend/block_attention.hpp),
// and whoever decodes keys turns them. So a context shift rounds nothing.
#pragma once

#include <array>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "cache/log.hpp"

namespace zipcache {

// Distances that rows of one block may have moved; attention multiplies the block's keys once for
// each.
inline constexpr size_t kMostTurns = 4;

// How far each row of a block moves.
using RowShifts = std::array<int32_t, kBlockTokens>;
// 0 for rows without a cell and cells beyond `shift`.
RowShifts shifts_of(const LogBlock& block, std::span<const int32_t> shift);
bool moves(const RowShifts& by);

// Rows of a packed block that cells refer to and that are no sinks.
BlockBits coded_rows(const LogBlock& block, const BlockBits& sinks);

struct BlockTurns {
  struct Moved {
    int32_t by = 0;  // positions since the row was coded, not 0
    BlockBits rows;
    bool operator==(const Moved&) const = default;
  };
  std::shared_ptr<const KeyTurn> turn;  // null where no row moved
  std::vector<Moved> moved;             // one for each distance

  bool any() const { return !moved.empty(); }
  bool operator==(const BlockTurns& other) const {
    return moved == other.moved && (!any() || *turn == *other.turn);
  }
  // Rows that did not move.
  BlockBits unmoved() const;
  // Turns decoded keys [n_rows, dim] of a head, in place.
  void apply(float* keys, int n_rows, int dim) const;
  size_t bytes() const { return moved.size() * sizeof(Moved); }
};

// What `before` becomes when the block's rows in `coded` move on; the others' keys are no codes.
// None when there would be more than kMostTurns distances, or rows turned in another way before.
std::optional<BlockTurns> moved_on(const BlockTurns& before, std::shared_ptr<const KeyTurn> turn,
                                   const RowShifts& by, const BlockBits& coded);

}  // namespace zipcache
