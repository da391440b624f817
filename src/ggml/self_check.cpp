#include "ggml/self_check.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

namespace zipcache {
namespace {

constexpr int kKept = 2 * kBlockTokens;  // tokens
constexpr int kQueries = 16;             // newest rows of a step

// Rows of one layer in both forms, [kKept, heads * dim] each.
struct Rows {
  std::vector<float> k, v;
};

std::vector<float> expanded(const std::vector<half>& rows) {
  std::vector<float> out(rows.size());
  std::transform(rows.begin(), rows.end(), out.begin(), to_float);
  return out;
}

bool sees(const Attention& step, int query, int cell) {
  if (cell >= step.n_cells) return false;
  return step.mask == nullptr || step.mask[query * step.mask_stride + cell] != kHalfNegInf;
}

// Softmax attention of one query head over `rows` where `visible`, in double precision.
std::vector<double> attend(const Attention& step, const LayerShape& shape, const Rows& rows,
                           const std::vector<int>& visible, int query, int head) {
  const int kv_head = head / (step.n_heads / shape.n_heads);
  const float* q = step.q + query * step.q_row_stride + head * step.q_head_stride;
  std::vector<double> scores;
  double largest = -INFINITY;
  for (const int cell : visible) {
    const float* k = rows.k.data() + (size_t(cell) * shape.n_heads + kv_head) * shape.k_dim;
    double score = 0;
    for (int c = 0; c < shape.k_dim; ++c) score += double(q[c]) * k[c];
    score *= step.scale;
    if (step.soft_cap > 0) score = step.soft_cap * std::tanh(score / step.soft_cap);
    scores.push_back(score);
    largest = std::max(largest, score);
  }
  std::vector<double> out(size_t(shape.v_dim), 0.0);
  double sum = 0;
  for (size_t i = 0; i < visible.size(); ++i) {
    const double weight = std::exp(scores[i] - largest);
    const float* v = rows.v.data() + (size_t(visible[i]) * shape.n_heads + kv_head) * shape.v_dim;
    for (int c = 0; c < shape.v_dim; ++c) out[size_t(c)] += weight * v[c];
    sum += weight;
  }
  for (double& value : out) value /= sum;
  return out;
}

// |found - expected|^2 and |expected|^2 over heads and the newest queries.
struct Sums {
  double error = 0, size = 0;
};

void add_query(Sums& sums, const Attention& step, const LayerShape& shape, const Rows& kept,
               const Rows& packed, const std::vector<int>& visible, int query) {
  for (int head = 0; head < step.n_heads; ++head) {
    const auto expected = attend(step, shape, kept, visible, query, head);
    const auto found = attend(step, shape, packed, visible, query, head);
    for (size_t c = 0; c < expected.size(); ++c) {
      sums.error += (found[c] - expected[c]) * (found[c] - expected[c]);
      sums.size += expected[c] * expected[c];
    }
  }
}

}  // namespace

SelfCheck::SelfCheck(const Policy& policy, const std::vector<LayerShape>& layers)
    : n_needed_(policy.window.recent + kKept + kBlockTokens) {
  if (policy.raw() || policy.evicts() || policy.cadence == Cadence::Prompt) return;
  for (const LayerShape& shape : layers) {
    Layer layer{shape, {}, {}, std::vector<uint8_t>(kKept)};
    layer.k.resize(size_t(kKept) * shape.n_heads * shape.k_dim);
    layer.v.resize(size_t(kKept) * shape.n_heads * shape.v_dim);
    layers_.push_back(std::move(layer));
  }
}

void SelfCheck::note(int layer, int stream, SideId side, std::span<const int64_t> cells,
                     const float* rows, ptrdiff_t row_stride) {
  if (finished() || stream != 0 || layers_[size_t(layer)].done) return;
  Layer& own = layers_[size_t(layer)];
  const bool k = side == SideId::K;
  const size_t width = size_t(own.shape.n_heads) * (k ? own.shape.k_dim : own.shape.v_dim);
  for (size_t i = 0; i < cells.size(); ++i) {
    if (k) ++own.n_written;
    if (cells[i] >= kKept) continue;
    half* out = (k ? own.k : own.v).data() + size_t(cells[i]) * width;
    std::transform(rows + ptrdiff_t(i) * row_stride, rows + ptrdiff_t(i) * row_stride + width, out,
                   to_half);
    own.has[size_t(cells[i])] |= k ? 1 : 2;
  }
}

Status SelfCheck::measure(const Cache& cache, const Attention& step, Layer& layer) {
  const Rows kept{expanded(layer.k), expanded(layer.v)};
  Rows packed{std::vector<float>(layer.k.size()), std::vector<float>(layer.v.size())};
  const int n = std::min(kKept, step.n_cells);
  ZC_TRY(cache.read(step.layer, 0, SideId::K, 0, n, packed.k.data()));
  ZC_TRY(cache.read(step.layer, 0, SideId::V, 0, n, packed.v.data()));
  Sums sums;
  for (int query = std::max(0, step.n_queries - kQueries); query < step.n_queries; ++query) {
    std::vector<int> visible;
    for (int cell = 0; cell < n; ++cell) {
      if (layer.has[size_t(cell)] == 3 && sees(step, query, cell)) visible.push_back(cell);
    }
    // A window of attention that has moved on leaves nothing to compare.
    if (visible.size() >= kBlockTokens)
      add_query(sums, step, layer.shape, kept, packed, visible, query);
  }
  const double error = sums.size > 0 ? std::sqrt(sums.error / sums.size) : 0;
  if (error > worst_error_) {
    worst_error_ = error;
    worst_layer_ = step.layer;
  }
  return ok();
}

Result<bool> SelfCheck::compare(const Cache& cache, const Attention& done) {
  if (finished() || done.stream != 0 || done.max_bias > 0) return false;
  Layer& layer = layers_[size_t(done.layer)];
  if (layer.done || layer.n_written < n_needed_) return false;
  ZC_TRY(measure(cache, done, layer));
  layer = Layer();  // its rows are not needed any more
  layer.done = true;
  return std::all_of(layers_.begin(), layers_.end(), [](const Layer& l) { return l.done; });
}

std::string SelfCheck::warning() const {
  return fmt::format(
      "warning: this model does not stand the policy: attention over packed tokens is off by "
      "{:.0f} % "
      "in layer {}; run zipcache tune --check on it, or zipcache tune for a policy that suits it",
      100 * worst_error_, worst_layer_);
}

void SelfCheck::clear() {
  for (Layer& layer : layers_) {
    layer.n_written = 0;
    std::fill(layer.has.begin(), layer.has.end(), uint8_t{0});
  }
}

}  // namespace zipcache
