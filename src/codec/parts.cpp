// Tiles as the parts that kernels work on.
#include "codec/kernels.hpp"

namespace zipcache {

int n_parts(const TileShape& shape) {
  if (shape.n_tokens == 0) return 0;
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
          nullptr};
  const half* steps = tile.params;
  const half* floors = tile.params + n_sets(shape);
  if (shape.axis == Axis::Group) {
    const int first = index * shape.group;
    steps += set_of(shape, 0, first);
    floors += set_of(shape, 0, first);
    (tokens_in_rows ? placed.first_column : placed.first_row) = first;
    (tokens_in_rows ? part.n_columns : part.n_rows) = shape.group;
    part.codes +=
        size_t(placed.first_row / kUnitRows) * part.unit_bytes +
        size_t(placed.first_column / step_columns(shape.bits)) * size_t(step_bytes(shape.bits));
  }
  const bool by_rows = (shape.axis == Axis::Channel) != tokens_in_rows;
  (by_rows ? part.row_steps : part.column_steps) = steps;
  (by_rows ? part.row_floors : part.column_floors) = floors;
  (tokens_in_rows ? part.column_factors : part.row_factors) = tile.factors;
  return placed;
}

void expand_tile(const Kernels& kernels, const TileView& tile, float* out, int ld) {
  for (int i = 0; i < n_parts(tile.shape); ++i) {
    const PlacedPart placed = part_of(tile, i);
    kernels.expand(placed.part, out + placed.first_column * ld + placed.first_row, ld);
  }
}

}  // namespace zipcache
