// The kernel of decode attention, for one head size a file that includes this one.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <type_traits>

#include "cuda/decode_launch.hpp"
#include "cuda/decoder.cuh"
#include "cuda/hadamard.hpp"

namespace zipcache::cuda {
namespace {

constexpr float kLog2E = 1.44269504f;
constexpr float kLowest = -1e30f;
// Operands of queries are below the second, of this exponent at most.
constexpr int kQueryExponent = 5;
constexpr float kQueryTop = 2 << kQueryExponent;

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

// Bit tile * 2 + i: the token of row l / 4 + 8 i is behind the query of column l % 4 of the tile.
// `rows` are the places of the unit's tokens behind `first`, which is counted from the first
// query's end; null where they follow each other. Rare, so kept out of the code that instruction
// caches hold.
__device__ __noinline__ uint32_t later_than_queries(const uint8_t* rows, int first, int n_tokens,
                                                    int first_column, int group, int n_scores) {
  const int lane = int(threadIdx.x) % kLanes;
  uint32_t later = 0;
#pragma unroll 1
  for (int i = 0; i < n_scores; ++i) {
    const int token = lane / 4 + i % 2 * 8;
    const int column = first_column + i / 2 * kColumns + lane % 4;
    if (token >= n_tokens) continue;
    const int place = first + (rows ? int(rows[token]) : token);
    later |= uint32_t(place >= column / group) << i;
  }
  return later;
}

// The queries of a block of threads in shared memory.
template <int kDim, int kTiles>
struct SharedQueries {
  static constexpr int kRows = kTiles * kColumns;
  // Operands of 16-bit products: column 2 r of a tile has query row r rounded to 16 bits, column
  // 2 r + 1 what this leaves over.
  uint4 operands[kTiles * kFragments<kDim> / 2 * kLanes];
  alignas(16) float numbers[kRows][kDim];  // channels in the order of K parameters
  float sums[kRows];
  float units[kRows];  // what products are multiplied with to be scores, logarithms to the base 2
};

// Of a tier that has `before` units of the record before it.
struct Units {
  int begin, end, before;
};

// Units of all tiers.
__device__ __noinline__ int units_in(const uint4* words, int n_tiers) {
  int n_units = 0;
#pragma unroll 1
  for (int t = 0; t < n_tiers; ++t) n_units += units_of(words[t].x & 0xFF);
  return n_units;
}

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

  // The last two units, or one, of which one may be filled up.
  __device__ __forceinline__ static int last_pair(const Units& units) {
    return units.begin + (units.end - 1 - units.begin) / 2 * 2;
  }

  // Calls visit(unit, next) for every second unit; next is the same one where there is no next one.
  template <class Visit>
  __device__ __forceinline__ static void for_pairs(const Units& units, Visit&& visit) {
#pragma unroll 1
    for (int unit = units.begin; unit < units.end; unit += 2)
      visit(unit, min(unit + 1, units.end - 1));
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

// Products of codes are products of whole numbers: a query row times the steps of channels is
// rounded to 16 bits, and of these the upper byte stands in one column of the operand, the lower in
// the next; the same with weights. So a sum over 32 codes costs one instruction, as precise as
// 16-bit fixed point, and a lane finds both bytes' sums side by side.
//
// Makes scores of a tier's tokens from its keys, logarithms to the base 2.
template <int kDim, int kTiles, bool kAny>
class Keys : public Lane<kDim, kTiles> {
  using Base = Lane<kDim, kTiles>;
  using Base::kF, Base::launch_, Base::lane_, Base::row_, Base::pair_, Base::scores_;
  using Base::load_row, Base::with_bits, Base::last_pair, Base::for_pairs, Base::whole,
      Base::sum_of_column, Base::largest_of_column;

 public:
  __device__ Keys(const Launch& launch, const Task& task,
                  const SharedQueries<kDim, kTiles>& queries)
      : Base(launch),
        stream_(task.item.stream),
        head_(task.head),
        first_column_(task.first_column),
        queries_(queries) {
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile) scale_[tile] = queries.units[tile * kColumns + pair_];
    base_ = launch.args.visible ? launch.args.visible[stream_] : 0x3FFFFFFF;
  }

  // Scores of all tokens, and the largest of each query row, which are rounded weights' units
  // later.
  __device__ __forceinline__ void score(const uint8_t* record, const Record& entry,
                                        const TierOf& tier, const Units& units,
                                        const Scores<kTiles>& scores, float (&top)[kTiles]) {
    scores_ = scores;
    const bool hides = (kAny && launch_.masked) || int(entry.first) + kRecordTokens > base_;
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile) top[tile] = kLowest;
    score_tier(record, entry, tier, units, hides, top);
  }

 private:
  __device__ __forceinline__ void score_tier(const uint8_t* record, const Record& entry,
                                             const TierOf& tier, const Units& units, bool hides,
                                             float (&top)[kTiles]) {
    if (tier.k_bits == 16) {
      score_rows(record + tier.k_codes, units, top);
      return settle(record, entry, tier, units, hides, top);
    }
    if constexpr (kAny) {
      const SideForm& side = launch_.args.form.k;
      if (side.as_tile) {
        with_decoder<kDim, true, DecoderOf::TileParams>(side, tier.k_bits, [&](auto type) {
          score_decoded(
              units, top, TileFactors(side, kDim, true, tier.number, record),
              typename decltype(type)::type(side, launch_.k_values, tier.number, record, lane_));
        });
        return settle(record, entry, tier, units, hides, top);
      }
    }
    score_codes(record, entry, tier, units, hides, top);
  }

  // Query rows of a tier, ready for products with its codes.
  struct Folded {
    uint32_t q[kTiles][kF / 2][2];
    float unit[kTiles];   // what sums of codes are multiplied with
    float start[kTiles];  // added
  };

  __device__ __forceinline__ void score_codes(const uint8_t* record, const Record& entry,
                                              const TierOf& tier, const Units& units, bool hides,
                                              float (&top)[kTiles]) {
    Folded folded;
    fold(record + tier.k_params, tier.k_by_token, folded);
    with_bits(tier.k_bits, [&](auto bits) {
      constexpr int kBits = decltype(bits)::value;
      const uint8_t* codes = record + tier.k_codes;
      const auto score = [&](auto n, int unit) {
        score_units<kBits, decltype(n)::value>(codes, unit, units, tier.count, folded, top);
      };
      int unit = units.begin;
      // Four units are four sums, none of which waits for another.
      if constexpr (kTiles == 1) {
#pragma unroll 1
        for (; unit + 4 <= units.end; unit += 4) score(std::integral_constant<int, 4>{}, unit);
      }
#pragma unroll 1
      for (; unit + 2 <= units.end; unit += 2) score(std::integral_constant<int, 2>{}, unit);
      if (unit < units.end) score(std::integral_constant<int, 1>{}, unit);
    });
    if (hides || tier.k_by_token) [[unlikely]]
      change_scores(record, entry, tier, units, hides, top);
  }

