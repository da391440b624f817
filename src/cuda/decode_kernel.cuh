// The kernel of decode attention, for one head size a file that includes this one.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <type_traits>

#include "cuda/decode_launch.hpp"
#include "cuda/device.cuh"

namespace zipcache::cuda {
namespace {

constexpr float kLog2E = 1.44269504f;
// A running maximum is raised when a score exceeds it by this much, so that it seldom is; weights
// then lie below 2^(kHeadroom + kSlack), what 16 bits hold.
constexpr float kSlack = 5, kHeadroom = 8;
constexpr float kLowest = -1e30f;
constexpr int kBlockTokens = 128;  // at most, of one record

// A tier of the record at hand, in registers.
struct TierOf {
  int count, k_bits, v_bits, k_exponent, v_exponent;
  int k_params, v_params, k_codes, v_codes, v_factors;  // in bytes from the record's first
  bool k_by_token;

  // `words` are a TierHeader.
  __device__ __forceinline__ explicit TierOf(uint4 words)
      : count(words.x & 0xFF),
        k_bits(words.x >> 8 & 0xFF),
        v_bits(words.x >> 16 & 0xFF),
        k_exponent(int(words.x) >> 24),
        v_exponent(int(words.w) >> 24),
        k_params((words.y & 0xFFFF) * 16),
        v_params((words.y >> 16) * 16),
        k_codes((words.z & 0xFFFF) * 16),
        v_codes((words.z >> 16) * 16),
        v_factors((words.w & 0xFFFF) * 16),
        k_by_token((words.w >> 16 & kKeysByToken) != 0) {}
};

// What a block of threads works on.
struct Task {
  WorkItem item;
  int head, first_column, n_columns;
};

template <int kDim>
constexpr int kFragments = kDim / 16;

__device__ __forceinline__ void add_scaled(float4& sum, const float4& x, float weight) {
  sum.x = fmaf(x.x, weight, sum.x);
  sum.y = fmaf(x.y, weight, sum.y);
  sum.z = fmaf(x.z, weight, sum.z);
  sum.w = fmaf(x.w, weight, sum.w);
}

// Hands the fragments of a unit to `use(number, x, x2, y, y2)`: pairs of 16-bit numbers, of codes
// times 2^-24, those of y times 2^-20 where 4 bits or fewer leave them in their place.
template <int kBits, int kDim, class Use>
__device__ __forceinline__ void for_fragments(const uint8_t* unit, int lane, Use&& use) {
  constexpr int kWords = kDim * kBits / 64;  // of a lane
  if constexpr (kBits == 3) {
#pragma unroll
    for (int group = 0; group < kFragments<kDim> / 4; ++group) {
      const uint32_t* words = reinterpret_cast<const uint32_t*>(unit) + group * 3 * kLanes + lane;
      const uint32_t top = words[2 * kLanes];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const uint32_t low = words[i / 2 * kLanes] >> (i % 2 * 8);
        const int at = i * 2 % 4 + i * 2 / 4 * 8 - 2;  // of the first pair's top bits, from bit 2
        const uint32_t top0 = at < 0 ? top << -at : top >> at;
        const uint32_t top1 = at + 1 < 0 ? top << -(at + 1) : top >> (at + 1);
        use(group * 4 + i, (low & 0x00030003u) | (top0 & 0x00040004u),
            (low >> 2 & 0x00030003u) | (top1 & 0x00040004u),
            (low & 0x00300030u) | (top0 & 0x00400040u),
            (low >> 2 & 0x00300030u) | (top1 & 0x00400040u));
      }
    }
  } else {
    constexpr int kWide = kWords < 4 ? kWords : 4;
#pragma unroll
    for (int v = 0; v < kWords / kWide; ++v) {
      uint32_t w[4];
      load_words<kWide>(unit + (v * kLanes + lane) * kWide * 4, w);
      if constexpr (kBits == 2) {
#pragma unroll
        for (int i = 0; i < kWide * 2; ++i) {
          const uint32_t low = w[i / 2] >> (i % 2 * 8), second = w[i / 2] >> (i % 2 * 8 + 2);
          use(v * kWide * 2 + i, low & 0x00030003u, second & 0x00030003u, low & 0x00300030u,
              second & 0x00300030u);
        }
      } else if constexpr (kBits == 4) {
#pragma unroll
        for (int i = 0; i < kWide; ++i) {
          const uint32_t second = w[i] >> 8;
          use(v * kWide + i, w[i] & 0x000F000Fu, second & 0x000F000Fu, w[i] & 0x00F000F0u,
              second & 0x00F000F0u);
        }
      } else if constexpr (kBits == 8) {
#pragma unroll
        for (int i = 0; i < kWide / 2; ++i) {
          const uint32_t x = w[2 * i], y = w[2 * i + 1];
          use(v * kWide / 2 + i, x & 0x00FF00FFu, x >> 8 & 0x00FF00FFu, y & 0x00FF00FFu,
              y >> 8 & 0x00FF00FFu);
        }
      } else {
        use(v, w[0], w[1], w[2], w[3]);
      }
    }
  }
}

// Sums over tokens as matrix units hold them: a lane has rows (channels of values) l/4 and l/4 + 8
// of every fragment and columns (query rows) 2 (l % 4) and the next one. Codes are summed as they
// stand in their words, so what is summed is in units of 2^-exponent, of x rows and of y rows.
template <int kDim, int kTiles>
struct Total {
  float at[kTiles][kFragments<kDim>][4];
  int x_exponent, y_exponent;

  __device__ __forceinline__ void clear() {
    x_exponent = 24;
    y_exponent = 20;
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile) {
#pragma unroll
      for (int m = 0; m < kFragments<kDim>; ++m) {
#pragma unroll
        for (int i = 0; i < 4; ++i) at[tile][m][i] = 0;
      }
    }
  }

  // Those of codes of a width.
  __device__ __forceinline__ void take_units(int bits) {
    take_units(bits == 16 ? 0 : 24, bits == 16 ? 0 : bits == 8 ? 24 : 20);
  }
  __device__ __forceinline__ void take_units(int x, int y) {
    if (x == x_exponent && y == y_exponent) [[likely]]
      return;
    const float x_factor = power_of_two(x_exponent - x), y_factor = power_of_two(y_exponent - y);
    x_exponent = x;
    y_exponent = y;
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile) {
#pragma unroll
      for (int m = 0; m < kFragments<kDim>; ++m) {
#pragma unroll
        for (int i = 0; i < 4; ++i) at[tile][m][i] *= i < 2 ? x_factor : y_factor;
      }
    }
  }

  __device__ __forceinline__ void shrink_columns(int tile, const float (&by)[2]) {
#pragma unroll
    for (int m = 0; m < kFragments<kDim>; ++m) {
#pragma unroll
      for (int i = 0; i < 4; ++i) at[tile][m][i] *= by[i % 2];
    }
  }
};

