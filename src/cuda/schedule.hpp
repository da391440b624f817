// Where the tokens of many streams stand on a GPU, in every layer of one policy alike: the newest
// as 16-bit rows in a ring, sinks as 16-bit rows that stay, blocks that the window has left as
// packed records. Where a policy packs nothing, the ring has room for all tokens. Bookkeeping on
// the host, without CUDA; what a step changes is handed out as data. Not thread-safe.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "cuda/decode.hpp"
#include "cuda/fragments.hpp"
#include "cuda/pack_form.hpp"

namespace zipcache::cuda {

// Tokens of a step that the kernel of decode attention takes; longer ones are prompts.
inline constexpr int kMostStepTokens = 64;

struct ScheduleShape {
  int n_heads = 0, dim = 0;  // KV heads and their channels
  int n_streams = 0;
  int max_tokens = 0;  // of a stream
  int n_blocks = 0;    // packed blocks of all streams together that there is room for
};

// The memory of a layer, and of what all layers share; all in bytes unless said.
struct ScheduleSizes {
  size_t pool = 0;         // of a layer's records
  int block = 0, raw = 0;  // of one head's packed record with its row map, and of 16-bit rows
  int max_record = 0;      // of what a kernel reads at once
  int ring = 0;            // tokens of each stream that may be 16-bit rows, a multiple of 128
  int record_stride = 0;   // entries of a stream's block table
  size_t sinks_at = 0, ring_at = 0;  // where a layer's pool has records of sinks and of the ring
  int sink_records = 0;              // of a stream
};

// An entry of the block table that a step changes: `record` of head 0, those of other heads lie
// `head_step` 16 bytes further each.
struct TableChange {
  int32_t stream = 0, index = 0;
  int32_t head_step = 0, unused = 0;
  Record record = {};
};
static_assert(sizeof(TableChange) == 32);

// Rows of a step that are kept at 16 bits.
struct StreamRows {
  int32_t place = 0;           // of the step's first token
  int32_t begin = 0, end = 0;  // of the step's tokens, those that go into the ring
  int32_t length = 0;          // tokens of the stream once they are there
  int32_t n_sinks = 0;         // first ones of the step's tokens that go into records of sinks
  int32_t unused[3] = {};
};
static_assert(sizeof(StreamRows) == 32);

class Schedule {
 public:
  // Incompatible for what records or their packing do not have, BadArgument for impossible shapes.
  static Result<Schedule> create(const ScheduleShape& shape, const Policy& policy);

  const ScheduleShape& shape() const { return shape_; }
  const Policy& policy() const { return policy_; }
  const ScheduleSizes& sizes() const { return sizes_; }
  const PackForm& form() const { return form_; }

  int length(int stream) const { return streams_[size_t(stream)].length; }
  // Those of this step included.
  int packed_blocks(int stream) const {
    const Stream& own = streams_[size_t(stream)];
    return int(own.packed.size() + own.due.size());
  }

  // A step: n_new [n_streams] tokens come; the step before has ended. OverLimit when a stream or
  // the pool is full; then nothing has changed.
  Status begin(std::span<const int> n_new);
  // What begin() would say.
  Status check_begin(std::span<const int> n_new) const;

  // What the step before left to tell, and this one changes: of the block table, whose last
  // entries are those of the blocks that this step packs.
  std::span<const TableChange> changes() const { return changes_; }
  // Records that the step's queries attend to; those of a prompt, the ones from before it, whose
  // rows stand there until the first of the step's come.
  std::span<const StreamRecords> counts() const { return counts_; }
  // These of one stream, of head 0, in the order of the block table.
  std::span<const Record> records(int stream) const {
    const auto& entries = table_[size_t(stream)];
    return std::span(entries).first(size_t(counts_[size_t(stream)].all()));
  }
  // Rows for the ring before the attention: first what fills a block that is begun, then what is
  // left when whole blocks became records from the step's own rows. [n_streams] each; a step of
  // few tokens has all of them in the first.
  std::span<const StreamRows> first_rows() const { return first_rows_; }
  std::span<const StreamRows> last_rows() const { return last_rows_; }
  // Blocks to pack after the attention, from the ring's rows or from the step's own.
  std::span<const PackTask> ring_tasks() const { return ring_tasks_; }
  std::span<const PackTask> own_tasks() const { return own_tasks_; }

  // Takes tokens back, of a draft say. Incompatible when some of them are packed; then nothing has
  // changed.
  Status truncate(int stream, int length);
  // What truncate() would say.
  Status check_truncate(int stream, int length) const;
  void clear(int stream);

 private:
  struct Stream {
    int length = 0;
    std::vector<Record> packed;  // of head 0
    std::vector<Record> due;     // of blocks that this step packs
  };

  Schedule(const ScheduleShape& shape, const Policy& policy, const RecordLayout& layout,
           const PackForm& form);
  void measure();
  int sinks() const { return policy_.raw() ? 0 : policy_.window.sinks; }
  void end_step();
  int blocks_due(int length) const;
  BlockBits left_out(int block) const;
  Record packed_record(int slot, const PackTask& task) const;
  int slot_of(const Record& packed) const;
  Record raw_record(size_t at, int first, int tokens) const;
  void list_records(int stream, std::vector<Record>& records, StreamRecords& counts) const;
  void plan_rows(int stream, int n_new);
  void plan_task(int stream, int aligned);
  void tell_changes();

  ScheduleShape shape_;
  Policy policy_;
  RecordLayout layout_;
  PackForm form_;
  ScheduleSizes sizes_;
  bool prompt_ = false;  // some stream of this step has more than kMostStepTokens
  std::vector<Stream> streams_;
  std::vector<int> free_slots_;
  std::vector<std::vector<Record>> table_;  // [stream][record_stride] of head 0, as it was told
  std::vector<TableChange> changes_;
  std::vector<StreamRecords> counts_;
  std::vector<StreamRows> first_rows_, last_rows_;
  std::vector<PackTask> ring_tasks_, own_tasks_;
};

}  // namespace zipcache::cuda
