// Codes of any record as 16-bit floating point numbers in the order in which matrix units take
// them: for kernels that read every form of a side (record.hpp: SideForm), slower than products of
// codes themselves. A number is off by the rounding of its 16 bits, once for the parameters of its
// set and, where the decoder applies them, for each factor and low-rank product that it has; what
// is larger than 65504 becomes that.
#pragma once

#include <cuda_fp16.h>

#include <type_traits>

#include "cuda/code_values.hpp"
#include "cuda/device.cuh"

namespace zipcache::cuda {
namespace {

__device__ __forceinline__ __half2 clamped(__half2 x, float size) {
  return __hmax2(__hmin2(x, __float2half2_rn(size)), __float2half2_rn(-size));
}

// Two 8-bit floating point numbers that stand in the upper bytes of both halves; a pattern that is
// no number is the largest (codec/levels.hpp).
__device__ __forceinline__ __half2 from_e4m3(uint32_t upper_bytes) {
  const uint32_t bits = (upper_bytes & 0x80008000u) | ((upper_bytes & 0x7F007F00u) >> 1);
  return clamped(__hmul2(pair_from(bits), __float2half2_rn(256.0f)), 448.0f);
}

// What codes are: numbers, signs with places in a table, or 8-bit floating point numbers.
enum class CodeKind { Numbers, Levels, E4m3 };

// What is decoded: parameters in the order of tiles, no factors; or everything.
enum class DecoderOf { TileParams, All };

// Factors of a side in the order of tiles: a number is multiplied with those of its channel and its
// token, where there are any, and then the sum over `rank` of products of both is added.
struct TileFactors {
  const __half* channels = nullptr;       // [dim]
  const __half* tokens = nullptr;         // [filled]
  const __half* rank_channels = nullptr;  // [rank, dim]
  const __half* rank_tokens = nullptr;    // [rank, filled]
  int rank = 0, filled = 0;               // filled: tokens of whole units

  __device__ __forceinline__ TileFactors(const SideForm& side, int dim, bool is_k, int tier,
                                         const uint8_t* record) {
    constexpr int kPiece = 16;
    const TierHeader& header = reinterpret_cast<const TierHeader*>(record)[tier];
    const int factors = is_k ? header.k_factors : header.v_factors;
    const uint8_t* codes = record + (is_k ? header.k_codes : header.v_codes) * kPiece;
    if (factors) channels = reinterpret_cast<const __half*>(record + factors * kPiece);
    filled = units_of(header.count) * kUnitTokens;
    rank = side.rank;
    const uint8_t* low_rank = codes - low_rank_bytes(side, dim, header.count);
    rank_channels = reinterpret_cast<const __half*>(low_rank);
    rank_tokens = rank_channels + rank * dim;
    if (side.token_factors)
      tokens = reinterpret_cast<const __half*>(low_rank - token_factor_bytes(side, header.count));
  }
};

// One side of one tier of a record, for one lane of a warp. A lane has of a fragment, 16 x 16
// numbers, pairs of neighbouring columns: rows l / 4 and l / 4 + 8, columns 2 (l % 4) and those + 8
// (record.hpp); of K rows are tokens and columns channels, of V the other way round. Parameters
// belong to columns (kColumns) or to rows, and to the whole fragment otherwise, since groups are
// whole fragments.
template <int kDim, bool kIsK, int kBits, CodeKind kKind, bool kColumns, DecoderOf kOf>
class Decoder {
 public:
  __device__ __forceinline__ Decoder(const SideForm& side, const SideValues& values, int tier,
                                     const uint8_t* record, int lane)
      : values_(values.of[tier]),
        lane_(lane),
        factors_(side, kDim, kIsK, tier, record),
        group_of_unit_(values.group_of_unit) {
    const TierHeader& header = reinterpret_cast<const TierHeader*>(record)[tier];
    codes_ = record + (kIsK ? header.k_codes : header.v_codes) * kPiece;
    place_params(side, record + (kIsK ? header.k_params : header.v_params) * kPiece);
    factors_as_tile_ = side.as_tile;
  }

