#include "attend/attend.hpp"

#include <algorithm>

#include "attend/workspace.hpp"
#include "base/parallel.hpp"

namespace zipcache {
namespace {

// Query rows of a KV head in one task of a prompt.
constexpr int kQueriesPerTile = 64;

// A packed block of one head is the unit of work; a 16-bit one takes about so much more.
constexpr int kRawWeight = 3;
// Channels of work (K and V together) that are worth a thread of their own.
constexpr int kChannelsPerThread = 1024;

// One attention operation cut into tasks.
class Operation {
 public:
  Operation(const Attention& step, const StreamLog& log, const LayerStore& store,
            const Kernels& kernels, Workspace& space)
      : step_(step),
        log_(log),
        store_(store),
        blocks_(step, log, store, kernels),
        space_(space),
        n_heads_(store.raw.shape.n_heads),
        n_blocks_(int(log.order().size())),
        group_(step.n_heads / n_heads_) {
    space_.scratch.resize(std::max(space_.scratch.size(), size_t(step.n_threads)));
  }

  Status run() {
    if (!stopped(0)) {
      if (step_.n_queries * group_ <= kDecodeRows)
        decode();
      else
        prefill();
    }
    if (stop_) return {Code::Aborted, "attention was stopped by the caller"};
    return ok();
  }

 private:
  // The caller's question is asked on its own thread, worker 0, as ggml does.
  bool stopped(int worker) {
    if (worker == 0 && !stop_ && step_.aborted && step_.aborted(step_.aborted_data)) stop_ = true;
    return stop_.load(std::memory_order_relaxed);
  }

  // Few rows: the keys are split. Work is counted head after head and block after block and cut
  // into equal ranges, so that a task meets few heads and few tasks meet in a head. The last task
  // to leave a head merges its sums.
  void decode() {
    weigh_blocks();
    const int64_t total = int64_t{n_heads_} * weight_;
    const LayerShape& shape = store_.raw.shape;
    const int64_t useful = total * (shape.k_dim + shape.v_dim) / kChannelsPerThread;
    n_tasks_ = int(std::clamp(useful, int64_t{1}, int64_t{step_.n_threads}));
    space_.sums.resize(std::max(space_.sums.size(), size_t(n_tasks_ * n_heads_)));
    if (space_.pending.size() < size_t(n_heads_))
      space_.pending = std::vector<std::atomic<int>>(size_t(n_heads_));
    for (int head = 0; head < n_heads_; ++head)
      space_.pending[size_t(head)] = last_task(head) - first_task(head) + 1;
    parallel_for(n_tasks_, n_tasks_, [&](int task, int worker) {
      const int64_t begin = total * task / n_tasks_, end = total * (task + 1) / n_tasks_;
      for (int head = int(begin / weight_); head <= int((end - 1) / weight_); ++head) {
        const int64_t before = int64_t{head} * weight_;
        add_range(head, task, block_at(begin - before), block_at(end - before), worker);
        if (stopped(worker)) return;
        if (space_.pending[size_t(head)].fetch_sub(1) == 1) merge(head);
      }
    });
  }

  // Work before each block of a head.
  void weigh_blocks() {
    space_.before.resize(size_t(n_blocks_));
    weight_ = 0;
    for (int i = 0; i < n_blocks_; ++i) {
      const StoredBlock& block = store_.block(log_.order()[size_t(i)]);
      space_.before[size_t(i)] = weight_;
      weight_ += block.packed ? 1 : block.raw ? kRawWeight : 0;
    }
    weight_ = std::max(weight_, 1);
  }

  // First block that begins at `weight` or later.
  int block_at(int64_t weight) const {
    const auto found = std::lower_bound(space_.before.begin(), space_.before.end(), weight);
    return int(found - space_.before.begin());
  }

  // The task whose range holds this unit of work.
  int task_of(int64_t unit) const {
    return int(((unit + 1) * n_tasks_ - 1) / (int64_t{n_heads_} * weight_));
  }
  int first_task(int head) const { return task_of(int64_t{head} * weight_); }
  int last_task(int head) const { return task_of(int64_t{head + 1} * weight_ - 1); }

