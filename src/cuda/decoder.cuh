// Codes of any record as 16-bit floating point numbers in the order in which matrix units take
// them: for kernels that read every form of a side (record.hpp: SideForm), slower than products of
// codes themselves. A number is off by the rounding of its 16 bits, once for the parameters of its
// set and once for each factor that it has; what is larger than 65504 becomes that.
#pragma once

#include <cuda_fp16.h>

#include "cuda/code_values.hpp"
#include "cuda/device.cuh"

namespace zipcache::cuda {
namespace {

__device__ __forceinline__ __half2 halves_of(uint32_t bits) {
  return reinterpret_cast<const __half2&>(bits);
}
__device__ __forceinline__ uint32_t bits_of_halves(__half2 pair) {
  return reinterpret_cast<const uint32_t&>(pair);
}

__device__ __forceinline__ __half2 clamped(__half2 x, float size) {
  return __hmax2(__hmin2(x, __float2half2_rn(size)), __float2half2_rn(-size));
}

// Two 8-bit floating point numbers that stand in the upper bytes of both halves; a pattern that is
// no number is the largest (codec/levels.hpp).
__device__ __forceinline__ __half2 from_e4m3(uint32_t upper_bytes) {
  const uint32_t bits = (upper_bytes & 0x80008000u) | ((upper_bytes & 0x7F007F00u) >> 1);
  return clamped(__hmul2(halves_of(bits), __float2half2_rn(256.0f)), 448.0f);
}

// One side of one tier of a record, for one lane of a warp. A lane has of a fragment, 16 x 16
// numbers, pairs of neighbouring columns: rows l / 4 and l / 4 + 8, columns 2 (l % 4) and those + 8
// (record.hpp); of K rows are tokens and columns channels, of V the other way round. Parameters
// belong either to columns or to rows, the same for the whole fragment otherwise, since groups are
// whole fragments.
template <int kDim, bool kIsK>
class Decoder {
 public:
  __device__ Decoder(const SideForm& side, const CodeValues& values, const uint8_t* record,
                     const TierHeader& header, int lane)
      : side_(side),
        values_(values),
        codes_(record + (kIsK ? header.k_codes : header.v_codes) * kPiece),
        params_(record + (kIsK ? header.k_params : header.v_params) * kPiece),
        factors_(halves(record, kIsK ? header.k_factors : header.v_factors)),
        filled_(units_of(header.count) * kUnitTokens),
        n_sets_(sets_of(side, kDim, header.count)),
        lane_(lane) {
    const uint8_t* low_rank = codes_ - low_rank_bytes(side, kDim, header.count);
    rank_channels_ = reinterpret_cast<const __half*>(low_rank);
    token_factors_ =
        reinterpret_cast<const __half*>(low_rank - token_factor_bytes(side, header.count));
  }

  // The lane's pairs of fragment `f` of a unit: [column half * 2 + row half].
  template <int kBits>
  __device__ __forceinline__ void fragment(int unit, int f, uint32_t (&out)[4]) const {
    __half2 x[4];
    read_codes<kBits>(unit, f, x);
    scale(unit, f, x);
    if (factors_ != nullptr)
      multiply(x, kIsK, [&](int half) { return channel_pair(factors_, f, half); });
    if (side_.token_factors)
      multiply(x, !kIsK, [&](int half) { return token_pair(token_factors_, unit, half); });
    for (int r = 0; r < side_.rank; ++r) add_product(r, unit, f, x);
#pragma unroll
    for (int i = 0; i < 4; ++i) out[i] = bits_of_halves(clamped(x[i], 65504.0f));
  }

 private:
  static constexpr int kPiece = 16;

  __device__ static const __half* halves(const uint8_t* record, int place) {
    return place ? reinterpret_cast<const __half*>(record + place * kPiece) : nullptr;
  }

  // ---- codes

