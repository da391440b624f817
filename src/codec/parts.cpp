// Tiles as the parts that kernels work on.
#include <algorithm>

#include "codec/kernels.hpp"

namespace zipcache {

int n_parts(const TileShape& shape) {
  if (shape.n_tokens == 0) return 0;
  if (shape.axis == Axis::ChannelGroup) return (shape.n_tokens + shape.group - 1) / shape.group;
  return shape.axis == Axis::Group ? shape.dim / shape.group : 1;
}

PlacedPart part_of(const TileView& tile, int index) {
  const TileShape& shape = tile.shape;
  const bool tokens_in_rows = shape.lanes == Lanes::Tokens;
  PlacedPart placed{};
  CodePart& part = placed.part;
  part = {tile.codes,
          shape.unit_bytes(),
          shape.bits,
          shape.n_rows(),
          shape.n_columns(),
          nullptr,
          nullptr,
          nullptr,
          nullptr,
          nullptr,
          nullptr,
          levels_of(shape.codec, shape.bits),
          implied_floor(shape.codec, shape.bits)};
  const half* steps = shape.axis == Axis::None ? nullptr : tile.params;
  const half* floors = shape.codec == Codec::Affine ? tile.params + n_sets(shape) : nullptr;
  const bool token_groups = shape.axis == Axis::ChannelGroup;
  if (token_groups || shape.axis == Axis::Group) {
    const int first = index * shape.group;
    const int set = token_groups ? set_of(shape, first, 0) : set_of(shape, 0, first);
    steps += set;
    if (floors) floors += set;
    const bool cut_rows = token_groups == tokens_in_rows;
    const int n = std::min(shape.group, (cut_rows ? part.n_rows : part.n_columns) - first);
    (cut_rows ? placed.first_row : placed.first_column) = first;
    (cut_rows ? part.n_rows : part.n_columns) = n;
    part.codes +=
        size_t(placed.first_row / kUnitRows) * part.unit_bytes +
        size_t(placed.first_column / step_columns(shape.bits)) * size_t(step_bytes(shape.bits));
  }
  const bool by_rows = by_channel(shape.axis) != tokens_in_rows;
  (by_rows ? part.row_steps : part.column_steps) = steps;
  (by_rows ? part.row_floors : part.column_floors) = floors;
  const half* rows = tokens_in_rows ? tile.token_factors : tile.factors;
  const half* columns = tokens_in_rows ? tile.factors : tile.token_factors;
  part.row_factors = rows ? rows + placed.first_row : nullptr;
  part.column_factors = columns ? columns + placed.first_column : nullptr;
  return placed;
}

void expand_tile(const Kernels& kernels, const TileView& tile, float* out, int ld) {
  TileView view = tile;
  half steps[kMaxSets];
  if (tile.shape.codec == Codec::E2m1) {  // steps of 8 bits are numbers of 16 bits as well
    for (int i = 0; i < n_sets(tile.shape); ++i)
      steps[i] = to_half(step_of(tile.shape, tile.params, i));
    view.params = steps;
  }
  for (int i = 0; i < n_parts(tile.shape); ++i) {
    const PlacedPart placed = part_of(view, i);
    kernels.expand(placed.part, out + placed.first_column * ld + placed.first_row, ld);
  }
}

void decode_tile(const Kernels& kernels, const TileView& tile, float* out) {
  const TileShape& shape = tile.shape;
  if (shape.bits == 16) {
    kernels.halves(reinterpret_cast<const half*>(tile.codes), out, shape.n_tokens * shape.dim);
    return;
  }
  const int ld = padded_to(shape.n_rows(), kUnitRows);
  std::vector<float> lanes(size_t(shape.n_columns()) * size_t(ld));
  expand_tile(kernels, tile, lanes.data(), ld);
  const bool tokens_in_rows = shape.lanes == Lanes::Tokens;
  for (int t = 0; t < shape.n_tokens; ++t) {
    for (int c = 0; c < shape.dim; ++c)
      out[t * shape.dim + c] = lanes[size_t(tokens_in_rows ? c * ld + t : t * ld + c)];
  }
}

}  // namespace zipcache
