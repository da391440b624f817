#include "transform/rotation.hpp"

#include <algorithm>
#include <numeric>
#include <vector>

#include "transform/hadamard.hpp"

namespace zipcache {
namespace {

// out = m x.
void multiply(const float* m, const float* x, int dim, float* out) {
  constexpr int kParts = 8;  // sums side by side, so that they need no order among themselves
  for (int i = 0; i < dim; ++i, m += dim) {
    float parts[kParts] = {};
    for (int c = 0; c < dim; c += kParts) {
      for (int part = 0; part < kParts; ++part) parts[part] += m[c + part] * x[c + part];
    }
    out[i] = std::accumulate(parts, parts + kParts, 0.0f);
  }
}

// out = m' x.
void multiply_transposed(const float* m, const float* x, int dim, float* out) {
  std::fill_n(out, dim, 0.0f);
  for (int i = 0; i < dim; ++i, m += dim) {
    for (int c = 0; c < dim; ++c) out[c] += x[i] * m[c];
  }
}

template <class Multiply>
void replace_rows(float* rows, int n, int dim, int stride, Multiply&& multiplied) {
  std::vector<float> out(static_cast<size_t>(dim));
  for (int r = 0; r < n; ++r) {
    float* row = rows + r * stride;
    multiplied(row, out.data());
    std::copy_n(out.data(), dim, row);
  }
}

}  // namespace

void HeadRotation::turn(float* rows, int n, int dim, int stride) const {
  if (kind_ == Rotation::Hadamard) return hadamard(rows, n, dim, stride);
  if (kind_ == Rotation::None) return;
  replace_rows(rows, n, dim, stride,
               [&](const float* row, float* out) { multiply(matrix_, row, dim, out); });
}

void HeadRotation::turn_back(float* rows, int n, int dim, int stride) const {
  if (kind_ == Rotation::Hadamard) return hadamard(rows, n, dim, stride);  // its own inverse
  if (kind_ == Rotation::None) return;
  replace_rows(rows, n, dim, stride,
               [&](const float* row, float* out) { multiply_transposed(matrix_, row, dim, out); });
}

}  // namespace zipcache
