// The probe pass: attention that probe rows gave to the tokens that are still raw (paper,
// section 4.2).
#include <numeric>

#include "attend/attend.hpp"
#include "attend/scores.hpp"
#include "base/parallel.hpp"

namespace zipcache {
namespace {

// Adds one probe's attention to `sums` [n], given the log of each of its rows' softmax sums.
void add_probe(const Attention& step, const QueryTile& probe, const Kernels& kernels,
               Visible visible, const std::vector<float>& bias, const half* keys, int n,
               const float* log_mass, std::vector<float>& scratch, std::vector<float>& scores,
               float* sums) {
  scores.resize(size_t(probe.group) * size_t(n));
  half_scores(kernels, probe, keys, n, scratch, scores.data());
  finish_scores(step, probe, visible, bias.data(), n, scores.data());
  for (int h = 0; h < probe.group; ++h) {
    float* row = scores.data() + h * n;
    // Minus the log of the sum instead of the peak: exp gives the probability itself.
    kernels.exp_row(row, n, log_mass[probe.first_head + h]);
    for (int i = 0; i < n; ++i) sums[i] += row[i];
  }
}

void score_head(const Attention& step, const StreamLog& log, LayerStore& store,
                const Kernels& kernels, const std::vector<int>& probes,
                const std::vector<float>& log_mass, int head) {
  const LayerShape& shape = store.raw.shape;
  const int group = step.n_heads / shape.n_heads;
  std::vector<QueryTile> tiles;
  for (const int row : probes)
    tiles.push_back(gather_queries(step, row, 1, head, group, shape.k_dim, false));
  std::vector<float> bias(kBlockTokens), scratch, scores;
  uint8_t order[kBlockTokens];
  std::iota(order, order + kBlockTokens, uint8_t{0});
  for (const int slot : log.order()) {
    uint8_t* raw = store.block(slot).raw;
    if (!raw) continue;
    const LogBlock& block = log.block(slot);
    for (const QueryTile& probe : tiles) {
      Visible visible = view_of(step, block, probe.first_query, 1);
      if (visible == Visible::Some)
        visible = mask_tile(step, block, probe.first_query, 1, order, block.n_rows, bias.data());
      if (visible == Visible::None) continue;
      add_probe(step, probe, kernels, visible, bias, store.raw.k(raw, head), block.n_rows,
                &log_mass[size_t(probe.first_query) * size_t(step.n_heads)], scratch, scores,
                store.raw.sums(raw, head));
    }
  }
}

// Counts of probe rows, and of all rows where the policy divides by them, that could see each raw
// row.
void count_views(const Attention& step, const StreamLog& log, LayerStore& store,
                 const std::vector<int>& probes) {
  const bool all_rows = store.packed.policy().saliency.norm == Norm::FullCausal;
  for (const int slot : log.order()) {
    uint8_t* raw = store.block(slot).raw;
    if (!raw) continue;
    const LogBlock& block = log.block(slot);
    for (int row = 0; row < block.n_rows; ++row) {
      const int32_t cell = block.cells[size_t(row)];
      for (const int probe : probes) store.raw.probes_seen(raw)[row] += sees(step, probe, cell);
      for (int q = 0; all_rows && q < step.n_queries; ++q)
        store.raw.rows_seen(raw)[row] += sees(step, q, cell);
    }
  }
}

}  // namespace

void score_raw_blocks(const Attention& step, const StreamLog& log, LayerStore& store,
                      const Kernels& kernels, const std::vector<int>& probes,
                      const std::vector<float>& log_mass) {
  parallel_for(step.n_threads, store.raw.shape.n_heads,
               [&](int head) { score_head(step, log, store, kernels, probes, log_mass, head); });
  count_views(step, log, store, probes);
}

}  // namespace zipcache
