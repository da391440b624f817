#include "support/tiles.hpp"

#include <algorithm>
#include <cmath>

namespace zipcache::test {

float CodedTile::level(uint8_t code) const {
  const float* levels = levels_of(shape.codec, shape.bits);
  return levels ? levels[code] : float(code);
}
float CodedTile::step(int t, int c) const {
  return step_of(shape, params.data(), set_of(shape, t, c));
}
float CodedTile::floor(int t, int c) const {
  if (shape.codec != Codec::Affine) return step(t, c) * implied_floor(shape.codec, shape.bits);
  return to_float(params[params.size() / 2 + size_t(set_of(shape, t, c))]);
}

void CodedTile::decode_all() {
  const size_t dim = size_t(shape.dim);
  codes.resize(size_t(shape.n_tokens) * dim);
  values.resize(codes.size());
  if (shape.bits == 16) {
    const half* raw = reinterpret_cast<const half*>(packed.data());
    std::transform(raw, raw + values.size(), values.begin(), to_float);
    return;
  }
  for (int t = 0; t < shape.n_tokens; ++t) {
    for (int c = 0; c < shape.dim; ++c) {
      const size_t i = size_t(t) * dim + size_t(c);
      codes[i] = read_code(shape, packed.data(), t, c);
      values[i] = std::fma(step(t, c), level(codes[i]), floor(t, c)) * factor(c) * token_factor(t);
    }
  }
}

CodedTile code_tile(const std::vector<float>& x, int n, int dim, int bits, Axis axis, int group,
                    Fit fit, const std::vector<half>& factors, Lanes lanes, Codec codec) {
  CodedTile tile;
  tile.shape = {
      n,     dim,  bits, axis, axis == Axis::Group || axis == Axis::ChannelGroup ? group : 0,
      lanes, codec};
  tile.packed.resize(code_bytes(tile.shape));
  tile.params.resize(param_bytes(tile.shape) / sizeof(half));
  std::vector<float> scaled = x;
  if (axis == Axis::Cst) {
    tile.factors = factors;
    if (factors.empty()) {
      tile.factors.resize(size_t(dim));
      cst_factors(x.data(), n, dim, tile.factors.data());
    }
    tile.factors.resize(size_t(padded_to(dim, kUnitRows)), half{0});
    for (size_t i = 0; i < x.size(); ++i) scaled[i] /= tile.factor(int(i % size_t(dim)));
  }
  encode_tile(tile.shape, fit, scaled.data(), tile.packed.data(), tile.params.data());
  tile.decode_all();
  return tile;
}

}  // namespace zipcache::test
