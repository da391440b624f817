// Attention state that can be stopped, moved and merged: for each query row the largest score so
// far, the sum of exp(score - peak), and the weighted sum of values. A fresh one is the identity;
// merging is associative and commutative up to rounding, so keys may be split over blocks, tiers
// and threads.
#pragma once

#include <cmath>
#include <cstddef>
#include <limits>
#include <vector>

namespace zipcache {

struct Partial {
  int n_rows = 0;
  int dim = 0;
  std::vector<float> peak;  // [n_rows]
  std::vector<float> mass;  // [n_rows]
  std::vector<float> out;   // [n_rows, dim]

  void reset(int rows, int channels) {
    n_rows = rows;
    dim = channels;
    peak.assign(size_t(rows), -std::numeric_limits<float>::infinity());
    mass.assign(size_t(rows), 0.0f);
    out.assign(size_t(rows) * size_t(channels), 0.0f);
  }

  float* row(int r) { return out.data() + size_t(r) * size_t(dim); }
  const float* row(int r) const { return out.data() + size_t(r) * size_t(dim); }

  // Multiplies what a row has summed.
  void rescale(int r, float factor) {
    if (factor == 1.0f) return;
    for (int c = 0; c < dim; ++c) row(r)[c] *= factor;
  }

  // Raises a row's peak to at least `score` and rescales what was summed.
  void raise(int r, float score) {
    float& top = peak[size_t(r)];
    if (!(score > top)) return;
    if (mass[size_t(r)] > 0) {
      const float factor = std::exp(top - score);
      mass[size_t(r)] *= factor;
      rescale(r, factor);
    }
    top = score;
  }

  // A logit without a value: takes part in the sum only (attention sinks of the model).
  void add_logit(int r, float logit) {
    raise(r, logit);
    mass[size_t(r)] += std::exp(logit - peak[size_t(r)]);
  }

  void merge(const Partial& other) {
    for (int r = 0; r < n_rows; ++r) {
      const float weight = other.mass[size_t(r)];
      if (weight == 0) continue;
      raise(r, other.peak[size_t(r)]);
      const float factor = std::exp(other.peak[size_t(r)] - peak[size_t(r)]);
      mass[size_t(r)] += weight * factor;
      for (int c = 0; c < dim; ++c) row(r)[c] += other.row(r)[c] * factor;
    }
  }

  // log of the sum of exp(score) of a row; -inf when nothing was visible.
  float log_mass(int r) const { return peak[size_t(r)] + std::log(mass[size_t(r)]); }
};

}  // namespace zipcache
