// What a step's mask says about one block: which query rows see which of its rows, and with what
// bias.
#pragma once

#include <cstdint>

#include "cache/log.hpp"

namespace zipcache {

enum class Visible : uint8_t { None, Some, All };

// Fills bias [n_queries, n_columns] with the mask values (0 or the ALiBi distance; -inf where
// hidden) of query rows first_query .. first_query + n_queries - 1 against the block rows order[0
// .. n_columns-1]. Dead rows and cells beyond the mask are hidden. All means that every value is 0.
Visible mask_tile(const Attention& step, const LogBlock& block, int first_query, int n_queries,
                  const uint8_t* order, int n_columns, float* bias);

// Number of cells that query row `query` sees, counted up to `limit`.
int visible_cells(const Attention& step, int query, int limit);

// Whether query row `query` sees `cell`.
bool sees(const Attention& step, int query, int32_t cell);

}  // namespace zipcache
