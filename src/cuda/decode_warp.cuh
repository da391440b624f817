// What the warps of decode attention have in common: tiers, pieces of codes, lanes.
#pragma once

#include <type_traits>

#include "cuda/decode_launch.hpp"
#include "cuda/device.cuh"

namespace zipcache::cuda {
namespace {

constexpr float kLog2E = 1.44269504f;
constexpr float kLowest = -1e30f;

// A tier of the record at hand, in registers.
struct TierOf {
  int number, count, k_bits, v_bits;
  int k_params, v_params, k_codes, v_codes, v_factors;  // in bytes from the record's first
  bool k_by_token, is_raw;  // is_raw: 16-bit rows in the order of tokens

  // `words` are the `number`-th TierHeader of a record.
  __device__ __forceinline__ TierOf(int number, uint4 words)
      : number(number),
        count(words.x & 0xFF),
        k_bits(words.x >> 8 & 0xFF),
        v_bits(words.x >> 16 & 0xFF),
        k_params((words.y & 0xFFFF) * 16),
        v_params((words.y >> 16) * 16),
        k_codes((words.z & 0xFFFF) * 16),
        v_codes((words.z >> 16) * 16),
        v_factors((words.w & 0xFFFF) * 16),
        k_by_token((words.x >> 24 & kKeysByToken) != 0),
        is_raw((words.x >> 24 & kTierMask) == 1 && k_bits == 16 && v_bits == 16) {}
};

// What a block of threads works on.
struct Task {
  WorkItem item;
  int head, first_column, n_columns;
};

template <int kDim>
constexpr int kFragments = kDim / 16;

// ---- codes of a unit: bytes of words, of four columns of one row each

// Of one lane's words that stand side by side, or three that stand apart where codes have 3 bits.
template <int kBits, int kDim>
struct Piece {
  static constexpr int kWords = kBits == 3 ? 3 : wide_words(kDim, kBits);
  static constexpr int kHeld = kBits == 3 ? 4 : kWords * 4 / kBits;  // fragments
  static constexpr int kPieces = kFragments<kDim> / kHeld;           // of a unit
  uint32_t words[4];

  __device__ __forceinline__ Piece(const uint8_t* unit, int piece, int lane) {
    if constexpr (kBits == 3) {
#pragma unroll
      for (int i = 0; i < 3; ++i)
        words[i] = reinterpret_cast<const uint32_t*>(unit)[(piece * 3 + i) * kLanes + lane];
    } else {
      load_words<kWords>(unit + (piece * kLanes + lane) * kWords * 4, words);
    }
  }

  // Codes of a row of fragment f of the piece times row_factor(). `scaled`: those of 2 bits of odd
  // fragments stay in their place as well, 16 times as large.
  __device__ __forceinline__ uint32_t row(int f, int row_half, bool scaled) const {
    if constexpr (kBits == 2) {
      const uint32_t own = f % 2 == 1 && !scaled ? words[f / 2] >> 4 : words[f / 2];
      return own & 0x03030303u << (f % 2 == 1 && scaled ? 4 : 0) + 2 * row_half;
    } else if constexpr (kBits == 3) {
      const uint32_t low = words[f / 2] >> f % 2 * 4 + row_half * 2;
      const int at = f * 2 + row_half - 2;  // of the top bit, from bit 2
      const uint32_t top = at < 0 ? words[2] << -at : words[2] >> at;
      return (low & 0x03030303u) | (top & 0x04040404u);
    } else if constexpr (kBits == 4) {
      return words[f] & 0x0F0F0F0Fu << 4 * row_half;
    } else {
      return words[f * 2 + row_half];
    }
  }
};

// What rows 8 to 15 are larger than rows 0 to 7, and odd fragments than even ones where they are
// `scaled`, because their codes stay in their place.
__device__ __forceinline__ constexpr float row_factor(int bits, int row_half) {
  return row_half == 0 ? 1.0f : bits == 2 ? 4.0f : bits == 4 ? 16.0f : 1.0f;
}
__device__ __forceinline__ constexpr float scaled_factor(int bits, int fragment) {
  return bits == 2 && fragment % 2 == 1 ? 16.0f : 1.0f;
}

// Of a tier that has `before` units of the record before it.
struct Units {
  int begin, end, before;
};

// Scores of a tier's tokens in shared memory: a lane has rows l / 4 and l / 4 + 8 of a unit and
// query row l % 4 of a tile. A place holds a unit.
template <int kTiles>
struct Scores {
  float2* first;

  __device__ __forceinline__ float2& at(int place, int tile, int lane) const {
    return first[(place * kTiles + tile) * kLanes + lane];
  }
};

// What a warp that works on records has of its task. A lane has rows l / 4 and l / 4 + 8 of a
// unit's products, and columns 2 (l % 4) and the next one.
template <int kDim, int kTiles>
class Lane {
 public:
  static constexpr int kF = kFragments<kDim>;

  __device__ Lane(const Launch& launch)
      : launch_(launch), lane_(int(threadIdx.x) % kLanes), row_(lane_ / 4), pair_(lane_ % 4) {}

 protected:
  // A fragment of 16-bit rows.
  __device__ __forceinline__ void load_row(const uint8_t* rows, int unit, int f,
                                           uint32_t (&words)[4]) const {
    load_words<4>(rows + unit * unit_bytes(kDim, 16) + (f * kLanes + lane_) * 16, words);
  }

  template <class Use>
  __device__ __forceinline__ static void with_bits(int bits, Use&& use) {
    switch (bits) {
      case 2:
        return use(std::integral_constant<int, 2>{});
      case 3:
        return use(std::integral_constant<int, 3>{});
      case 4:
        return use(std::integral_constant<int, 4>{});
      default:
        return use(std::integral_constant<int, 8>{});
    }
  }

  // Of upper and lower bytes.
  __device__ __forceinline__ static float whole(int upper, int lower) {
    return float(upper * 256 + lower);
  }

  // Over the lanes of a query row.
  __device__ __forceinline__ static float sum_of_column(float x) {
#pragma unroll
    for (int step = 4; step < kLanes; step *= 2) x += __shfl_xor_sync(~0u, x, step);
    return x;
  }
  __device__ __forceinline__ static float largest_of_column(float x) {
#pragma unroll
    for (int step = 4; step < kLanes; step *= 2) x = fmaxf(x, __shfl_xor_sync(~0u, x, step));
    return x;
  }

  const Launch& launch_;
  const int lane_, row_, pair_;
  Scores<kTiles> scores_ = {};  // of the tier at hand
};

}  // namespace
}  // namespace zipcache::cuda
