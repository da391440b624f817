#include "codec/query_rounding.hpp"

#include <algorithm>
#include <cmath>

namespace zipcache {
namespace {

// Moments of so many prompts' pieces are averaged; after that old ones fade.
constexpr int kMemory = 8;
// Share of the mean square that is added to every channel: queries to come differ from those seen.
constexpr double kDamping = 0.1;

int group_size(int dim, int first) { return std::min(kMomentGroup, dim - first); }

constexpr size_t pairs(int size) { return size_t(size) * size_t(size - 1) / 2; }

// Sums of products [size, size] of `size` channels of rows [n, ld], the upper half.
std::vector<float> products(const float* rows, int n, int ld, size_t size) {
  std::vector<float> sums(size * size, 0.0f);
  for (int r = 0; r < n; ++r) {
    const float* row = rows + ptrdiff_t(r) * ld;
    for (size_t i = 0; i < size; ++i) {
      for (size_t j = i; j < size; ++j) sums[i * size + j] += row[i] * row[j];
    }
  }
  return sums;
}

bool finite_rows(const float* rows, int n, int ld, int dim) {
  // Squares that a sum of n and a 16-bit deviation can hold.
  constexpr float kMost = 65504.0f;
  for (int r = 0; r < n; ++r) {
    for (int c = 0; c < dim; ++c) {
      if (!(std::fabs(rows[ptrdiff_t(r) * ld + c]) <= kMost)) return false;
    }
  }
  return true;
}

// U [size, size], strictly upper, of h = (U + I) D (U + I)' for a positive h.
std::vector<double> upper_factor(const std::vector<double>& h, size_t size) {
  std::vector<double> u(size * size, 0.0), d(size, 0.0);
  for (size_t k = size; k-- > 0;) {
    d[k] = h[k * size + k];
    for (size_t m = k + 1; m < size; ++m) d[k] -= u[k * size + m] * u[k * size + m] * d[m];
    // 8-bit correlations may leave a direction without weight; it then gives no feedback.
    if (!(d[k] > 1e-6 * h[k * size + k])) {
      d[k] = 0;
      continue;
    }
    for (size_t i = 0; i < k; ++i) {
      double sum = h[i * size + k];
      for (size_t m = k + 1; m < size; ++m) sum -= u[i * size + m] * u[k * size + m] * d[m];
      u[i * size + k] = sum / d[k];
    }
  }
  return u;
}

}  // namespace

QueryMoment::QueryMoment(int dim) : dim_(dim) {
  size_t n_pairs = 0;
  for (int first = 0; first < dim; first += kMomentGroup) n_pairs += pairs(group_size(dim, first));
  deviation_.resize(size_t(dim));
  correlation_.resize(n_pairs);
}

size_t QueryMoment::bytes(int dim) {
  const QueryMoment moment(dim);
  return moment.deviation_.size() * sizeof(half) + moment.correlation_.size();
}

void QueryMoment::forget() { *this = QueryMoment(dim_); }

std::vector<double> QueryMoment::group(int first) const {
  const size_t size = size_t(group_size(dim_, first));
  const int8_t* pair = correlation_.data() + size_t(first / kMomentGroup) * pairs(kMomentGroup);
  std::vector<double> h(size * size);
  for (size_t i = 0; i < size; ++i) {
    const double di = to_float(deviation_[size_t(first) + i]);
    h[i * size + i] = di * di;
    for (size_t j = i + 1; j < size; ++j) {
      const double dj = to_float(deviation_[size_t(first) + j]);
      h[i * size + j] = h[j * size + i] = di * dj * *pair++ / 127.0;
    }
  }
  return h;
}

void QueryMoment::learn(const float* rows, int n, int ld) {
  if (!finite_rows(rows, n, ld, dim_)) return;
  const double share = 1.0 / std::min(n_learnt_ + 1, kMemory);
  for (int first = 0; first < dim_; first += kMomentGroup) {
    const size_t size = size_t(group_size(dim_, first));
    const std::vector<float> fresh = products(rows + first, n, ld, size);
    std::vector<double> h = group(first);
    for (size_t i = 0; i < size; ++i) {
      for (size_t j = i; j < size; ++j)
        h[i * size + j] += share * (double(fresh[i * size + j]) / n - h[i * size + j]);
    }
    int8_t* pair = correlation_.data() + size_t(first / kMomentGroup) * pairs(kMomentGroup);
    for (size_t i = 0; i < size; ++i) {
      deviation_[size_t(first) + i] = to_half(float(std::sqrt(std::max(h[i * size + i], 0.0))));
      for (size_t j = i + 1; j < size; ++j) {
        const double both = std::sqrt(h[i * size + i] * h[j * size + j]);
        const double correlation = both > 0 ? h[i * size + j] / both : 0.0;
        *pair++ = int8_t(std::lround(127 * std::clamp(correlation, -1.0, 1.0)));
      }
    }
  }
  ++n_learnt_;
}

QueryRounding::QueryRounding(const QueryMoment& moment) : dim_(moment.dim()) {
  for (int first = 0; first < dim_; first += kMomentGroup) {
    const size_t size = size_t(group_size(dim_, first));
    std::vector<double> h = moment.group(first);
    double mean = 0;
    for (size_t i = 0; i < size; ++i) mean += h[i * size + i] / double(size);
    for (size_t i = 0; i < size; ++i) h[i * size + i] += kDamping * mean;
    const std::vector<double> u = upper_factor(h, size);
    feedback_.insert(feedback_.end(), u.begin(), u.end());
  }
}

void QueryRounding::round(float* x, int n, std::span<const SetFit> fits, int bits) const {
  for (int t = 0; t < n; ++t) {
    float* row = x + ptrdiff_t(t) * dim_;
    const float* feedback = feedback_.data();
    for (int first = 0; first < dim_; first += kMomentGroup) {
      const int size = group_size(dim_, first);
      float wanted[kMomentGroup];  // the row, and the errors made so far as later channels see them
      std::copy_n(row + first, size, wanted);
      for (int i = 0; i < size; ++i, feedback += size) {
        const SetFit& fit = fits[size_t(first + i)];
        const uint8_t code = code_of(wanted[i], fit, bits);
        const float error = row[first + i] - decode(code, fit.step, fit.floor);
        row[first + i] = fit.code_floor + fit.code_step * float(code);
        for (int j = i + 1; j < size; ++j) wanted[j] += error * feedback[j];
      }
    }
  }
}

}  // namespace zipcache
