// Eight neighbouring numbers of a row, which a thread moves at once.
#pragma once

#include "cuda/grid.hpp"
#include "cuda/hadamard.hpp"

namespace zipcache::cuda {
namespace {

constexpr int kPieceNumbers = 8;  // 16-bit numbers of 16 bytes

struct Piece {
  uint16_t numbers[kPieceNumbers];
};

__device__ __forceinline__ Piece load_piece(const uint16_t* from) {
  const uint4 words = *reinterpret_cast<const uint4*>(from);
  return reinterpret_cast<const Piece&>(words);
}
__device__ __forceinline__ void store_piece(uint16_t* to, const Piece& piece) {
  *reinterpret_cast<uint4*>(to) = reinterpret_cast<const uint4&>(piece);
}

// The row's piece rotated; the neighbouring lanes hold the row's other pieces, and all of these
// come here. A rotated row may have larger numbers than the row.
__device__ __forceinline__ Piece rotated(const Piece& piece, int dim) {
  const int lanes = dim / kPieceNumbers, lane = int(threadIdx.x) % kLanes;
  const unsigned row = lanes == kLanes ? ~0u : ((1u << lanes) - 1) << (lane / lanes * lanes);
  float x[kPieceNumbers];
#pragma unroll
  for (int i = 0; i < kPieceNumbers; ++i) x[i] = float_of(piece.numbers[i]);
  rotate_row(x, dim, row);
  Piece out;
#pragma unroll
  for (int i = 0; i < kPieceNumbers; ++i) out.numbers[i] = finite_half_of(x[i]);
  return out;
}

}  // namespace
}  // namespace zipcache::cuda
