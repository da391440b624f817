// Sums of the values of records, weighed by their scores.
#pragma once

#include "cuda/decode_warp.cuh"
#include "cuda/decoder.cuh"

namespace zipcache::cuda {
namespace {

// Sums values with weights, the softmax of scores over the tokens that the warp has met; peaks are
// equal in the lanes of a query row, mass and floors are the lane's share.
template <int kDim, int kTiles, bool kAny>
class Values : public Lane<kDim, kTiles> {
  using Base = Lane<kDim, kTiles>;
  using Base::launch_, Base::lane_, Base::row_, Base::pair_, Base::scores_;
  using Base::load_row, Base::with_bits, Base::whole, Base::sum_of_column, Base::largest_of_column;

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

  // The weights of a lane's two tokens: exp2(score - from).
  __device__ __forceinline__ void weigh(int tile, int place, float from,
                                        float (&weights)[2]) const {
    const float2 scores = scores_.at(place, tile, lane_);
    weights[0] = fast_exp2(scores.x - from);
    weights[1] = fast_exp2(scores.y - from);
  }

  // ---- values

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

  template <class Codes>
  __device__ __forceinline__ void sum_decoded(const Units& units, const float (&top)[kTiles],
                                              const TileFactors& factors, const Codes& codes) {
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
        codes.fragment(unit, m, a);
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

}  // namespace
}  // namespace zipcache::cuda