  // The lane's pairs of fragment `f` of a unit: [column half * 2 + row half].
  __device__ __forceinline__ void fragment(int unit, int f, uint32_t (&out)[4]) const {
    __half2 x[4];
    read_codes(unit, f, x);
    if (params_ != nullptr) scale(unit, f, x);
    if constexpr (kOf == DecoderOf::All) {
      if (factors_.channels != nullptr)
        multiply<kIsK>(x, [&](int half) { return factor(f, half); });
      if (factors_.tokens != nullptr)
        multiply<!kIsK>(x, [&](int half) { return token_pair(factors_.tokens, unit, half); });
      for (int r = 0; r < factors_.rank; ++r) add_product(r, unit, f, x);
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) out[i] = bits_of(clamped(x[i], 65504.0f));
  }

 private:
  static constexpr int kPiece = 16;

  // ---- codes

  __device__ __forceinline__ void read_codes(int unit, int f, __half2 (&x)[4]) const {
    const auto* words = reinterpret_cast<const uint32_t*>(codes_ + unit * unit_bytes(kDim, kBits));
    const auto word = [&](int i) { return words[unit_word(kDim, kBits, lane_, i)]; };
    uint32_t own[2];  // by row half: a code a byte, columns 2 (l % 4), that + 8, and the next ones
    if constexpr (kBits == 2) {
      const uint32_t both = word(f / 2) >> f % 2 * 4;
      own[0] = both & 0x03030303u;
      own[1] = both >> 2 & 0x03030303u;
    } else if constexpr (kBits == 3) {
      const uint32_t low = word(f / 4 * 3 + f / 2 % 2) >> f % 2 * 4;
      const uint32_t top = word(f / 4 * 3 + 2) >> f % 4 * 2;
      own[0] = (low & 0x03030303u) | (top & 0x01010101u) << 2;
      own[1] = (low >> 2 & 0x03030303u) | (top >> 1 & 0x01010101u) << 2;
    } else if constexpr (kBits == 4) {
      const uint32_t both = word(f);
      own[0] = both & 0x0F0F0F0Fu;
      own[1] = both >> 4 & 0x0F0F0F0Fu;
    } else {
      own[0] = word(f * 2);
      own[1] = word(f * 2 + 1);
    }
#pragma unroll
    for (int half = 0; half < 2; ++half) read(own[half], x[half], x[2 + half]);
  }

  // Of bytes 0 and 2, and of 1 and 3.
  __device__ __forceinline__ void read(uint32_t own, __half2& first, __half2& second) const {
    if constexpr (kKind == CodeKind::Numbers) {
      // A byte behind 0x64 is 1024 plus it.
      const __half2 zero = __float2half2_rn(1024.0f + values_.zero);
      first = __hsub2(pair_from(__byte_perm(own, 0x64u, 0x4240)), zero);
      second = __hsub2(pair_from(__byte_perm(own, 0x64u, 0x4341)), zero);
    } else if constexpr (kKind == CodeKind::E4m3) {
      first = from_e4m3(__byte_perm(own, 0, 0x2404));
      second = from_e4m3(__byte_perm(own, 0, 0x3414));
    } else {
      // The top bit is the sign, the others number the sizes.
      constexpr uint32_t kEvery = 0x01010101u;
      const uint32_t sizes = own & kEvery * ((1u << (kBits - 1)) - 1);
      const uint32_t chosen = __byte_perm(sizes | sizes >> 4, 0, 0x4420);
      const uint32_t low = __byte_perm(values_.low[0], values_.low[1], chosen);
      const uint32_t sign = (own >> (kBits - 1) & kEvery) << 7;
      const uint32_t high = __byte_perm(values_.high[0], values_.high[1], chosen) | sign;
      first = pair_from(__byte_perm(low, high, 0x6240));
      second = pair_from(__byte_perm(low, high, 0x7351));
    }
  }

  // ---- parameters

