// Scores of queries and the keys of records.
#pragma once

#include "cuda/decode_queries.cuh"
#include "cuda/decoder.cuh"

namespace zipcache::cuda {
namespace {

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

// Makes scores of a tier's tokens from its keys, logarithms to the base 2.
//
// Products of codes are products of whole numbers: a query row times the steps of channels is
// rounded to 16 bits, and of these the upper byte stands in one column of the operand, the lower in
// the next; the same with weights. So a sum over 32 codes costs one instruction, as precise as
// 16-bit fixed point, and a lane finds both bytes' sums side by side.
template <int kDim, int kTiles, bool kAny>
class Keys : public Lane<kDim, kTiles> {
  using Base = Lane<kDim, kTiles>;
  using Base::kF, Base::launch_, Base::lane_, Base::row_, Base::pair_, Base::scores_;
  using Base::load_row, Base::with_bits, Base::whole, Base::sum_of_column;

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

  // Scores of all tokens; `top` takes the largest of the lane's.
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

  template <class Codes>
  __device__ __forceinline__ void score_decoded(const Units& units, float (&top)[kTiles],
                                                const TileFactors& factors, const Codes& codes) {
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
        codes.fragment(unit, s, a);
        codes.fragment(unit, s + 1, b);
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
      const __half2 small = __hmul2(pair_from(pair), __float2half2_rn(1 / kQueryTop));
      pair = bits_of(__hmul2(small, *own));
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

}  // namespace
}  // namespace zipcache::cuda
