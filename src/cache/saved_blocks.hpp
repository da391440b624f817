// Packed blocks inside the rows of a saved state. Whoever saves rows gets 16-bit numbers and may
// put them anywhere: into this cache, into one of another policy, or into llama.cpp's own. So the
// rows of a whole packed block stay good approximations of what attention sees, and carry the
// block's bytes in their low bits (cache/carried_bits.hpp). A cache of the same policy finds them
// there and takes the block as it was; to any other they are rows.
//
// The 128 rows of one side of one layer carry a frame (docs/formats.md): K the block's first bytes
// and how its keys moved, V the others. V also carries, spread over the blocks of a run of cells,
// what the 16-bit rows behind them cannot: their scores, which of them are sinks, and what queries
// were like.
#pragma once

#include <optional>
#include <span>
#include <string>

#include "cache/layer_store.hpp"

namespace zipcache {

struct SavedBlock {
  uint64_t identity = 0;  // saved_identity() of the layer it comes from
  uint64_t first = 0;     // its place in the text
  uint64_t checksum = 0;  // of the whole block
  uint32_t total = 0;     // bytes of the whole block
  SideId side = SideId::K;
  BlockBits sinks;
  BlockTurns turns;  // K
  std::string part;  // of the block, this side's
  std::string tail;  // V: its share of what stands behind the run's blocks
};

// What a layer's packed blocks can be read by: its shape, policy and rotations.
uint64_t saved_identity(const LayerStore& store);

// Blocks of such a layer may be carried at all.
bool carries_blocks(const LayerStore& store);

// Cells at which the whole packed blocks begin whose cells lie in a run.
std::vector<int> whole_blocks(const StreamLog& log, const LayerStore& store, int first_cell,
                              int n_cells);

// Scores, sinks and moments of `n` raw rows from first_cell on, which is `first` of the text, for
// restore_tail(); of no rows where they do not stand there as they were written.
std::string tail_of(const StreamLog& log, const LayerStore& store, int first_cell, int n,
                    uint64_t first);

// Rows of cells first_cell .. + n_cells, [n_cells, n_heads * dim], as they are read; those of whole
// packed blocks among them carry their block afterwards.
void put_blocks(const StreamLog& log, const LayerStore& store, SideId side, int first_cell,
                int n_cells, half* rows);

// The block that kBlockTokens rows [n_heads * dim] of a layer of this identity carry, if any.
std::optional<SavedBlock> find_block(std::span<const half> rows, SideId side, uint64_t identity);

// The block of two parts in a piece of the arena, checked against the layout; none when it cannot
// be one of this layer, or the arena is used up.
std::optional<StoredBlock> join(const LayerStore& store, const SavedBlock& k, const SavedBlock& v,
                                Arena& arena);

// Gives the newest `n_rows` raw rows, cells first_cell .., what their 16-bit numbers do not say. A
// damaged tail changes nothing.
void restore_tail(const std::string& tail, StreamLog& log, LayerStore& store, int first_cell,
                  int n_rows);

}  // namespace zipcache
