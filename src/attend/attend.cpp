#include "attend/attend.hpp"

#include <algorithm>
#include <atomic>
#include <numeric>

#include "attend/partial.hpp"
#include "attend/scores.hpp"
#include "base/parallel.hpp"
#include "transform/hadamard.hpp"

namespace zipcache {
namespace {

constexpr int kQueriesPerTile = 32;

// Working memory of one task, reused from block to block.
struct Scratch {
  std::vector<float> keys, values, scores, bias, turned;
};

// Part of an operation that one thread does: a KV head, a range of queries, a range of blocks.
struct Task {
  int head = 0;
  int first_query = 0;
  int n_queries = 0;
  int first_block = 0;
  int n_blocks = 0;
};

// Sums of one task: packed values are summed as they are stored, rotated or not.
struct TaskSums {
  Partial raw, packed;
};

class Worker {
 public:
  Worker(const Attention& step, const StreamLog& log, const LayerStore& store,
         const Kernels& kernels)
      : step_(step),
        log_(log),
        store_(store),
        kernels_(kernels),
        group_(step.n_heads / store.raw.shape.n_heads) {}

  void run(const Task& task, TaskSums& sums, const std::atomic<bool>& stop) const {
    const LayerShape& shape = store_.raw.shape;
    const QueryTile queries =
        gather_queries(step_, task.first_query, task.n_queries, task.head, group_, shape.k_dim,
                       rotated(store_.packed.policy().k));
    sums.raw.reset(queries.n_rows(), shape.v_dim);
    sums.packed.reset(queries.n_rows(), shape.v_dim);
    Scratch scratch;
    for (int i = task.first_block; i < task.first_block + task.n_blocks; ++i) {
      if (stop.load(std::memory_order_relaxed)) return;
      const int slot = log_.order()[size_t(i)];
      const StoredBlock& stored = store_.block(slot);
      if (stored.packed)
        add_packed(task, queries, slot, scratch, sums);
      else if (stored.raw)
        add_raw(task, queries, slot, scratch, sums.raw);
    }
    // The sum over rotated values, turned back once, instead of turning every value.
    if (rotated(store_.packed.policy().v)) {
      hadamard(sums.packed.out.data(), queries.n_rows(), shape.v_dim, shape.v_dim);
    }
    sums.raw.merge(sums.packed);
  }

 private:
  static bool rotated(const Side& side) { return side.rotation == Rotation::Hadamard; }

  // One tile of n keys and values, expanded and masked in scratch, against query rows `q`.
  void add_tile(const QueryTile& queries, const float* q, int n, Visible visible, Scratch& scratch,
                Partial& sums) const {
    const int rows = queries.n_rows();
    scratch.scores.resize(size_t(rows) * size_t(n));
    raw_scores(kernels_, q, rows, queries.dim, scratch.keys.data(), n, scratch.turned,
               scratch.scores.data());
    finish_scores(step_, queries, visible, scratch.bias.data(), n, scratch.scores.data());
    for (int r = 0; r < rows; ++r) {
      float* row = scratch.scores.data() + r * n;
      const float top = *std::max_element(row, row + n);
      if (!(top > -std::numeric_limits<float>::infinity())) {
        std::fill_n(row, n, 0.0f);
        continue;
      }
      sums.raise(r, top);
      sums.mass[size_t(r)] += kernels_.exp_row(row, n, sums.peak[size_t(r)]);
    }
    kernels_.gemm(rows, sums.dim, n, scratch.scores.data(), n, scratch.values.data(), sums.dim,
                  sums.out.data(), sums.dim, true);
  }

  Visible mask(const Task& task, const LogBlock& block, const uint8_t* order, int n,
               Scratch& scratch) const {
    scratch.bias.resize(size_t(task.n_queries) * size_t(n));
    return mask_tile(step_, block, task.first_query, task.n_queries, order, n, scratch.bias.data());
  }

  void add_raw(const Task& task, const QueryTile& queries, int slot, Scratch& scratch,
               Partial& sums) const {
    const LayerShape& shape = store_.raw.shape;
    const LogBlock& block = log_.block(slot);
    uint8_t order[kBlockTokens];
    std::iota(order, order + block.n_rows, uint8_t{0});
    const Visible visible = mask(task, block, order, block.n_rows, scratch);
    if (visible == Visible::None) return;
    uint8_t* raw = store_.block(slot).raw;
    scratch.keys.resize(size_t(kBlockTokens) * size_t(shape.k_dim));
    scratch.values.resize(size_t(kBlockTokens) * size_t(shape.v_dim));
    kernels_.halves(store_.raw.k(raw, task.head), scratch.keys.data(), block.n_rows * shape.k_dim);
    kernels_.halves(store_.raw.v(raw, task.head), scratch.values.data(),
                    block.n_rows * shape.v_dim);
    add_tile(queries, queries.rows.data(), block.n_rows, visible, scratch, sums);
  }