  TaskSums& sums_of(int head, int task) { return space_.sums[size_t(task * n_heads_ + head)]; }

  void add_range(int head, int task, int begin, int end, int worker) {
    Scratch& scratch = space_.scratch[size_t(worker)];
    blocks_.gather(head, 0, step_.n_queries, scratch);
    TaskSums& sums = sums_of(head, task);
    blocks_.reset(scratch.queries, sums);
    for (int block = begin; block < end && !stopped(worker); ++block) {
      // A block's header says where its heads begin; it has to be there when start_of reads it.
      if (block + 2 < end) __builtin_prefetch(blocks_.header_of(block + 2));
      const uint8_t* next = block + 1 < end ? blocks_.start_of(head, block + 1) : nullptr;
      blocks_.add_block(scratch.queries, head, block, next, scratch, sums);
    }
  }

  void merge(int head) {
    TaskSums& all = sums_of(head, first_task(head));
    for (int task = first_task(head) + 1; task <= last_task(head); ++task) {
      all.raw.merge(sums_of(head, task).raw);
      all.packed.merge(sums_of(head, task).packed);
    }
    blocks_.finish(head, all);
    write_rows(head, 0, all.raw);
  }

  // Many rows: every head and range of queries is a task over all blocks.
  void prefill() {
    const int n_tiles = (step_.n_queries + kQueriesPerTile - 1) / kQueriesPerTile;
    space_.sums.resize(std::max(space_.sums.size(), size_t(step_.n_threads)));
    parallel_for(step_.n_threads, n_heads_ * n_tiles, [&](int task, int worker) {
      const int head = task / n_tiles, first = task % n_tiles * kQueriesPerTile;
      Scratch& scratch = space_.scratch[size_t(worker)];
      TaskSums& sums = space_.sums[size_t(worker)];
      blocks_.gather(head, first, std::min(kQueriesPerTile, step_.n_queries - first), scratch);
      blocks_.reset(scratch.queries, sums);
      for (int block = 0; block < n_blocks_; ++block) {
        if (stopped(worker)) return;
        blocks_.add_block(scratch.queries, head, block, nullptr, scratch, sums);
      }
      blocks_.finish(head, sums);
      write_rows(head, first, sums.raw);
    });
  }

  void write_rows(int kv_head, int first_query, Partial& sums) {
    for (int r = 0; r < sums.n_rows; ++r) {
      const int query = first_query + r / group_, head = kv_head * group_ + r % group_;
      if (step_.sinks) sums.add_logit(r, step_.sinks[head]);
      const float mass = sums.mass[size_t(r)];
      const float inverse = mass > 0 ? 1.0f / mass : 0.0f;
      float* out = step_.out + query * step_.out_row_stride + head * step_.out_head_stride;
      for (int c = 0; c < store_.raw.shape.v_dim; ++c) out[c] = sums.row(r)[c] * inverse;
      if (!space_.log_mass.empty())
        space_.log_mass[size_t(query) * size_t(step_.n_heads) + size_t(head)] = sums.log_mass(r);
    }
  }

  const Attention& step_;
  const StreamLog& log_;
  const LayerStore& store_;
  const BlockAttention blocks_;
  Workspace& space_;
  const int n_heads_, n_blocks_, group_;
  int weight_ = 0;  // work of one head, in packed blocks
  int n_tasks_ = 1;
  std::atomic<bool> stop_{false};
};

}  // namespace

Attender::Attender(const Kernels& kernels)
    : kernels_(kernels), space_(std::make_unique<Workspace>()) {}
Attender::~Attender() = default;

Status Attender::attend(const Attention& step, const StreamLog& log, const LayerStore& store,
                        bool keep_log_mass) {
  const size_t n_rows = size_t(step.n_queries) * size_t(step.n_heads);
  space_->log_mass.assign(keep_log_mass ? n_rows : 0, 0.0f);
  return Operation(step, log, store, kernels_, *space_).run();
}

}  // namespace zipcache
