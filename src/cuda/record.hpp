// How a GPU holds the tokens of one KV head of one block: a record, in the order in which matrix
// units take their operands. It has the codes and parameters of a packed block of the CPU's layout
// (cache/block_layout.hpp) in another order, so that one form can be made from the other and back
// (fragments.hpp). Shared by host and device code; holds no arithmetic but that of places.
//
//   header          TierHeader [n_tiers]
//   v factors       f16 [dim], where values have factors of channels
//   k factors       f16 [dim], where keys have
//   for each tier   K parameters, unless an earlier tier has the same: steps, then floors, f16
//                   [dim] of channels, or f16 pairs (step, floor) [units, 16] of tokens
//   for each tier   V parameters: f16 pairs (step, floor) [units, 16] of tokens
//   for each tier   K token factors, then low-rank factors, where there are any, then K codes
//                   [units]; then the same of V
//
// That is the form of the policies with the fastest kernel. Parameters and factors of a side that
// these do not fit (SideForm::as_tile: groups, levels, factors of tokens) stand in the order of the
// CPU's tiles (codec/tile.hpp). 16-bit codes have none.
//
// A unit is 16 tokens of a tier, the last one of a tier filled up with codes and parameters of 0.
// Its codes are a row of fragments, 16 x 16 numbers each: of K tokens x channels, of V channels x
// tokens. Lane l of a warp holds the 8 numbers of a fragment at rows l/4 and l/4 + 8, columns
// 2 (l % 4) + {0, 1} and those + 8. A byte of a word belongs to one column; the codes of 2 and 4
// bits in it to the two rows, of 2 bits to the rows of two fragments. So `word & mask` is four
// 8-bit numbers code * 2^p, of one row: operands of products of whole numbers (multiply_bytes).
#pragma once

#include <cstddef>
#include <cstdint>

#include "codec/levels.hpp"

#ifdef __CUDACC__
#define ZC_BOTH __host__ __device__
#else
#define ZC_BOTH
#endif

// Loops over what stands in registers, loops whose loads should overlap, and loops that stay.
#ifdef __CUDA_ARCH__
#define ZC_UNROLL _Pragma("unroll")
#define ZC_UNROLL_4 _Pragma("unroll 4")
#define ZC_KEEP_LOOP _Pragma("unroll 1")
#else
#define ZC_UNROLL
#define ZC_UNROLL_4
#define ZC_KEEP_LOOP
#endif

