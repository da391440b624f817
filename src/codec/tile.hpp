// A packed tile: the tokens of one tier of one head of one block, as codes and parameters.
//
//   codes   [n_tokens, dim]  each token's channels packed into dim * bits / 8 bytes:
//             8 bit  byte j = channel j
//             4 bit  byte j = channel j | channel j + dim/2 << 4
//             2 bit  byte j = channels j, j + dim/4, j + dim/2, j + 3 dim/4, two bits each, lowest
//             first 3 bit  dim/4 bytes of the codes' low two bits as above, then dim/8 bytes of
//             their top bits:
//                    byte j, bit b = channel j + b * dim/8
//            16 bit  the values themselves as f16
//   params  steps [n_sets], then floors [n_sets], f16; none at 16 bit
//             Axis::Channel  n_sets = dim            Axis::Token, Axis::Cst  n_sets = n_tokens
//             Axis::Group    n_sets = n_tokens * dim / group
//
// Value = floor + step * code, times the channel's factor for Axis::Cst (factors belong to the
// block). dim is a multiple of 8. Planes far apart in a row, instead of neighbours in a byte, let a
// compiler unpack a row with plain vector loops. Pure functions, thread-safe.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "codec/quantize.hpp"

namespace zipcache {

struct TileShape {
  int n_tokens = 0;
  int dim = 0;
  int bits = 16;
  Axis axis = Axis::Channel;
  int group = 0;  // channels per set, for Axis::Group
};

size_t code_bytes(const TileShape& shape);
int n_sets(const TileShape& shape);
inline size_t param_bytes(const TileShape& shape) {
  return sizeof(half) * 2 * size_t(n_sets(shape));
}

// Where the parts of a packed tile lie.
struct TileView {
  TileShape shape;
  const uint8_t* codes = nullptr;  // [code_bytes]
  const half* params = nullptr;    // [2, n_sets]
  const half* factors = nullptr;   // [dim] of Axis::Cst, else null
};

// Parameters per channel of rows x [n, dim], for a tile or for many tiles that share them.
std::vector<SetFit> fit_channels(const float* x, int n, int dim, int bits, Fit fit);
// Stores channel parameters in the order of a tile's params.
void store_params(std::span<const SetFit> fits, half* params);

// Codes of x [n_tokens, dim] on given channel parameters.
void encode_with(const TileShape& shape, std::span<const SetFit> fits, const float* x,
                 uint8_t* codes);

// Codes and parameters of x [n_tokens, dim]. For Axis::Cst x is already divided by the factors.
void encode_tile(const TileShape& shape, Fit fit, const float* x, uint8_t* codes, half* params);

// One row of `dim` codes packed and unpacked; the reference that kernels are tested against.
void pack_row(const uint8_t* codes, int dim, int bits, uint8_t* packed);
void unpack_row(const uint8_t* packed, int dim, int bits, uint8_t* codes);

}  // namespace zipcache