  // Scores of kUnits units from `unit` on; from token `count` on they are filled up.
  template <int kBits, int kUnits>
  __device__ __forceinline__ void score_units(const uint8_t* codes, int unit, const Units& units,
                                              int count, const Folded& folded,
                                              float (&top)[kTiles]) {
    int sums[kUnits][kTiles][4] = {};
    multiply_keys<kBits>(codes + unit * unit_bytes(kDim, kBits), folded, sums);
    const int left = count - unit * kUnitTokens;
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile) {
      float own[kUnits][2];
#pragma unroll
      for (int u = 0; u < kUnits; ++u) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const float sum = whole(sums[u][tile][2 * i], sums[u][tile][2 * i + 1]);
          own[u][i] = fmaf(sum, folded.unit[tile] * (1 / row_factor(kBits, i)), folded.start[tile]);
        }
      }
      if (left < kUnits * kUnitTokens) {
#pragma unroll
        for (int u = 0; u < kUnits; ++u) {
#pragma unroll
          for (int i = 0; i < 2; ++i) {
            if (u * kUnitTokens + i * 8 + row_ >= left) own[u][i] = -INFINITY;
          }
        }
      }
#pragma unroll
      for (int u = 0; u < kUnits; ++u) {
        top[tile] = fmaxf(top[tile], fmaxf(own[u][0], own[u][1]));
        scores_.at(unit + u - units.begin, tile, lane_) = {own[u][0], own[u][1]};
      }
    }
  }

  // Scores of all units but the last are in `top`.
  __device__ __forceinline__ void settle(const uint8_t* record, const Record& entry,
                                         const TierOf& tier, const Units& units, bool hides,
                                         float (&top)[kTiles]) {
    if (hides || tier.k_by_token) [[unlikely]]
      return change_scores(record, entry, tier, units, hides, top);
    keep(tier, units, units.end - 1, top);
  }

  // Of units of which queries do not see everything, or whose scores need parameters of tokens.
  // Seldom in the loops above.
  __device__ __forceinline__ void change_scores(const uint8_t* record, const Record& entry,
                                                const TierOf& tier, const Units& units, bool hides,
                                                float (&top)[kTiles]) {
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile) top[tile] = kLowest;
#pragma unroll 1
    for (int unit = units.begin; unit < units.end; ++unit) {
      float scores[kTiles][2];
      load_scores(unit - units.begin, scores);
      if (tier.k_bits != 16 && tier.k_by_token)
        take_token_params(record + tier.k_params, unit, scores);
      if (hides) hide(entry, tier, unit, units.before + unit, scores);
      store_scores(unit - units.begin, scores);
      keep(tier, units, unit, top);
    }
  }

  template <int kBits, int kUnits>
  __device__ __forceinline__ void multiply_keys(const uint8_t* units, const Folded& folded,
                                                int (&sums)[kUnits][kTiles][4]) const {
    using Codes = Piece<kBits, kDim>;
#pragma unroll
    for (int p = 0; p < Codes::kPieces; ++p) {
#pragma unroll
      for (int u = 0; u < kUnits; ++u) {
        const Codes own(units + u * unit_bytes(kDim, kBits), p, lane_);
#pragma unroll
        for (int f = 0; f < Codes::kHeld; f += 2) {
          const uint32_t a[4] = {own.row(f, 0, false), own.row(f, 1, false),
                                 own.row(f + 1, 0, false), own.row(f + 1, 1, false)};
#pragma unroll
          for (int tile = 0; tile < kTiles; ++tile)
            multiply_bytes(sums[u][tile], a, folded.q[tile][(p * Codes::kHeld + f) / 2]);
        }
      }
    }
  }

  // Queries times the steps of keys' channels, rounded to 16 bits in units of the largest, and
  // their products with the floors. Each of the two lanes that have bytes of the same numbers makes
  // half of them.
  __device__ __forceinline__ void fold(const uint8_t* params, bool by_token, Folded& folded) const {
    constexpr int kOwn = kF / 4;  // steps of 32 channels
    constexpr float kTop = 32512;
    const int query = lane_ / 8, plane = row_ % 2;
    const auto* steps = reinterpret_cast<const uint4*>(params);
    if (by_token) {
#pragma unroll
      for (int tile = 0; tile < kTiles; ++tile) folded.start[tile] = 0;
    } else {
      // Here, so that the products are made while the rest is.
      multiply_floors(reinterpret_cast<const uint4*>(params + kDim * 2), folded.start);
    }
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile) {
      float x[kOwn][8], most[4] = {};  // apart, so that none waits for another
#pragma unroll
      for (int i = 0; i < kOwn; ++i) {
        const int at = (plane * kOwn + i) * 4 + pair_;
        const auto* from =
            reinterpret_cast<const float4*>(&queries_.numbers[tile * kColumns + query][at * 8]);
        const float4 first = from[0], second = from[1];
        const float q[8] = {first.x,  first.y,  first.z,  first.w,
                            second.x, second.y, second.z, second.w};
        const uint4 step = by_token ? uint4{kOnes, kOnes, kOnes, kOnes} : steps[at];
        const uint32_t pairs[4] = {step.x, step.y, step.z, step.w};
#pragma unroll
        for (int c = 0; c < 8; ++c) {
          const float2 both = pair_of(pairs[c / 2]);
          x[i][c] = q[c] * (c % 2 ? both.y : both.x);
          most[c % 4] = fmaxf(most[c % 4], fabsf(x[i][c]));
        }
      }
      const float largest =
          largest_of_warp(fmaxf(fmaxf(fmaxf(most[0], most[1]), fmaxf(most[2], most[3])), 1e-30f));
      const float grow = __fdividef(kTop, largest);
#pragma unroll
      for (int i = 0; i < kOwn; ++i) {
#pragma unroll
        for (int f = 0; f < 2; ++f) {
          // A byte's columns (record.hpp): the first of both pairs, then the second.
          const BytePlanes planes = signed_planes(x[i][2 * f] * grow, x[i][4 + 2 * f] * grow,
                                                  x[i][2 * f + 1] * grow, x[i][5 + 2 * f] * grow);
          const uint32_t own = plane == 0 ? planes.upper : planes.lower;
          const uint32_t other = __shfl_xor_sync(~0u, plane == 0 ? planes.lower : planes.upper, 4);
          folded.q[tile][i][f] = plane == 0 ? own : other;
          folded.q[tile][kOwn + i][f] = plane == 0 ? other : own;
        }
      }
      folded.unit[tile] = largest * (scale_[tile] / kTop);
    }
  }

  // The operand of a step of 16-bit products with fragments s and s + 1.
  __device__ __forceinline__ uint4 operand(int tile, int s) const {
    return queries_.operands[(tile * kF / 2 + s / 2) * kLanes + lane_];
  }

  // An operand has floors of fragment s in rows 0 to 7 and of s + 1 in rows 8 to 15, so of its
  // products with either's queries one half is wanted.
  __device__ __forceinline__ void multiply_floors(const uint4* floors,
                                                  float (&start)[kTiles]) const {
    float even[kTiles][4] = {}, odd[kTiles][4] = {};
#pragma unroll
    for (int s = 0; s < kF; s += 2) {
      const uint4 floor = floors[s / 2 * 4 + pair_];
#pragma unroll
      for (int tile = 0; tile < kTiles; ++tile) {
        const uint4 q = operand(tile, s);
        multiply_add(even[tile], floor.x, floor.y, floor.z, floor.w, q.x, q.y);
        multiply_add(odd[tile], floor.x, floor.y, floor.z, floor.w, q.z, q.w);
      }
    }
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile)
      start[tile] = (even[tile][0] + even[tile][1] + odd[tile][2] + odd[tile][3]) * scale_[tile];
  }

  // Keys whose parameters belong to tokens: step times the product, plus floor times the query's
  // sum.
  __device__ __forceinline__ void take_token_params(const uint8_t* params, int unit,
                                                    float (&scores)[kTiles][2]) const {
    const auto* pairs = reinterpret_cast<const __half2*>(params) + unit * kUnitTokens;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const float2 own = __half22float2(pairs[row_ + 8 * i]);
#pragma unroll
      for (int tile = 0; tile < kTiles; ++tile)
        scores[tile][i] = fmaf(scores[tile][i], own.x,
                               queries_.sums[tile * kColumns + pair_] * scale_[tile] * own.y);
    }
  }

  __device__ __forceinline__ void score_rows(const uint8_t* rows, const Units& units,
                                             float (&top)[kTiles]) {
#pragma unroll 1
    for (int unit = units.begin; unit < units.end; ++unit) {
      float sums[kTiles][4] = {}, odd[kTiles][4] = {};
#pragma unroll
      for (int s = 0; s < kF; s += 2) {
        uint32_t a[4], b[4];
        load_row(rows, unit, s, a);
        load_row(rows, unit, s + 1, b);
#pragma unroll
        for (int tile = 0; tile < kTiles; ++tile) {
          const uint4 q = operand(tile, s);
          multiply_add(sums[tile], a[0], a[1], a[2], a[3], q.x, q.y);
          multiply_add(odd[tile], b[0], b[1], b[2], b[3], q.z, q.w);
        }
      }
      float scores[kTiles][2];
#pragma unroll
      for (int tile = 0; tile < kTiles; ++tile) {
#pragma unroll
        for (int i = 0; i < 2; ++i)
          scores[tile][i] = (sums[tile][2 * i] + odd[tile][2 * i] + sums[tile][2 * i + 1] +
                             odd[tile][2 * i + 1]) *
                            scale_[tile];
      }
      store_scores(unit - units.begin, scores);
      if (unit == units.end - 1) continue;
#pragma unroll
      for (int tile = 0; tile < kTiles; ++tile)
        top[tile] = fmaxf(top[tile], fmaxf(scores[tile][0], scores[tile][1]));
    }
  }

  __device__ __forceinline__ void load_scores(int place, float (&scores)[kTiles][2]) const {
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile) {
      const float2 both = scores_.at(place, tile, lane_);
      scores[tile][0] = both.x;
      scores[tile][1] = both.y;
    }
  }

  __device__ __forceinline__ void store_scores(int place, const float (&scores)[kTiles][2]) {
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile)
      scores_.at(place, tile, lane_) = {scores[tile][0], scores[tile][1]};
  }

  // Takes scores of a unit into `top`; its filling is hidden.
  __device__ __forceinline__ void keep(const TierOf& tier, const Units& units, int unit,
                                       float (&top)[kTiles]) {
    const int left = tier.count - unit * kUnitTokens;
    float scores[kTiles][2];
    load_scores(unit - units.begin, scores);
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        if (row_ + i * 8 >= left) scores[tile][i] = -INFINITY;
        top[tile] = fmaxf(top[tile], scores[tile][i]);
      }
    }
    if (left < kUnitTokens) store_scores(unit - units.begin, scores);
  }

  // ---- what queries do not see

  // Places of the record's tokens behind its first one, in the order of tiers; null for 16-bit
  // rows, which follow each other.
  __device__ __forceinline__ const uint8_t* rows_of(const Record& entry, const TierOf& tier) const {
    if (tier.is_raw) return nullptr;
    return launch_.args.pool + (size_t(entry.at) + entry.size) * 16;
  }

  __device__ __forceinline__ void hide(const Record& entry, const TierOf& tier, int unit,
                                       int unit_of_record, float (&scores)[kTiles][2]) const {
    const uint8_t* rows = rows_of(entry, tier);
    if (rows) rows += unit_of_record * kUnitTokens;
    const int first = int(entry.first) + (rows ? 0 : unit * kUnitTokens);
    const int left = tier.count - unit * kUnitTokens;
    if constexpr (kAny) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int token = row_ + 8 * i;
        if (token >= left) continue;
        const int place = first + (rows ? int(rows[token]) : token);
#pragma unroll
        for (int tile = 0; tile < kTiles; ++tile) mask(place, tile, scores[tile][i]);
      }
    } else {
      const uint32_t hidden = later_than_queries(rows, first - base_, left, first_column_,
                                                 launch_.args.group, kTiles * 2);
#pragma unroll
      for (int tile = 0; tile < kTiles; ++tile) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          if (hidden >> (tile * 2 + i) & 1) scores[tile][i] = -INFINITY;
        }
      }
    }
  }

  __device__ __forceinline__ void mask(int place, int tile, float& score) const {
    const int column = first_column_ + tile * kColumns + pair_;
    const int query = column / launch_.args.group, end = base_ + query;  // places below it are seen
    bool seen = place < end;
    if (launch_.masked && column < launch_.n_columns) {
      const MaskArgs& mask = launch_.args.mask;
      if (mask.soft_cap > 0)
        score = mask.soft_cap * kLog2E * tanhf(score / (kLog2E * mask.soft_cap));
      if (mask.alibi_slopes) {
        const int head = head_ * launch_.args.group + column % launch_.args.group;
        score += kLog2E * mask.alibi_slopes[head] * float(place - (end - 1));
      }
      if (mask.window > 0) seen = seen && place >= end - mask.window;
      if (mask.bits) {
        const size_t line = size_t(stream_) * size_t(launch_.args.n_queries) + size_t(query);
        seen = seen && place < mask.bits_stride * 32 &&
               (mask.bits[line * size_t(mask.bits_stride) + size_t(place / 32)] >> place % 32 & 1);
      }
    }
    if (!seen) score = -INFINITY;
  }

  // ---- sides in the order of tiles: codes become 16-bit numbers. Each kind of codes stands in the
  // code twice, so loops over fragments are loops.

  template <class Keys>
  __device__ __forceinline__ void score_decoded(const Units& units, float (&top)[kTiles],
                                                const TileFactors& factors, const Keys& keys) {
    static_assert(kTiles == 1);
    const float scale = factors.channels ? scale_[0] * kQueryTop : scale_[0];
#pragma unroll 1
    for (int unit = units.begin; unit < units.end; ++unit) {
      float sums[4] = {};
#pragma unroll 1
      for (int s = 0; s < kF; s += 2) {
        uint4 q = operand(0, s);
        if (factors.channels) [[unlikely]]
          multiply_queries(factors.channels + s * 16, q);
        uint32_t a[4], b[4];
        keys.fragment(unit, s, a);
        keys.fragment(unit, s + 1, b);
        multiply_add(sums, a[0], a[1], a[2], a[3], q.x, q.y);
        multiply_add(sums, b[0], b[1], b[2], b[3], q.z, q.w);
      }
      float scores[1][2] = {{(sums[0] + sums[1]) * scale, (sums[2] + sums[3]) * scale}};
      if (factors.tokens) {
#pragma unroll
        for (int i = 0; i < 2; ++i)
          scores[0][i] *= __half2float(factors.tokens[unit * kUnitTokens + row_ + 8 * i]);
      }
      store_scores(unit - units.begin, scores);
    }
    for (int r = 0; r < factors.rank; ++r) add_to_scores(r, units, factors);
#pragma unroll 1
    for (int place = 0; place < units.end - 1 - units.begin; ++place) {
      const float2 scores = scores_.at(place, 0, lane_);
      top[0] = fmaxf(top[0], fmaxf(scores.x, scores.y));
    }
  }

  // The operand of two fragments times factors of their channels, in units that no 16-bit factor
  // makes too large.
  __device__ __forceinline__ void multiply_queries(const __half* factors, uint4& q) const {
    const auto times = [&](uint32_t& pair, int first) {
      const auto* own = reinterpret_cast<const __half2*>(factors + first + pair_ * 2);
      const __half2 small = __hmul2(halves_of(pair), __float2half2_rn(1 / kQueryTop));
      pair = bits_of_halves(__hmul2(small, *own));
    };
    times(q.x, 0);
    times(q.y, 8);
    times(q.z, 16);
    times(q.w, 24);
  }

  // The low-rank product of the keys: of its channels with the query, times its tokens.
  __device__ __forceinline__ void add_to_scores(int r, const Units& units,
                                                const TileFactors& factors) {
    float along = 0;
#pragma unroll 1
    for (int c = row_; c < kDim; c += kLanes / kColumns)
      along = fmaf(__half2float(factors.rank_channels[r * kDim + c]),
                   queries_.numbers[pair_][k_param_place(c)], along);
    along = sum_of_column(along) * scale_[0];
    const __half* tokens = factors.rank_tokens + r * factors.filled;
#pragma unroll 1
    for (int unit = units.begin; unit < units.end; ++unit) {
      float2& scores = scores_.at(unit - units.begin, 0, lane_);
      scores.x = fmaf(__half2float(tokens[unit * kUnitTokens + row_]), along, scores.x);
      scores.y = fmaf(__half2float(tokens[unit * kUnitTokens + row_ + 8]), along, scores.y);
    }
  }

  static constexpr uint32_t kOnes = 0x3C003C00u;  // two 16-bit numbers

  const int stream_, head_, first_column_;
  const SharedQueries<kDim, kTiles>& queries_;
  float scale_[kTiles];
  int base_;
};