  template <int kBits>
  __device__ __forceinline__ void read_codes(int unit, int f, __half2 (&x)[4]) const {
    const auto* words = reinterpret_cast<const uint32_t*>(codes_ + unit * unit_bytes(kDim, kBits));
    const auto word = [&](int i) { return words[unit_word(kDim, kBits, lane_, i)]; };
    uint32_t own[2];  // by row half: a code a byte, columns 2 (l % 4), that + 8, and the next ones
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      if constexpr (kBits == 2) {
        own[half] = word(f / 2) >> (f % 2 * 4 + half * 2) & 0x03030303u;
      } else if constexpr (kBits == 3) {
        const uint32_t low = word(f / 4 * 3 + f / 2 % 2) >> (f % 2 * 4 + half * 2) & 0x03030303u;
        own[half] = low | (word(f / 4 * 3 + 2) >> (f % 4 * 2 + half) & 0x01010101u) << 2;
      } else if constexpr (kBits == 4) {
        own[half] = word(f) >> 4 * half & 0x0F0F0F0Fu;
      } else {
        own[half] = word(f * 2 + half);
      }
    }
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      if (codes_are_numbers(side_.codec))
        read_numbers(own[half], x[half], x[2 + half]);
      else if (kBits == 8)
        read_e4m3(own[half], x[half], x[2 + half]);
      else
        read_levels<kBits>(own[half], x[half], x[2 + half]);
    }
  }

  // A byte behind 0x64 is 1024 plus it.
  __device__ __forceinline__ void read_numbers(uint32_t own, __half2& first,
                                               __half2& second) const {
    const __half2 zero = __float2half2_rn(1024.0f + values_.zero);
    first = __hsub2(halves_of(__byte_perm(own, 0x64u, 0x4240)), zero);
    second = __hsub2(halves_of(__byte_perm(own, 0x64u, 0x4341)), zero);
  }

  __device__ __forceinline__ static void read_e4m3(uint32_t own, __half2& first, __half2& second) {
    first = from_e4m3(__byte_perm(own, 0, 0x2404));
    second = from_e4m3(__byte_perm(own, 0, 0x3414));
  }

  // The top bit is the sign, the others number the sizes.
  template <int kBits>
  __device__ __forceinline__ void read_levels(uint32_t own, __half2& first, __half2& second) const {
    constexpr uint32_t kEvery = 0x01010101u;
    const uint32_t sizes = own & kEvery * ((1u << (kBits - 1)) - 1);
    const uint32_t chosen = __byte_perm(sizes | sizes >> 4, 0, 0x4420);
    const uint32_t low = __byte_perm(values_.low[0], values_.low[1], chosen);
    const uint32_t sign = (own >> (kBits - 1) & kEvery) << 7;
    const uint32_t high = __byte_perm(values_.high[0], values_.high[1], chosen) | sign;
    first = halves_of(__byte_perm(low, high, 0x6240));
    second = halves_of(__byte_perm(low, high, 0x7351));
  }

  // ---- parameters

  // Those of columns, else of rows.
  __device__ bool by_columns() const { return kIsK == by_channel(side_.axis); }

