#include "codec/query_rounding.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <utility>

namespace zipcache {
namespace {

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
  for (int r = 0; r < n; ++r) {
    for (int c = 0; c < dim; ++c) {
      if (!(std::fabs(rows[ptrdiff_t(r) * ld + c]) <= kHalfMax)) return false;
    }
  }
  return true;
}

// U' [size, size], strictly lower, of h = (U + I) D (U + I)' for a positive h, whose upper half is
// taken apart. From the last channel to the first: what is left of h once a channel is known.
std::vector<double> lower_factor(std::vector<double> h, size_t size) {
  std::vector<double> u(size * size, 0.0), column(size);
  std::vector<double> scale(size);
  for (size_t i = 0; i < size; ++i) scale[i] = h[i * size + i];
  for (size_t k = size; k-- > 1;) {
    const double d = h[k * size + k];
    // 8-bit correlations may leave a direction without weight; it then gives no feedback.
    if (!(d > 1e-6 * scale[k])) continue;
    double* row = &u[k * size];
    for (size_t i = 0; i < k; ++i) {
      column[i] = h[i * size + k];
      row[i] = column[i] / d;
    }
    for (size_t i = 0; i < k; ++i) {
      for (size_t j = i; j < k; ++j) h[i * size + j] -= row[i] * column[j];
    }
  }
  return u;
}

// One channel of rows that are rounded side by side.
constexpr int kTogether = 16;
using Several = std::array<float, kTogether>;
// What every processor adds at once. The compiler keeps sums in these, but not in an array.
constexpr int kLanes = 4;
typedef float Lanes4 __attribute__((vector_size(kLanes * sizeof(float))));

Lanes4 lanes_of(const Several& rows, int part) {
  Lanes4 lanes;
  std::memcpy(&lanes, &rows[size_t(part * kLanes)], sizeof(lanes));
  return lanes;
}

// x [kTogether], and the errors of the channels before it as it sees them.
Several wanted_of(const Several& x, const Several* errors, const float* feedback, int n_before) {
  Lanes4 sums[kTogether / kLanes];
  for (int part = 0; part < kTogether / kLanes; ++part) sums[part] = lanes_of(x, part);
  for (int before = 0; before < n_before; ++before) {
    for (int part = 0; part < kTogether / kLanes; ++part)
      sums[part] += lanes_of(errors[before], part) * feedback[before];
  }
  Several wanted;
  std::memcpy(wanted.data(), sums, sizeof(sums));
  return wanted;
}

// Rounds a group of channels of kTogether rows x [size] and puts their grid points in its place.
void round_group(Several* x, int size, const float* feedback, const SetFit* fits, float top) {
  Several errors[kMomentGroup];
  for (int i = 0; i < size; ++i, feedback += size) {
    const Several wanted = wanted_of(x[i], errors, feedback, i);
    const SetFit& fit = fits[i];
    const float inverse = inverse_of(fit.code_step);
    const float step = to_float(fit.step), floor = to_float(fit.floor);
    for (size_t r = 0; r < kTogether; ++r) {
      const float code = coded(wanted[r], inverse, fit.code_floor, top);
      errors[i][r] = x[i][r] - (step * code + floor);
      x[i][r] = fit.code_floor + fit.code_step * code;
    }
  }
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

void QueryMoment::forget() {
  std::fill(deviation_.begin(), deviation_.end(), half{0});
  std::fill(correlation_.begin(), correlation_.end(), int8_t{0});
  n_learnt_ = 0;
}

void QueryMoment::save(std::string& bytes) const {
  const uint32_t n =
      uint32_t(std::min(n_learnt_, kMomentMemory));  // from there on all count the same
  append_numbers(bytes, &n, 1);
  append_numbers(bytes, deviation_.data(), deviation_.size());
  append_numbers(bytes, correlation_.data(), correlation_.size());
}

bool QueryMoment::load(NumberReader& reader) {
  uint32_t n = 0;
  QueryMoment loaded(dim_);
  if (!reader.take(&n, 1) || !reader.take(loaded.deviation_, deviation_.size()) ||
      !reader.take(loaded.correlation_, correlation_.size()))
    return false;
  const auto is_deviation = [](half x) { return to_float(x) >= 0 && to_float(x) <= kHalfMax; };
  if (!std::all_of(loaded.deviation_.begin(), loaded.deviation_.end(), is_deviation)) return false;
  loaded.n_learnt_ = int(std::min<uint32_t>(n, kMomentMemory));
  *this = std::move(loaded);
  return true;
}

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
  const double share = 1.0 / std::min(n_learnt_ + 1, kMomentMemory);
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
    for (size_t i = 0; i < size; ++i) h[i * size + i] += kMomentDamping * mean;
    const std::vector<double> u = lower_factor(std::move(h), size);
    feedback_.insert(feedback_.end(), u.begin(), u.end());
  }
}

void QueryRounding::round(float* x, int n, std::span<const SetFit> fits, int bits) const {
  for (int from = 0; from < n; from += kTogether) {
    const int n_rows = std::min(kTogether, n - from);
    float* rows = x + ptrdiff_t(from) * dim_;
    const float* feedback = feedback_.data();
    for (int first = 0; first < dim_; first += kMomentGroup) {
      const int size = group_size(dim_, first);
      Several group[kMomentGroup] = {};
      for (int r = 0; r < n_rows; ++r) {
        for (int c = 0; c < size; ++c) group[c][size_t(r)] = rows[r * dim_ + first + c];
      }
      round_group(group, size, feedback, &fits[size_t(first)], float(top_code(bits)));
      for (int r = 0; r < n_rows; ++r) {
        for (int c = 0; c < size; ++c) rows[r * dim_ + first + c] = group[c][size_t(r)];
      }
      feedback += ptrdiff_t(size) * size;
    }
  }
}

}  // namespace zipcache
