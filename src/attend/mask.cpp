#include "attend/mask.hpp"

#include <array>
#include <limits>

#include "base/half.hpp"
#include "cache/block_layout.hpp"

namespace zipcache {

bool sees(const Attention& step, int query, int32_t cell) {
  if (cell < 0 || cell >= step.n_cells) return false;
  return !step.mask || step.mask[query * step.mask_stride + cell] != kHalfNegInf;
}

namespace {

constexpr float kHidden = -std::numeric_limits<float>::infinity();

float bias_of(const half* mask, int32_t cell, int n_cells) {
  if (cell < 0 || cell >= n_cells) return kHidden;
  const half value = mask ? mask[cell] : half{0};
  return value == 0 ? 0.0f : value == kHalfNegInf ? kHidden : to_float(value);
}

}  // namespace

Visible mask_tile(const Attention& step, const LogBlock& block, int first_query, int n_queries,
                  const uint8_t* order, int n_columns, float* bias) {
  std::array<float, 256> of_row;  // by what may stand in `order`
  of_row[kNoRow] = kHidden;
  bool any_seen = false, any_bias = false;
  for (int q = 0; q < n_queries; ++q) {
    const half* mask = step.mask ? step.mask + (first_query + q) * step.mask_stride : nullptr;
    for (int row = 0; row < block.n_rows; ++row)
      of_row[size_t(row)] = bias_of(mask, block.cells[size_t(row)], step.n_cells);
    float* out = bias + q * n_columns;
    for (int i = 0; i < n_columns; ++i) {
      out[i] = of_row[order[i]];
      any_seen |= out[i] != kHidden;
      any_bias |= out[i] != 0;
    }
  }
  return !any_seen ? Visible::None : any_bias ? Visible::Some : Visible::All;
}

Visible view_of(const Attention& step, const LogBlock& block, int first_query, int n_queries) {
  const int32_t first = block.cells[0];
  if (!block.consecutive || first + block.n_rows > step.n_cells) return Visible::Some;
  if (!step.mask) return Visible::All;
  unsigned any_set = 0, any_seen = 0;
  for (int q = 0; q < n_queries; ++q) {
    const half* mask = step.mask + (first_query + q) * step.mask_stride + first;
    half set = 0, seen = 0;
    for (int i = 0; i < block.n_rows; ++i) {
      set |= mask[i];
      seen |= half(mask[i] ^ kHalfNegInf);
    }
    any_set |= set, any_seen |= seen;
    if (any_set && any_seen) return Visible::Some;
  }
  return any_set == 0 ? Visible::All : any_seen == 0 ? Visible::None : Visible::Some;
}

int visible_cells(const Attention& step, int query, int limit) {
  int n = 0;
  for (int cell = 0; cell < step.n_cells && n < limit; ++cell) n += sees(step, query, cell);
  return n;
}

}  // namespace zipcache