  __device__ __forceinline__ void scale(int unit, int f, __half2 (&x)[4]) const {
    if (side_.axis == Axis::None) return;
    __half2 steps[2], floors[2] = {};  // of both halves
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      if (side_.as_tile)
        tile_params(unit, f, half, steps[half], floors[half]);
      else
        operand_params(unit, f, half, steps[half], floors[half]);
    }
    const bool columns = by_columns();
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int half = columns ? i / 2 : i % 2;
      x[i] = __hfma2(half == 0 ? steps[0] : steps[1], x[i], half == 0 ? floors[0] : floors[1]);
    }
  }

  // Of a half of the columns or rows, in the order of tiles (codec/tile.hpp).
  __device__ __forceinline__ void tile_params(int unit, int f, int half, __half2& step,
                                              __half2& floor) const {
    const bool columns = by_columns();
    const int in_side = (columns ? column() : row()) + 8 * half;
    int set = by_channel(side_.axis) ? f * 16 + in_side : unit * kUnitTokens + in_side;
    if (side_.axis == Axis::ChannelGroup) set += unit * kUnitTokens / side_.group * kDim;
    if (side_.axis == Axis::Group) set += f * 16 / side_.group * filled_;
    if (side_.codec == Codec::E2m1) {
      const uint32_t first = params_[set], second = columns ? params_[set + 1] : first;
      step = from_e4m3(first << 8 | second << 24);
      return;
    }
    const auto* steps = reinterpret_cast<const __half*>(params_);
    step = pair_at(steps + set, columns);
    if (side_.codec == Codec::Affine) floor = pair_at(steps + n_sets_ + set, columns);
  }

  // The same where parameters stand as the fastest kernels take them.
  __device__ __forceinline__ void operand_params(int unit, int f, int half, __half2& step,
                                                 __half2& floor) const {
    if (by_channel(side_.axis)) {  // of K
      const auto* steps = reinterpret_cast<const __half*>(params_);
      const int place = k_param_place(f * 16 + column() + 8 * half);
      step = pair_at(steps + place, true);
      floor = pair_at(steps + kDim + place, true);
      return;
    }
    const auto* pairs = reinterpret_cast<const uint32_t*>(params_) + unit * kUnitTokens;
    const int token = (kIsK ? row() : column()) + 8 * half;
    const uint32_t first = pairs[token], second = kIsK ? first : pairs[token + 1];
    step = halves_of(__byte_perm(first, second, 0x5410));
    floor = halves_of(__byte_perm(first, second, 0x7632));
  }

  // ---- factors

  __device__ int row() const { return lane_ / 4; }
  __device__ int column() const { return lane_ % 4 * 2; }

  // Two neighbours, or one number twice.
  __device__ __forceinline__ static __half2 pair_at(const __half* at, bool neighbours) {
    return neighbours ? *reinterpret_cast<const __half2*>(at) : __half2half2(*at);
  }
  // Of channels, or of tokens, of a half of the columns or rows.
  __device__ __forceinline__ __half2 channel_pair(const __half* numbers, int f, int half) const {
    const int channel = f * 16 + (kIsK ? column() : row()) + 8 * half;
    if (!kIsK && !side_.as_tile) return __half2half2(numbers[v_factor_place(channel)]);
    return pair_at(numbers + channel, kIsK);
  }
  __device__ __forceinline__ __half2 token_pair(const __half* numbers, int unit, int half) const {
    return pair_at(numbers + unit * kUnitTokens + (kIsK ? row() : column()) + 8 * half, !kIsK);
  }

  template <class Factor>
  __device__ __forceinline__ static void multiply(__half2 (&x)[4], bool columns, Factor&& factor) {
    const __half2 factors[2] = {factor(0), factor(1)};
#pragma unroll
    for (int i = 0; i < 4; ++i) x[i] = __hmul2(x[i], factors[columns ? i / 2 : i % 2]);
  }

  // Of the low-rank factors.
  __device__ __forceinline__ void add_product(int r, int unit, int f, __half2 (&x)[4]) const {
    const __half* channels = rank_channels_ + r * kDim;
    const __half* tokens = rank_channels_ + side_.rank * kDim + r * filled_;
    const __half2 c[2] = {channel_pair(channels, f, 0), channel_pair(channels, f, 1)};
    const __half2 t[2] = {token_pair(tokens, unit, 0), token_pair(tokens, unit, 1)};
#pragma unroll
    for (int i = 0; i < 4; ++i)
      x[i] = __hfma2(c[kIsK ? i / 2 : i % 2], t[kIsK ? i % 2 : i / 2], x[i]);
  }

  const SideForm& side_;
  const CodeValues& values_;
  const uint8_t* codes_;
  const uint8_t* params_;
  const __half* factors_;  // of channels; null for none
  const __half* token_factors_;
  const __half* rank_channels_;
  const int filled_, n_sets_, lane_;
};

}  // namespace
}  // namespace zipcache::cuda
