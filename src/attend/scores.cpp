#include "attend/scores.hpp"

#include <cmath>

namespace zipcache {
namespace {

// Slope of a head (Press et al. 2022, section 3): a geometric sequence, interleaved when the number
// of heads is not a power of two.
float alibi_slope(const Attention& step, int head) {
  if (step.max_bias <= 0) return 1.0f;
  int power = 1;
  while (power * 2 <= step.n_heads) power *= 2;
  const float exponent = head < power
                             ? step.max_bias * float(head + 1) / float(power)
                             : step.max_bias / 2 * float(2 * (head - power) + 1) / float(power);
  return std::pow(2.0f, -exponent);
}

}  // namespace

void gather_queries(const Attention& step, std::span<const int> queries, int kv_head, int group,
                    int dim, HeadRotation rotation, QueryTile& tile) {
  tile.first_query = queries.front();
  tile.n_queries = int(queries.size());
  tile.first_head = kv_head * group;
  tile.group = group;
  tile.dim = dim;
  tile.ld = padded_to(dim, kUnitRows);
  // With a soft cap the product is capped in units of cap: cap * tanh(q . k * scale / cap).
  const float scale = step.soft_cap > 0 ? step.scale / step.soft_cap : step.scale;
  tile.rows.assign(size_t(tile.n_rows()) * size_t(tile.ld), 0.0f);
  float* out = tile.rows.data();
  for (const int query : queries) {
    for (int head = tile.first_head; head < tile.first_head + group; ++head) {
      const float* in = step.q + query * step.q_row_stride + head * step.q_head_stride;
      for (int c = 0; c < dim; ++c) out[c] = in[c] * scale;
      out += tile.ld;
    }
  }
  tile.rotated.clear();
  if (!rotation.turns()) return;
  tile.rotated = tile.rows;
  rotation.turn(tile.rotated.data(), tile.n_rows(), dim, tile.ld);
}

void half_scores(const Kernels& kernels, const QueryTile& queries, const half* keys, int n,
                 std::vector<float>& scratch, float* scores, int ld) {
  const int dim = queries.dim, rows = queries.n_rows();
  // Few rows: row products. Many: turn the keys once, then a register-tiled product.
  if (rows <= kDecodeRows) {
    return kernels.half_dots(rows, n, dim, queries.rows.data(), queries.ld, keys, scores, ld);
  }
  scratch.resize(2 * size_t(n) * size_t(dim));
  float* keys_turned = scratch.data() + size_t(n) * size_t(dim);
  kernels.halves(keys, scratch.data(), n * dim);
  for (int t = 0; t < n; ++t) {
    for (int c = 0; c < dim; ++c) keys_turned[c * n + t] = scratch[size_t(t * dim + c)];
  }
  kernels.gemm(rows, n, dim, queries.rows.data(), queries.ld, keys_turned, n, scores, ld, false);
}

void finish_scores(const Attention& step, int first_head, int group, int n_queries, Visible visible,
                   const float* bias, int n, float* scores, int ld) {
  if (step.soft_cap > 0) {
    for (int r = 0; r < n_queries * group; ++r) {
      float* row = scores + r * ld;
      for (int i = 0; i < n; ++i) row[i] = step.soft_cap * std::tanh(row[i]);
    }
  }
  if (visible == Visible::All) return;
  for (int q = 0; q < n_queries; ++q) {
    for (int h = 0; h < group; ++h) {
      const float slope = alibi_slope(step, first_head + h);
      float* row = scores + (q * group + h) * ld;
      for (int i = 0; i < n; ++i) row[i] += slope * bias[q * n + i];
    }
  }
}

}  // namespace zipcache
