// Rotations from moments.
#include "rotation_fit.hpp"

#include <fmt/format.h>

#include <Eigen/Eigenvalues>
#include <algorithm>
#include <bit>
#include <numeric>

namespace zipcache::cli {

namespace {

// The bits of i below `size`, a power of two, in the opposite order.
int reversed_bits(int i, int size) {
  int out = 0;
  for (int bit = 1; bit < size; bit *= 2) out = out * 2 + ((i & bit) != 0);
  return out;
}

// P H with H in blocks of the largest power of two that divides dim; column j belongs to the j-th
// eigenvector.
Eigen::MatrixXd spreading(int dim) {
  const int size = dim & -dim, n_blocks = dim / size;
  Eigen::MatrixXd out = Eigen::MatrixXd::Zero(dim, dim);
  for (int block = 0; block < n_blocks; ++block) {
    for (int row = 0; row < size; ++row) {
      const int i = reversed_bits(row, size);
      for (int j = 0; j < size; ++j) {
        const double sign = std::popcount(static_cast<unsigned>(i & j)) % 2 ? -1 : 1;
        out(block * size + row, j * n_blocks + block) = sign / std::sqrt(size);
      }
    }
  }
  return out;
}

void append(std::vector<float>& all, const std::vector<float>& more) {
  all.insert(all.end(), more.begin(), more.end());
}

}  // namespace

Result<RotationMethod> parse_method(const std::string& name) {
  if (name == "oscar") return RotationMethod::Oscar;
  if (name == "permute") return RotationMethod::Permute;
  return Status{Code::BadArgument,
                fmt::format("--method: found '{}', expected oscar or permute", name)};
}

std::vector<float> spread_evenly(std::span<const double> moment, int dim) {
  const Eigen::Map<const Eigen::MatrixXd> symmetric(moment.data(), dim, dim);
  const Eigen::SelfAdjointEigenSolver<Eigen::MatrixXd> solver(symmetric);
  Eigen::MatrixXd vectors = solver.eigenvectors().rowwise().reverse();  // largest first
  for (int j = 0; j < dim; ++j) {  // of either sign; the same one on every machine
    int largest = 0;
    vectors.col(j).cwiseAbs().maxCoeff(&largest);
    if (vectors(largest, j) < 0) vectors.col(j) *= -1;
  }
  const Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor> rotation =
      (spreading(dim) * vectors.transpose()).cast<float>();
  return {rotation.data(), rotation.data() + rotation.size()};
}

std::vector<float> sort_channels(std::span<const double> squares) {
  std::vector<size_t> order(squares.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::stable_sort(order.begin(), order.end(),
                   [&](size_t a, size_t b) { return squares[a] > squares[b]; });
  std::vector<float> matrix(squares.size() * squares.size());
  for (size_t i = 0; i < order.size(); ++i) matrix[i * order.size() + order[i]] = 1;
  return matrix;
}

LayerRotations fit_rotations(const LayerShape& shape, std::span<const HeadMoments> heads,
                             RotationMethod method) {
  LayerRotations out{shape, {}, {}};
  for (const HeadMoments& head : heads) {
    if (method == RotationMethod::Oscar) {
      append(out.k, spread_evenly(head.queries, shape.k_dim));
      append(out.v, spread_evenly(head.values, shape.v_dim));
    } else {
      append(out.k, sort_channels(head.k_squares));
      append(out.v, sort_channels(head.v_squares));
    }
  }
  return out;
}

}  // namespace zipcache::cli
