// One tile coded and decoded by the library, for comparison with the oracle.
#pragma once

#include <vector>

#include "codec/kernels.hpp"
#include "codec/tile.hpp"

namespace zipcache::test {

struct CodedTile {
  TileShape shape;
  std::vector<uint8_t> packed;
  std::vector<half> params;         // steps, then floors where there are any
  std::vector<half> factors;        // [dim, filled to 16] of channels, or empty
  std::vector<half> token_factors;  // [n, filled to 16], or empty
  std::vector<uint8_t> codes;       // [n, dim], unpacked
  std::vector<float> values;        // [n, dim], decoded one by one

  // What a code stands for before step and floor.
  float level(uint8_t code) const;
  float step(int t, int c) const;
  float floor(int t, int c) const;
  float factor(int c) const { return factors.empty() ? 1.0f : to_float(factors[size_t(c)]); }
  float token_factor(int t) const {
    return token_factors.empty() ? 1.0f : to_float(token_factors[size_t(t)]);
  }
  // Fills codes and values from the packed form.
  void decode_all();
  TileView view() const {
    return {shape, packed.data(), params.data(), factors.empty() ? nullptr : factors.data(),
            token_factors.empty() ? nullptr : token_factors.data()};
  }
};

// `factors` keeps given channel factors (Axis::Cst) instead of computing them from x.
CodedTile code_tile(const std::vector<float>& x, int n, int dim, int bits, Axis axis,
                    int group = 32, Fit fit = Fit::Endpoint, const std::vector<half>& factors = {},
                    Lanes lanes = Lanes::Tokens, Codec codec = Codec::Affine);

}  // namespace zipcache::test
