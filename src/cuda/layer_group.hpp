// The layers of a GPU's cache that have one policy: what each of them has in memory, and what a
// step's kernels are told of it and of where tokens stand (schedule.hpp). Schedule, block table and
// workspace are the cache's.
#pragma once

#include "cuda/cache_step.hpp"
#include "cuda/gpu_cache.hpp"
#include "cuda/keep_rows.hpp"
#include "cuda/pack.hpp"
#include "cuda/rotated_attention.hpp"
#include "cuda/unpack.hpp"

namespace zipcache::cuda {

// Scores of a layer's tokens, by row.
struct ScoreRows {
  PerToken<float> sums;
  PerToken<uint32_t> seen;
};

// What a layer has for itself.
struct LayerMemory {
  DeviceMemory pool;            // records
  DeviceMemory k_ring, v_ring;  // [n_streams, ring, n_heads, dim], where the policy packs
  DeviceMemory sums, seen;      // of the ring, where it has scores
  DeviceMemory moments;         // of queries, where keys are rounded by them
  LayerMatrices matrices;       // of rotations from a file

  size_t bytes() const;
};

class LayerGroup {
 public:
  LayerGroup(const GpuCacheShape& shape, const Schedule& schedule)
      : shape_(shape), schedule_(&schedule) {}

  const Policy& policy() const { return schedule_->policy(); }
  const Schedule& schedule() const { return *schedule_; }
  const PackForm& form() const { return schedule_->form(); }
  const ScheduleSizes& sizes() const { return schedule_->sizes(); }
  bool scored() const { return policy().needs_scores(); }
  bool by_queries() const { return form().k_by_queries; }
  bool by_matrix() const { return form().k_by_matrix || form().v_by_matrix; }

  // `rotations`: the layer's, where a file rotates its rows.
  Status allocate(LayerMemory& own, const LayerRotations* rotations, cudaStream_t stream) const;
  // Lends the table [n_streams, n_heads, stride].
  void lend_table(Record* table, int stride) { table_ = table, stride_ = stride; }
  // Asks the device how many blocks of attention it runs at once.
  Status ask_device();

  // The step that the schedule has begun: its part of the parcel. `piece_rows` are those of a
  // stream in a piece of the past.
  void plan(CacheStep& step, int piece_rows);
  // Arguments of attention over records, but for what is the caller's. The workspace that they need
  // for up to n_queries, in all and before partial results; then it is lent, those zeroed.
  DecodeArgs decode_args(const LayerMemory& own, const CacheStep& step) const;
  size_t workspace_bytes(int n_queries) const;
  size_t ticket_bytes(int n_queries) const;
  void lend_workspace(void* workspace) { workspace_ = workspace; }

  // A number for what a step of few tokens that packs nothing tells kernels: the same only where
  // all of it is the same.
  uint64_t step_shape(const CacheStep& step) const;

  const PastPieces& past() const { return past_; }
  UnpackArgs unpack_args(const LayerMemory& own) const;
  const UnpackTask* past_tasks(const CacheStep& step) const;
  const int32_t* past_rows(const CacheStep& step) const;  // [pieces, n_streams]

  // The ring: rows in the order of tokens, the row that each stream's next token takes [n_streams],
  // and scores.
  InputRows ring_rows(const DeviceMemory& rows) const;
  const int32_t* oldest(const CacheStep& step) const;
  ScoreRows ring_scores(const LayerMemory& own) const;

  // Keeps a step's rows at 16 bits, those of Schedule::first_rows or last_rows.
  enum class Part { First, Last };
  Status keep(const LayerMemory& own, const CacheStep& step, Part part, const InputRows& k,
              const InputRows& v, const ScoreRows& from, cudaStream_t stream) const;

  // Blocks that this step packs, and arguments for those of the ring's rows, or of its own.
  bool packs() const { return !schedule_->own_tasks().empty() || !schedule_->ring_tasks().empty(); }
  PackArgs ring_pack_args(const LayerMemory& own, const CacheStep& step) const;
  PackArgs own_pack_args(const LayerMemory& own, const CacheStep& step, const InputRows& k,
                         const InputRows& v, const ScoreRows& scores) const;

 private:
  DecodeArgs record_args() const;
  DecodeArgs plan_args(int n_queries) const;
  PackArgs pack_args(const LayerMemory& own, const ScoreRows& scores) const;

  GpuCacheShape shape_;
  const Schedule* schedule_;
  const Record* table_ = nullptr;
  int stride_ = 0;
  void* workspace_ = nullptr;
  DecodeBlocks blocks_[2];  // of steps of one token, of more
  // Of the step at hand.
  DecodePlan plan_;
  PastPieces past_;  // of long steps
  int most_first_ = 0, most_last_ = 0;
  size_t first_at_ = 0, last_at_ = 0, items_at_ = 0, oldest_at_ = 0;
  size_t past_tasks_at_ = 0, past_rows_at_ = 0;
  size_t ring_tasks_at_ = 0, own_tasks_at_ = 0;
};

}  // namespace zipcache::cuda
