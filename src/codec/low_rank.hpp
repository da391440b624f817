// What a tile's codes miss, kept as a product of two thin matrices (GEAR's low rank): value =
// decoded value + sum over r of tokens[r, token] * channels[r, channel]. Queries meet it as two
// short products, so nothing is expanded. Pure functions, thread-safe.
#pragma once

#include <vector>

#include "codec/kernels.hpp"

namespace zipcache {

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