// Sums values with weights, the softmax of scores over the tokens that the warp has met; peaks are
// equal in the lanes of a query row, mass and floors are the lane's share.
template <int kDim, int kTiles, bool kAny>
class Values : public Lane<kDim, kTiles> {
  using Base = Lane<kDim, kTiles>;
  using Base::launch_, Base::lane_, Base::row_, Base::pair_, Base::scores_;
  using Base::load_row, Base::with_bits, Base::last_pair, Base::for_pairs, Base::whole,
      Base::sum_of_column, Base::largest_of_column;

 public:
  using Base::kF;
  float peak[kTiles], mass[kTiles], floors[kTiles];
  float total[kTiles][kF][2];  // channels 16 m + l / 4 and + 8

  __device__ explicit Values(const Launch& launch) : Base(launch) {
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile) {
      peak[tile] = kLowest;
      mass[tile] = floors[tile] = 0;
#pragma unroll
      for (int m = 0; m < kF; ++m) total[tile][m][0] = total[tile][m][1] = 0;
    }
  }

  // `top` are the largest of the lane's scores. Scores become weights in their place.
  __device__ __forceinline__ void sum(const uint8_t* record, const TierOf& tier, const Units& units,
                                      const Scores<kTiles>& scores, const float (&top)[kTiles]) {
    scores_ = scores;
    raise_peaks(top);
    sum_tier(record, tier, units, top);
  }

 private:
  __device__ __forceinline__ void sum_tier(const uint8_t* record, const TierOf& tier,
                                           const Units& units, const float (&top)[kTiles]) {
    if (tier.v_bits == 16) return sum_rows(record + tier.v_codes, units, top);
    if constexpr (kAny) {
      const SideForm& side = launch_.args.form.v;
      if (side.as_tile)
        return with_decoder<kDim, false, DecoderOf::TileParams>(side, tier.v_bits, [&](auto type) {
          sum_decoded(
              units, top, TileFactors(side, kDim, false, tier.number, record),
              typename decltype(type)::type(side, launch_.v_values, tier.number, record, lane_));
        });
    }
    sum_codes(record, tier, units);
  }

  // Where the largest of the tier's scores is far above a peak, the peak is raised to it, and what
  // was summed is put in its units. Seldom: 32 bits hold what is not so far above.
  __device__ __forceinline__ void raise_peaks(const float (&top)[kTiles]) {
    constexpr float kFar = 30;
    bool far = false;
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile) far = far || top[tile] > peak[tile] + kFar;
    if (!__any_sync(~0u, far)) [[likely]]
      return;
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile) {
      const float raised = fmaxf(peak[tile], largest_of_column(top[tile]));
      const float shrink = fast_exp2(peak[tile] - raised);
      peak[tile] = raised;
      mass[tile] *= shrink;
      floors[tile] *= shrink;
#pragma unroll
      for (int m = 0; m < kF; ++m) {
        total[tile][m][0] *= shrink;
        total[tile][m][1] *= shrink;
      }
    }
  }

  // The weights of a lane's two tokens in units of exp2(peak).
  __device__ __forceinline__ void weigh(int tile, int place, float peak,
                                        float (&weights)[2]) const {
    const float2 scores = scores_.at(place, tile, lane_);
    weights[0] = fast_exp2(scores.x - peak);
    weights[1] = fast_exp2(scores.y - peak);
  }

  // ---- values

  __device__ __forceinline__ void sum_codes(const uint8_t* record, const TierOf& tier,
                                            const Units& units) {
    int sums[kTiles][kF][4] = {};
    float unit[kTiles], grow[kTiles], floor[kTiles] = {};
    weigh_values(record + tier.v_params, units, unit, floor);
    const bool has_factors = tier.v_factors != 0;
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile) {
      grow[tile] = __fdividef(1.0f, unit[tile]);
      // Factors of a lane's channels meet the floors of all tokens.
      if (has_factors)
        floor[tile] = sum_of_column(floor[tile]);
      else
        floors[tile] += floor[tile];
    }
    with_bits(tier.v_bits, [&](auto bits) {
      constexpr int kBits = decltype(bits)::value;
      const uint8_t* codes = record + tier.v_codes;
      // Those of the next pair are made while this one's products are.
      uint32_t next[kTiles][2];
      load_weights(0, grow, next);
      for_pairs(units, [&](int first, int second) {
        uint32_t weights[kTiles][2];
#pragma unroll
        for (int tile = 0; tile < kTiles; ++tile) {
          weights[tile][0] = next[tile][0];
          weights[tile][1] = next[tile][1];
        }
        load_weights(min(first + 2, last_pair(units)) - units.begin, grow, next);
        multiply_values<kBits>(codes + first * unit_bytes(kDim, kBits),
                               codes + second * unit_bytes(kDim, kBits), weights, sums);
      });
      add_sums<kBits>(record + tier.v_factors, has_factors, unit, floor, sums);
    });
  }

  // Operands of two units from `place` on.
  __device__ __forceinline__ void load_weights(int place, const float (&grow)[kTiles],
                                               uint32_t (&weights)[kTiles][2]) const {
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile) {
#pragma unroll
      for (int u = 0; u < 2; ++u) {
        const float2 own = scores_.at(place + u, tile, lane_);
        weights[tile][u] = transposed(byte_pairs(own.x * grow[tile], own.y * grow[tile]));
      }
    }
  }

  // The same of kUnits units from `place` on, of which n are there; of those that are not, weights
  // are 0.
  template <int kUnits>
  __device__ __forceinline__ void weigh_units(const __half2* params, int place, int n,
                                              float (&largest)[kTiles], float (&floor)[kTiles]) {
    float2 products[kUnits][kTiles];
#pragma unroll
    for (int u = 0; u < kUnits; ++u) {
      const bool is_there = kUnits == 4 || u < n;
      const int from = place + (is_there ? u : 0);
      const __half2* pairs = params + from * kUnitTokens + row_;
      const float2 own[2] = {__half22float2(pairs[0]), __half22float2(pairs[8])};
#pragma unroll
      for (int tile = 0; tile < kTiles; ++tile) {
        float p[2];
        weigh(tile, from, peak[tile], p);
        if (!is_there) p[0] = p[1] = 0;
        mass[tile] += p[0] + p[1];
        floor[tile] = fmaf(p[0], own[0].y, fmaf(p[1], own[1].y, floor[tile]));
        products[u][tile] = {p[0] * own[0].x, p[1] * own[1].x};
        largest[tile] = fmaxf(largest[tile], fmaxf(products[u][tile].x, products[u][tile].y));
      }
    }
#pragma unroll
    for (int u = 0; u < kUnits; ++u) {
#pragma unroll
      for (int tile = 0; tile < kTiles; ++tile)
        scores_.at(place + u, tile, lane_) = products[u][tile];
    }
  }

  // Scores become weights times steps; `params` are steps and floors of the tier's tokens. These
  // are rounded to 16 bits then, to whole numbers of `unit`: the largest of a query row is 65534.
  // `floor` takes the lane's share of the sum of floors.
  __device__ __forceinline__ void weigh_values(const uint8_t* params, const Units& units,
                                               float (&unit)[kTiles], float (&floor)[kTiles]) {
    const auto* pairs = reinterpret_cast<const __half2*>(params) + units.begin * kUnitTokens;
    const int n_units = units.end - units.begin;
    float largest[kTiles] = {};
    int place = 0;
#pragma unroll 1
    for (; place + 4 <= n_units; place += 4) weigh_units<4>(pairs, place, 4, largest, floor);
#pragma unroll 1
    for (; place < n_units; place += 2)
      weigh_units<2>(pairs, place, n_units - place, largest, floor);
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile) {
      largest[tile] = largest_of_column(largest[tile]);
      unit[tile] = fmaxf(largest[tile], 1e-30f) * (1 / 65534.0f);
    }
  }

  template <int kBits>
  __device__ __forceinline__ void multiply_values(const uint8_t* unit, const uint8_t* second,
                                                  const uint32_t (&weights)[kTiles][2],
                                                  int (&sums)[kTiles][kF][4]) const {
    using Codes = Piece<kBits, kDim>;
#pragma unroll
    for (int p = 0; p < Codes::kPieces; ++p) {
      const Codes own(unit, p, lane_), next(second, p, lane_);
#pragma unroll
      for (int f = 0; f < Codes::kHeld; ++f) {
        const uint32_t a[4] = {own.row(f, 0, true), own.row(f, 1, true), next.row(f, 0, true),
                               next.row(f, 1, true)};
#pragma unroll
        for (int tile = 0; tile < kTiles; ++tile)
          multiply_unsigned_bytes(sums[tile][p * Codes::kHeld + f], a, weights[tile]);
      }
    }
  }

  // Adds the tier's sums of codes, times the factors of channels where there are any.
  template <int kBits>
  __device__ __forceinline__ void add_sums(const uint8_t* channel_factors, bool has_factors,
                                           const float (&unit)[kTiles],
                                           const float (&floor)[kTiles],
                                           const int (&sums)[kTiles][kF][4]) {
#pragma unroll
    for (int m = 0; m < kF; m += 4) {
      uint4 four = {};
      if (has_factors) four = reinterpret_cast<const uint4*>(channel_factors)[m / 4 * 8 + row_];
      const uint32_t words[4] = {four.x, four.y, four.z, four.w};
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const float2 own = pair_of(words[j]);
#pragma unroll
        for (int tile = 0; tile < kTiles; ++tile) {
#pragma unroll
          for (int i = 0; i < 2; ++i) {
            const float sum = whole(sums[tile][m + j][2 * i], sums[tile][m + j][2 * i + 1]);
            const float factor =
                unit[tile] * (1 / (row_factor(kBits, i) * scaled_factor(kBits, m + j)));
            float& to = total[tile][m + j][i];
            if (has_factors)
              to = fmaf(fmaf(sum, factor, floor[tile]), i == 0 ? own.x : own.y, to);
            else
              to = fmaf(sum, factor, to);
          }
        }
      }
    }
  }

  // Values of 16 bits: weights are two 16-bit numbers each, the second what the first leaves over.
  __device__ __forceinline__ void sum_rows(const uint8_t* rows, const Units& units,
                                           const float (&top)[kTiles]) {
    float sums[kTiles][kF][4] = {}, highest[kTiles], own_mass[kTiles] = {};
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile) highest[tile] = largest_of_column(top[tile]);
#pragma unroll 1
    for (int unit = units.begin; unit < units.end; ++unit) {
      uint32_t weights[kTiles][2];
#pragma unroll
      for (int tile = 0; tile < kTiles; ++tile) {
        float p[2];
        weigh(tile, unit - units.begin, highest[tile], p);
        own_mass[tile] += p[0] + p[1];
#pragma unroll
        for (int i = 0; i < 2; ++i) weights[tile][i] = transposed(half_and_rest(p[i]));
      }
#pragma unroll
      for (int m = 0; m < kF; ++m) {
        uint32_t a[4];
        load_row(rows, unit, m, a);
#pragma unroll
        for (int tile = 0; tile < kTiles; ++tile)
          multiply_add(sums[tile][m], a[0], a[1], a[2], a[3], weights[tile][0], weights[tile][1]);
      }
    }
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile) {
      const float factor = fast_exp2(highest[tile] - peak[tile]);
      mass[tile] = fmaf(own_mass[tile], factor, mass[tile]);
#pragma unroll
      for (int m = 0; m < kF; ++m) {
#pragma unroll
        for (int i = 0; i < 2; ++i)
          total[tile][m][i] =
              fmaf(sums[tile][m][2 * i] + sums[tile][m][2 * i + 1], factor, total[tile][m][i]);
      }
    }
  }

  // ---- sides in the order of tiles

  template <class Values>
  __device__ __forceinline__ void sum_decoded(const Units& units, const float (&top)[kTiles],
                                              const TileFactors& factors, const Values& values) {
    static_assert(kTiles == 1);
    const float highest = largest_of_column(top[0]), factor = fast_exp2(highest - peak[0]);
    for (int r = 0; r < factors.rank; ++r) add_to_sums(r, units, highest, factor, factors);
    float own_mass = 0;
#pragma unroll 1
    for (int unit = units.begin; unit < units.end; ++unit) {
      const int place = unit - units.begin;
      float p[2];
      weigh(0, place, highest, p);
      own_mass += p[0] + p[1];
      if (factors.tokens) {
#pragma unroll
        for (int i = 0; i < 2; ++i)
          p[i] *= __half2float(factors.tokens[unit * kUnitTokens + row_ + 8 * i]);
      }
      // Operands (sum_rows) in the scores' place.
      scores_.at(place, 0, lane_) = {__uint_as_float(transposed(half_and_rest(p[0]))),
                                     __uint_as_float(transposed(half_and_rest(p[1])))};
    }
    mass[0] = fmaf(own_mass, factor, mass[0]);
#pragma unroll 1
    for (int m = 0; m < kF; ++m) {
      float sums[4] = {};
#pragma unroll 2
      for (int unit = units.begin; unit < units.end; ++unit) {
        uint32_t a[4];
        values.fragment(unit, m, a);
        const float2 weights = scores_.at(unit - units.begin, 0, lane_);
        multiply_add(sums, a[0], a[1], a[2], a[3], __float_as_uint(weights.x),
                     __float_as_uint(weights.y));
      }
      add_to_total(m, (sums[0] + sums[1]) * factor, (sums[2] + sums[3]) * factor, factors.channels);
    }
  }

  // The low-rank product of the values: of its tokens with their weights, times its channels.
  __device__ __forceinline__ void add_to_sums(int r, const Units& units, float highest,
                                              float factor, const TileFactors& factors) {
    const __half* tokens = factors.rank_tokens + r * factors.filled;
    float along = 0;
#pragma unroll 1
    for (int unit = units.begin; unit < units.end; ++unit) {
      float p[2];
      weigh(0, unit - units.begin, highest, p);
      along = fmaf(p[0], __half2float(tokens[unit * kUnitTokens + row_]), along);
      along = fmaf(p[1], __half2float(tokens[unit * kUnitTokens + row_ + 8]), along);
    }
    along = sum_of_column(along) * factor;
#pragma unroll 1
    for (int m = 0; m < kF; ++m) add_to_total(m, along, along, factors.rank_channels + r * kDim);
  }

  // Sums of channels 16 m + l / 4 and + 8, times a factor of each where there are any.
  __device__ __forceinline__ void add_to_total(int m, float first, float second,
                                               const __half* channels) {
    if (channels) {
      first *= __half2float(channels[m * 16 + row_]);
      second *= __half2float(channels[m * 16 + row_ + 8]);
    }
#pragma unroll
    for (int i = 0; i < kF; ++i) {
      if (i != m) continue;
      total[0][i][0] += first;
      total[0][i][1] += second;
    }
  }
};