  // Where a lane's are among the tier's: bytes of a unit of tokens, of a fragment, of half the rows
  // or columns.
  __device__ __forceinline__ void place_params(const SideForm& side, const uint8_t* params) {
    if (side.axis == Axis::None) return;
    if (kOf == DecoderOf::TileParams || side.as_tile)
      place_tile_params(side, params);
    else
      place_operand_params(params, by_channel(side.axis));
  }

  // codec/tile.hpp: set_of
  __device__ __forceinline__ void place_tile_params(const SideForm& side, const uint8_t* params) {
    const int number = side.codec == Codec::E2m1 ? 1 : 2;  // bytes
    bytes_ = number == 1;
    half_ = 8 * number;
    params_ = params + own() * number;
    int n_sets = factors_.filled;
    if (by_channel(side.axis)) {
      fragment_ = 16 * number;
      n_sets = kDim;
      if (side.axis == Axis::ChannelGroup) {
        unit_ = kDim * number;
        n_sets *= group_of(factors_.filled / kUnitTokens - 1) + 1;
      }
    } else {
      unit_ = kUnitTokens * number;
      group_of_unit_ = 256;
      if (side.axis == Axis::Group) {
        shift_ = 31 - __clz(side.group / 16);
        fragment_ = factors_.filled * number;
        n_sets *= (kDim / 16) >> shift_;
      }
    }
    if (side.codec == Codec::Affine) floors_ = n_sets * number;
  }

  __device__ __forceinline__ void place_operand_params(const uint8_t* params, bool of_channels) {
    if (of_channels) {  // k_param_place
      params_ = params + own() * 8;
      half_ = 8;
      shift_ = 1;
      fragment_ = 64;
      odd_ = 4;
      floors_ = kDim * 2;
    } else {  // pairs of a step and a floor
      params_ = params + own() * 4;
      half_ = 32;
      unit_ = kUnitTokens * 4;
      group_of_unit_ = 256;
      floors_ = 2;
      pairs_ = true;
    }
  }

  __device__ __forceinline__ int own() const { return kColumns ? column() : row(); }
  __device__ __forceinline__ int group_of(int unit) const { return unit * group_of_unit_ >> 8; }

  __device__ __forceinline__ void scale(int unit, int f, __half2 (&x)[4]) const {
    const uint8_t* at = params_ + group_of(unit) * unit_ + (f >> shift_) * fragment_;
    if constexpr (kOf == DecoderOf::All) at += f % 2 * odd_;
    __half2 steps[2], floors[2] = {};  // of both halves
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const uint8_t* own = at + half * half_;
      if (bytes_) {
        const uint32_t first = own[0], second = kColumns ? own[1] : own[0];
        steps[half] = from_e4m3(first << 8 | second << 24);
      } else {
        steps[half] = params_pair(own);
      }
      if (floors_) floors[half] = params_pair(own + floors_);
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int half = kColumns ? i / 2 : i % 2;
      x[i] = __hfma2(steps[half], x[i], floors[half]);
    }
  }

  __device__ __forceinline__ __half2 params_pair(const uint8_t* at) const {
    const auto* own = reinterpret_cast<const __half*>(at);
    if constexpr (!kColumns) return __half2half2(*own);
    if (kOf == DecoderOf::All && pairs_) return __halves2half2(own[0], own[2]);
    return *reinterpret_cast<const __half2*>(own);
  }

  // ---- factors

  __device__ int row() const { return lane_ / 4; }
  __device__ int column() const { return lane_ % 4 * 2; }

  // Two neighbours, or one number twice.
  template <bool kNeighbours>
  __device__ __forceinline__ static __half2 pair_at(const __half* at) {
    if constexpr (kNeighbours) return *reinterpret_cast<const __half2*>(at);
    return __half2half2(*at);
  }
  // Of channels, or of tokens, of a half of the columns or rows.
  __device__ __forceinline__ __half2 channel_pair(const __half* numbers, int f, int half) const {
    return pair_at<kIsK>(numbers + f * 16 + (kIsK ? column() : row()) + 8 * half);
  }
  __device__ __forceinline__ __half2 token_pair(const __half* numbers, int unit, int half) const {
    return pair_at<!kIsK>(numbers + unit * kUnitTokens + (kIsK ? row() : column()) + 8 * half);
  }
  __device__ __forceinline__ __half2 factor(int f, int half) const {
    if (kIsK || factors_as_tile_) return channel_pair(factors_.channels, f, half);
    return __half2half2(factors_.channels[v_factor_place(f * 16 + row() + 8 * half)]);
  }

