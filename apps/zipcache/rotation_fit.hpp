// Rotations from what calibration saw of a model: orthogonal matrices for `rotate=file`. Pure,
// thread-safe.
#pragma once

#include <span>
#include <string>
#include <vector>

#include "zipcache/rotations.hpp"

namespace zipcache::cli {

// Sums over calibration tokens of one KV head.
struct HeadMoments {
  HeadMoments(int k_dim, int v_dim)
      : queries(size_t(k_dim) * size_t(k_dim)),
        values(size_t(v_dim) * size_t(v_dim)),
        k_squares(static_cast<size_t>(k_dim)),
        v_squares(static_cast<size_t>(v_dim)) {}

  std::vector<double> queries;  // [k_dim, k_dim] of q q'
  std::vector<double> values;   // [v_dim, v_dim] of a v v', a the attention that v received
  std::vector<double> k_squares, v_squares;  // [dim] of each channel's squares
};

enum class RotationMethod { Oscar, Permute };

// "oscar" or "permute".
Result<RotationMethod> parse_method(const std::string& name);

// R = P H U' [dim, dim] of a symmetric matrix with the eigenvectors U, largest first: H spreads
// what lies along each of them evenly over the channels, P reorders by reversed bits (OSCAR,
// section 3). Where dim is no power of two H has equal blocks, to which eigenvectors are dealt in
// turn.
std::vector<float> spread_evenly(std::span<const double> moment, int dim);

// The permutation [dim, dim] that sorts channels by size, largest first, so that neighbours are
// alike (SKVQ, section 3.1, with groups of equal size inside a head).
std::vector<float> sort_channels(std::span<const double> squares);

LayerRotations fit_rotations(const LayerShape& shape, std::span<const HeadMoments> heads,
                             RotationMethod method);

}  // namespace zipcache::cli