// Bit tile * 4 + e: score e of the tile is of a token behind its query. `rows` are the places of
// the unit's tokens behind `first`, which is counted from the first query's end; null where they
// follow each other. Rare, so kept out of the code that instruction caches hold.
__device__ __noinline__ uint32_t later_than_queries(const uint8_t* rows, int first, int n_tokens,
                                                    int first_column, int group, int n_scores) {
  const int lane = int(threadIdx.x) % kLanes;
  uint32_t later = 0;
#pragma unroll 1
  for (int i = 0; i < n_scores; ++i) {
    const int token = lane / 4 + i / 2 % 2 * 8;
    const int column = first_column + i / 4 * kColumns + lane % 4 * 2 + i % 2;
    if (token >= n_tokens) continue;
    const int place = first + (rows ? int(rows[token]) : token);
    later |= uint32_t(place >= column / group) << i;
  }
  return later;
}

// One warp's share of the softmax over the tokens that it has met; peaks are equal in the lanes of
// a column, mass and floors are the lane's share.
template <int kDim, bool kFactors, int kTiles, bool kMasked>
class Warp {
 public:
  float peak[kTiles][2], mass[kTiles][2], floors[kTiles][2];
  Total<kDim, kTiles> total;

  __device__ Warp(const Launch& launch, const Task& task, const uint8_t* queries,
                  const float* q_sums, float score_scale)
      : launch_(launch),
        raw_(task.item.raw != 0),
        stream_(task.item.stream),
        head_(task.head),
        first_column_(task.first_column),
        queries_(queries),
        q_sums_(q_sums),
        scale_(score_scale),
        lane_(int(threadIdx.x) % kLanes),
        row_(lane_ / 4),
        pair_(lane_ % 4) {
    total.clear();
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile) {
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        peak[tile][e] = kLowest;
        mass[tile][e] = floors[tile][e] = 0;
      }
    }
    base_ = launch.args.visible ? launch.args.visible[stream_] : 0x3FFFFFFF;
  }

  // Adds one of `sharing` shares of a record's units.
  __device__ __forceinline__ void add(const uint8_t* record, const Record& entry, int share,
                                      int sharing) {
    const auto* words = reinterpret_cast<const uint4*>(record);
    const int form = int(words[0].w >> 16), n_tiers = form & kTierMask;
    const int half = form >> kHalfShift & kHalfMask;
    int begin = share == 0 ? 0 : half, end = share == 0 ? half : kBlockTokens;
    if (sharing != kSharing) [[unlikely]] {
      const int n_units = units_in(words, n_tiers);
      begin = n_units * share / kWarps;
      end = n_units * (share + 1) / kWarps;
    }
    if constexpr (kFactors) part_.clear();
    TierOf tier(words[0]);
    int before = 0;  // units of the tiers before
    for (int t = 0; t < n_tiers; ++t) {
      tier = TierOf(words[t]);
      const int after = before + units_of(tier.count);
      const int from = max(begin, before), to = min(end, after);
      if (from < to) add_units_of(record, entry, tier, before, from - before, to - before);
      before = after;
    }
    if constexpr (kFactors) add_with_factors(record + tier.v_factors, tier.v_factors != 0);
  }

 private:
  static constexpr int kF = kFragments<kDim>;

  // Units of all tiers.
  __device__ __noinline__ static int units_in(const uint4* words, int n_tiers) {
    int n_units = 0;
#pragma unroll 1
    for (int t = 0; t < n_tiers; ++t) n_units += units_of(words[t].x & 0xFF);
    return n_units;
  }

  // The pairs of widths that policies have, each with code of its own; others take the last one.
  __device__ __forceinline__ void add_units_of(const uint8_t* record, const Record& entry,
                                               const TierOf& tier, int before, int unit, int stop) {
    switch (tier.k_bits * 32 + tier.v_bits) {
      case 4 * 32 + 4:
        return add_tier<4, 4>(record, entry, tier, before, unit, stop);
      case 2 * 32 + 2:
        return add_tier<2, 2>(record, entry, tier, before, unit, stop);
      case 4 * 32 + 2:
        return add_tier<4, 2>(record, entry, tier, before, unit, stop);
      case 16 * 32 + 16:
        return add_tier<16, 16>(record, entry, tier, before, unit, stop);
        [[unlikely]] default : return add_tier<0, 0>(record, entry, tier, before, unit, stop);
    }
  }

  // Widths of 0 are looked up in the tier. Units of which every query sees every token take a short
  // way.
  template <int kK, int kV>
  __device__ __forceinline__ void add_tier(const uint8_t* record, const Record& entry,
                                           const TierOf& tier, int before, int unit, int stop) {
    uint32_t q[kTiles][kF][2];
    float start[kTiles][2];
    fold(record + tier.k_params, tier, kK ? kK : tier.k_bits, q, start);
    if (kFactors && tier.v_bits != 16)
      part_.take_units(tier.v_bits);
    else
      total.take_units(tier.v_bits);
    const bool hides =
        (kMasked && launch_.masked) || raw_ || int(entry.first) + kBlockTokens > base_;
    if constexpr (kK != 0 && kK != 16) {
      const int plain = hides || tier.k_by_token ? 0 : stop;
#pragma unroll 1
      for (; unit < plain; ++unit)
        add_unit<kK, kV, true>(record, entry, tier, before, unit, false, q, start);
    }
    if (unit >= stop) [[likely]]
      return;
#pragma unroll 1
    for (; unit < stop; ++unit)
      add_unit<kK, kV, false>(record, entry, tier, before, unit, hides, q, start);
  }

  template <int kK, int kV, bool kPlain>
  __device__ __forceinline__ void add_unit(const uint8_t* record, const Record& entry,
                                           const TierOf& tier, int before, int unit, bool hides,
                                           const uint32_t (&q)[kTiles][kF][2],
                                           const float (&start)[kTiles][2]) {
    float scores[kTiles][4];
    score<kK, kPlain>(record, tier, unit, q, start, scores);
    if constexpr (!kPlain) {
      if (hides) hide(entry, tier, unit, before + unit, scores);
    }
    if (tier.count < (unit + 1) * kUnitTokens) hide_filling(tier, unit, scores);
    uint32_t weights[kTiles][2];
    weigh(record, tier, unit, kV ? kV : tier.v_bits, scores, weights);
    if constexpr (kV != 0)
      sum_values<kV>(record, tier, unit, weights);
    else
      with_bits(tier.v_bits,
                [&](auto bits) { sum_values<decltype(bits)::value>(record, tier, unit, weights); });
  }

  // Where values of a width are summed: 16-bit rows have no factors.
  template <int kBits>
  __device__ __forceinline__ Total<kDim, kTiles>& sums_of() {
    if constexpr (kFactors && kBits != 16)
      return part_;
    else
      return total;
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
      case 8:
        return use(std::integral_constant<int, 8>{});
      default:
        return use(std::integral_constant<int, 16>{});
    }
  }

  // ---- scores, in units of log2

  // Queries times the steps of keys' channels, and in `start` their scaled products with the
  // floors.
  __device__ __forceinline__ void fold(const uint8_t* params, const TierOf& tier, int k_bits,
                                       uint32_t (&q)[kTiles][kF][2],
                                       float (&start)[kTiles][2]) const {
    const auto* words = reinterpret_cast<const uint4*>(queries_);
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile) {
#pragma unroll
      for (int s = 0; s < kF; s += 2) {
        const uint4 w = words[(tile * kF / 2 + s / 2) * kLanes + lane_];
        q[tile][s][0] = w.x;
        q[tile][s][1] = w.y;
        q[tile][s + 1][0] = w.z;
        q[tile][s + 1][1] = w.w;
      }
      start[tile][0] = start[tile][1] = 0;
    }
    if (k_bits != 16 && !tier.k_by_token) {
      multiply_floors(reinterpret_cast<const uint4*>(params + kDim * 2), q, start);
      multiply_steps(reinterpret_cast<const uint4*>(params), tier.k_exponent, q);
    }
    if (k_bits > 4) return;
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile) {
#pragma unroll
      for (int s = 0; s < kF; ++s)
        q[tile][s][1] = times(q[tile][s][1], 0x2C002C00u);  // y: 16 codes
    }
  }

  // An operand has floors of fragment s in rows 0 to 7 and of s + 1 in rows 8 to 15, so of its
  // products with either's queries one half is wanted.
  __device__ __forceinline__ void multiply_floors(const uint4* floors,
                                                  const uint32_t (&q)[kTiles][kF][2],
                                                  float (&start)[kTiles][2]) const {
    float even[kTiles][4] = {}, odd[kTiles][4] = {};
#pragma unroll
    for (int s = 0; s < kF; s += 2) {
      const uint4 floor = floors[s / 2 * 4 + pair_];
#pragma unroll
      for (int tile = 0; tile < kTiles; ++tile) {
        multiply_add(even[tile], floor.x, floor.y, floor.z, floor.w, q[tile][s][0], q[tile][s][1]);
        multiply_add(odd[tile], floor.x, floor.y, floor.z, floor.w, q[tile][s + 1][0],
                     q[tile][s + 1][1]);
      }
    }
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile) {
#pragma unroll
      for (int e = 0; e < 2; ++e) start[tile][e] = (even[tile][e] + odd[tile][2 + e]) * scale_;
    }
  }

  __device__ __forceinline__ void multiply_steps(const uint4* steps, int exponent,
                                                 uint32_t (&q)[kTiles][kF][2]) const {
    uint4 step[kF / 2];
#pragma unroll
    for (int i = 0; i < kF / 2; ++i) step[i] = steps[i * 4 + pair_];
    if (exponent != 0) [[unlikely]] {
      const uint32_t factor = half_pair(power_of_two(-exponent));
#pragma unroll
      for (int i = 0; i < kF / 2; ++i) step[i] = times(step[i], factor);
    }
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile) {
#pragma unroll
      for (int s = 0; s < kF; s += 2) {
        q[tile][s][0] = times(q[tile][s][0], step[s / 2].x);
        q[tile][s + 1][0] = times(q[tile][s + 1][0], step[s / 2].y);
        q[tile][s][1] = times(q[tile][s][1], step[s / 2].z);
        q[tile][s + 1][1] = times(q[tile][s + 1][1], step[s / 2].w);
      }
    }
  }

  template <int kK, bool kPlain>
  __device__ __forceinline__ void score(const uint8_t* record, const TierOf& tier, int unit,
                                        const uint32_t (&q)[kTiles][kF][2],
                                        const float (&start)[kTiles][2],
                                        float (&scores)[kTiles][4]) const {
    if constexpr (kK != 0)
      multiply_keys<kK>(record + tier.k_codes, unit, q, scores);
    else
      with_bits(tier.k_bits, [&](auto bits) {
        multiply_keys<decltype(bits)::value>(record + tier.k_codes, unit, q, scores);
      });
    const bool codes = kK ? kK != 16 : tier.k_bits != 16;
    if (!kPlain && codes && tier.k_by_token)
      return take_token_params(record + tier.k_params, unit, scores);
    const float units = codes ? scale_ * power_of_two(24 + tier.k_exponent) : scale_;
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile) {
#pragma unroll
      for (int e = 0; e < 4; ++e)
        scores[tile][e] = fmaf(scores[tile][e], units, start[tile][e % 2]);
    }
  }

  // Two sums side by side, since each product waits for the one before it.
  template <int kBits>
  __device__ __forceinline__ void multiply_keys(const uint8_t* codes, int unit,
                                                const uint32_t (&q)[kTiles][kF][2],
                                                float (&scores)[kTiles][4]) const {
    float odd[kTiles][4] = {};
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile) {
#pragma unroll
      for (int e = 0; e < 4; ++e) scores[tile][e] = 0;
    }
    for_fragments<kBits, kDim>(codes + unit * unit_bytes(kDim, kBits), lane_,
                               [&](int s, uint32_t x, uint32_t x2, uint32_t y, uint32_t y2) {
#pragma unroll
                                 for (int tile = 0; tile < kTiles; ++tile)
                                   multiply_add(s % 2 ? odd[tile] : scores[tile], x, x2, y, y2,
                                                q[tile][s][0], q[tile][s][1]);
                               });
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile) {
#pragma unroll
      for (int e = 0; e < 4; ++e) scores[tile][e] += odd[tile][e];
    }
  }

  // Keys whose parameters belong to tokens: step times the product, plus floor times the query's
  // sum.
  __device__ __forceinline__ void take_token_params(const uint8_t* params, int unit,
                                                    float (&scores)[kTiles][4]) const {
    const auto* pairs = reinterpret_cast<const __half2*>(params) + unit * kUnitTokens;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const float2 own = __half22float2(pairs[row_ + 8 * r]);
#pragma unroll
      for (int tile = 0; tile < kTiles; ++tile) {
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          const float sum = q_sums_[tile * kColumns + 2 * pair_ + e] * scale_;
          float& score = scores[tile][2 * r + e];
          score = fmaf(score, scale_ * 0x1p24f * own.x, sum * own.y);
        }
      }
    }
  }

  // ---- what queries do not see

  __device__ __forceinline__ void hide_filling(const TierOf& tier, int unit,
                                               float (&scores)[kTiles][4]) const {
    const int left = tier.count - unit * kUnitTokens;
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        if (row_ + e / 2 * 8 >= left) scores[tile][e] = -INFINITY;
      }
    }
  }

  // Place of a token of the record in the stream.
  __device__ __forceinline__ int place_of(const Record& entry, int in_tier, int in_record) const {
    const uint8_t* rows = launch_.args.pool + (size_t(entry.at) + entry.size) * 16;
    return int(entry.first) + (raw_ ? in_tier : int(rows[in_record]));
  }

  __device__ __forceinline__ void hide(const Record& entry, const TierOf& tier, int unit,
                                       int unit_of_record, float (&scores)[kTiles][4]) const {
    if (kMasked && !raw_ && !launch_.masked && int(entry.first) + kBlockTokens <= base_) return;
    if constexpr (kMasked) {
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const int token = row_ + 8 * r, in_tier = unit * kUnitTokens + token;
        if (in_tier >= tier.count) continue;
        const int place = place_of(entry, in_tier, unit_of_record * kUnitTokens + token);
#pragma unroll
        for (int tile = 0; tile < kTiles; ++tile) {
#pragma unroll
          for (int e = 0; e < 2; ++e) mask(place, tile, e, scores[tile][2 * r + e]);
        }
      }
    } else {
      const uint8_t* rows = raw_ ? nullptr
                                 : launch_.args.pool + (size_t(entry.at) + entry.size) * 16 +
                                       unit_of_record * kUnitTokens;
      const uint32_t hidden = later_than_queries(
          rows, int(entry.first) - base_ + (raw_ ? unit * kUnitTokens : 0),
          tier.count - unit * kUnitTokens, first_column_, launch_.args.group, kTiles * 4);
#pragma unroll
      for (int tile = 0; tile < kTiles; ++tile) {
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          if (hidden >> (tile * 4 + e) & 1) scores[tile][e] = -INFINITY;
        }
      }
    }
  }

  __device__ __forceinline__ void mask(int place, int tile, int e, float& score) const {
    const int column = first_column_ + tile * kColumns + 2 * pair_ + e;
    const int query = column / launch_.args.group, end = base_ + query;  // places below it are seen
    bool seen = place < end;
    if (kMasked && launch_.masked && column < launch_.n_columns) {
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

  // ---- softmax

  // Scores become weights exp2(score - peak) times the step of their token, as operands of the
  // next product.
  __device__ __forceinline__ void weigh(const uint8_t* record, const TierOf& tier, int unit,
                                        int v_bits, const float (&scores)[kTiles][4],
                                        uint32_t (&weights)[kTiles][2]) {
    float2 params[2] = {{1, 0}, {1, 0}};  // step and floor of this lane's tokens
    if (v_bits != 16) {
      const auto* pairs =
          reinterpret_cast<const __half2*>(record + tier.v_params) + unit * kUnitTokens + row_;
      params[0] = __half22float2(pairs[0]);
      params[1] = __half22float2(pairs[8]);
    }
    raise_peaks(float(tier.v_exponent), scores);
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile) {
      float w[4];
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const float p = fast_exp2(scores[tile][e] - peak[tile][e % 2]);
        mass[tile][e % 2] += p;
        floors[tile][e % 2] = fmaf(p, params[e / 2].y, floors[tile][e % 2]);
        w[e] = p * params[e / 2].x;
      }
      weights[tile][0] = transposed(half_pair(w[0], w[1]));
      weights[tile][1] = transposed(half_pair(w[2], w[3]));
    }
  }

  // Peaks are of scores plus log2 of a bound of the tokens' steps, so that weights times steps stay
  // 16-bit numbers whatever the values' size.
  __device__ __forceinline__ void raise_peaks(float step_exponent,
                                              const float (&scores)[kTiles][4]) {
    float top[kTiles][2];
    bool above = false;
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile) {
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        top[tile][e] = fmaxf(scores[tile][e], scores[tile][2 + e]) + step_exponent;
        above = above || top[tile][e] > peak[tile][e] + (kHeadroom + kSlack);
      }
    }
    if (!__any_sync(~0u, above)) [[likely]]
      return;
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile) {
      float shrink[2];
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        float best = top[tile][e];
#pragma unroll
        for (int step = 4; step < kLanes; step *= 2)
          best = fmaxf(best, __shfl_xor_sync(~0u, best, step));
        const float raised = fmaxf(peak[tile][e], best - kHeadroom);
        shrink[e] = fast_exp2(peak[tile][e] - raised);
        peak[tile][e] = raised;
        mass[tile][e] *= shrink[e];
        floors[tile][e] *= shrink[e];
      }
      total.shrink_columns(tile, shrink);
      if constexpr (kFactors) part_.shrink_columns(tile, shrink);
    }
  }

  // ---- values

  template <int kBits>
  __device__ __forceinline__ void sum_values(const uint8_t* record, const TierOf& tier, int unit,
                                             const uint32_t (&weights)[kTiles][2]) {
    Total<kDim, kTiles>& sums = sums_of<kBits>();
    for_fragments<kBits, kDim>(record + tier.v_codes + unit * unit_bytes(kDim, kBits), lane_,
                               [&](int m, uint32_t x, uint32_t x2, uint32_t y, uint32_t y2) {
#pragma unroll
                                 for (int tile = 0; tile < kTiles; ++tile)
                                   multiply_add(sums.at[tile][m], x, y, x2, y2, weights[tile][0],
                                                weights[tile][1]);
                               });
  }

  // Adds the record's sums of codes and of floors times the factors of its channels, if it has any.
  __device__ __forceinline__ void add_with_factors(const uint8_t* from, bool has_factors) {
    if (!has_factors) return;  // 16-bit rows, which went into the total
    part_.take_units(24, 20);
    total.take_units(24, 20);
    add_floors();
    const auto* factors = reinterpret_cast<const uint4*>(from);
#pragma unroll
    for (int m = 0; m < kF; m += 4) {
      const uint4 four = factors[m / 4 * 8 + row_];
      const uint32_t words[4] = {four.x, four.y, four.z, four.w};
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float2 factor = pair_of(words[i]);
#pragma unroll
        for (int tile = 0; tile < kTiles; ++tile) {
#pragma unroll
          for (int e = 0; e < 2; ++e) {
            float& x = total.at[tile][m + i][e];
            float& y = total.at[tile][m + i][2 + e];
            x = fmaf(factor.x, part_.at[tile][m + i][e], x);
            y = fmaf(factor.y, part_.at[tile][m + i][2 + e], y);
          }
        }
      }
    }
  }

  // Adds the floors of the record's tokens to its sums: as weights of codes that are all
  // 2^14, in two 16-bit numbers each.
  __device__ __forceinline__ void add_floors() {
    constexpr uint32_t kX = 0x14001400u, kY = 0x24002400u;  // 2^14 in units of x and of y
    constexpr float kFit = 0x1p-14f;
    bool fits = true;
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile)
      fits = fits && fabsf(floors[tile][0]) < 0x1p29f && fabsf(floors[tile][1]) < 0x1p29f;
    if (!__all_sync(~0u, fits)) [[unlikely]]
      return add_large_floors();
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile) {
      const uint32_t high = half_pair(floors[tile][0] * kFit, floors[tile][1] * kFit);
      const float2 taken = pair_of(high);
      const uint32_t low =
          half_pair(fmaf(floors[tile][0], kFit, -taken.x), fmaf(floors[tile][1], kFit, -taken.y));
      const uint32_t weights[2] = {transposed(high), transposed(low)};
#pragma unroll
      for (int m = 0; m < kF; ++m)
        multiply_add(part_.at[tile][m], kX, kY, kX, kY, weights[0], weights[1]);
      floors[tile][0] = floors[tile][1] = 0;
    }
  }

  // The same for floors of any size: those of rows that are constant but for very little.
  __device__ __forceinline__ void add_large_floors() {
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile) {
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        float sum = floors[tile][e];
#pragma unroll
        for (int step = 4; step < kLanes; step *= 2) sum += __shfl_xor_sync(~0u, sum, step);
        floors[tile][e] = 0;
#pragma unroll
        for (int m = 0; m < kF; ++m) {
          part_.at[tile][m][e] += sum * 0x1p-24f;
          part_.at[tile][m][2 + e] += sum * 0x1p-20f;
        }
      }
    }
  }

  const Launch& launch_;
  const bool raw_;
  const int stream_, head_, first_column_;
  const uint8_t* queries_;
  const float* q_sums_;
  const float scale_;
  const int lane_, row_, pair_;
  int base_;
  Total<kDim, kTiles> part_;  // of the record at hand, where values have factors of channels
};

