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
  FoldedRow folded[kMaxRows];
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
        precision_(precision_in_use(store.packed.policy(), kernels)),
        group_(step.n_heads / store.raw.shape.n_heads) {}

  QueryTile gather(int head, int first_query, int n_queries) const {
    return gather_queries(step_, first_query, n_queries, head, group_, store_.raw.shape.k_dim,
                          store_.packed.policy().k.rotation == Rotation::Hadamard);
  }

  void reset(const QueryTile& queries, TaskSums& sums) const {
    sums.raw.reset(queries.n_rows(), padded_to(store_.raw.shape.v_dim, kUnitRows));
    sums.packed.reset(queries.n_rows(), padded_to(store_.raw.shape.v_dim, kUnitRows));
  }

  // Adds one block, the `index`-th of the log, of one head.
  void add_block(const QueryTile& queries, int head, int index, Scratch& scratch,
                 TaskSums& sums) const {
    const int slot = log_.order()[size_t(index)];
    const StoredBlock& stored = store_.block(slot);
    const Visible view = view_of(step_, log_.block(slot), queries.first_query, queries.n_queries);
    if (view == Visible::None) return;
    if (stored.packed)
      add_packed(head, queries, slot, view, scratch, sums);
    else if (stored.raw)
      add_raw(head, queries, slot, view, scratch, sums.raw);
  }

  // Merges what packed blocks gave into sums.raw. The sum over rotated values is turned back once,
  // instead of turning every value.
  void finish(TaskSums& sums) const {
    if (store_.packed.policy().v.rotation == Rotation::Hadamard) {
      hadamard(sums.packed.out.data(), sums.packed.n_rows, store_.raw.shape.v_dim, sums.packed.dim);
    }
    sums.raw.merge(sums.packed);
  }

 private:
  // What the block's view leaves open, for the columns in `order`; fills scratch.bias for Some.
  Visible look(const QueryTile& queries, int slot, Visible view, const uint8_t* order, int n,
               Scratch& scratch) const {
    if (view != Visible::Some) return view;
    scratch.bias.resize(size_t(queries.n_queries) * size_t(n));
    return mask_tile(step_, log_.block(slot), queries.first_query, queries.n_queries, order, n,
                     scratch.bias.data());
  }

  // Scores [rows, n] in scratch become probabilities against the raised peaks.
  void softmax(const QueryTile& queries, Visible visible, int n, Scratch& scratch,
               Partial& sums) const {
    finish_scores(step_, queries, visible, scratch.bias.data(), n, scratch.scores.data());
    for (int r = 0; r < queries.n_rows(); ++r) {
      float* row = scratch.scores.data() + r * n;
      const float top = kernels_.max_row(row, n);
      if (!(top > -std::numeric_limits<float>::infinity())) {
        std::fill_n(row, n, 0.0f);
        continue;
      }
      sums.raise(r, top);
      sums.mass[size_t(r)] += kernels_.exp_row(row, n, sums.peak[size_t(r)]);
    }
  }

  // n rows of 16-bit keys and values.
  void add_halves(const QueryTile& queries, const half* keys, const half* values, int n,
                  Visible visible, Scratch& scratch, Partial& sums) const {
    scratch.scores.resize(size_t(queries.n_rows()) * size_t(n));
    half_scores(kernels_, queries, keys, n, scratch.turned, scratch.scores.data());
    softmax(queries, visible, n, scratch, sums);
    sum_halves(queries.n_rows(), scratch.scores.data(), n, values, n, scratch, sums);
  }

  // Adds weights [rows, n of ld] times 16-bit values [n, v_dim].
  void sum_halves(int rows, const float* weights, int ld, const half* values, int n,
                  Scratch& scratch, Partial& sums) const {
    const int dim = store_.raw.shape.v_dim;
    if (rows <= kDecodeRows) {
      return kernels_.half_sums(rows, n, dim, weights, ld, values, sums.out.data(), sums.dim);
    }
    scratch.values.resize(size_t(n) * size_t(dim));
    kernels_.halves(values, scratch.values.data(), n * dim);
    kernels_.gemm(rows, dim, n, weights, ld, scratch.values.data(), dim, sums.out.data(), sums.dim,
                  true);
  }

  void add_raw(int head, const QueryTile& queries, int slot, Visible view, Scratch& scratch,
               Partial& sums) const {
    const LogBlock& block = log_.block(slot);
    uint8_t order[kBlockTokens];
    std::iota(order, order + block.n_rows, uint8_t{0});
    const Visible visible = look(queries, slot, view, order, block.n_rows, scratch);
    if (visible == Visible::None) return;
    uint8_t* raw = store_.block(slot).raw;
    add_halves(queries, store_.raw.k(raw, head), store_.raw.v(raw, head), block.n_rows, visible,
               scratch, sums);
  }

  void add_packed(int head_index, const QueryTile& queries, int slot, Visible view,
                  Scratch& scratch, TaskSums& sums) const {
    const StoredBlock& stored = store_.block(slot);
    const PackedHead head = store_.head(slot, head_index);
    if (stored.sinks.any()) add_sinks(queries, slot, head, view, scratch, sums.raw);
    const int n = tier_columns(head);
    uint8_t order[kMaxTierColumns];
    if (view == Visible::Some) packed_order(head, stored.sinks, order);
    const Visible visible = look(queries, slot, view, order, n, scratch);
    if (visible == Visible::None) return;
    scratch.scores.resize(size_t(queries.n_rows()) * size_t(n));
    const bool on_codes = queries.n_rows() <= kDecodeRows;
    if (on_codes)
      code_scores(queries, head, n, scratch);
    else
      expanded_scores(queries, head, n, scratch);
    hide_filling(queries.n_rows(), head, n, scratch.scores.data());
    softmax(queries, visible, n, scratch, sums.packed);
    if (on_codes)
      sum_codes(queries.n_rows(), head, n, scratch, sums.packed);
    else
      sum_expanded(queries.n_rows(), head, n, scratch, sums.packed);
  }

  void add_sinks(const QueryTile& queries, int slot, const PackedHead& head, Visible view,
                 Scratch& scratch, Partial& sums) const {
    const BlockBits& sinks = store_.block(slot).sinks;
    uint8_t order[kBlockTokens];
    int n = 0;
    for (int row = 0; row < kBlockTokens; ++row) {
      if (sinks.test(size_t(row))) order[n++] = uint8_t(row);
    }
    const Visible visible = look(queries, slot, view, order, n, scratch);
    if (visible == Visible::None) return;
    add_halves(queries, head.k_sinks, head.v_sinks, n, visible, scratch, sums);
  }

  // Calls visit(tile, first column of the tier) for each tier that holds tokens.
  template <class Visit>
  void for_tiers(const PackedSide& side, const PackedHead& head, Visit&& visit) const {
    for (size_t tier = 0; tier < store_.packed.policy().tiers.size(); ++tier) {
      const TileView& tile = side.tiers[tier];
      if (tile.shape.n_tokens > 0) visit(tile, tier == 0 ? 0 : padded_to(head.n_high, kUnitRows));
    }
  }

  static void hide_filling(int rows, const PackedHead& head, int n, float* scores) {
    const int high = padded_to(head.n_high, kUnitRows);
    for (int r = 0; r < rows; ++r) {
      float* row = scores + r * n;
      std::fill(row + head.n_high, row + high, -std::numeric_limits<float>::infinity());
      std::fill(row + high + head.n_low, row + n, -std::numeric_limits<float>::infinity());
    }
  }

  // One part of a tile against up to kMaxRows rows at a time: x [rows, ldx], one number a column.
  void multiply(const CodePart& part, Weighting weighting, int rows, const float* x, int ldx,
                float* out, int ld, bool add, Scratch& scratch) const {
    for (int first = 0; first < rows; first += kMaxRows) {
      const int n = std::min(kMaxRows, rows - first);
      for (int r = 0; r < n; ++r)
        kernels_.fold(part, weighting, x + (first + r) * ldx, scratch.folded[r]);
      kernels_.products(part, weighting, scratch.folded, n, out + first * ld, ld, add);
    }
  }

  void code_scores(const QueryTile& queries, const PackedHead& head, int n,
                   Scratch& scratch) const {
    for_tiers(head.k, head, [&](const TileView& tile, int at) {
      float* out = scratch.scores.data() + at;
      if (tile.shape.bits == 16) {
        return kernels_.half_dots(queries.n_rows(), tile.shape.n_tokens, queries.dim,
                                  queries.for_packed(), queries.ld,
                                  reinterpret_cast<const half*>(tile.codes), out, n);
      }
      for (int i = 0; i < n_parts(tile.shape); ++i) {
        const PlacedPart placed = part_of(tile, i);
        multiply(placed.part, weighting(SideId::K, tile.shape.bits), queries.n_rows(),
                 queries.for_packed() + placed.first_column, queries.ld, out, n, i > 0, scratch);
      }
    });
  }

  void sum_codes(int rows, const PackedHead& head, int n, Scratch& scratch, Partial& sums) const {
    for_tiers(head.v, head, [&](const TileView& tile, int at) {
      const float* weights = scratch.scores.data() + at;
      if (tile.shape.bits == 16) {
        return sum_halves(rows, weights, n, reinterpret_cast<const half*>(tile.codes),
                          tile.shape.n_tokens, scratch, sums);
      }
      for (int i = 0; i < n_parts(tile.shape); ++i) {
        const PlacedPart placed = part_of(tile, i);
        multiply(placed.part, weighting(SideId::V, tile.shape.bits), rows, weights, n,
                 sums.out.data() + placed.first_row, sums.dim, true, scratch);
      }
    });
  }

  void expanded_scores(const QueryTile& queries, const PackedHead& head, int n,
                       Scratch& scratch) const {
    scratch.keys.assign(size_t(queries.dim) * size_t(n), 0.0f);
    for_tiers(head.k, head, [&](const TileView& tile, int at) {
      if (tile.shape.bits != 16) return expand_tile(kernels_, tile, scratch.keys.data() + at, n);
      const half* keys = reinterpret_cast<const half*>(tile.codes);
      for (int t = 0; t < tile.shape.n_tokens; ++t) {
        for (int c = 0; c < queries.dim; ++c)
          scratch.keys[size_t(c * n + at + t)] = to_float(keys[t * queries.dim + c]);
      }
    });
    kernels_.gemm(queries.n_rows(), n, queries.dim, queries.for_packed(), queries.ld,
                  scratch.keys.data(), n, scratch.scores.data(), n, false);
  }

  void sum_expanded(int rows, const PackedHead& head, int n, Scratch& scratch,
                    Partial& sums) const {
    const int dim = store_.raw.shape.v_dim, ld = sums.dim;
    scratch.values.assign(size_t(n) * size_t(ld), 0.0f);
    for_tiers(head.v, head, [&](const TileView& tile, int at) {
      float* out = scratch.values.data() + at * ld;
      if (tile.shape.bits != 16) return expand_tile(kernels_, tile, out, ld);
      const half* values = reinterpret_cast<const half*>(tile.codes);
      for (int t = 0; t < tile.shape.n_tokens; ++t)
        kernels_.halves(values + t * dim, out + t * ld, dim);
    });
    kernels_.gemm(rows, ld, n, scratch.scores.data(), n, scratch.values.data(), ld, sums.out.data(),
                  ld, true);
  }

  // Codes of 8 bits leave no room for a second byte in a product.
  Weighting weighting(SideId side, int bits) const {
    if (bits == 8 || precision_ == Precision::Exact) return Weighting::Words;
    if (side == SideId::V) return Weighting::UnsignedBytes;
    return precision_ == Precision::K2 ? Weighting::Words : Weighting::SignedBytes;
  }

  const Attention& step_;
  const StreamLog& log_;
  const LayerStore& store_;
  const Kernels& kernels_;
  Precision precision_;
  int group_;
};

