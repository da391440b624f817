#include "codec/tile.hpp"

#include <algorithm>
#include <cstring>

namespace zipcache {
namespace {

int sets_per_token(const TileShape& shape) {
  return shape.axis == Axis::Group ? shape.dim / shape.group : 1;
}

void encode_rows_by_token(const TileShape& shape, Fit fit, const float* x, uint8_t* codes,
                          half* params) {
  const int per_token = sets_per_token(shape), width = shape.dim / per_token;
  const int sets = n_sets(shape);
  const size_t row_bytes = code_bytes({1, shape.dim, shape.bits, shape.axis, shape.group});
  std::vector<uint8_t> row(static_cast<size_t>(shape.dim));
  for (int t = 0; t < shape.n_tokens; ++t) {
    for (int g = 0; g < per_token; ++g) {
      const float* set = x + t * shape.dim + g * width;
      const SetFit chosen = fit_set(set, width, shape.bits, fit);
      for (int i = 0; i < width; ++i) row[g * width + i] = code_of(set[i], chosen, shape.bits);
      params[t * per_token + g] = chosen.step;
      params[sets + t * per_token + g] = chosen.floor;
    }
    pack_row(row.data(), shape.dim, shape.bits, codes + t * row_bytes);
  }
}

}  // namespace

size_t code_bytes(const TileShape& shape) {
  return size_t(shape.n_tokens) * size_t(shape.dim) * size_t(shape.bits) / 8;
}

int n_sets(const TileShape& shape) {
  if (shape.bits == 16 || shape.n_tokens == 0) return 0;
  return shape.axis == Axis::Channel ? shape.dim : shape.n_tokens * sets_per_token(shape);
}

std::vector<SetFit> fit_channels(const float* x, int n, int dim, int bits, Fit fit) {
  std::vector<SetFit> fits(static_cast<size_t>(dim));
  std::vector<float> channel(static_cast<size_t>(n));
  for (int c = 0; c < dim; ++c) {
    for (int t = 0; t < n; ++t) channel[t] = x[t * dim + c];
    fits[c] = fit_set(channel.data(), n, bits, fit);
  }
  return fits;
}

void store_params(std::span<const SetFit> fits, half* params) {
  for (size_t i = 0; i < fits.size(); ++i) {
    params[i] = fits[i].step;
    params[fits.size() + i] = fits[i].floor;
  }
}

void encode_with(const TileShape& shape, std::span<const SetFit> fits, const float* x,
                 uint8_t* codes) {
  const size_t row_bytes = code_bytes({1, shape.dim, shape.bits, shape.axis, shape.group});
  std::vector<uint8_t> row(static_cast<size_t>(shape.dim));
  for (int t = 0; t < shape.n_tokens; ++t) {
    for (int c = 0; c < shape.dim; ++c) row[c] = code_of(x[t * shape.dim + c], fits[c], shape.bits);
    pack_row(row.data(), shape.dim, shape.bits, codes + t * row_bytes);
  }
}

void encode_tile(const TileShape& shape, Fit fit, const float* x, uint8_t* codes, half* params) {
  if (shape.n_tokens == 0) return;
  if (shape.bits == 16) {
    half* rows = reinterpret_cast<half*>(codes);
    for (int i = 0; i < shape.n_tokens * shape.dim; ++i) rows[i] = to_half(x[i]);
    return;
  }
  if (shape.axis != Axis::Channel) return encode_rows_by_token(shape, fit, x, codes, params);
  const auto fits = fit_channels(x, shape.n_tokens, shape.dim, shape.bits, fit);
  store_params(fits, params);
  encode_with(shape, fits, x, codes);
}

void pack_row(const uint8_t* codes, int dim, int bits, uint8_t* packed) {
  const int half_row = dim / 2, quarter = dim / 4, eighth = dim / 8;
  switch (bits) {
    case 8:
      std::memcpy(packed, codes, static_cast<size_t>(dim));
      return;
    case 4:
      for (int j = 0; j < half_row; ++j) packed[j] = uint8_t(codes[j] | codes[j + half_row] << 4);
      return;
    case 3:
      for (int j = 0; j < eighth; ++j) {
        uint8_t byte = 0;
        for (int b = 0; b < 8; ++b) byte |= uint8_t((codes[j + b * eighth] >> 2) << b);
        packed[quarter + j] = byte;
      }
      [[fallthrough]];
    case 2:
      for (int j = 0; j < quarter; ++j) {
        packed[j] = uint8_t((codes[j] & 3) | (codes[j + quarter] & 3) << 2 |
                            (codes[j + 2 * quarter] & 3) << 4 | (codes[j + 3 * quarter] & 3) << 6);
      }
      return;
    default:
      return;
  }
}

void unpack_row(const uint8_t* packed, int dim, int bits, uint8_t* codes) {
  const int half_row = dim / 2, quarter = dim / 4, eighth = dim / 8;
  for (int c = 0; c < dim; ++c) {
    switch (bits) {
      case 8:
        codes[c] = packed[c];
        break;
      case 4:
        codes[c] = (packed[c % half_row] >> (4 * (c / half_row))) & 15;
        break;
      case 3:
      case 2: {
        codes[c] = (packed[c % quarter] >> (2 * (c / quarter))) & 3;
        if (bits == 3)
          codes[c] |= uint8_t(((packed[quarter + c % eighth] >> (c / eighth)) & 1) << 2);
        break;
      }
      default:
        break;
    }
  }
}

}  // namespace zipcache