// ---- queries

// Hadamard's rotation of [kDim] numbers of which each lane of a warp holds kDim / 32 neighbours
// (transform/hadamard.hpp).
template <int kDim>
__device__ __forceinline__ void rotate(float (&x)[kDim / kLanes], int lane) {
  constexpr int kOwn = kDim / kLanes;
#pragma unroll
  for (int width = 1; width < kOwn; width *= 2) {
#pragma unroll
    for (int i = 0; i < kOwn; ++i) {
      if (i & width) continue;
      const float a = x[i], b = x[i + width];
      x[i] = a + b;
      x[i + width] = a - b;
    }
  }
#pragma unroll
  for (int step = 1; step < kLanes; step *= 2) {
#pragma unroll
    for (int i = 0; i < kOwn; ++i) {
      const float other = __shfl_xor_sync(~0u, x[i], step);
      x[i] = lane & step ? other - x[i] : x[i] + other;
    }
  }
  const float norm = rsqrtf(float(kDim));
#pragma unroll
  for (int i = 0; i < kOwn; ++i) x[i] *= norm;
}

__device__ __forceinline__ float number_at(const void* numbers, Number type, size_t i) {
  switch (type) {
    case Number::F16:
      return __half2float(static_cast<const __half*>(numbers)[i]);
    case Number::BF16:
      return __bfloat162float(static_cast<const __nv_bfloat16*>(numbers)[i]);
    default:
      return static_cast<const float*>(numbers)[i];
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
  uint4 queries[kTiles * kFragments<kDim> / 2 * kLanes];  // operands of products with keys
  float (*rows)[kDim];                                    // results, in dynamic memory
  float q_sums[kRows];
  float largest[kWarps];
  float peaks[kWarps][kRows], masses[kWarps][kRows];
  float mass[kRows], peak[kRows];
  uint64_t full[kStages * kWarps / kSharing];
  alignas(16) Record entries[kStages * kWarps / kSharing];
  int readers[kStages * kWarps / kSharing];
  int last;
};

// Queries as operands, multiplied with a power of two that brings the largest to 32 or above and
// below 64. Returns what scores have to be multiplied with, in units of log2.
template <int kDim, int kTiles>
__device__ float load_queries(const Launch& launch, const Task& task,
                              Shared<kDim, kTiles>& shared) {
  constexpr int kOwn = kDim / kLanes, kRows = kTiles * kColumns, kOwnRows = kRows / kWarps;
  const int warp = int(threadIdx.x) / kLanes, lane = int(threadIdx.x) % kLanes;
  float x[kOwnRows][kOwn] = {};
  float largest = 0;
#pragma unroll
  for (int i = 0; i < kOwnRows; ++i) {
    const int row = warp + i * kWarps;
    if (row >= task.n_columns) continue;
    const size_t start = row_start(launch, task, task.first_column + row) + size_t(lane * kOwn);
#pragma unroll
    for (int c = 0; c < kOwn; ++c)
      x[i][c] = number_at(launch.args.q, launch.args.q_type, start + size_t(c));
    if (launch.args.k_hadamard && !task.item.raw) rotate<kDim>(x[i], lane);
#pragma unroll
    for (int c = 0; c < kOwn; ++c) largest = fmaxf(largest, fabsf(x[i][c]));
  }
#pragma unroll
  for (int step = 1; step < kLanes; step *= 2)
    largest = fmaxf(largest, __shfl_xor_sync(~0u, largest, step));
  if (lane == 0) shared.largest[warp] = largest;
  __syncthreads();
#pragma unroll
  for (int w = 0; w < kWarps; ++w) largest = fmaxf(largest, shared.largest[w]);
  const int exponent = largest > 0 && largest < INFINITY ? 5 - ilogbf(largest) : 0;
  const float grow = ldexpf(1.0f, exponent);
  auto* words = reinterpret_cast<uint32_t*>(shared.queries);
#pragma unroll
  for (int i = 0; i < kOwnRows; ++i) {
    const int row = warp + i * kWarps;
    float sum = 0;
#pragma unroll
    for (int c = 0; c < kOwn; c += 2) {
      const int channel = lane * kOwn + c, s = channel / 16;
      const int pair = row % kColumns * 4 + channel % 8 / 2;  // the lane that multiplies with it
      words[((row / kColumns * kFragments<kDim> / 2 + s / 2) * kLanes + pair) * 4 + s % 2 * 2 +
            channel % 16 / 8] = half_pair(x[i][c] * grow, x[i][c + 1] * grow);
      sum += x[i][c] + x[i][c + 1];
    }
#pragma unroll
    for (int step = 1; step < kLanes; step *= 2) sum += __shfl_xor_sync(~0u, sum, step);
    if (lane == 0) shared.q_sums[row] = sum * grow;
  }
  __syncthreads();
  return launch.args.scale * kLog2E * ldexpf(1.0f, -exponent);
}

// ---- records on their way to shared memory

// Groups of warps share records, each with a ring of its own; the last warp that has read a record
// asks for the one that takes its place.
template <int kDim, int kTiles>
class Ring {
 public:
  __device__ Ring(const DecodeArgs& args, const Record* records, int count, uint8_t* memory,
                  int stage_bytes, Shared<kDim, kTiles>& shared)
      : args_(args),
        records_(records),
        count_(count),
        stage_bytes_(stage_bytes),
        shared_(shared),
        warp_(int(threadIdx.x) / kLanes),
        lane_(int(threadIdx.x) % kLanes),
        sharing_(count == 1 ? kWarps : kSharing),
        memory_(memory + warp_ / sharing_ * kStages * stage_bytes),
        stages_(warp_ / sharing_ * kStages) {}

  // By all threads of the block.
  __device__ void begin() const {
    if (threadIdx.x == 0) {
      for (int stage = 0; stage < kStages * kGroups; ++stage) {
        open_barrier(&shared_.full[stage], 1);
        shared_.readers[stage] = 0;
      }
      fence_barriers();
    }
    __syncthreads();
    if (warp_ % sharing_ != 0 || lane_ != 0) return;
    for (int i = 0; i < kStages; ++i) {
      if (number_of(i) < count_) ask(i, reinterpret_cast<const uint4*>(records_)[number_of(i)]);
    }
  }

  template <class Work>
  __device__ void run(Work& work) const {
    for (int i = 0; number_of(i) < count_; ++i) {
      uint4 next = {};  // a Record, on its way while this one is worked on
      const bool more = number_of(i + kStages) < count_;
      if (more && lane_ == 0)
        next = reinterpret_cast<const uint4*>(records_)[number_of(i + kStages)];
      const int stage = i % kStages;
      wait_phase(&shared_.full[stages_ + stage], i / kStages % 2);
      work.add(memory_ + stage * stage_bytes_, shared_.entries[stages_ + stage], warp_ % sharing_,
               sharing_);
      __syncwarp();
      if (more && lane_ == 0 && last_reader(stages_ + stage)) ask(i + kStages, next);
    }
  }

 private:
  static constexpr int kGroups = kWarps / kSharing;

  // The i-th record of this group.
  __device__ int number_of(int i) const { return warp_ / sharing_ + i * (kWarps / sharing_); }

  __device__ void ask(int i, uint4 entry) const {
    const int stage = i % kStages;
    const uint32_t bytes = (entry.y & 0xFFFF) * 16;
    *reinterpret_cast<uint4*>(&shared_.entries[stages_ + stage]) = entry;
    arrive_expecting(&shared_.full[stages_ + stage], bytes);
    copy_bulk(memory_ + stage * stage_bytes_, args_.pool + size_t(entry.x) * 16, bytes,
              &shared_.full[stages_ + stage]);
  }

  __device__ bool last_reader(int stage) const {
    // Of a power of two of warps.
    return (add_in_order(&shared_.readers[stage], 1) & (sharing_ - 1)) == sharing_ - 1;
  }

  const DecodeArgs& args_;
  const Record* records_;
  const int count_, stage_bytes_;
  Shared<kDim, kTiles>& shared_;
  const int warp_, lane_, sharing_;
  uint8_t* memory_;
  const int stages_;
};

// The way of cards without bulk copies: the computing threads copy too.
template <int kDim, bool kFactors, int kTiles, bool kMasked>
__device__ void copy_and_compute(Warp<kDim, kFactors, kTiles, kMasked>& work,
                                 const DecodeArgs& args, const Record* records, int count,
                                 uint8_t* memory, int stage_bytes) {
  constexpr int kAtOnce = kWarps / kSharing;
  const auto place = [&](int r) { return memory + r % (kStages * kAtOnce) * stage_bytes; };
  const auto issue = [&](int r) {
    if (r < count) {
      const Record entry = records[r];
      const uint8_t* from = args.pool + size_t(entry.at) * 16;
      for (int i = int(threadIdx.x); i < entry.size; i += kThreads)
        copy_16(place(r) + i * 16, from + i * 16);
    }
    commit_copies();
  };
  const int warp = int(threadIdx.x) / kLanes;
  for (int r = 0; r < kAtOnce; ++r) issue(r);
  for (int r = 0; r < count; r += kAtOnce) {
    wait_copies<0>();
    __syncthreads();
    for (int i = 0; i < kAtOnce; ++i) issue(r + kAtOnce + i);
    const int own = r + warp / kSharing;
    if (own < count) work.add(place(own), records[own], warp % kSharing, kSharing);
  }
  wait_copies<0>();
}

// ---- results

// Sums of all warps of a block of threads into shared.rows, peak and mass. `space` [kWarps, rows,
// kDim] may be the ring.
template <int kDim, int kTiles, class Work>
__device__ void merge_warps(Work& work, int n_rows, float* space, Shared<kDim, kTiles>& shared) {
  constexpr int kRows = kTiles * kColumns;
  const int warp = int(threadIdx.x) / kLanes, lane = int(threadIdx.x) % kLanes;
  const float x = power_of_two(work.total.x_exponent), y = power_of_two(work.total.y_exponent);
#pragma unroll
  for (int tile = 0; tile < kTiles; ++tile) {
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      float mass = work.mass[tile][e], floors = work.floors[tile][e];
#pragma unroll
      for (int step = 4; step < kLanes; step *= 2) {
        mass += __shfl_xor_sync(~0u, mass, step);
        floors += __shfl_xor_sync(~0u, floors, step);
      }
      const int row = tile * kColumns + lane % 4 * 2 + e;
      if (row >= n_rows) continue;
      if (lane < 4) {
        shared.peaks[warp][row] = work.peak[tile][e];
        shared.masses[warp][row] = mass;
      }
      float* out = space + (warp * kRows + row) * kDim + lane / 4;
#pragma unroll
      for (int m = 0; m < kFragments<kDim>; ++m) {
        out[m * 16] = fmaf(work.total.at[tile][m][e], x, floors);
        out[m * 16 + 8] = fmaf(work.total.at[tile][m][2 + e], y, floors);
      }
    }
  }
  __syncthreads();
  for (int i = int(threadIdx.x); i < n_rows * kDim / 4; i += kThreads) {
    const int row = i / (kDim / 4), at = i % (kDim / 4) * 4;
    float peak = kLowest, mass = 0;
    float4 sum = {};
#pragma unroll
    for (int w = 0; w < kWarps; ++w) peak = fmaxf(peak, shared.peaks[w][row]);
#pragma unroll
    for (int w = 0; w < kWarps; ++w) {
      const float weight = fast_exp2(shared.peaks[w][row] - peak);
      mass = fmaf(shared.masses[w][row], weight, mass);
      add_scaled(sum, *reinterpret_cast<const float4*>(space + (w * kRows + row) * kDim + at),
                 weight);
    }
    *reinterpret_cast<float4*>(&shared.rows[row][at]) = sum;
    if (at == 0) {
      shared.peak[row] = peak;
      shared.mass[row] = mass;
    }
  }
  __syncthreads();
}

