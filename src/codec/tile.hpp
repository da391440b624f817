// A packed tile: the tokens of one tier of one head of one block, as codes and parameters. The
// bytes are frozen as format 1 (docs/formats.md), the same for every instruction set.
//
// Codes stand in lanes: 32-bit words whose 4 bytes belong to 4 neighbouring columns of one row.
//   Lanes::Tokens    rows are tokens, columns channels      (K: dots run over channels)
//   Lanes::Channels  rows are channels, columns tokens      (V: sums run over tokens)
// so that scores and weighted sums are the same product, codes times a vector of columns, and no
// sum crosses lanes.
//
//   unit  16 rows, one after another; a tile's last unit is filled up with rows of code 0
//   step  the fewest columns that fill whole words of a unit; the last one is filled up with code 0
//           8 bit   4 columns,  64 bytes: byte j of lane l = column j of row l
//           4 bit   8 columns,  64 bytes: bits 0-3 columns 0-3, bits 4-7 columns 4-7
//           2 bit  16 columns,  64 bytes: bits 2p, 2p+1 columns 4p .. 4p+3
//           3 bit  32 columns, 192 bytes: low two bits of columns 0-15 and 16-31 as at 2 bit, then
//           64
//                  bytes of top bits: bit p columns 4p .. 4p+3
//          16 bit  no lanes: f16 values [n_tokens, dim]
//   params  steps [n_sets], then floors [n_sets], f16; none at 16 bit
//             Axis::Channel  one set for each channel     Axis::Token, Axis::Cst  one for each
//             token Axis::Group    [dim / group, tokens]
//             Axis::ChannelGroup   [tokens / group, channels], the last group may be short
//           Runs of tokens and channels are filled up to 16 with zeros.
//
//           Codecs without a floor (codec/levels.hpp) have steps alone, f16, or 8 bits for E2m1;
//           none with Axis::None.
//
//   low_rank  f16 [rank, dim] of channels, then [rank, n_tokens filled up to 16] of tokens, where a
//             tile of codes has a rank (codec/low_rank.hpp)
//
// Value = floor + step * code, or step * level, times the factor of its channel or token where
// there is one (channel factors belong to the block), plus the product of the low-rank factors. dim
// is a multiple of 8. Pure functions, thread-safe.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "codec/levels.hpp"
#include "codec/quantize.hpp"

namespace zipcache {

inline constexpr int kTileFormat = 1;
inline constexpr int kUnitRows = 16;

enum class Lanes : uint8_t { Tokens, Channels };

constexpr int padded_to(int n, int multiple) { return (n + multiple - 1) / multiple * multiple; }
// Columns of one step, and its bytes; bits is 2, 3, 4 or 8.
constexpr int step_columns(int bits) { return bits == 3 ? 32 : 32 / bits; }
constexpr int step_bytes(int bits) { return step_columns(bits) * kUnitRows * bits / 8; }

// Held as codes with parameters: not raw, and not evicted.
constexpr bool coded(int bits) { return bits != 0 && bits != 16; }

struct TileShape {
  int n_tokens = 0;
  int dim = 0;
  int bits = 16;
  Axis axis = Axis::Channel;
  int group = 0;  // channels per set for Axis::Group, tokens for Axis::ChannelGroup
  Lanes lanes = Lanes::Tokens;
  Codec codec = Codec::Affine;
  int rank = 0;  // of the correction beside the codes

  int n_rows() const { return lanes == Lanes::Tokens ? n_tokens : dim; }
  int n_columns() const { return lanes == Lanes::Tokens ? dim : n_tokens; }
  // Bytes of one unit of 16 rows.
  size_t unit_bytes() const {
    return size_t(padded_to(n_columns(), step_columns(bits)) / step_columns(bits)) *
           size_t(step_bytes(bits));
  }
};

size_t code_bytes(const TileShape& shape);
// Sets as stored, filling included.
int n_sets(const TileShape& shape);
inline size_t param_bytes(const TileShape& shape) {
  return set_bytes(shape.codec) * size_t(n_sets(shape));
}
size_t low_rank_bytes(const TileShape& shape);
// Place among the sets of the parameters of a value.
int set_of(const TileShape& shape, int token, int channel);

// Where the parts of a packed tile lie.
struct TileView {
  TileShape shape;
  const uint8_t* codes = nullptr;  // [code_bytes]
  const half* params = nullptr;    // [param_bytes]: steps [n_sets], then floors where there are any
  const half* factors = nullptr;   // [padded_to(dim, 16)] of channels, or null
  const half* token_factors = nullptr;  // [padded_to(n_tokens, 16)], or null
  const half* low_rank = nullptr;       // [low_rank_bytes], or null
};

// Step of a set, 1 where there are no parameters.
float step_of(const TileShape& shape, const half* params, int set);

// Reads and writes one code: the reference that kernels are tested against. `codes` must hold zeros
// where a code is written.
uint8_t read_code(const TileShape& shape, const uint8_t* codes, int token, int channel);
void write_code(const TileShape& shape, uint8_t* codes, int token, int channel, uint8_t code);

// Parameters per channel of rows x [n, dim], for a tile or for many tiles that share them.
std::vector<SetFit> fit_channels(const float* x, int n, int dim, int bits, Fit fit);

// Codes of x [n_tokens, dim] on given channel parameters.
void encode_with(const TileShape& shape, std::span<const SetFit> fits, const float* x,
                 uint8_t* codes);
// Stores channel parameters as a tile's params.
void store_params(std::span<const SetFit> fits, half* params);

// Codes and parameters of x [n_tokens, dim]. For Axis::Cst x is already divided by the factors.
void encode_tile(const TileShape& shape, Fit fit, const float* x, uint8_t* codes, half* params);

}  // namespace zipcache