// ---- the tiers of a record

// Units of a record, counted over all tiers.
struct Share {
  int begin = 0, end = kRecordTokens;
};

// One of `sharing` shares.
__device__ __forceinline__ Share share_of(const uint8_t* record, int share, int sharing) {
  const auto* words = reinterpret_cast<const uint4*>(record);
  const int form = int(words[0].x >> 24), n_tiers = form & kTierMask;
  if (sharing == 1) return {};
  if (sharing == 2) {
    const int half = form >> kHalfShift & kHalfMask;
    return {share == 0 ? 0 : half, share == 0 ? half : kRecordTokens};
  }
  const int n_units = units_in(words, n_tiers);
  return {n_units * share / sharing, n_units * (share + 1) / sharing};
}

// Calls visit(tier, units) for every tier that has some of the share's units.
template <class Visit>
__device__ __forceinline__ void for_tiers(const uint8_t* record, const Share& share,
                                          Visit&& visit) {
  const auto* words = reinterpret_cast<const uint4*>(record);
  const int n_tiers = int(words[0].x >> 24) & kTierMask;
  int before = 0;  // units of the tiers before
#pragma unroll 1
  for (int t = 0; t < n_tiers; ++t) {
    const TierOf tier(t, words[t]);
    const int after = before + units_of(tier.count);
    const Units units = {max(share.begin, before) - before, min(share.end, after) - before, before};
    if (units.begin < units.end) visit(tier, units);
    before = after;
  }
}