// One attention operation cut into tasks.
class Operation {
 public:
  Operation(const Attention& step, const StreamLog& log, const LayerStore& store,
            const Kernels& kernels, std::vector<float>& log_mass)
      : step_(step),
        store_(store),
        worker_(step, log, store, kernels),
        n_heads_(store.raw.shape.n_heads),
        n_blocks_(int(log.order().size())),
        group_(step.n_heads / n_heads_),
        log_mass_(log_mass) {}

  Status run() {
    log_mass_.assign(size_t(step_.n_queries) * size_t(step_.n_heads), 0.0f);
    if (step_.n_queries * group_ <= kDecodeRows)
      decode();
    else
      prefill();
    if (stop_) return {Code::Aborted, "attention was stopped by the caller"};
    return ok();
  }

 private:
  bool stopped() {
    if (step_.aborted && step_.aborted(step_.aborted_data)) stop_ = true;
    return stop_.load(std::memory_order_relaxed);
  }

  // Few rows: the keys are split. Blocks times heads in the order of memory, cut into as many
  // ranges as keep the threads busy; a head's sums over the ranges are merged at the end.
  void decode() {
    const int n_items = n_blocks_ * n_heads_;
    const int n_tasks =
        std::clamp(step_.n_threads > 1 ? 2 * step_.n_threads : 1, 1, std::max(1, n_items));
    std::vector<QueryTile> queries;
    for (int head = 0; head < n_heads_; ++head)
      queries.push_back(worker_.gather(head, 0, step_.n_queries));
    std::vector<TaskSums> sums(size_t(n_tasks * n_heads_));
    parallel_for(step_.n_threads, n_tasks, [&](int task) {
      Scratch scratch;
      const int64_t end = int64_t{n_items} * (task + 1) / n_tasks;
      for (int64_t item = int64_t{n_items} * task / n_tasks; item < end; ++item) {
        const int head = int(item % n_heads_);
        if (stopped()) return;
        TaskSums& here = sums[size_t(task * n_heads_ + head)];
        if (here.raw.n_rows == 0) worker_.reset(queries[size_t(head)], here);
        worker_.add_block(queries[size_t(head)], head, int(item / n_heads_), scratch, here);
      }
    });
    if (stop_) return;
    parallel_for(n_tasks > 8 ? step_.n_threads : 1, n_heads_, [&](int head) {
      TaskSums all;
      worker_.reset(queries[size_t(head)], all);
      for (int task = 0; task < n_tasks; ++task) {
        TaskSums& part = sums[size_t(task * n_heads_ + head)];
        if (part.raw.n_rows == 0) continue;
        all.raw.merge(part.raw);
        all.packed.merge(part.packed);
      }
      worker_.finish(all);
      write_rows(queries[size_t(head)], all.raw);
    });
  }

