#include "support/oracle.hpp"

#include <algorithm>
#include <cmath>

namespace zipcache::test {

double half_rounded(double value) {
  if (value == 0) return value;
  const int exponent =
      std::max(std::ilogb(value), -14);  // -14 and below share the subnormal spacing
  const double spacing = std::ldexp(1.0, exponent - 10);
  const double rounded = std::nearbyint(value / spacing) * spacing;
  if (std::fabs(rounded) > 65504.0) return std::copysign(INFINITY, value);
  return rounded;
}

OracleSet quantize_set(const std::vector<double>& x, int bits, bool half_params) {
  const double top = std::ldexp(1.0, bits) - 1;
  const auto [lo, hi] = std::minmax_element(x.begin(), x.end());
  OracleSet set;
  set.step = (*hi - *lo) / top;
  set.floor = *lo;
  if (half_params) {
    set.step = half_rounded(set.step);
    set.floor = half_rounded(set.floor);
  }
  for (const double value : x) {
    const double code = set.step > 0 ? std::nearbyint((value - set.floor) / set.step) : 0.0;
    set.codes.push_back(int(std::clamp(code, 0.0, top)));
    set.values.push_back(set.floor + set.step * set.codes.back());
  }
  return set;
}

OracleTile quantize_tile(const std::vector<double>& x, int n, int dim, int bits, Axis axis,
                         int group, bool half_params) {
  std::vector<double> factors(size_t(dim), 1.0);
  if (axis == Axis::Cst) {
    for (int c = 0; c < dim; ++c) {
      double largest = 0;
      for (int t = 0; t < n; ++t) largest = std::max(largest, std::fabs(x[size_t(t * dim + c)]));
      factors[size_t(c)] = largest > 0 ? std::sqrt(largest) : 1.0;
      if (half_params) factors[size_t(c)] = half_rounded(factors[size_t(c)]);
    }
  }
  OracleTile tile{std::vector<int>(x.size()), std::vector<double>(x.size()), {}};
  const int width = axis == Axis::Group ? group : dim;
  // Tokens of a set that holds one channel.
  const int run = axis == Axis::ChannelGroup ? group : n;
  const bool per_channel = axis == Axis::Channel || axis == Axis::ChannelGroup;
  const int n_sets = per_channel ? (n + run - 1) / run * dim : n * dim / width;
  for (int s = 0; s < n_sets; ++s) {
    std::vector<size_t> places;
    if (per_channel) {
      for (int t = s / dim * run; t < std::min(n, (s / dim + 1) * run); ++t)
        places.push_back(size_t(t * dim + s % dim));
    } else {
      for (int i = 0; i < width; ++i) places.push_back(size_t(s * width + i));
    }
    std::vector<double> set;
    for (const size_t at : places) set.push_back(x[at] / factors[at % size_t(dim)]);
    const OracleSet coded = quantize_set(set, bits, half_params);
    tile.steps.push_back(coded.step);
    for (size_t i = 0; i < places.size(); ++i) {
      tile.codes[places[i]] = coded.codes[i];
      tile.values[places[i]] = coded.values[i] * factors[places[i] % size_t(dim)];
    }
  }
  return tile;
}

double alibi_slope(int head, int n_heads, double max_bias) {
  if (max_bias <= 0) return 1.0;
  // n heads, n a power of two: 2^(-max_bias * 1/n), 2^(-max_bias * 2/n) and so on. Otherwise the
  // largest power of two below n, and for the heads beyond it every other slope of twice that
  // power.
  int power = 1;
  while (power * 2 <= n_heads) power *= 2;
  if (head < power) return std::exp2(-max_bias * (head + 1) / power);
  return std::exp2(-max_bias * (2 * (head - power) + 1) / (2.0 * power));
}

namespace {

struct RowView {
  const OracleStep& step;
  int query, head;
  size_t cell_at(int cell) const {
    return size_t(cell * step.n_kv_heads + head / (step.n_heads / step.n_kv_heads));
  }
};

double logit(const RowView& row, int cell, double& largest) {
  const OracleStep& step = row.step;
  const double mask = step.mask.empty() ? 0.0 : step.mask[size_t(row.query * step.n_cells + cell)];
  if (mask == kHidden || (!step.absent.empty() && step.absent[row.cell_at(cell)])) return kHidden;
  double dot = 0, size = 0;
  for (int c = 0; c < step.k_dim; ++c) {
    const double product = step.q[size_t((row.query * step.n_heads + row.head) * step.k_dim + c)] *
                           step.keys[row.cell_at(cell) * size_t(step.k_dim) + size_t(c)] *
                           step.scale;
    dot += product;
    size += std::fabs(product);
  }
  largest = std::max(largest, size);
  if (step.soft_cap > 0) dot = step.soft_cap * std::tanh(dot / step.soft_cap);
  return dot + mask * alibi_slope(row.head, step.n_heads, step.max_bias);
}

void attend_row(const RowView& row, OracleOut& result) {
  const OracleStep& step = row.step;
  std::vector<double> scores;
  double peak = step.sinks.empty() ? kHidden : step.sinks[size_t(row.head)];
  for (int cell = 0; cell < step.n_cells; ++cell) {
    scores.push_back(logit(row, cell, result.largest_score));
    peak = std::max(peak, scores.back());
  }
  if (peak == kHidden) return;
  double mass = step.sinks.empty() ? 0.0 : std::exp(step.sinks[size_t(row.head)] - peak);
  for (const double score : scores) mass += std::exp(score - peak);
  const size_t at = size_t(row.query * step.n_heads + row.head);
  for (int cell = 0; cell < step.n_cells; ++cell) {
    const double weight = std::exp(scores[size_t(cell)] - peak) / mass;
    result.weights[at * size_t(step.n_cells) + size_t(cell)] = weight;
    for (int c = 0; c < step.v_dim; ++c) {
      result.out[at * size_t(step.v_dim) + size_t(c)] +=
          weight * step.values[row.cell_at(cell) * size_t(step.v_dim) + size_t(c)];
    }
  }
}

}  // namespace

OracleOut attention(const OracleStep& step) {
  OracleOut result;
  const size_t rows = size_t(step.n_queries * step.n_heads);
  result.out.assign(rows * size_t(step.v_dim), 0.0);
  result.weights.assign(rows * size_t(step.n_cells), 0.0);
  for (int query = 0; query < step.n_queries; ++query) {
    for (int head = 0; head < step.n_heads; ++head) attend_row({step, query, head}, result);
  }
  for (const double value : step.values) {
    result.largest_value = std::max(result.largest_value, std::fabs(value));
  }
  return result;
}

ColumnScores column_scores(const std::vector<double>& a, int n, const std::vector<int>& rows) {
  ColumnScores scores{std::vector<double>(size_t(n)), std::vector<int>(size_t(n))};
  for (const int row : rows) {
    for (int i = 0; i <= row; ++i) {
      scores.sums[size_t(i)] += a[size_t(row * n + i)];
      ++scores.seen[size_t(i)];
    }
  }
  return scores;
}

// Pairs of columns are turned until all are orthogonal (Hestenes).
std::vector<double> singular_squares(std::vector<double> x, int n, int dim) {
  const auto product = [&](int a, int b) {
    double sum = 0;
    for (int t = 0; t < n; ++t) sum += x[size_t(t * dim + a)] * x[size_t(t * dim + b)];
    return sum;
  };
  for (int sweep = 0; sweep < 30; ++sweep) {
    for (int a = 0; a < dim; ++a) {
      for (int b = a + 1; b < dim; ++b) {
        const double angle = 0.5 * std::atan2(2 * product(a, b), product(a, a) - product(b, b));
        for (int t = 0; t < n; ++t) {
          double &p = x[size_t(t * dim + a)], &q = x[size_t(t * dim + b)];
          const double turned = std::cos(angle) * p + std::sin(angle) * q;
          q = std::cos(angle) * q - std::sin(angle) * p;
          p = turned;
        }
      }
    }
  }
  std::vector<double> squares;
  for (int c = 0; c < dim; ++c) squares.push_back(product(c, c));
  std::sort(squares.begin(), squares.end(), std::greater<>());
  return squares;
}

std::vector<double> causal_softmax(const std::vector<double>& logits, int n) {
  std::vector<double> a(size_t(n) * size_t(n));
  for (int row = 0; row < n; ++row) {
    double mass = 0;
    for (int i = 0; i <= row; ++i) mass += std::exp(logits[size_t(row * n + i)]);
    for (int i = 0; i <= row; ++i)
      a[size_t(row * n + i)] = std::exp(logits[size_t(row * n + i)]) / mass;
  }
  return a;
}

}  // namespace zipcache::test