template <int kDim>
__device__ float* part_of(const Launch& launch, int item, int head, int column) {
  const size_t row =
      (size_t(item) * size_t(launch.args.n_heads) + size_t(head)) * size_t(launch.n_columns) +
      size_t(column);
  return launch.parts + row * (kRowFloats + kDim);
}

// Merges the results of all items of the stream into shared.rows (of packed records) and `raw`.
// `weights` has room for two numbers of each part and row.
template <int kDim, int kTiles>
__device__ void merge_parts(const Launch& launch, const Task& task, float* raw, float* weights,
                            Shared<kDim, kTiles>& shared) {
  const int first = task.item.part_first, n = task.item.part_count;
  const int warp = int(threadIdx.x) / kLanes, lane = int(threadIdx.x) % kLanes;
  float* masses = weights + n * task.n_columns;
  for (int i = int(threadIdx.x); i < n * task.n_columns; i += kThreads) {
    const int part = first + i / task.n_columns, column = task.first_column + i % task.n_columns;
    const float2 own =
        __ldcg(reinterpret_cast<const float2*>(part_of<kDim>(launch, part, task.head, column)));
    weights[i] = own.x;
    masses[i] = own.y;
  }
  __syncthreads();
  for (int row = warp; row < task.n_columns; row += kWarps) {
    float peak = kLowest, mass = 0;
    for (int i = lane; i < n; i += kLanes) peak = fmaxf(peak, weights[i * task.n_columns + row]);
#pragma unroll
    for (int step = 1; step < kLanes; step *= 2)
      peak = fmaxf(peak, __shfl_xor_sync(~0u, peak, step));
    for (int i = lane; i < n; i += kLanes) {
      float& own = weights[i * task.n_columns + row];
      own = fast_exp2(own - peak);
      mass = fmaf(masses[i * task.n_columns + row], own, mass);
    }
#pragma unroll
    for (int step = 1; step < kLanes; step *= 2) mass += __shfl_xor_sync(~0u, mass, step);
    if (lane == 0) {
      shared.peak[row] = peak;
      shared.mass[row] = mass;
    }
  }
  __syncthreads();
  for (int i = int(threadIdx.x); i < task.n_columns * kDim / 4; i += kThreads) {
    const int row = i / (kDim / 4), at = i % (kDim / 4) * 4;
    const auto sum_of = [&](int begin, int end) {
      float4 sum = {};
#pragma unroll 16
      for (int p = begin; p < end; ++p) {
        const float* part = part_of<kDim>(launch, first + p, task.head, task.first_column + row);
        add_scaled(sum, __ldcg(reinterpret_cast<const float4*>(part + kRowFloats + at)),
                   weights[p * task.n_columns + row]);
      }
      return sum;
    };
    const float4 packed = sum_of(0, task.item.part_packed), own = sum_of(task.item.part_packed, n);
    *reinterpret_cast<float4*>(&shared.rows[row][at]) = packed;
    *reinterpret_cast<float4*>(raw + row * kDim + at) = own;
  }
  __syncthreads();
}