  // Many rows: every head and range of queries is a task over all blocks.
  void prefill() {
    const int n_tiles = (step_.n_queries + kQueriesPerTile - 1) / kQueriesPerTile;
    parallel_for(step_.n_threads, n_heads_ * n_tiles, [&](int task) {
      const int head = task / n_tiles, first = task % n_tiles * kQueriesPerTile;
      const QueryTile queries =
          worker_.gather(head, first, std::min(kQueriesPerTile, step_.n_queries - first));
      Scratch scratch;
      TaskSums sums;
      worker_.reset(queries, sums);
      for (int block = 0; block < n_blocks_; ++block) {
        if (stopped()) return;
        worker_.add_block(queries, head, block, scratch, sums);
      }
      worker_.finish(sums);
      write_rows(queries, sums.raw);
    });
  }

  void write_rows(const QueryTile& queries, Partial& sums) {
    for (int r = 0; r < sums.n_rows; ++r) {
      const int query = queries.first_query + r / group_, head = queries.first_head + r % group_;
      if (step_.sinks) sums.add_logit(r, step_.sinks[head]);
      const float mass = sums.mass[size_t(r)];
      const float inverse = mass > 0 ? 1.0f / mass : 0.0f;
      float* out = step_.out + query * step_.out_row_stride + head * step_.out_head_stride;
      for (int c = 0; c < store_.raw.shape.v_dim; ++c) out[c] = sums.row(r)[c] * inverse;
      log_mass_[size_t(query) * size_t(step_.n_heads) + size_t(head)] = sums.log_mass(r);
    }
  }

  const Attention& step_;
  const LayerStore& store_;
  const Worker worker_;
  const int n_heads_, n_blocks_, group_;
  std::vector<float>& log_mass_;
  std::atomic<bool> stop_{false};
};

}  // namespace

Precision precision_in_use(const Policy& policy, const Kernels& kernels) {
  return policy.precision == Precision::Auto ? kernels.precision : policy.precision;
}

Status attend_blocks(const Attention& step, const StreamLog& log, const LayerStore& store,
                     const Kernels& kernels, std::vector<float>& log_mass) {
  return Operation(step, log, store, kernels, log_mass).run();
}

}  // namespace zipcache
