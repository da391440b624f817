#include "support/rotations.hpp"

#include <cmath>
#include <stdexcept>

#include "support/random_rows.hpp"

namespace zipcache::test {
namespace {

// Gram and Schmidt, twice for the last digits.
std::vector<float> random_matrix(int dim, uint64_t seed) {
  const std::vector<float> start = random_rows(dim, dim, seed, 1.0f);
  std::vector<double> m(start.begin(), start.end());
  const size_t n = size_t(dim);
  for (size_t i = 0; i < n; ++i) {
    double* row = &m[i * n];
    for (int round = 0; round < 2; ++round) {
      for (size_t j = 0; j < i; ++j) {
        double dot = 0;
        for (size_t c = 0; c < n; ++c) dot += row[c] * m[j * n + c];
        for (size_t c = 0; c < n; ++c) row[c] -= dot * m[j * n + c];
      }
    }
    double length = 0;
    for (size_t c = 0; c < n; ++c) length += row[c] * row[c];
    for (size_t c = 0; c < n; ++c) row[c] /= std::sqrt(length);
  }
  return {m.begin(), m.end()};
}

std::vector<float> random_matrices(int n_heads, int dim, uint64_t seed) {
  std::vector<float> out;
  for (int head = 0; head < n_heads; ++head) {
    const std::vector<float> one = random_matrix(dim, seed * 64 + uint64_t(head));
    out.insert(out.end(), one.begin(), one.end());
  }
  return out;
}

}  // namespace

Rotations random_rotations(const std::vector<LayerShape>& layers, uint64_t seed) {
  Rotations out{"seeded", {}};
  for (const LayerShape& shape : layers) {
    out.layers.push_back({shape, random_matrices(shape.n_heads, shape.k_dim, seed * 1000 + 1),
                          random_matrices(shape.n_heads, shape.v_dim, seed * 1000 + 2)});
    ++seed;
  }
  return out;
}

RotationFile::RotationFile(const Rotations& rotations) : file_(".rot", "") {
  const Status status = save_rotations(file_.path(), rotations);
  if (!status.ok()) throw std::runtime_error(status.message());
}

void turn_back(const float* m, int n, int dim, float* x) {
  std::vector<double> out(static_cast<size_t>(dim));
  for (int r = 0; r < n; ++r, x += dim) {
    std::fill(out.begin(), out.end(), 0.0);
    for (int i = 0; i < dim; ++i) {
      for (int c = 0; c < dim; ++c) out[size_t(c)] += double(x[i]) * m[i * dim + c];
    }
    std::copy(out.begin(), out.end(), x);
  }
}

}  // namespace zipcache::test