  template <bool kOfColumns, class Factor>
  __device__ __forceinline__ static void multiply(__half2 (&x)[4], Factor&& factor) {
    const __half2 factors[2] = {factor(0), factor(1)};
#pragma unroll
    for (int i = 0; i < 4; ++i) x[i] = __hmul2(x[i], factors[kOfColumns ? i / 2 : i % 2]);
  }

  // Of the low-rank factors.
  __device__ __forceinline__ void add_product(int r, int unit, int f, __half2 (&x)[4]) const {
    const __half* channels = factors_.rank_channels + r * kDim;
    const __half* tokens = factors_.rank_tokens + r * factors_.filled;
    const __half2 c[2] = {channel_pair(channels, f, 0), channel_pair(channels, f, 1)};
    const __half2 t[2] = {token_pair(tokens, unit, 0), token_pair(tokens, unit, 1)};
#pragma unroll
    for (int i = 0; i < 4; ++i)
      x[i] = __hfma2(c[kIsK ? i / 2 : i % 2], t[kIsK ? i % 2 : i / 2], x[i]);
  }

  const CodeValues values_;
  const int lane_;
  const TileFactors factors_;
  const uint8_t* codes_;
  // Of the first half of fragment 0 of unit 0; null where there are no parameters.
  const uint8_t* params_ = nullptr;
  int group_of_unit_, unit_ = 0, fragment_ = 0, shift_ = 0, odd_ = 0, half_ = 0;
  int floors_ = 0;               // bytes from a step to its floor; 0 for none
  bool bytes_ = false;           // steps are 8-bit numbers
  bool pairs_ = false;           // a step and its floor stand side by side
  bool factors_as_tile_ = true;  // in the order of channels
};

// A type as a value.
template <class T>
struct TypeOf {
  using type = T;
};

// Calls use(TypeOf<Decoder<...>>) for a side whose tier has codes of `bits` bits.
template <int kDim, bool kIsK, DecoderOf kOf, class Use>
__device__ __forceinline__ void with_decoder(const SideForm& side, int bits, Use&& use) {
  const auto with = [&](auto columns) {
    constexpr bool kColumns = decltype(columns)::value;
    const bool numbers = codes_are_numbers(side.codec);
    switch (bits) {
      case 2:
        if (numbers) return use(TypeOf<Decoder<kDim, kIsK, 2, CodeKind::Numbers, kColumns, kOf>>{});
        return use(TypeOf<Decoder<kDim, kIsK, 2, CodeKind::Levels, kColumns, kOf>>{});
      case 3:
        if (numbers) return use(TypeOf<Decoder<kDim, kIsK, 3, CodeKind::Numbers, kColumns, kOf>>{});
        return use(TypeOf<Decoder<kDim, kIsK, 3, CodeKind::Levels, kColumns, kOf>>{});
      case 4:
        if (numbers) return use(TypeOf<Decoder<kDim, kIsK, 4, CodeKind::Numbers, kColumns, kOf>>{});
        return use(TypeOf<Decoder<kDim, kIsK, 4, CodeKind::Levels, kColumns, kOf>>{});
      default:
        if (numbers) return use(TypeOf<Decoder<kDim, kIsK, 8, CodeKind::Numbers, kColumns, kOf>>{});
        return use(TypeOf<Decoder<kDim, kIsK, 8, CodeKind::E4m3, kColumns, kOf>>{});
    }
  };
  if (kIsK == by_channel(side.axis))
    with(std::true_type{});
  else
    with(std::false_type{});
}

}  // namespace
}  // namespace zipcache::cuda
