// Attention of a tile of query rows to one block after another: the work of one task. Few query
// rows of a KV head multiply codes as they are stored, parameters folded into the query and the
// probabilities; many, and codes that name levels of a table, work on a block expanded into a tile
// that stays in cache.
#pragma once

#include <vector>

#include "attend/mask.hpp"
#include "attend/partial.hpp"
#include "attend/scores.hpp"
#include "cache/layer_store.hpp"
#include "codec/kernels.hpp"

namespace zipcache {

// Working memory of one thread, reused from block to block and from operation to operation.
struct Scratch {
  std::vector<int> query_numbers;
  QueryTile queries;
  // The queries turned the other way, for keys that moved: by so many positions.
  QueryTile moved_queries;
  const KeyTurn* turn = nullptr;  // null: not made yet
  int32_t moved_by = 0;
  std::vector<float> keys, values, scores, bias, turned, rescale, moved_scores;
  FoldedRow folded[kMaxRows];
};

// Sums of one task: packed values are summed as they are stored, rotated or not.
struct TaskSums {
  Partial raw, packed;
};

// What the policy's precision comes to with a kernel set.
Precision precision_in_use(const Policy& policy, const Kernels& kernels);

// Const and thread-safe: everything that changes is handed in.
class BlockAttention {
 public:
  BlockAttention(const Attention& step, const StreamLog& log, const LayerStore& store,
                 const Kernels& kernels);

  // Fills scratch.queries.
  void gather(int head, int first_query, int n_queries, Scratch& scratch) const;
  void reset(const QueryTile& queries, TaskSums& sums) const;
  // Adds one block, the `index`-th of the log, of one head. `next` is where the caller reads on
  // after it (start_of), or null.
  void add_block(const QueryTile& queries, int head, int index, const uint8_t* next,
                 Scratch& scratch, TaskSums& sums) const;
  // What start_of reads of a block, null where it reads nothing.
  const uint8_t* header_of(int index) const {
    return store_.block(log_.order()[size_t(index)]).packed;
  }
  // First byte of what add_block reads, null where nothing is stored.
  const uint8_t* start_of(int head, int index) const;
  // Merges what packed blocks gave into sums.raw.
  void finish(int head, TaskSums& sums) const;

 private:
  Visible look(const QueryTile& queries, int slot, Visible view, const uint8_t* order, int n,
               Scratch& scratch) const;
  template <class Hide>
  void softmax(const QueryTile& queries, Visible visible, int n, int ld, Scratch& scratch,
               Partial& sums, Hide&& hide) const;
  void add_halves(const QueryTile& queries, const half* keys, const half* values,
                  const uint8_t* present, int n, Visible visible, Scratch& scratch,
                  Partial& sums) const;
  void sum_halves(int rows, const float* weights, int ld, const half* values, int n,
                  Scratch& scratch, Partial& sums) const;
  void add_raw(int head, const QueryTile& queries, int slot, Visible view, Scratch& scratch,
               Partial& sums) const;
  void add_packed(int head_index, const QueryTile& queries, int slot, Visible view,
                  const uint8_t* next, Scratch& scratch, TaskSums& sums) const;
  void add_sinks(const QueryTile& queries, int slot, const PackedHead& head, Visible view,
                 Scratch& scratch, Partial& sums) const;
  template <class Visit>
  void for_tiers(const PackedSide& side, const PackedHead& head, Visit&& visit) const;
  void multiply(const CodePart& part, Weighting weighting, int rows, const float* x, int ldx,
                float* out, int ld, bool add, const uint8_t* next, Scratch& scratch) const;
  void packed_scores(const QueryTile& queries, const PackedHead& head, int n,
                     Scratch& scratch) const;
  void scores_of_moved(const QueryTile& queries, int head_index, const PackedHead& head,
                       const LogBlock& block, const StoredBlock& stored, int n,
                       Scratch& scratch) const;
  const QueryTile& moved_queries(const QueryTile& queries, int head, const KeyTurn& turn,
                                 int32_t by, Scratch& scratch) const;
  void code_scores(const QueryTile& queries, const PackedHead& head, int n, Scratch& scratch) const;
  void sum_codes(int rows, const PackedHead& head, int n, const uint8_t* next, Scratch& scratch,
                 Partial& sums) const;
  void expanded_scores(const QueryTile& queries, const PackedHead& head, int n,
                       Scratch& scratch) const;
  void sum_expanded(int rows, const PackedHead& head, int n, Scratch& scratch, Partial& sums) const;
  void correct_scores(const QueryTile& queries, const PackedHead& head, int n,
                      Scratch& scratch) const;
  void correct_sums(int rows, const PackedHead& head, int n, Scratch& scratch, Partial& sums) const;
  Weighting weighting(SideId side, int bits) const;

  const Attention& step_;
  const StreamLog& log_;
  const LayerStore& store_;
  const Kernels& kernels_;
  const Precision precision_;
  const int group_;
};

}  // namespace zipcache