// Turns sums over packed values back, adds those over raw ones and stores the quotient.
template <int kDim, int kTiles>
__device__ void store_rows(const Launch& launch, const Task& task, const float* raw,
                           Shared<kDim, kTiles>& shared) {
  constexpr int kOwn = kDim / kLanes;
  const DecodeArgs& args = launch.args;
  const int warp = int(threadIdx.x) / kLanes, lane = int(threadIdx.x) % kLanes;
  for (int row = warp; row < task.n_columns; row += kWarps) {
    float x[kOwn];
#pragma unroll
    for (int i = 0; i < kOwn; ++i) x[i] = shared.rows[row][lane * kOwn + i];
    if (args.v_hadamard) rotate<kDim>(x, lane);
    const int column = task.first_column + row;
    float peak = shared.peak[row], mass = shared.mass[row], scale = 1;
    if (args.sinks) {
      const float sink = args.sinks[task.head * args.group + column % args.group] * kLog2E;
      const float before = peak;
      peak = fmaxf(peak, sink);
      scale = exp2f(before - peak);
      mass = mass * scale + exp2f(sink - peak);
    }
    const size_t start = row_start(launch, task, column);
    if (args.log_sums && lane == 0)
      args.log_sums[start / size_t(args.dim)] = (peak + log2f(mass)) / kLog2E;
    scale = mass > 0 ? scale / mass : 0.0f;
#pragma unroll
    for (int i = 0; i < kOwn; ++i)
      store_number(args.out, args.out_type, start + size_t(lane * kOwn + i),
                   (x[i] + raw[row * kDim + lane * kOwn + i]) * scale);
  }
}

