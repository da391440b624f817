// From raw rows to a packed block: rank, allocate, encode (paper, section 4 and Algorithm 2).
#pragma once

#include <span>

#include "cache/layer_store.hpp"
#include "codec/query_rounding.hpp"
#include "zipcache/token_scores.hpp"

namespace zipcache {

struct PackJob {
  int layer = 0;
  std::span<const int>
      slots;            // blocks to pack, full and raw; more than one share a ranking and, where
  bool shared = false;  // `shared`, their channel parameters (Cadence::Prompt)
  // [head], how keys are rounded by their queries; empty where they go to the nearest code.
  std::span<const QueryRounding> roundings;
  int n_threads = 1;
  const TokenScores* scores = nullptr;  // of the stream's tokens in order, for Statistic::File
};

// What the layer's moments say about rounding, for PackJob and repack_keys(); empty where the
// policy does not ask.
std::vector<QueryRounding> key_roundings(const LayerStore& store, int n_threads);

struct PackOutcome {
  int unscored_blocks = 0;  // packed at the best tier, since no probe ever saw a row of theirs
};

// Packs the blocks; on OverLimit (arena used up) none of them has changed.
Result<PackOutcome> pack_blocks(const PackJob& job, const StreamLog& log, LayerStore& store,
                                Arena& arena);

// Cache::rotate_keys: rows of a block whose cells moved. In place, tiers kept.
void turn_raw_keys(const LayerStore& store, const StoredBlock& stored, const RowShifts& by,
                   const KeyTurn& turn);
// The sinks of a packed block, the only keys that it holds as numbers.
void turn_sinks(const LayerStore& store, int slot, const RowShifts& by, const KeyTurn& turn);
// A packed block's keys become codes once more; none of them counts as moved afterwards.
void recode_keys(LayerStore& store, int slot, const RowShifts& by, const KeyTurn& turn,
                 std::span<const QueryRounding> roundings);

}  // namespace zipcache