namespace zipcache::cuda {

inline constexpr int kUnitTokens = 16;
inline constexpr int kRecordTiers = 4;
inline constexpr int kRecordTokens = 128;  // at most, of one record
inline constexpr int kLanes = 32;
// Tokens of one record of 16-bit rows: as many bytes as a packed record about.
inline constexpr int kRawRecordTokens = 32;

// Places are counted in 16 bytes from the record's first byte.
struct TierHeader {
  uint8_t count;  // tokens of the tier
  uint8_t k_bits, v_bits;
  uint8_t tiers_and_form;  // the same in every tier: kTierMask, kHalfShift and kKeysByToken
  uint16_t k_params, v_params, k_codes, v_codes;
  uint16_t v_factors, k_factors;  // the same in every tier; 0 for none
};
inline constexpr int kTierMask = 7;   // number of tiers
inline constexpr int kHalfShift = 3;  // 4 bits: units of the first of two warps that share it
inline constexpr int kHalfMask = 15;
inline constexpr int kKeysByToken = 128;  // keys have pairs of tokens, not parameters of channels
static_assert(sizeof(TierHeader) == 16);

// Where a record lies in the pool; the entries of a stream's block table, in any order of places.
struct Record {
  uint32_t at;    // in 16 bytes from the pool's begin
  uint16_t size;  // in 16 bytes
  uint16_t unused;
  uint32_t first;   // place in the stream of the first token
  uint32_t tokens;  // held in it
};
static_assert(sizeof(Record) == 16);

// Bytes of the codes of a unit.
ZC_BOTH constexpr int unit_bytes(int dim, int bits) { return kUnitTokens * dim * bits / 8; }

// A number of a unit of K: row = token, column = channel; of V: row = channel, column = token.
struct Place {
  int word;  // of the unit
  int shift;
};

// Place of a channel's parameter among those of K, and of a channel's factor among those of V, in
// 16-bit numbers. Four words of parameters are an operand whose rows 0 to 7 are of one fragment and
// rows 8 to 15 of the next.
ZC_BOTH constexpr int k_param_place(int channel) {
  const int step = channel / 16, pair = channel % 8 / 2, y = channel % 16 / 8, odd = channel % 2;
  return ((step / 2 * 4 + pair) * 2 + y) * 4 + step % 2 * 2 + odd;
}
ZC_BOTH constexpr int v_factor_place(int channel) {
  const int tile = channel / 16, row = channel % 8, y = channel % 16 / 8;
  return ((tile / 4 * 8 + row) * 4 + tile % 4) * 2 + y;
}

// Where a number stands in a fragment: the lane that holds it, in which of its rows, in which pair
// of its columns and which of the pair.
struct FragmentPlace {
  int fragment, lane, row_half, column_half, odd;
};

ZC_BOTH constexpr FragmentPlace fragment_place(bool is_k, int token, int channel) {
  const int row = is_k ? token : channel % 16, column = is_k ? channel % 16 : token;
  return {channel / 16, row % 8 * 4 + column % 8 / 2, row / 8, column / 8, column % 2};
}

// Place of a code among the words of its lane alone, in the order in which they stand; for 3 bits
// that of the low two, `lane_top_place` has the other.
ZC_BOTH constexpr Place lane_place(const FragmentPlace& at, int bits) {
  const int byte = 16 * at.odd + 8 * at.column_half;
  const int in_byte = at.fragment % 2 * 4 + at.row_half * 2;  // of 2 bits
  switch (bits) {
    case 2:
      return {at.fragment / 2, byte + in_byte};
    case 3:
      return {at.fragment / 4 * 3 + at.fragment / 2 % 2, byte + in_byte};
    case 4:
      return {at.fragment, byte + 4 * at.row_half};
    case 8:
      return {at.fragment * 2 + at.row_half, byte};
    default:
      return {at.fragment * 4 + at.column_half * 2 + at.row_half, 16 * at.odd};
  }
}
ZC_BOTH constexpr Place lane_top_place(const FragmentPlace& at) {
  return {at.fragment / 4 * 3 + 2,
          16 * at.odd + 8 * at.column_half + at.fragment % 4 * 2 + at.row_half};
}

// Words of a lane that stand side by side, and where one of its words stands in the unit.
ZC_BOTH constexpr int wide_words(int dim, int bits) {
  const int n_words = dim * bits / 64;
  return bits == 3 ? 1 : n_words < 4 ? n_words : 4;
}
ZC_BOTH constexpr int unit_word(int dim, int bits, int lane, int word) {
  const int wide = wide_words(dim, bits);
  return (word / wide * kLanes + lane) * wide + word % wide;
}

// Place of one code within a unit's words, and of the top one of its 3 bits. `channel` below dim,
// `token` below 16.
ZC_BOTH constexpr Place code_place(bool is_k, int dim, int bits, int token, int channel) {
  const FragmentPlace at = fragment_place(is_k, token, channel);
  const Place own = lane_place(at, bits);
  return {unit_word(dim, bits, at.lane, own.word), own.shift};
}
ZC_BOTH constexpr Place top_bit_place(bool is_k, int token, int channel) {
  const FragmentPlace at = fragment_place(is_k, token, channel);
  const Place own = lane_top_place(at);
  return {own.word * kLanes + at.lane, own.shift};
}

ZC_BOTH constexpr int units_of(int n_tokens) { return (n_tokens + kUnitTokens - 1) / kUnitTokens; }
// Held as codes with parameters: not at 16 bits, and not evicted.
ZC_BOTH constexpr bool in_codes(int bits) { return bits != 0 && bits != 16; }

// Units of the first of two warps that share a record: half of them, or a whole number of tiers
// where that is one more or less, since each tier that a warp meets costs about as much as a unit.
ZC_BOTH constexpr int first_half(const TierHeader* headers, int n_tiers) {
  int n_units = 0;
  for (int t = 0; t < n_tiers; ++t) n_units += units_of(headers[t].count);
  const int half = n_units / 2;
  int before = 0;
  for (int t = 0; t < n_tiers; ++t) {
    before += units_of(headers[t].count);
    if (before >= half - 1 && before <= half + 1 && before < n_units) return before;
  }
  return half;
}

// Header of a record of `count` 16-bit rows that has room for `room`.
ZC_BOTH constexpr TierHeader raw_header(int dim, int count, int room) {
  TierHeader tier = {};
  tier.count = uint8_t(count);
  tier.k_bits = tier.v_bits = 16;
  tier.tiers_and_form = uint8_t(1 | first_half(&tier, 1) << kHalfShift);
  tier.k_codes = 1;
  tier.v_codes = uint16_t(1 + units_of(room) * unit_bytes(dim, 16) / 16);
  return tier;
}

// How one side, K or V, of a layer's records is coded.
struct SideForm {
  Axis axis = Axis::Channel;
  Codec codec = Codec::Affine;
  uint16_t group = 0;  // channels of a set for Axis::Group, tokens for Axis::ChannelGroup
  uint8_t rank = 0;    // of the low-rank factors
  bool channel_factors = false, token_factors = false;
  bool as_tile = false;                    // parameters and factors stand in the order of a tile
  uint8_t bits[kRecordTiers] = {};         // 0: held nowhere
  uint8_t params_tier[kRecordTiers] = {};  // whose parameters a tier has
};

// Sets of parameters of a tier, those that fill up among them (codec/tile.hpp: n_sets), and their
// bytes.
ZC_BOTH constexpr int sets_of(const SideForm& side, int dim, int n_tokens) {
  const int filled = units_of(n_tokens) * kUnitTokens;
  switch (side.axis) {
    case Axis::Channel:
      return dim;
    case Axis::ChannelGroup:
      return (n_tokens + side.group - 1) / side.group * dim;
    case Axis::Group:
      return dim / side.group * filled;
    case Axis::None:
      return 0;
    default:
      return filled;
  }
}
// Place of a number's parameters among them (codec/tile.hpp: set_of).
ZC_BOTH constexpr int set_of(const SideForm& side, int dim, int n_tokens, int token, int channel) {
  switch (side.axis) {
    case Axis::Channel:
      return channel;
    case Axis::ChannelGroup:
      return token / side.group * dim + channel;
    case Axis::Group:
      return channel / side.group * (units_of(n_tokens) * kUnitTokens) + token;
    default:
      return token;
  }
}
ZC_BOTH constexpr int param_bytes(const SideForm& side, int dim, int n_tokens) {
  return sets_of(side, dim, n_tokens) * int(set_bytes(side.codec));
}
// Bytes of token factors, and of the low-rank factors behind them, right before a tier's codes.
ZC_BOTH constexpr int token_factor_bytes(const SideForm& side, int n_tokens) {
  return side.token_factors ? units_of(n_tokens) * kUnitTokens * int(sizeof(uint16_t)) : 0;
}
ZC_BOTH constexpr int low_rank_bytes(const SideForm& side, int dim, int n_tokens) {
  return side.rank * (dim + units_of(n_tokens) * kUnitTokens) * int(sizeof(uint16_t));
}

// What decides where the parts of a layer's records stand.
struct RecordForm {
  int dim = 0, n_tiers = 0;
  SideForm k, v;

