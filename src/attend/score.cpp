// The probe pass: attention that probe rows gave to the tokens that are still raw (paper,
// section 4.2).
#include <algorithm>
#include <numeric>

#include "attend/attend.hpp"
#include "attend/workspace.hpp"
#include "base/parallel.hpp"

namespace zipcache {
namespace {

// Adds the attention of all probe rows of one KV head to the tokens of one raw block.
class ProbePass {
 public:
  ProbePass(const Attention& step, const StreamLog& log, const LayerStore& store,
            const Kernels& kernels, const std::vector<int>& probes, const float* log_mass)
      : step_(step),
        log_(log),
        store_(store),
        kernels_(kernels),
        probes_(probes),
        log_mass_(log_mass),
        newest_only_(store.packed.policy().saliency.statistic == Statistic::Last),
        largest_(store.packed.policy().saliency.statistic == Statistic::Max),
        group_(step.n_heads / store.raw.shape.n_heads) {}

  void score(int slot, int head, Scratch& scratch) const {
    const LogBlock& block = log_.block(slot);
    const int n = block.n_rows, ld = padded_to(n, kUnitRows);
    uint8_t* raw = store_.block(slot).raw;
    // Query rows of all probes, one behind the other.
    gather_queries(step_, probes_, head, group_, store_.raw.shape.k_dim, {}, scratch.queries);
    scratch.scores.resize(size_t(scratch.queries.n_rows()) * size_t(ld));
    half_scores(kernels_, scratch.queries, store_.raw.k(raw, head), n, scratch.turned,
                scratch.scores.data(), ld);
    for (size_t i = 0; i < probes_.size(); ++i) {
      float* scores = scratch.scores.data() + ptrdiff_t(i) * group_ * ld;
      add_probe(probes_[i], head, block, scores, ld, scratch.bias,
                {store_.raw.sums(raw, head), store_.raw.squares(raw, head)});
    }
  }

 private:
  // Where the attention of probes to the tokens of a block is added up, and its squares or null.
  struct Totals {
    float *sums, *squares;
  };

  void add_probe(int query, int head, const LogBlock& block, float* scores, int ld,
                 std::vector<float>& bias, const Totals& totals) const {
    const int n = block.n_rows;
    Visible visible = view_of(step_, block, query, 1);
    if (visible == Visible::Some) {
      uint8_t order[kBlockTokens];
      std::iota(order, order + n, uint8_t{0});
      bias.resize(kBlockTokens);
      visible = mask_tile(step_, block, query, 1, order, n, bias.data());
    }
    if (visible == Visible::None) return;
    finish_scores(step_, head * group_, group_, 1, visible, bias.data(), n, scores, ld);
    // The newest row alone counts: what earlier ones gave goes.
    for (int i = 0; newest_only_ && i < n; ++i) {
      if (sees(step_, query, block.cells[size_t(i)])) totals.sums[i] = 0;
    }
    for (int h = 0; h < group_; ++h) {
      float* row = scores + h * ld;
      // Minus the log of the sum instead of the peak: exp gives the probability itself.
      kernels_.exp_row(row, n, log_mass_[query * step_.n_heads + head * group_ + h]);
      for (int i = 0; i < n; ++i)
        totals.sums[i] = largest_ ? std::max(totals.sums[i], row[i]) : totals.sums[i] + row[i];
    }
    for (int i = 0; totals.squares && i < n; ++i) {
      float given = 0;
      for (int h = 0; h < group_; ++h) given += scores[h * ld + i];
      totals.squares[i] += given * given;
    }
  }

  const Attention& step_;
  const StreamLog& log_;
  const LayerStore& store_;
  const Kernels& kernels_;
  const std::vector<int>& probes_;
  const float* log_mass_;
  const bool newest_only_, largest_;
  const int group_;
};

// Counts of probe rows, and of all rows where the policy divides by them, that could see each raw
// row.
void count_views(const Attention& step, const LogBlock& block, const RawLayout& layout,
                 uint8_t* raw, const std::vector<int>& probes, bool all_rows) {
  for (int row = 0; row < block.n_rows; ++row) {
    const int32_t cell = block.cells[size_t(row)];
    for (const int probe : probes) layout.probes_seen(raw)[row] += sees(step, probe, cell);
    for (int q = 0; all_rows && q < step.n_queries; ++q)
      layout.rows_seen(raw)[row] += sees(step, q, cell);
  }
}

}  // namespace

void Attender::score(const Attention& step, const StreamLog& log, LayerStore& store,
                     const std::vector<int>& probes) {
  const bool all_rows = store.packed.policy().saliency.norm == Norm::FullCausal;
  if (probes.empty() && !all_rows) return;
  std::vector<int> slots;
  for (const int slot : log.order()) {
    if (store.block(slot).raw) slots.push_back(slot);
  }
  const ProbePass pass(step, log, store, kernels_, probes, space_->log_mass.data());
  const int n_heads = store.raw.shape.n_heads;
  space_->begin(step.n_threads);
  parallel_for(step.n_threads, int(slots.size()) * n_heads, [&](int task, int worker) {
    const int slot = slots[size_t(task / n_heads)];
    if (!probes.empty()) pass.score(slot, task % n_heads, space_->scratch[size_t(worker)]);
    if (task % n_heads > 0) return;
    count_views(step, log.block(slot), store.raw, store.block(slot).raw, probes, all_rows);
  });
}

void Attender::learn_queries(const Attention& step, LayerStore& store) {
  const LayerShape& shape = store.raw.shape;
  const int group = step.n_heads / shape.n_heads;
  if (store.moments.empty() || step.n_queries < kShortStep ||
      step.n_queries * group < kMomentRows) {
    return;
  }
  // Every so many rows: some hundreds say what all of them are like.
  const int stride = std::max(1, step.n_queries * group / kMomentMostRows);
  std::vector<int> queries;
  for (int q = 0; q < step.n_queries; q += stride) queries.push_back(q);
  space_->begin(step.n_threads);
  parallel_for(step.n_threads, shape.n_heads, [&](int head, int worker) {
    QueryTile& tile = space_->scratch[size_t(worker)].queries;
    gather_queries(step, queries, head, group, shape.k_dim, store.rotation(SideId::K, head), tile);
    store.moments[size_t(head)].learn(tile.for_packed(), tile.n_rows(), tile.ld);
  });
}

}  // namespace zipcache