template <int kDim, int kTiles>
__device__ void finish(const Launch& launch, const Task& task, float* space,
                       Shared<kDim, kTiles>& shared) {
  constexpr int kRows = kTiles * kColumns;
  float* raw = space;  // [kRows, kDim]
  if (task.item.part_count <= 1) {
    for (int i = int(threadIdx.x); i < task.n_columns * kDim; i += kThreads) {
      float& sum = shared.rows[i / kDim][i % kDim];
      raw[i] = task.item.raw ? sum : 0.0f;
      if (task.item.raw) sum = 0;
    }
    __syncthreads();
    return store_rows<kDim>(launch, task, raw, shared);
  }
  for (int i = int(threadIdx.x); i < task.n_columns * kDim / 4; i += kThreads) {
    const int row = i / (kDim / 4), at = i % (kDim / 4) * 4;
    float* part = part_of<kDim>(launch, int(blockIdx.x), task.head, task.first_column + row);
    __stcg(reinterpret_cast<float4*>(part + kRowFloats + at),
           *reinterpret_cast<const float4*>(&shared.rows[row][at]));
    if (at == 0)
      __stcg(reinterpret_cast<float2*>(part), float2{shared.peak[row], shared.mass[row]});
  }
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) {
    int* ticket = launch.tickets +
                  (task.item.stream * launch.args.n_heads + task.head) * int(gridDim.z) +
                  int(blockIdx.z);
    shared.last = atomicAdd(ticket, 1) == task.item.part_count - 1;
    if (shared.last) *ticket = 0;  // for the next launch
    __threadfence();
  }
  __syncthreads();
  if (!shared.last) return;
  merge_parts<kDim>(launch, task, raw, space + (kWarps + 1) * kRows * kDim, shared);
  store_rows<kDim>(launch, task, raw, shared);
}