  ZC_BOTH constexpr bool holds(int tier) const { return k.bits[tier] != 0; }
  ZC_BOTH constexpr bool k_by_token() const { return k.axis == Axis::Token && !k.as_tile; }
};

// Headers [kRecordTiers] of a record whose tiers have these tokens. Returns the record's size in 16
// bytes. `n_tiers` is the form's, so that a caller who knows it has no loops.
ZC_BOTH constexpr int place_tiers(const RecordForm& form, int n_tiers, const int* counts,
                                  TierHeader* headers) {
  constexpr int kPiece = 16;
  int at = n_tiers;
  const auto take = [&at](int bytes) {
    const int begin = at;
    at += bytes / kPiece;
    return uint16_t(begin);
  };
  const int factor_bytes = form.dim * int(sizeof(uint16_t));
  const uint16_t v_factors = form.v.channel_factors ? take(factor_bytes) : uint16_t(0);
  const uint16_t k_factors = form.k.channel_factors ? take(factor_bytes) : uint16_t(0);
  for (int t = 0; t < n_tiers; ++t) {
    TierHeader& tier = headers[t];
    tier = {};
    tier.count = uint8_t(form.holds(t) ? counts[t] : 0);
    tier.k_bits = form.k.bits[t];
    tier.v_bits = form.v.bits[t];
    tier.v_factors = v_factors;
    tier.k_factors = k_factors;
  }
  const int half = first_half(headers, n_tiers);
  for (int t = 0; t < n_tiers; ++t)
    headers[t].tiers_and_form =
        uint8_t(n_tiers | half << kHalfShift | (form.k_by_token() ? kKeysByToken : 0));
  const auto take_params = [&](const SideForm& side, uint16_t TierHeader::*params) {
    for (int t = 0; t < n_tiers; ++t) {
      if (headers[t].count == 0 || !in_codes(side.bits[t])) continue;
      TierHeader& owner = headers[side.params_tier[t]];
      const int bytes = param_bytes(side, form.dim, headers[t].count);
      if (owner.*params == 0 && bytes > 0) owner.*params = take(bytes);
      headers[t].*params = owner.*params;
    }
  };
  take_params(form.k, &TierHeader::k_params);
  take_params(form.v, &TierHeader::v_params);
  const auto take_codes = [&](const SideForm& side, int t) {
    const int n = headers[t].count;
    if (n > 0 && in_codes(side.bits[t]))
      take(token_factor_bytes(side, n) + low_rank_bytes(side, form.dim, n));
    return take(units_of(n) * unit_bytes(form.dim, side.bits[t]));
  };
  for (int t = 0; t < n_tiers; ++t) {
    headers[t].k_codes = take_codes(form.k, t);
    headers[t].v_codes = take_codes(form.v, t);
  }
  return at;
}
ZC_BOTH constexpr int place_record(const RecordForm& form, const int* counts, TierHeader* headers) {
  return place_tiers(form, form.n_tiers, counts, headers);
}

}  // namespace zipcache::cuda
