// What a step's mask says about one block: which query rows see which of its rows, and with what
// bias.
#pragma once

#include <cstdint>

#include "cache/log.hpp"

namespace zipcache {

enum class Visible : uint8_t { None, Some, All };

// Fills bias [n_queries, n_columns] with the mask values (0 or the ALiBi distance; -inf where
// hidden) of query rows first_query .. first_query + n_queries - 1 against the block rows order[0
// .. n_columns-1]. Dead rows, cells beyond the mask and columns without a row are hidden. All means
// that every value is 0.
Visible mask_tile(const Attention& step, const LogBlock& block, int first_query, int n_queries,
                  const uint8_t* order, int n_columns, float* bias);

// Whether query rows see all rows of a block, none, or need mask_tile() to tell. Cheap where cells
// follow one another, as they do for a sequence written in order.
Visible view_of(const Attention& step, const LogBlock& block, int first_query, int n_queries);

// Number of cells that query row `query` sees, counted up to `limit`.
int visible_cells(const Attention& step, int query, int limit);

// Whether query row `query` sees `cell`.
bool sees(const Attention& step, int query, int32_t cell);

}  // namespace zipcache