template <int kDim, bool kFactors, int kTiles, bool kMasked, bool kBulk>
__global__ void __launch_bounds__(kThreads, kDim* kTiles <= 128 ? 3 : 2)
    decode_kernel(const __grid_constant__ Launch launch) {
  extern __shared__ __align__(128) uint8_t dynamic[];
  __shared__ Shared<kDim, kTiles> shared;
  const DecodeArgs& args = launch.args;
  Task task;
  task.item = args.items[blockIdx.x];
  if (task.item.stream < 0) return;
  task.head = int(blockIdx.y);
  task.first_column = int(blockIdx.z) * kTiles * kColumns;
  task.n_columns = min(launch.n_columns - task.first_column, kTiles * kColumns);
  const Record* records =
      args.records +
      size_t(task.item.stream * args.n_heads + task.head) * size_t(args.record_stride) +
      task.item.first;
  const Ring<kDim, kTiles> ring(args, records, task.item.count, dynamic, launch.stage_bytes,
                                shared);
  if constexpr (kBulk) ring.begin();
  const float scale = load_queries<kDim, kTiles>(launch, task, shared);
  Warp<kDim, kFactors, kTiles, kMasked> work(
      launch, task, reinterpret_cast<const uint8_t*>(shared.queries), shared.q_sums, scale);
  if constexpr (kBulk)
    ring.run(work);
  else
    copy_and_compute(work, args, records, task.item.count, dynamic, launch.stage_bytes);
  __syncthreads();
  auto* space = reinterpret_cast<float*>(dynamic);
  if (threadIdx.x == 0)
    shared.rows = reinterpret_cast<float(*)[kDim]>(space + kWarps * kTiles * kColumns * kDim);
  merge_warps<kDim, kTiles>(work, task.n_columns, space, shared);
  finish<kDim, kTiles>(launch, task, space, shared);
}

