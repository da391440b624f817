#include "support/tiles.hpp"

namespace zipcache::test {

size_t CodedTile::set_of(int t, int c) const {
  switch (shape.axis) {
    case Axis::Channel: return size_t(c);
    case Axis::Group: return size_t(t * (shape.dim / shape.group) + c / shape.group);
    case Axis::Token:
    case Axis::Cst: break;
  }
  return size_t(t);
}

float CodedTile::step(int t, int c) const { return to_float(params[set_of(t, c)]); }
float CodedTile::floor(int t, int c) const { return to_float(params[params.size() / 2 + set_of(t, c)]); }

CodedTile code_tile(const std::vector<float>& x, int n, int dim, int bits, Axis axis, int group, Fit fit,
                    const std::vector<half>& factors) {
  CodedTile tile;
  tile.shape = {n, dim, bits, axis, axis == Axis::Group ? group : 0};
  tile.packed.resize(code_bytes(tile.shape));
  tile.params.resize(2 * size_t(n_sets(tile.shape)));
  std::vector<float> scaled = x;
  if (axis == Axis::Cst) {
    tile.factors = factors;
    if (factors.empty()) {
      tile.factors.resize(size_t(dim));
      cst_factors(x.data(), n, dim, tile.factors.data());
    }
    for (size_t i = 0; i < x.size(); ++i) scaled[i] /= tile.factor(int(i % size_t(dim)));
  }
  encode_tile(tile.shape, fit, scaled.data(), tile.packed.data(), tile.params.data());
  tile.codes.resize(x.size());
  tile.values.resize(x.size());
  for (int t = 0; t < n; ++t) {
    const size_t row = size_t(t) * size_t(dim);
    unpack_row(tile.packed.data() + size_t(t) * size_t(dim * bits / 8), dim, bits, &tile.codes[row]);
    for (int c = 0; c < dim; ++c) {
      const size_t i = row + size_t(c);
      tile.values[i] = decode(tile.codes[i], to_half(tile.step(t, c)), to_half(tile.floor(t, c))) * tile.factor(c);
    }
  }
  return tile;
}

}  // namespace zipcache::test