// A warp that makes scores and sums values, of one tier after another.
template <int kDim, int kTiles, bool kAny>
class Work {
 public:
  Values<kDim, kTiles, kAny> values;

  __device__ Work(const Launch& launch, const Task& task,
                  const SharedQueries<kDim, kTiles>& queries, float2* scores)
      : values(launch), keys_(launch, task, queries), scores_{scores} {}

  // Adds one of `sharing` shares of a record's units.
  __device__ __forceinline__ void add(const uint8_t* record, const Record& entry, int share,
                                      int sharing) {
    for_tiers(
        record, share_of(record, share, sharing),
        [&](const TierOf& tier, const Units& units) __attribute__((always_inline)) {
          float top[kTiles];
          keys_.score(record, entry, tier, units, scores_, top);
          values.sum(record, tier, units, scores_, top);
        });
  }

 private:
  Keys<kDim, kTiles, kAny> keys_;
  Scores<kTiles> scores_;
};

// ---- queries

// A number's bits, which turn into it later: so nothing waits for them here.
__device__ __forceinline__ uint32_t bits_at(const void* numbers, Number type, size_t i) {
  return type == Number::F32 ? static_cast<const uint32_t*>(numbers)[i]
                             : static_cast<const uint16_t*>(numbers)[i];
}
__device__ __forceinline__ float number_of(uint32_t bits, Number type) {
  switch (type) {
    case Number::F16:
      return __half2float(__ushort_as_half(uint16_t(bits)));
    case Number::BF16:
      return __uint_as_float(bits << 16);
    default:
      return __uint_as_float(bits);
  }
}