template <int kDim, bool kFactors, int kTiles, bool kMasked, bool kBulk>
cudaError_t launch_one(const Launch& launch, dim3 grid, cudaStream_t stream) {
  auto* kernel = decode_kernel<kDim, kFactors, kTiles, kMasked, kBulk>;
  const size_t bytes = size_t(launch.dynamic_bytes);
  // Set once a device would do; it costs less than a lookup whether it was.
  const cudaError_t error =
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, int(bytes));
  if (error != cudaSuccess) return error;
  if (launch.blocks)
    return cudaOccupancyMaxActiveBlocksPerMultiprocessor(launch.blocks, kernel, kThreads, bytes);
  kernel<<<grid, kThreads, bytes, stream>>>(launch);
  return cudaGetLastError();
}

template <int kDim, bool kFactors>
cudaError_t launch_with(const Launch& launch, dim3 grid, cudaStream_t stream) {
  if (launch.args.copy_by_threads)
    return launch_one<kDim, kFactors, 1, true, false>(launch, grid, stream);
  if (launch.masked) return launch_one<kDim, kFactors, 1, true, true>(launch, grid, stream);
  if constexpr (kDim <= 128) {
    if (launch.tiles == 2) return launch_one<kDim, kFactors, 2, false, true>(launch, grid, stream);
  }
  return launch_one<kDim, kFactors, 1, false, true>(launch, grid, stream);
}

template <int kDim>
cudaError_t launch_dim(const Launch& launch, dim3 grid, cudaStream_t stream) {
  return launch.args.v_factors ? launch_with<kDim, true>(launch, grid, stream)
                               : launch_with<kDim, false>(launch, grid, stream);
}

}  // namespace
}  // namespace zipcache::cuda
