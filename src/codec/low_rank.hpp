// What a tile's codes miss, kept as a product of two thin matrices (GEAR's low rank): value =
// decoded value + sum over r of tokens[r, token] * channels[r, channel]. Queries meet it as two
// short products, so nothing is expanded. Pure functions, thread-safe.
#pragma once

#include <cmath>
#include <vector>

#include "base/random.hpp"
#include "codec/kernels.hpp"

namespace zipcache {

// ---- parts of the fit that run on a GPU too

inline constexpr int kLowRankRounds = 3;  // of power iteration, as in GEAR's code

// A sum in order.
constexpr float dot_in_order(const float* a, const float* b, int n) {
  float sum = 0;
  for (int i = 0; i < n; ++i) sum += a[i] * b[i];
  return sum;
}

// Makes row `r` of rows [r + 1, n] orthogonal to those before it and 1 long; zeros where they leave
// nothing of it but rounding.
constexpr void orthonormalize(float* rows, int r, int n) {
  float* row = rows + r * n;
  const float before = std::sqrt(dot_in_order(row, row, n));
  for (int other = 0; other < r; ++other) {
    const float along = dot_in_order(rows + other * n, row, n);
    for (int i = 0; i < n; ++i) row[i] -= along * rows[other * n + i];
  }
  const float length = std::sqrt(dot_in_order(row, row, n));
  const float scale = length > 1e-5f * before ? 1 / length : 0;
  for (int i = 0; i < n; ++i) row[i] *= scale;
}

// Where the rounds begin: number `place` of channels [rank, dim].
constexpr float low_rank_start(int rank, int place) {
  Random random{uint64_t(rank)};
  random.skip(uint64_t(place));
  return random.unit() - 0.5f;
}

// What channels [dim] of the last round are divided by and tokens multiplied with: both factors get
// the same length, which 16 bits hold for whatever they hold of the rows.
constexpr float low_rank_root(const float* channels, int dim) {
  return std::sqrt(std::sqrt(dot_in_order(channels, channels, dim)));
}
constexpr float inverse_of_root(float root) { return root > 0 ? 1 / root : 0; }

// ---- on the CPU

// Where the factors of a tile stand; rank 0 where it has none.
struct LowRank {
  int rank = 0;
  const half* channels = nullptr;  // [rank, dim]
  const half* tokens = nullptr;    // [rank, n_tokens filled up to 16 with zeros]
};
LowRank low_rank_of(const TileView& tile);

// Fits the factors to what is left of rows [n_tokens, dim] once the codes are decoded, and stores
// them where the tile has room for them. The product of the best ones has the largest part of the
// squares that any of this rank can have; a few rounds of power iteration come near it.
void store_low_rank(const TileView& tile, std::vector<float> rows);

// Adds the product to rows [n_tokens, dim].
void add_low_rank(const TileView& tile, float* rows);

}  // namespace zipcache