__device__ __forceinline__ void store_number(void* numbers, Number type, size_t i, float x) {
  switch (type) {
    case Number::F16:
      static_cast<__half*>(numbers)[i] = __float2half_rn(x);
      break;
    case Number::BF16:
      static_cast<__nv_bfloat16*>(numbers)[i] = __float2bfloat16_rn(x);
      break;
    default:
      static_cast<float*>(numbers)[i] = x;
  }
}

// First number of a query row of the task's KV head in q and out.
__device__ __forceinline__ size_t row_start(const Launch& launch, const Task& task, int column) {
  const DecodeArgs& args = launch.args;
  const size_t query =
      size_t(task.item.stream) * size_t(args.n_queries) + size_t(column / args.group);
  const size_t head = size_t(task.head * args.group + column % args.group);
  return (query * size_t(args.n_heads * args.group) + head) * size_t(args.dim);
}

// Shared memory of a block of threads beside the ring of records.
template <int kDim, int kTiles>
struct Shared {
  static constexpr int kRows = kTiles * kColumns;
  SharedQueries<kDim, kTiles> queries;
  uint64_t full[kMostSlots];
  alignas(16) Record entries[kMostSlots];
  int readers[kMostSlots], asked[kMostSlots];  // asked: number of the record that is to stand there
  int last;
};

// Query rows of which a warp has each n_warps-th one, and a lane kDim / 32 neighbours of it.
template <int kDim, int kTiles>
struct Queries {
  static constexpr int kOwn = kDim / kLanes, kRows = kTiles * kColumns,
                       kOwnRows = kRows / kSmallWarps;
  uint32_t bits[kOwnRows][kOwn] = {};

  __device__ __forceinline__ Queries(const Launch& launch, const Task& task) {
    const int warp = int(threadIdx.x) / kLanes, lane = int(threadIdx.x) % kLanes;
#pragma unroll
    for (int i = 0; i < kOwnRows; ++i) {
      const int row = warp + i * launch.args.n_warps;
      if (row >= task.n_columns) continue;
      const size_t start = row_start(launch, task, task.first_column + row) + size_t(lane * kOwn);
#pragma unroll
      for (int c = 0; c < kOwn; ++c)
        bits[i][c] = bits_at(launch.args.q, launch.args.q_type, start + size_t(c));
    }
  }
};

// A query row's operands of 16-bit products; `x` are its numbers that the lane holds.
template <int kDim, int kOwn>
__device__ __forceinline__ void store_operands(int row, const float (&x)[kOwn], uint4* operands) {
  const int lane = int(threadIdx.x) % kLanes;
  auto* words = reinterpret_cast<uint32_t*>(operands);
#pragma unroll
  for (int c = 0; c < kOwn; c += 2) {
    const int channel = lane * kOwn + c, s = channel / 16;
    const int to = row % kColumns * 8 + channel % 8 / 2;  // the lane that multiplies with it
    uint32_t* word = words + ((row / kColumns * kFragments<kDim> / 2 + s / 2) * kLanes + to) * 4 +
                     s % 2 * 2 + channel % 16 / 8;
    const uint32_t rounded = half_pair(x[c], x[c + 1]);
    const float2 taken = pair_of(rounded);
    word[0] = rounded;
    word[4 * 4] = half_pair(x[c] - taken.x, x[c + 1] - taken.y);  // of the next column
  }
}

// Queries become operands, each row multiplied with a power of two that brings its largest number
// to kQueryTop / 2 or above and below kQueryTop.
template <int kDim, int kTiles>
__device__ void share_queries(const Launch& launch, const Task& task,
                              const Queries<kDim, kTiles>& queries,
                              SharedQueries<kDim, kTiles>& shared) {
  using Rows = Queries<kDim, kTiles>;
  const int warp = int(threadIdx.x) / kLanes, lane = int(threadIdx.x) % kLanes;
#pragma unroll
  for (int i = 0; i < Rows::kOwnRows; ++i) {
    const int row = warp + i * launch.args.n_warps;
    if (row >= Rows::kRows) continue;
    float x[Rows::kOwn], largest = 0, sum = 0;
#pragma unroll
    for (int c = 0; c < Rows::kOwn; ++c) x[c] = number_of(queries.bits[i][c], launch.args.q_type);
    if (launch.args.k_hadamard && row < task.n_columns) rotate_row(x, kDim, ~0u);
#pragma unroll
    for (int c = 0; c < Rows::kOwn; ++c) largest = fmaxf(largest, fabsf(x[c]));
    largest = largest_of_warp(largest);
    const int exponent =
        largest > 0 && largest < INFINITY ? min(kQueryExponent - ilogbf(largest), 126) : 0;
    const float grow = ldexpf(1.0f, exponent);
#pragma unroll
    for (int c = 0; c < Rows::kOwn; ++c) {
      x[c] *= grow;
      sum += x[c];
      shared.numbers[row][k_param_place(lane * Rows::kOwn + c)] = x[c];
    }
    store_operands<kDim>(row, x, shared.operands);
#pragma unroll
    for (int step = 1; step < kLanes; step *= 2) sum += __shfl_xor_sync(~0u, sum, step);
    if (lane > 0) continue;
    shared.sums[row] = sum;
    shared.units[row] = launch.args.scale * kLog2E * ldexpf(1.0f, -exponent);
  }
  __syncthreads();
}

// ---- records on their way to shared memory

// Record i of the item stands in slot i modulo their number, and is asked for when the one before
// it in the slot was read. Groups of warps that share records take these in turn.
template <int kDim, int kTiles>
class Ring {
 public:
  __device__ Ring(const Launch& launch, const Task& task, const Record* records, uint8_t* memory,
                  Shared<kDim, kTiles>& shared)
      : launch_(launch),
        records_(reinterpret_cast<const uint4*>(records)),
        item_(task.item),
        memory_(memory),
        shared_(shared),
        warp_(int(threadIdx.x) / kLanes),
        lane_(int(threadIdx.x) % kLanes) {}

  // The Record of which begin() asks, of the asking warp's lanes.
  __device__ uint4 first_entry() const {
    return warp_ == 0 && lane_ < min(launch_.n_slots, item_.count) ? records_[lane_] : uint4{};
  }

