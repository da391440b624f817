#include "codec/low_rank.hpp"

#include <algorithm>

namespace zipcache {

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
  for (size_t i = 0; i < channels.size(); ++i) channels[i] = low_rank_start(out.rank, int(i));
  const auto row = [&](int t) { return rows.data() + ptrdiff_t(t) * dim; };
  for (int round = 0; round < kLowRankRounds; ++round) {
    for (int r = 0; r < out.rank; ++r) {
      for (int t = 0; t < n; ++t)
        tokens[size_t(r * n + t)] = dot_in_order(row(t), &channels[size_t(r * dim)], dim);
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
  const int filled = padded_to(n, kUnitRows);
  auto* channels_out = const_cast<half*>(out.channels);
  auto* tokens_out = const_cast<half*>(out.tokens);
  std::fill_n(tokens_out, out.rank * filled, half{0});
  for (int r = 0; r < out.rank; ++r) {
    const float* along = &channels[size_t(r * dim)];
    const float root = low_rank_root(along, dim), inverse = inverse_of_root(root);
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