  void add_packed(const Task& task, const QueryTile& queries, int slot, Scratch& scratch,
                  TaskSums& sums) const {
    const LayerShape& shape = store_.raw.shape;
    const LogBlock& block = log_.block(slot);
    const StoredBlock& stored = store_.block(slot);
    const PackedHead head = store_.head(slot, task.head);
    uint8_t order[kBlockTokens];
    packed_order(head.tags, stored.sinks, kBlockTokens, order);
    if (stored.sinks.any()) add_sinks(task, queries, slot, head, scratch, sums.raw);
    const Visible visible = mask(task, block, order, stored.n_coded, scratch);
    if (visible == Visible::None) return;
    scratch.keys.resize(size_t(kBlockTokens) * size_t(shape.k_dim));
    scratch.values.resize(size_t(kBlockTokens) * size_t(shape.v_dim));
    int at = 0;
    for (size_t tier = 0; tier < store_.packed.policy().tiers.size(); ++tier) {
      kernels_.expand(kernel_args(head.k.tiers[tier]),
                      &scratch.keys[size_t(at) * size_t(shape.k_dim)]);
      kernels_.expand(kernel_args(head.v.tiers[tier]),
                      &scratch.values[size_t(at) * size_t(shape.v_dim)]);
      at += head.k.tiers[tier].shape.n_tokens;
    }
    add_tile(queries, queries.for_packed(), stored.n_coded, visible, scratch, sums.packed);
  }

  void add_sinks(const Task& task, const QueryTile& queries, int slot, const PackedHead& head,
                 Scratch& scratch, Partial& sums) const {
    const LayerShape& shape = store_.raw.shape;
    const BlockBits& sinks = store_.block(slot).sinks;
    uint8_t order[kBlockTokens];
    int n = 0;
    for (int row = 0; row < kBlockTokens; ++row) {
      if (sinks.test(size_t(row))) order[n++] = uint8_t(row);
    }
    const Visible visible = mask(task, log_.block(slot), order, n, scratch);
    if (visible == Visible::None) return;
    scratch.keys.resize(size_t(kBlockTokens) * size_t(shape.k_dim));
    scratch.values.resize(size_t(kBlockTokens) * size_t(shape.v_dim));
    kernels_.halves(head.k_sinks, scratch.keys.data(), n * shape.k_dim);
    kernels_.halves(head.v_sinks, scratch.values.data(), n * shape.v_dim);
    add_tile(queries, queries.rows.data(), n, visible, scratch, sums);
  }

  const Attention& step_;
  const StreamLog& log_;
  const LayerStore& store_;
  const Kernels& kernels_;
  int group_;
};

// Heads times query tiles; few of those are split further over blocks, so that every thread has
// work.
std::vector<Task> plan_tasks(const Attention& step, int n_kv_heads, int n_blocks) {
  const int tiles = (step.n_queries + kQueriesPerTile - 1) / kQueriesPerTile;
  const int wanted = step.n_threads > 1 ? 3 * step.n_threads : 1;
  const int splits = std::clamp(wanted / std::max(1, n_kv_heads * tiles), 1, std::max(1, n_blocks));
  std::vector<Task> tasks;
  for (int head = 0; head < n_kv_heads; ++head) {
    for (int tile = 0; tile < tiles; ++tile) {
      for (int split = 0; split < splits; ++split) {
        const int first_query = tile * kQueriesPerTile;
        const int first_block = n_blocks * split / splits;
        tasks.push_back({head, first_query, std::min(kQueriesPerTile, step.n_queries - first_query),
                         first_block, n_blocks * (split + 1) / splits - first_block});
      }
    }
  }
  return tasks;
}

void write_rows(const Attention& step, const Task& task, int group, Partial& sums,
                std::vector<float>& log_mass) {
  for (int r = 0; r < sums.n_rows; ++r) {
    const int query = task.first_query + r / group, head = task.head * group + r % group;
    if (step.sinks) sums.add_logit(r, step.sinks[head]);
    const float mass = sums.mass[size_t(r)];
    const float inverse = mass > 0 ? 1.0f / mass : 0.0f;
    float* out = step.out + query * step.out_row_stride + head * step.out_head_stride;
    for (int c = 0; c < sums.dim; ++c) out[c] = sums.row(r)[c] * inverse;
    log_mass[size_t(query) * size_t(step.n_heads) + size_t(head)] = sums.log_mass(r);
  }
}

}  // namespace

Status attend_blocks(const Attention& step, const StreamLog& log, const LayerStore& store,
                     const Kernels& kernels, std::vector<float>& log_mass) {
  const int n_kv_heads = store.raw.shape.n_heads;
  const std::vector<Task> tasks = plan_tasks(step, n_kv_heads, int(log.order().size()));
  std::vector<TaskSums> sums(tasks.size());
  const Worker worker(step, log, store, kernels);
  std::atomic<bool> stop{false};
  parallel_for(step.n_threads, int(tasks.size()), [&](int i) {
    if (step.aborted && step.aborted(step.aborted_data)) stop = true;
    if (!stop) worker.run(tasks[size_t(i)], sums[size_t(i)], stop);
  });
  if (stop) return {Code::Aborted, "attention was stopped by the caller"};
  log_mass.assign(size_t(step.n_queries) * size_t(step.n_heads), 0.0f);
  for (size_t i = 0; i < tasks.size(); ++i) {
    TaskSums& first = sums[i];
    size_t next = i + 1;
    for (; next < tasks.size() && tasks[next].first_block > 0; ++next)
      first.raw.merge(sums[next].raw);
    write_rows(step, tasks[i], step.n_heads / n_kv_heads, first.raw, log_mass);
    i = next - 1;
  }
  return ok();
}

}  // namespace zipcache