  // Asks for the first records; others than the asking warp may wait for these after a barrier of
  // the block.
  __device__ void begin(uint4 entry) const {
    if (warp_ != 0 || lane_ >= launch_.n_slots) return;
    open_barrier(&shared_.full[lane_], 1);
    shared_.readers[lane_] = 0;
    shared_.asked[lane_] = -1;
    fence_barriers();
    if (lane_ < item_.count) ask(lane_, lane_, entry);
  }

  template <class Worker>
  __device__ __forceinline__ void run(Worker& work) const {
    const int sharing = item_.sharing, shift = __ffs(sharing) - 1;  // a power of two
    const int n_groups = launch_.args.n_warps >> shift;
    int slot = warp_ >> shift, parity = 0;
#pragma unroll 1
    for (int i = slot;; i += n_groups, slot += n_groups) {
      for (; slot >= launch_.n_slots; slot -= launch_.n_slots) parity ^= 1;
      if (i >= item_.count) return;
      uint4 next = {};  // a Record, on its way while this one is worked on
      const bool more = i + launch_.n_slots < item_.count;
      if (more && lane_ == 0) next = records_[i + launch_.n_slots];
      wait_for(i, slot, parity);
      work.add(memory_ + slot * launch_.slot_bytes, shared_.entries[slot], warp_ & (sharing - 1),
               sharing);
      __syncwarp();
      if (more && lane_ == 0 && last_reader(slot)) ask(i + launch_.n_slots, slot, next);
    }
  }

 private:
  // Record i, into a slot that nothing reads any more.
  __device__ void ask(int i, int slot, uint4 entry) const {
    const uint32_t bytes = (entry.y & 0xFFFF) * 16;
    *reinterpret_cast<uint4*>(&shared_.entries[slot]) = entry;
    publish(&shared_.asked[slot], i);
    arrive_expecting(&shared_.full[slot], bytes);
    copy_bulk(memory_ + slot * launch_.slot_bytes, launch_.args.pool + size_t(entry.x) * 16, bytes,
              &shared_.full[slot]);
  }

  // A barrier tells two neighbouring phases apart, no more; so record i has to be asked for before
  // its phase is waited for, since whoever reads the one before it in the slot may be late.
  __device__ void wait_for(int i, int slot, int parity) const {
    while (published(&shared_.asked[slot]) != i) __nanosleep(20);
    wait_phase(&shared_.full[slot], parity);
  }

  __device__ bool last_reader(int slot) const {
    const int sharing = item_.sharing;
    return sharing == 1 || (add_in_order(&shared_.readers[slot], 1) & (sharing - 1)) == sharing - 1;
  }

  const Launch& launch_;
  const uint4* records_;
  const WorkItem& item_;
  uint8_t* memory_;
  Shared<kDim, kTiles>& shared_;
  const int warp_, lane_;
};

// The way of cards without bulk copies: the computing threads copy too, as many records at once as
// half of the slots hold.
template <int kDim, int kTiles, bool kAny>
__device__ __forceinline__ void copy_and_compute(Work<kDim, kTiles, kAny>& work,
                                                 const Launch& launch, const Task& task,
                                                 const Record* records, uint8_t* memory) {
  const int count = task.item.count;
  const int n_warps = launch.args.n_warps;
  const int at_once = launch.n_slots >= 2 * n_warps ? n_warps : launch.n_slots >= 4 ? 2 : 1;
  const int sharing = n_warps / at_once;
  const auto place = [&](int r) { return memory + r % (2 * at_once) * launch.slot_bytes; };
  const auto issue = [&](int r) {
    if (r < count) {
      const Record entry = records[r];
      const uint8_t* from = launch.args.pool + size_t(entry.at) * 16;
      for (int i = int(threadIdx.x); i < entry.size; i += int(blockDim.x))
        copy_16(place(r) + i * 16, from + i * 16);
    }
    commit_copies();
  };
  const int warp = int(threadIdx.x) / kLanes;
  for (int r = 0; r < at_once; ++r) issue(r);
  for (int r = 0; r < count; r += at_once) {
    wait_copies<0>();
    __syncthreads();
    for (int i = 0; i < at_once; ++i) issue(r + at_once + i);
    const int own = r + warp / sharing;
    if (own < count) work.add(place(own), records[own], warp % sharing, sharing);
  }
  wait_copies<0>();
}

// ---- results

// A partial result of a query row is kRowFloats numbers, the first two its peak and mass, and the
// sums of kDim channels; in shared memory those of warps, in the device's those of blocks.
template <int kDim>
constexpr int kPartFloats = kRowFloats + kDim;

// Neighbours of either memory.
template <int kOwn>
__device__ __forceinline__ void load_floats(const float* from, float (&x)[kOwn]) {
#pragma unroll
  for (int i = 0; i < kOwn; i += kOwn < 4 ? 2 : 4) {
    if constexpr (kOwn < 4)
      load_of_device(from + i, x[i], x[i + 1]);
    else
      load_of_device(from + i, x[i], x[i + 1], x[i + 2], x[i + 3]);
  }
}

template <int kOwn>
__device__ __forceinline__ void store_floats(float* to, const float (&x)[kOwn]) {
  if constexpr (kOwn == 2) {
    __stcg(reinterpret_cast<float2*>(to), float2{x[0], x[1]});
  } else {
#pragma unroll
    for (int i = 0; i < kOwn; i += 4)
      __stcg(reinterpret_cast<float4*>(to + i), float4{x[i], x[i + 1], x[i + 2], x[i + 3]});
  }
}

// A merged query row: a lane has kDim / 32 neighbouring channels of the sums.
template <int kDim>
struct Row {
  static constexpr int kOwn = kDim / kLanes;
  float sums[kOwn] = {};
  float peak = kLowest, mass = 0;

  // Adds n partial results, `stride` numbers apart, kAtOnce loads of them on their way at once.
  template <int kAtOnce>
  __device__ __forceinline__ void add(const float* parts, int n, size_t stride) {
    const int lane = int(threadIdx.x) % kLanes;
#pragma unroll 1
    for (int first = 0; first < n; first += kAtOnce) {
      float peaks[kAtOnce], masses[kAtOnce], x[kAtOnce][kOwn] = {};
      float best = peak;
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) {
        peaks[i] = kLowest;
        masses[i] = 0;
        if (first + i >= n) continue;
        const float* part = parts + size_t(first + i) * stride;
        load_of_device(part, peaks[i], masses[i]);
        load_floats(part + kRowFloats + lane * kOwn, x[i]);
      }
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) best = fmaxf(best, peaks[i]);
      const float shrink = fast_exp2(peak - best);
      peak = best;
      mass *= shrink;
#pragma unroll
      for (int c = 0; c < kOwn; ++c) sums[c] *= shrink;
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) {
        const float weight = fast_exp2(peaks[i] - best);
        mass = fmaf(masses[i], weight, mass);
#pragma unroll
        for (int c = 0; c < kOwn; ++c) sums[c] = fmaf(x[i][c], weight, sums[c]);
      }
    }
  }
};

// Partial results of all warps into `space` [n_warps, rows, kPartFloats].
template <int kDim, int kTiles, bool kAny>
__device__ __forceinline__ void share_sums(const Values<kDim, kTiles, kAny>& values, int n_rows,
                                           float* space) {
  constexpr int kRows = kTiles * kColumns;
  const int warp = int(threadIdx.x) / kLanes, lane = int(threadIdx.x) % kLanes;
#pragma unroll
  for (int tile = 0; tile < kTiles; ++tile) {
    float mass = values.mass[tile], floors = values.floors[tile];
#pragma unroll
    for (int step = 4; step < kLanes; step *= 2) {
      mass += __shfl_xor_sync(~0u, mass, step);
      floors += __shfl_xor_sync(~0u, floors, step);
    }
    const int row = tile * kColumns + lane % 4;
    if (row >= n_rows) continue;
    float* part = space + (warp * kRows + row) * kPartFloats<kDim>;
    if (lane < 4) {
      part[0] = values.peak[tile];
      part[1] = mass;
    }
    float* out = part + kRowFloats + lane / 4;
#pragma unroll
    for (int m = 0; m < kFragments<kDim>; ++m) {
      out[m * 16] = values.total[tile][m][0] + floors;
      out[m * 16 + 8] = values.total[tile][m][1] + floors;
    }
  }
  __syncthreads();
}

