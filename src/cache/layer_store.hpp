// The blocks of one layer of one stream: for each block slot of the log a raw piece, a packed
// piece, or neither. Storage comes from the cache's arena. Not thread-safe.
#pragma once

#include <map>
#include <memory>
#include <vector>

#include "base/arena.hpp"
#include "cache/block_layout.hpp"
#include "cache/turns.hpp"
#include "codec/query_rounding.hpp"
#include "transform/rotation.hpp"
#include "zipcache/rotations.hpp"

namespace zipcache {

struct SharedSet {
  uint8_t* piece = nullptr;
  size_t bytes = 0;
  int users = 0;
};

struct StoredBlock {
  uint8_t* raw = nullptr;     // [RawLayout::bytes] or null
  uint8_t* packed = nullptr;  // [bytes.total] or null
  PackedBytes bytes;          // of `packed`
  int n_coded = 0;
  BlockBits sinks;   // rows kept at 16 bits inside `packed`
  int shared = -1;   // index of the shared parameter set
  BlockTurns turns;  // of coded keys
};

class LayerStore {
 public:
  // `rotations` holds the layer's matrices where the policy rotates by a file.
  LayerStore(const LayerShape& shape, const Policy& policy, int n_slots,
             std::shared_ptr<const LayerRotations> rotations = nullptr)
      : raw(shape, policy),
        packed(shape, policy),
        moments(packed.rounds_by_queries() ? size_t(shape.n_heads) : 0, QueryMoment(shape.k_dim)),
        rotations_(std::move(rotations)),
        blocks_(size_t(n_slots)) {}

  const RawLayout raw;
  const PackedLayout packed;
  std::vector<QueryMoment> moments;  // [head], none unless keys are rounded by their queries

  const StoredBlock& block(int slot) const { return blocks_[size_t(slot)]; }
  StoredBlock& block(int slot) { return blocks_[size_t(slot)]; }

  // Raw storage of a block, zeroed when it is new; null when the arena is used up.
  uint8_t* raw_for_write(int slot, Arena& arena);
  // Makes `piece` the packed form of a block and gives its raw storage back.
  void become_packed(int slot, const StoredBlock& block, Arena& arena);
  // Forgets everything, for an arena that is cleared; takes no memory.
  void forget();
  // Gives back all storage of a block.
  void release(int slot, Arena& arena);
  // Holds what `from`, the same layer of another stream, holds for the blocks of `log`, byte for
  // byte. This store must be empty; false when the arena is used up.
  bool copy(const LayerStore& from, const StreamLog& log, Arena& arena);

  // Key rows that carry a saved block, until its value rows come; by slot.
  std::map<int, std::vector<half>> waiting_keys;

  int add_shared(SharedSet set);
  uint8_t* shared_piece(const StoredBlock& block) const {
    return block.shared < 0 ? nullptr : shared_[size_t(block.shared)].piece;
  }
  // One head of a packed block.
  PackedHead head(const StoredBlock& block, int head) const;
  PackedHead head(int slot, int head) const { return this->head(block(slot), head); }
  // Which rows of a head of a block are held, raw or packed: all where nothing is evicted.
  BlockBits held(int slot, int head) const;
  // Adds what the blocks of `log` hold here, by kind.
  void count(const StreamLog& log, Bytes& bytes) const;

  // The layer's matrices, or null where no file rotates.
  const LayerRotations* matrices() const { return rotations_.get(); }
  // How rows of a head are turned before they are coded.
  HeadRotation rotation(SideId side, int head) const;

 private:
  std::shared_ptr<const LayerRotations> rotations_;
  std::vector<StoredBlock> blocks_;
  std::vector<SharedSet> shared_;
};

// Rows `row` .. of one head as floats, from raw or packed storage, exactly as attention sees them
// but not rotated, evicted ones as zeros: out [n_rows, dim] for rows 0 .. n_rows-1 of the block. A
// block never written reads as zeros.
void decode_rows(const LayerStore& store, int slot, SideId side, int head, int n_rows, float* out);
// The same of a block that is not in the store.
void decode_rows(const LayerStore& store, const StoredBlock& block, SideId side, int head,
                 int n_rows, float* out);
// The same of all heads, token by token: [n_rows, n_heads * dim].
std::vector<float> decode_rows(const LayerStore& store, const StoredBlock& block, SideId side,
                               int n_rows);

// Rows of cells first_cell .. + n_cells, wherever they stand: [n_cells, n_heads * dim], zeros for
// cells never written.
void read_cells(const StreamLog& log, const LayerStore& store, SideId side, int first_cell,
                int n_cells, float* rows);
// The same as 16-bit numbers.
void read_cells(const StreamLog& log, const LayerStore& store, SideId side, int first_cell,
                int n_cells, half* rows);

}  // namespace zipcache
