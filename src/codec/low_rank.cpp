#include "codec/low_rank.hpp"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "base/random.hpp"

namespace zipcache {
namespace {

constexpr int kRounds = 3;  // of power iteration, as in GEAR's code

float dot(const float* a, const float* b, int n) { return std::inner_product(a, a + n, b, 0.0f); }

// Makes row `r` of rows [r + 1, n] orthogonal to those before it and 1 long; zeros where they leave
// nothing of it but rounding.
void orthonormalize(float* rows, int r, int n) {
  float* row = rows + r * n;
  const float before = std::sqrt(dot(row, row, n));
  for (int other = 0; other < r; ++other) {
    const float along = dot(rows + other * n, row, n);
    for (int i = 0; i < n; ++i) row[i] -= along * rows[other * n + i];
  }
  const float length = std::sqrt(dot(row, row, n));
  const float scale = length > 1e-5f * before ? 1 / length : 0;
  for (int i = 0; i < n; ++i) row[i] *= scale;
}

}  // namespace

LowRank low_rank_of(const TileView& tile) {
  if (!tile.low_rank) return {};
  return {tile.shape.rank, tile.low_rank, tile.low_rank + tile.shape.rank * tile.shape.dim};
}

void store_low_rank(const TileView& tile, std::vector<float> rows) {
  const LowRank out = low_rank_of(tile);
  if (out.rank == 0) return;
  const int n = tile.shape.n_tokens, dim = tile.shape.dim;
  TileView codes = tile;
  codes.low_rank = nullptr;
  std::vector<float> decoded(rows.size());
  decode_tile(best_kernels(), codes, decoded.data());
  for (size_t i = 0; i < rows.size(); ++i) rows[i] -= decoded[i];

  std::vector<float> channels(size_t(out.rank * dim)), tokens(size_t(out.rank * n));
  Random random(uint64_t(out.rank));
  for (float& x : channels) x = random.unit() - 0.5f;
  const auto row = [&](int t) { return rows.data() + ptrdiff_t(t) * dim; };
  for (int round = 0; round < kRounds; ++round) {
    for (int r = 0; r < out.rank; ++r) {
      for (int t = 0; t < n; ++t)
        tokens[size_t(r * n + t)] = dot(row(t), &channels[size_t(r * dim)], dim);
      orthonormalize(tokens.data(), r, n);
    }
    std::fill(channels.begin(), channels.end(), 0.0f);
    for (int r = 0; r < out.rank; ++r) {
      for (int t = 0; t < n; ++t) {
        for (int c = 0; c < dim; ++c)
          channels[size_t(r * dim + c)] += tokens[size_t(r * n + t)] * row(t)[c];
      }
    }
  }
  // Both factors get the same length, which 16 bits hold for whatever they hold of the rows.
  const int filled = padded_to(n, kUnitRows);
  auto* channels_out = const_cast<half*>(out.channels);
  auto* tokens_out = const_cast<half*>(out.tokens);
  std::fill_n(tokens_out, out.rank * filled, half{0});
  for (int r = 0; r < out.rank; ++r) {
    const float* along = &channels[size_t(r * dim)];
    const float root = std::sqrt(std::sqrt(dot(along, along, dim)));
    const float inverse = root > 0 ? 1 / root : 0;
    for (int c = 0; c < dim; ++c) channels_out[r * dim + c] = to_half(along[c] * inverse);
    for (int t = 0; t < n; ++t)
      tokens_out[r * filled + t] = to_half(tokens[size_t(r * n + t)] * root);
  }
}

void add_low_rank(const TileView& tile, float* rows) {
  const LowRank factors = low_rank_of(tile);
  const int dim = tile.shape.dim, filled = padded_to(tile.shape.n_tokens, kUnitRows);
  for (int r = 0; r < factors.rank; ++r) {
    for (int t = 0; t < tile.shape.n_tokens; ++t) {
      const float weight = to_float(factors.tokens[r * filled + t]);
      for (int c = 0; c < dim; ++c)
        rows[t * dim + c] += weight * to_float(factors.channels[r * dim + c]);
    }
  }
}

}  // namespace zipcache
