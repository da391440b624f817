#include "codec/tile.hpp"

#include <algorithm>
#include <cstring>

#include "codec/kernels.hpp"
#include "codec/level_codes.hpp"

namespace zipcache {
namespace {

// Where a code's low bits, and at 3 bits its top bit, stand.
struct CodePlace {
  size_t byte = 0, top_byte = 0;
  int shift = 0, top_shift = 0;
};

CodePlace place_of(const TileShape& shape, int token, int channel) {
  const bool by_token = shape.lanes == Lanes::Tokens;
  const int row = by_token ? token : channel, column = by_token ? channel : token;
  const int in_step = column % step_columns(shape.bits), quad = in_step / 4;
  const size_t lane = size_t(row / kUnitRows) * shape.unit_bytes() +
                      size_t(column / step_columns(shape.bits)) * size_t(step_bytes(shape.bits)) +
                      size_t(row % kUnitRows * 4 + in_step % 4);
  if (shape.bits == 3) {
    return {lane + size_t(quad / 4 * 64), lane + 128, quad % 4 * 2, quad};
  }
  return {lane, 0, quad * shape.bits, 0};
}

// x [n, dim] turned: [dim, padded n], the filling zero.
std::vector<float> turned(const float* x, int n, int dim) {
  const size_t ld = size_t(padded_to(n, kUnitRows));
  std::vector<float> out(size_t(dim) * ld, 0.0f);
  for (int t = 0; t < n; ++t) {
    for (int c = 0; c < dim; ++c) out[size_t(c) * ld + size_t(t)] = x[t * dim + c];
  }
  return out;
}

// A fit of each of `n_sets` sets, whose values stand `stride` floats apart from set to set's lane.
void fit_lanes(const float* x, int n_values, int stride, int n_sets, int bits, Fit fit,
               SetFit* fits) {
  const Kernels& kernels = best_kernels();
  SetSearch found;
  for (int first = 0; first < n_sets; first += kUnitRows) {
    kernels.search_sets({x + first, n_values, stride, bits, fit}, found);
    const int count = std::min(kUnitRows, n_sets - first);
    for (int i = 0; i < count; ++i) fits[first + i] = finish_fit(found, i, bits, fit);
  }
}

// The grids on which columns or rows of a tile are coded, ready for the kernel.
struct Grids {
  std::vector<float> inverses, floors;
  explicit Grids(std::span<const SetFit> fits)
      : inverses(size_t(padded_to(int(fits.size()), kUnitRows)), 0.0f), floors(inverses) {
    for (size_t i = 0; i < fits.size(); ++i) {
      inverses[i] = fits[i].code_step > 0 ? 1.0f / fits[i].code_step : 0.0f;
      floors[i] = fits[i].code_floor;
    }
  }
};

// x is in the tile's own order, [columns, ld rows]; grids belong to columns, or to rows.
void encode_lanes(const TileShape& shape, const float* x, int ld, const Grids& grids,
                  bool by_column, int first_row, int n_rows, int first_column, int n_columns,
                  uint8_t* codes) {
  const size_t at =
      size_t(first_row / kUnitRows) * shape.unit_bytes() +
      size_t(first_column / step_columns(shape.bits)) * size_t(step_bytes(shape.bits));
  best_kernels().encode({x + first_column * ld + first_row, ld, n_rows, n_columns, shape.bits,
                         by_column, grids.inverses.data(), grids.floors.data()},
                        codes + at, shape.unit_bytes());
}

// Rows of a tile in its own order: as they are for channels in lanes, turned for tokens in lanes.
struct Ordered {
  std::vector<float> own;
  const float* x = nullptr;
  int ld = 0;
  Ordered(const TileShape& shape, const float* rows) {
    if (shape.lanes == Lanes::Tokens) {
      own = turned(rows, shape.n_tokens, shape.dim);
      ld = padded_to(shape.n_tokens, kUnitRows);
    } else if (shape.dim % kUnitRows == 0) {
      x = rows, ld = shape.dim;
      return;
    } else {
      ld = padded_to(shape.dim, kUnitRows);
      own.assign(size_t(shape.n_tokens) * size_t(ld), 0.0f);
      for (int t = 0; t < shape.n_tokens; ++t)
        std::copy_n(rows + t * shape.dim, shape.dim, &own[size_t(t) * size_t(ld)]);
    }
    x = own.data();
  }
};

void encode_by_token(const TileShape& shape, Fit fit, const float* rows, uint8_t* codes,
                     half* params) {
  const std::vector<float> tokens_in_lanes = turned(rows, shape.n_tokens, shape.dim);
  const int ld = padded_to(shape.n_tokens, kUnitRows), sets = n_sets(shape);
  const int width = shape.axis == Axis::Group ? shape.group : shape.dim;
  const Ordered ordered(shape, rows);
  std::vector<SetFit> fits(size_t(shape.n_tokens));
  for (int first = 0; first < shape.dim; first += width) {
    fit_lanes(&tokens_in_lanes[size_t(first) * size_t(ld)], width, ld, shape.n_tokens, shape.bits,
              fit, fits.data());
    for (int t = 0; t < shape.n_tokens; ++t) {
      params[set_of(shape, t, first)] = fits[size_t(t)].step;
      params[sets + set_of(shape, t, first)] = fits[size_t(t)].floor;
    }
    const Grids grids(fits);
    if (shape.lanes == Lanes::Tokens) {
      encode_lanes(shape, ordered.x, ordered.ld, grids, false, 0, shape.n_tokens, first, width,
                   codes);
    } else {
      encode_lanes(shape, ordered.x, ordered.ld, grids, true, first, width, 0, shape.n_tokens,
                   codes);
    }
  }
}

// Tokens and channels of one set.
int set_tokens(const TileShape& shape) {
  if (shape.axis == Axis::Channel) return shape.n_tokens;
  return shape.axis == Axis::ChannelGroup ? shape.group : 1;
}
int set_channels(const TileShape& shape) {
  if (by_channel(shape.axis)) return 1;
  return shape.axis == Axis::Group ? shape.group : shape.dim;
}

void store_step(const TileShape& shape, float step, half* params, int set) {
  if (shape.codec == Codec::E2m1)
    reinterpret_cast<uint8_t*>(params)[set] = to_e4m3(step);
  else
    params[set] = to_half(step);
}

// A codec without floors, set by set.
void encode_sets(const TileShape& shape, const float* rows, uint8_t* codes, half* params) {
  const int tokens = set_tokens(shape), channels = set_channels(shape);
  std::vector<float> x;
  std::vector<uint8_t> x_codes;
  for (int first = 0; first < shape.n_tokens; first += tokens) {
    const int end = std::min(first + tokens, shape.n_tokens);
    for (int channel = 0; channel < shape.dim; channel += channels) {
      x.clear();
      for (int t = first; t < end; ++t) {
        const float* row = rows + t * shape.dim + channel;
        x.insert(x.end(), row, row + channels);
      }
      const int n = int(x.size());
      x_codes.resize(x.size());
      if (shape.axis == Axis::None) {
        code_on(shape.codec, shape.bits, 1.0f, x.data(), n, x_codes.data());
      } else {
        const float step = code_set(shape.codec, shape.bits, x.data(), n, x_codes.data());
        store_step(shape, step, params, set_of(shape, first, channel));
      }
      for (int i = 0; i < n; ++i)
        write_code(shape, codes, first + i / channels, channel + i % channels, x_codes[size_t(i)]);
    }
  }
}

// Channel parameters for each group of neighbouring tokens.
void encode_by_token_group(const TileShape& shape, Fit fit, const float* rows, uint8_t* codes,
                           half* params) {
  const Ordered ordered(shape, rows);
  for (int first = 0; first < shape.n_tokens; first += shape.group) {
    const int n = std::min(shape.group, shape.n_tokens - first);
    const auto fits = fit_channels(rows + first * shape.dim, n, shape.dim, shape.bits, fit);
    for (int c = 0; c < shape.dim; ++c) {
      params[set_of(shape, first, c)] = fits[size_t(c)].step;
      params[n_sets(shape) + set_of(shape, first, c)] = fits[size_t(c)].floor;
    }
    const Grids grids(fits);
    if (shape.lanes == Lanes::Tokens)
      encode_lanes(shape, ordered.x, ordered.ld, grids, true, first, n, 0, shape.dim, codes);
    else
      encode_lanes(shape, ordered.x, ordered.ld, grids, false, 0, shape.dim, first, n, codes);
  }
}

}  // namespace

size_t code_bytes(const TileShape& shape) {
  if (shape.n_tokens == 0) return 0;
  if (shape.bits == 16) return sizeof(half) * size_t(shape.n_tokens) * size_t(shape.dim);
  return size_t(padded_to(shape.n_rows(), kUnitRows) / kUnitRows) * shape.unit_bytes();
}

size_t low_rank_bytes(const TileShape& shape) {
  if (shape.n_tokens == 0 || !coded(shape.bits)) return 0;
  return sizeof(half) * size_t(shape.rank) *
         size_t(shape.dim + padded_to(shape.n_tokens, kUnitRows));
}

int n_sets(const TileShape& shape) {
  if (shape.bits == 16 || shape.n_tokens == 0 || shape.axis == Axis::None) return 0;
  if (shape.axis == Axis::Channel) return padded_to(shape.dim, kUnitRows);
  if (shape.axis == Axis::ChannelGroup) {
    return padded_to(shape.n_tokens, shape.group) / shape.group * padded_to(shape.dim, kUnitRows);
  }
  const int per_token = shape.axis == Axis::Group ? shape.dim / shape.group : 1;
  return per_token * padded_to(shape.n_tokens, kUnitRows);
}

int set_of(const TileShape& shape, int token, int channel) {
  switch (shape.axis) {
    case Axis::Channel:
      return channel;
    case Axis::Group:
      return channel / shape.group * padded_to(shape.n_tokens, kUnitRows) + token;
    case Axis::ChannelGroup:
      return token / shape.group * padded_to(shape.dim, kUnitRows) + channel;
    case Axis::None:
      return 0;
    case Axis::Token:
    case Axis::Cst:
      break;
  }
  return token;
}

float step_of(const TileShape& shape, const half* params, int set) {
  if (shape.axis == Axis::None) return 1.0f;
  if (shape.codec == Codec::E2m1) return from_e4m3(reinterpret_cast<const uint8_t*>(params)[set]);
  return to_float(params[set]);
}

uint8_t read_code(const TileShape& shape, const uint8_t* codes, int token, int channel) {
  const CodePlace at = place_of(shape, token, channel);
  const int low_bits = shape.bits == 3 ? 2 : shape.bits;
  int code = (codes[at.byte] >> at.shift) & top_code(low_bits);
  if (shape.bits == 3) code |= ((codes[at.top_byte] >> at.top_shift) & 1) << 2;
  return uint8_t(code);
}

void write_code(const TileShape& shape, uint8_t* codes, int token, int channel, uint8_t code) {
  const CodePlace at = place_of(shape, token, channel);
  const int low_bits = shape.bits == 3 ? 2 : shape.bits;
  codes[at.byte] |= uint8_t((code & top_code(low_bits)) << at.shift);
  if (shape.bits == 3) codes[at.top_byte] |= uint8_t((code >> 2) << at.top_shift);
}

std::vector<SetFit> fit_channels(const float* x, int n, int dim, int bits, Fit fit) {
  std::vector<SetFit> fits(static_cast<size_t>(dim));
  if (dim % kUnitRows == 0) {
    fit_lanes(x, n, dim, dim, bits, fit, fits.data());
    return fits;
  }
  const int ld = padded_to(dim, kUnitRows);
  std::vector<float> wide(size_t(n) * size_t(ld), 0.0f);
  for (int t = 0; t < n; ++t) std::copy_n(x + t * dim, dim, &wide[size_t(t) * size_t(ld)]);
  fit_lanes(wide.data(), n, ld, dim, bits, fit, fits.data());
  return fits;
}

void store_params(std::span<const SetFit> fits, half* params) {
  const size_t sets = size_t(padded_to(int(fits.size()), kUnitRows));
  std::fill_n(params, 2 * sets, half{0});
  for (size_t i = 0; i < fits.size(); ++i) {
    params[i] = fits[i].step;
    params[sets + i] = fits[i].floor;
  }
}

void encode_with(const TileShape& shape, std::span<const SetFit> fits, const float* x,
                 uint8_t* codes) {
  if (shape.n_tokens == 0) return;
  std::memset(codes, 0, code_bytes(shape));
  const Ordered ordered(shape, x);
  encode_lanes(shape, ordered.x, ordered.ld, Grids(fits), shape.lanes == Lanes::Tokens, 0,
               shape.n_rows(), 0, shape.n_columns(), codes);
}

void encode_tile(const TileShape& shape, Fit fit, const float* x, uint8_t* codes, half* params) {
  if (shape.n_tokens == 0) return;
  if (shape.bits == 16) {
    half* rows = reinterpret_cast<half*>(codes);
    for (int i = 0; i < shape.n_tokens * shape.dim; ++i) rows[i] = to_half(x[i]);
    return;
  }
  if (shape.codec != Codec::Affine) {
    std::memset(codes, 0, code_bytes(shape));
    if (params) std::memset(params, 0, param_bytes(shape));
    return encode_sets(shape, x, codes, params);
  }
  if (shape.axis == Axis::Channel) {
    const auto fits = fit_channels(x, shape.n_tokens, shape.dim, shape.bits, fit);
    store_params(fits, params);
    encode_with(shape, fits, x, codes);
    return;
  }
  std::memset(codes, 0, code_bytes(shape));
  std::fill_n(params, 2 * n_sets(shape), half{0});
  if (shape.axis == Axis::ChannelGroup) return encode_by_token_group(shape, fit, x, codes, params);
  encode_by_token(shape, fit, x, codes, params);
}

}  // namespace zipcache