template <int kDim>
__device__ float* part_of(const Launch& launch, int item, int head, int column) {
  const size_t row =
      (size_t(item) * size_t(launch.args.n_heads) + size_t(head)) * size_t(launch.n_columns) +
      size_t(column);
  return launch.parts + row * kPartFloats<kDim>;
}

// Turns sums back, divides them and stores them.
template <int kDim>
__device__ __forceinline__ void store_row(const Launch& launch, const Task& task, int column,
                                          Row<kDim>& row) {
  constexpr int kOwn = Row<kDim>::kOwn;
  const DecodeArgs& args = launch.args;
  const int lane = int(threadIdx.x) % kLanes;
  if (args.v_hadamard) rotate_row(row.sums, kDim, ~0u);
  float peak = row.peak, mass = row.mass, scale = 1;
  if (args.sinks) {
    const float sink = args.sinks[task.head * args.group + column % args.group] * kLog2E;
    peak = fmaxf(row.peak, sink);
    scale = exp2f(row.peak - peak);
    mass = mass * scale + exp2f(sink - peak);
  }
  const size_t start = row_start(launch, task, column);
  if (args.log_sums && lane == 0)
    args.log_sums[start / size_t(args.dim)] = (peak + log2f(mass)) / kLog2E;
  scale = mass > 0 ? scale / mass : 0.0f;
#pragma unroll
  for (int i = 0; i < kOwn; ++i)
    store_number(args.out, args.out_type, start + size_t(lane * kOwn + i), row.sums[i] * scale);
}

template <int kDim>
__device__ __forceinline__ void store_part(float* part, const Row<kDim>& row) {
  const int lane = int(threadIdx.x) % kLanes;
  if (lane == 0) __stcg(reinterpret_cast<float2*>(part), float2{row.peak, row.mass});
  store_floats(part + kRowFloats + lane * Row<kDim>::kOwn, row.sums);
}

// Whether the block's results, which all of its threads have stored, are the last ones of the
// stream and head.
__device__ __forceinline__ bool last_part(const Launch& launch, const Task& task, int& shared) {
  __syncthreads();
  if (threadIdx.x == 0) {
    const int number = task.item.stream * launch.args.n_heads + task.head;
    int* ticket = launch.tickets + number * int(gridDim.z) + int(blockIdx.z);
    shared = add_in_order_of_device(ticket, 1) == task.item.part_count - 1;
    if (shared) *ticket = 0;  // for the next launch
  }
  __syncthreads();
  return shared;
}

// Merges the results of warps, then, in the last block, those of blocks.
template <int kDim, int kTiles>
__device__ void finish(const Launch& launch, const Task& task, const float* space, int& last) {
  constexpr int kRowsApart = kPartFloats<kDim>;
  const WorkItem& item = task.item;
  const auto part = [&](int index) {
    return part_of<kDim>(launch, index, task.head, task.first_column);
  };
  const auto each_row = [&](auto&& visit) {
#pragma unroll 1
    for (int r = int(threadIdx.x) / kLanes; r < task.n_columns; r += launch.args.n_warps) {
      Row<kDim> row;
      visit(r, row);
    }
  };
  const auto store = [&](int r, Row<kDim>& row) {
    store_row<kDim>(launch, task, task.first_column + r, row);
  };
  each_row([&](int r, Row<kDim>& row) {
    row.template add<kSmallWarps>(space + r * kRowsApart, launch.args.n_warps,
                                  kTiles * kColumns * kRowsApart);
    if (item.part_count <= 1) return store(r, row);
    store_part(part(int(blockIdx.x)) + r * kRowsApart, row);
  });
  if (item.part_count <= 1 || !last_part(launch, task, last)) return;
  each_row([&](int r, Row<kDim>& row) {
    row.template add<kDim <= 128 ? 16 : 8>(
        part(item.part_first) + r * kRowsApart, item.part_count,
        size_t(launch.args.n_heads * launch.n_columns) * kRowsApart);
    store(r, row);
  });
}

template <int kDim, int kTiles, bool kAny, bool kBulk>
__global__ void __launch_bounds__((kTiles == 1 && kDim <= 128 ? kMostWarps : kLargeWarps) * kLanes,
                                  1) decode_kernel(const __grid_constant__ Launch launch) {
  extern __shared__ __align__(128) uint8_t dynamic[];
  __shared__ Shared<kDim, kTiles> shared;
  const DecodeArgs& args = launch.args;
  Task task;
  task.item = args.items[blockIdx.x];
  if (task.item.stream < 0) return wait_for_launch_before();
  task.head = int(blockIdx.y);
  task.first_column = int(blockIdx.z) * kTiles * kColumns;
  task.n_columns = min(launch.n_columns - task.first_column, kTiles * kColumns);
  const Record* records =
      args.records +
      size_t(task.item.stream * args.n_heads + task.head) * size_t(args.record_stride) +
      task.item.first;
  const int warp = int(threadIdx.x) / kLanes;
  uint8_t* slots = dynamic + args.n_warps * score_bytes(kTiles);
  const Ring<kDim, kTiles> ring(launch, task, records, slots, shared);
  uint4 entry = {};
  if constexpr (kBulk) entry = ring.first_entry();
  wait_for_launch_before();
  // Before records, which would be in their way.
  Queries<kDim, kTiles> queries(launch, task);
  if constexpr (kBulk) ring.begin(entry);
  share_queries<kDim, kTiles>(launch, task, queries, shared.queries);
  auto* scores = reinterpret_cast<float2*>(dynamic + warp * score_bytes(kTiles));
  Work<kDim, kTiles, kAny> work(launch, task, shared.queries, scores);
  if constexpr (kBulk)
    ring.run(work);
  else
    copy_and_compute(work, launch, task, records, slots);
  __syncthreads();
  auto* space = reinterpret_cast<float*>(dynamic);
  share_sums(work.values, task.n_columns, space);
  finish<kDim, kTiles>(launch, task, space, shared.last);
}

template <int kDim, int kTiles, bool kAny, bool kBulk>
cudaError_t launch_one(const Launch& launch, dim3 grid, cudaStream_t stream) {
  auto* kernel = decode_kernel<kDim, kTiles, kAny, kBulk>;
  const size_t bytes = size_t(launch.dynamic_bytes);
  const int n_threads = launch.args.n_warps * kLanes;
  // Set once a device would do; it costs less than a lookup whether it was.
  const cudaError_t error =
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, int(bytes));
  if (error != cudaSuccess) return error;
  if (launch.blocks)
    return cudaOccupancyMaxActiveBlocksPerMultiprocessor(launch.blocks, kernel, n_threads, bytes);
  cudaLaunchAttribute early = {};
  early.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  early.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config = {};
  config.gridDim = grid;
  config.blockDim = dim3(unsigned(n_threads));
  config.dynamicSmemBytes = bytes;
  config.stream = stream;
  config.attrs = &early;
  config.numAttrs = kBulk && launch.args.early ? 1 : 0;
  return cudaLaunchKernelEx(&config, kernel, launch);
}

template <int kDim>
cudaError_t launch_dim(const Launch& launch, dim3 grid, cudaStream_t stream) {
  if (launch.args.copy_by_threads) return launch_one<kDim, 1, true, false>(launch, grid, stream);
  if (launch.any) return launch_one<kDim, 1, true, true>(launch, grid, stream);
  if constexpr (kDim <= 128) {
    if (launch.tiles == 2) return launch_one<kDim, 2, false, true>(launch, grid, stream);
  }
  return launch_one<kDim, 1, false, true>(launch, grid, stream);
}

}  // namespace
}  // namespace zipcache::cuda
