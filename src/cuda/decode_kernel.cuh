// The kernel of decode attention, for one head size a file that includes this one.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <type_traits>

#include "cuda/decode_launch.hpp"
#include "cuda/device.cuh"
#include "cuda/hadamard.hpp"

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
  bool k_by_token, is_raw;  // is_raw: 16-bit rows in the order of tokens

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
        k_by_token((words.w >> 16 & kKeysByToken) != 0),
        is_raw((words.w >> 16 & kTierMask) == 1 && k_bits == 16 && v_bits == 16) {}
};

// What a block of threads works on.
struct Task {
  WorkItem item;
  int head, first_column, n_columns;
};

template <int kDim>
constexpr int kFragments = kDim / 16;

// What codes of the second pair (rows 8 to 15 of keys, tokens 8 to 15 of values) are multiplied
// with, because they stay in their place.
__device__ __forceinline__ float second_factor(int bits) { return bits == 2 ? 4.0f : 1.0f; }
__device__ __forceinline__ float without_second_factor(int bits) {
  return bits == 2 ? 0.25f : 1.0f;
}

// Hands the fragments of a unit to `use(number, x, x2, y, y2)`: pairs of 16-bit numbers, of codes
// times 2^-24, those of y times 2^-20 where 4 bits or fewer leave them in their place, those of x2
// and y2 times second_factor() as well.
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
          const uint32_t own = w[i / 2] >> (i % 2 * 8);
          use(v * kWide * 2 + i, own & 0x00030003u, own & 0x000C000Cu, own & 0x00300030u,
              own & 0x00C000C0u);
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
    int begin = 0, end = kBlockTokens;
    if (sharing == 2) {
      const int half = form >> kHalfShift & kHalfMask;
      begin = share == 0 ? 0 : half;
      end = share == 0 ? half : kBlockTokens;
    } else if (sharing > 2) {
      const int n_units = units_in(words, n_tiers);
      begin = n_units * share / sharing;
      end = n_units * (share + 1) / sharing;
    }
    if constexpr (kFactors) part_.clear();
    TierOf tier(words[0]);
    int before = 0;  // units of the tiers before
    for (int t = 0; t < n_tiers; ++t) {
      tier = TierOf(words[t]);
      const int after = before + units_of(tier.count);
      const int from = max(begin, before), to = min(end, after);
      if (from < to) add_tier(record, entry, tier, before, from - before, to - before);
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

  __device__ __forceinline__ void add_tier(const uint8_t* record, const Record& entry,
                                           const TierOf& tier, int before, int unit, int stop) {
    uint32_t q[kTiles][kF][2];
    float start[kTiles][4];
    fold(record + tier.k_params, tier, q, start);
    if (kFactors && tier.v_bits != 16)
      part_.take_units(tier.v_bits);
    else
      total.take_units(tier.v_bits);
    const bool hides = (kMasked && launch_.masked) || int(entry.first) + kBlockTokens > base_;
    // Peaks are raised here, and not where scores are made, because that is seldom and much code.
    for (;;) {
      unit = add_until(record, entry, tier, before, unit, stop, hides, q, start);
      if (unit >= stop) [[likely]]
        return;
      raise_peaks();
    }
  }

  // The pairs of widths that policies have, each with code of its own; others take the last one.
  // Adds units up to `stop` or one whose scores are too far above the peaks; returns it.
  __device__ __forceinline__ int add_until(const uint8_t* record, const Record& entry,
                                           const TierOf& tier, int before, int unit, int stop,
                                           bool hides, const uint32_t (&q)[kTiles][kF][2],
                                           const float (&start)[kTiles][4]) {
    switch (tier.k_bits * 32 + tier.v_bits) {
      case 4 * 32 + 4:
        return add_run<4, 4>(record, entry, tier, before, unit, stop, hides, q, start);
      case 2 * 32 + 2:
        return add_run<2, 2>(record, entry, tier, before, unit, stop, hides, q, start);
      case 4 * 32 + 2:
        return add_run<4, 2>(record, entry, tier, before, unit, stop, hides, q, start);
      case 16 * 32 + 16:
        return add_run<16, 16>(record, entry, tier, before, unit, stop, hides, q, start);
        [[unlikely]] default
            : return add_run<0, 0>(record, entry, tier, before, unit, stop, hides, q, start);
    }
  }

  // Widths of 0 are looked up in the tier. Units of which every query sees every token take a short
  // way.
  template <int kK, int kV>
  __device__ __forceinline__ int add_run(const uint8_t* record, const Record& entry,
                                         const TierOf& tier, int before, int unit, int stop,
                                         bool hides, const uint32_t (&q)[kTiles][kF][2],
                                         const float (&start)[kTiles][4]) {
    if constexpr (kK != 0 && kK != 16) {
      const int plain = hides || tier.k_by_token ? 0 : stop;
      if constexpr (kTiles == 1) {
#pragma unroll 1
        for (; unit + 1 < plain; unit += 2) {
          if (!add_units<kK, kV, true, 2>(record, entry, tier, before, unit, false, q, start))
            return unit;
        }
      }
#pragma unroll 1
      for (; unit < plain; ++unit) {
        if (!add_units<kK, kV, true, 1>(record, entry, tier, before, unit, false, q, start))
          return unit;
      }
    }
#pragma unroll 1
    for (; unit < stop; ++unit) {
      if (!add_units<kK, kV, false, 1>(record, entry, tier, before, unit, hides, q, start))
        return unit;
    }
    return unit;
  }

  // kUnits neighbours at once, so that a warp has work while products are on their way. False, and
  // nothing added, if peaks have to be raised before.
  template <int kK, int kV, bool kPlain, int kUnits>
  __device__ __forceinline__ bool add_units(const uint8_t* record, const Record& entry,
                                            const TierOf& tier, int before, int unit, bool hides,
                                            const uint32_t (&q)[kTiles][kF][2],
                                            const float (&start)[kTiles][4]) {
    // What scores are multiplied with to be logarithms to the base 2, those of rows 8 to 15 too.
    const float first = kPlain ? scale_ * power_of_two(24 + tier.k_exponent) : 1.0f;
    const float units[2] = {first, kPlain ? first * without_second_factor(kK) : 1.0f};
    float scores[kUnits][kTiles][4];
#pragma unroll
    for (int u = 0; u < kUnits; ++u) {
      score<kK, kPlain>(record, tier, unit + u, q, start, scores[u]);
      if constexpr (!kPlain) {
        if (hides) hide(entry, tier, unit + u, before + unit + u, scores[u]);
      }
    }
    // Of neighbours, only the last has filling.
    if (tier.count < (unit + kUnits) * kUnitTokens)
      hide_filling(tier, unit + kUnits - 1, scores[kUnits - 1]);
    if (too_high(float(tier.v_exponent), units, scores)) [[unlikely]]
      return false;
    uint32_t weights[kUnits][kTiles][2];
#pragma unroll
    for (int u = 0; u < kUnits; ++u)
      weigh(record, tier, unit + u, kV ? kV : tier.v_bits, units, scores[u], weights[u]);
#pragma unroll
    for (int u = 0; u < kUnits; ++u) {
      if constexpr (kV != 0)
        sum_values<kV>(record, tier, unit + u, weights[u]);
      else
        with_bits(tier.v_bits, [&](auto bits) {
          sum_values<decltype(bits)::value>(record, tier, unit + u, weights[u]);
        });
    }
    return true;
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

  // ---- scores: sums of codes times folded queries; times `units` logarithms to the base 2

  // Queries times the steps of keys' channels, and in `start` their products with the floors, in
  // units of sums of codes.
  __device__ __forceinline__ void fold(const uint8_t* params, const TierOf& tier,
                                       uint32_t (&q)[kTiles][kF][2],
                                       float (&start)[kTiles][4]) const {
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
#pragma unroll
      for (int e = 0; e < 4; ++e) start[tile][e] = 0;
    }
    if (tier.k_bits != 16 && !tier.k_by_token) {
      multiply_floors(reinterpret_cast<const uint4*>(params + kDim * 2),
                      power_of_two(-24 - tier.k_exponent), second_factor(tier.k_bits), q, start);
      multiply_steps(reinterpret_cast<const uint4*>(params), tier.k_exponent, q);
    }
    if (tier.k_bits > 4) return;
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile) {
#pragma unroll
      for (int s = 0; s < kF; ++s)
        q[tile][s][1] = times(q[tile][s][1], 0x2C002C00u);  // y: 16 codes
    }
  }

  // An operand has floors of fragment s in rows 0 to 7 and of s + 1 in rows 8 to 15, so of its
  // products with either's queries one half is wanted.
  __device__ __forceinline__ void multiply_floors(const uint4* floors, float factor, float second,
                                                  const uint32_t (&q)[kTiles][kF][2],
                                                  float (&start)[kTiles][4]) const {
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
      for (int e = 0; e < 2; ++e) {
        start[tile][e] = (even[tile][e] + odd[tile][2 + e]) * factor;
        start[tile][2 + e] = start[tile][e] * second;
      }
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
                                        const float (&start)[kTiles][4],
                                        float (&scores)[kTiles][4]) const {
    if constexpr (kK != 0)
      multiply_keys<kK>(record + tier.k_codes, unit, q, start, scores);
    else
      with_bits(tier.k_bits, [&](auto bits) {
        multiply_keys<decltype(bits)::value>(record + tier.k_codes, unit, q, start, scores);
      });
    if constexpr (kPlain) return;
    const int bits = kK ? kK : tier.k_bits;
    const float second = without_second_factor(bits);
    if (bits != 16 && tier.k_by_token)
      return take_token_params(record + tier.k_params, unit, second, scores);
    const float units = bits != 16 ? scale_ * power_of_two(24 + tier.k_exponent) : scale_;
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile) {
#pragma unroll
      for (int e = 0; e < 4; ++e) scores[tile][e] *= e < 2 ? units : units * second;
    }
  }

  // Adds to `start`, in two sums side by side, since each product waits for the one before it.
  template <int kBits>
  __device__ __forceinline__ void multiply_keys(const uint8_t* codes, int unit,
                                                const uint32_t (&q)[kTiles][kF][2],
                                                const float (&start)[kTiles][4],
                                                float (&scores)[kTiles][4]) const {
    float odd[kTiles][4] = {};
    for_fragments<kBits, kDim>(
        codes + unit * unit_bytes(kDim, kBits), lane_,
        [&](int s, uint32_t x, uint32_t x2, uint32_t y, uint32_t y2) {
#pragma unroll
          for (int tile = 0; tile < kTiles; ++tile) {
            const auto& own = q[tile][s];
            if (s == 0)
              multiply_add(scores[tile], start[tile], x, x2, y, y2, own[0], own[1]);
            else
              multiply_add(s % 2 ? odd[tile] : scores[tile], x, x2, y, y2, own[0], own[1]);
          }
        });
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile) {
#pragma unroll
      for (int e = 0; e < 4; ++e) scores[tile][e] += odd[tile][e];
    }
  }

  // Keys whose parameters belong to tokens: step times the product, plus floor times the query's
  // sum.
  __device__ __forceinline__ void take_token_params(const uint8_t* params, int unit, float second,
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
          score = fmaf(score, scale_ * (r == 0 ? 0x1p24f : 0x1p24f * second) * own.x, sum * own.y);
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
  __device__ __forceinline__ int place_of(const Record& entry, const TierOf& tier, int in_tier,
                                          int in_record) const {
    const uint8_t* rows = rows_of(entry, tier);
    return int(entry.first) + (rows ? int(rows[in_record]) : in_tier);
  }

  // Places of the record's tokens behind its first one, in the order of tiers; null for 16-bit
  // rows, which follow each other.
  __device__ __forceinline__ const uint8_t* rows_of(const Record& entry, const TierOf& tier) const {
    if (tier.is_raw) return nullptr;
    return launch_.args.pool + (size_t(entry.at) + entry.size) * 16;
  }

  __device__ __forceinline__ void hide(const Record& entry, const TierOf& tier, int unit,
                                       int unit_of_record, float (&scores)[kTiles][4]) const {
    if constexpr (kMasked) {
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const int token = row_ + 8 * r, in_tier = unit * kUnitTokens + token;
        if (in_tier >= tier.count) continue;
        const int place = place_of(entry, tier, in_tier, unit_of_record * kUnitTokens + token);
#pragma unroll
        for (int tile = 0; tile < kTiles; ++tile) {
#pragma unroll
          for (int e = 0; e < 2; ++e) mask(place, tile, e, scores[tile][2 * r + e]);
        }
      }
    } else {
      const uint8_t* rows = rows_of(entry, tier);
      const uint32_t hidden = later_than_queries(
          rows ? rows + unit_of_record * kUnitTokens : nullptr,
          int(entry.first) - base_ + (rows ? 0 : unit * kUnitTokens),
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
                                        int v_bits, const float (&units)[2],
                                        const float (&scores)[kTiles][4],
                                        uint32_t (&weights)[kTiles][2]) {
    float2 params[2] = {{1, 0}, {1, 0}};  // step and floor of this lane's tokens
    if (v_bits != 16) {
      const auto* pairs =
          reinterpret_cast<const __half2*>(record + tier.v_params) + unit * kUnitTokens + row_;
      params[0] = __half22float2(pairs[0]);
      params[1] = __half22float2(pairs[8]);
    }
    params[1].x *= without_second_factor(v_bits);
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile) {
      float w[4];
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const float p = fast_exp2(fmaf(scores[tile][e], units[e / 2], -peak[tile][e % 2]));
        mass[tile][e % 2] += p;
        floors[tile][e % 2] = fmaf(p, params[e / 2].y, floors[tile][e % 2]);
        w[e] = p * params[e / 2].x;
      }
      weights[tile][0] = transposed(half_pair(w[0], w[1]));
      weights[tile][1] = transposed(half_pair(w[2], w[3]));
    }
  }

  // Whether scores exceed peaks by too much; `top_` are the largest of this lane. Peaks are of
  // scores plus log2 of a bound of the tokens' steps, so that weights times steps stay 16-bit
  // numbers whatever the values' size.
  template <int kUnits>
  __device__ __forceinline__ bool too_high(float step_exponent, const float (&units)[2],
                                           const float (&scores)[kUnits][kTiles][4]) {
    bool above = false;
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile) {
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        float first = scores[0][tile][e], second = scores[0][tile][2 + e];
#pragma unroll
        for (int u = 1; u < kUnits; ++u) {
          first = fmaxf(first, scores[u][tile][e]);
          second = fmaxf(second, scores[u][tile][2 + e]);
        }
        top_[tile][e] =
            fmaxf(fmaf(first, units[0], step_exponent), fmaf(second, units[1], step_exponent));
        above = above || top_[tile][e] > peak[tile][e] + (kHeadroom + kSlack);
      }
    }
    return __any_sync(~0u, above);
  }

  // Above all of `top_` less kHeadroom, and what was summed in units of the new peaks.
  __device__ __forceinline__ void raise_peaks() {
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile) {
      float shrink[2];
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        float best = top_[tile][e];
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
  const int stream_, head_, first_column_;
  const uint8_t* queries_;
  const float* q_sums_;
  const float scale_;
  const int lane_, row_, pair_;
  int base_;
  float top_[kTiles][2];      // of the scores that were last too high
  Total<kDim, kTiles> part_;  // of the record at hand, where values have factors of channels
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
  uint4 queries[kTiles * kFragments<kDim> / 2 * kLanes];  // operands of products with keys
  float q_sums[kRows];
  float largest[kWarps];
  float peaks[kWarps][kRows], masses[kWarps][kRows];
  uint64_t full[kMostSlots];
  alignas(16) Record entries[kMostSlots];
  int readers[kMostSlots], asked[kMostSlots];  // asked: number of the record that is to stand there
  int last;
};

// Query rows of which a warp has each kWarps-th one, and a lane kDim / 32 neighbours of it.
template <int kDim, int kTiles>
struct Queries {
  static constexpr int kOwn = kDim / kLanes, kRows = kTiles * kColumns, kOwnRows = kRows / kWarps;
  uint32_t bits[kOwnRows][kOwn] = {};

  __device__ __forceinline__ Queries(const Launch& launch, const Task& task) {
    const int warp = int(threadIdx.x) / kLanes, lane = int(threadIdx.x) % kLanes;
#pragma unroll
    for (int i = 0; i < kOwnRows; ++i) {
      const int row = warp + i * kWarps;
      if (row >= task.n_columns) continue;
      const size_t start = row_start(launch, task, task.first_column + row) + size_t(lane * kOwn);
#pragma unroll
      for (int c = 0; c < kOwn; ++c)
        bits[i][c] = bits_at(launch.args.q, launch.args.q_type, start + size_t(c));
    }
  }
};

// Queries become operands, multiplied with a power of two that brings the largest to 32 or above
// and below 64. Returns what scores have to be multiplied with, in units of log2.
template <int kDim, int kTiles>
__device__ float share_queries(const Launch& launch, const Task& task,
                               const Queries<kDim, kTiles>& queries, Shared<kDim, kTiles>& shared) {
  using Rows = Queries<kDim, kTiles>;
  constexpr int kOwn = Rows::kOwn, kOwnRows = Rows::kOwnRows;
  const int warp = int(threadIdx.x) / kLanes, lane = int(threadIdx.x) % kLanes;
  float x[kOwnRows][kOwn];
  float largest = 0;
#pragma unroll
  for (int i = 0; i < kOwnRows; ++i) {
    const int row = warp + i * kWarps;
#pragma unroll
    for (int c = 0; c < kOwn; ++c) x[i][c] = number_of(queries.bits[i][c], launch.args.q_type);
    if (row >= task.n_columns) continue;
    if (launch.args.k_hadamard) rotate_row(x[i], kDim, ~0u);
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

// Record i of the item stands in slot i modulo their number, and is asked for when the one before
// it in the slot was read. Groups of warps that share records take these in turn.
template <int kDim, int kTiles>
class Ring {
 public:
  __device__ Ring(const Launch& launch, const Task& task, const Record* records, uint8_t* memory,
                  Shared<kDim, kTiles>& shared)
      : launch_(launch),
        records_(reinterpret_cast<const uint4*>(records)),
        count_(task.item.count),
        sharing_(task.item.sharing),
        memory_(memory),
        shared_(shared),
        warp_(int(threadIdx.x) / kLanes),
        lane_(int(threadIdx.x) % kLanes) {}

  // Asks for the first records; others than the asking warp may wait for these after a barrier of
  // the block.
  __device__ void begin() const {
    if (warp_ != 0 || lane_ >= launch_.n_slots) return;
    uint4 entry = {};
    if (lane_ < count_) entry = records_[lane_];
    open_barrier(&shared_.full[lane_], 1);
    shared_.readers[lane_] = 0;
    shared_.asked[lane_] = -1;
    fence_barriers();
    if (lane_ < count_) ask(lane_, lane_, entry);
  }

  template <class Work>
  __device__ void run(Work& work) const {
    const int shift = __ffs(sharing_) - 1;  // of a power of two
    const int group = warp_ >> shift, n_groups = kWarps >> shift;
    int slot = 0, parity = 0;
    const auto forward = [&](int n) {
      slot += n;
      while (slot >= launch_.n_slots) {
        slot -= launch_.n_slots;
        parity ^= 1;
      }
    };
    forward(group);
    for (int i = group; i < count_; i += n_groups) {
      uint4 next = {};  // a Record, on its way while this one is worked on
      const bool more = i + launch_.n_slots < count_;
      if (more && lane_ == 0) next = records_[i + launch_.n_slots];
      wait_for(i, slot, parity);
      work.add(memory_ + slot * launch_.slot_bytes, shared_.entries[slot], warp_ & (sharing_ - 1),
               sharing_);
      __syncwarp();
      if (more && lane_ == 0 && last_reader(slot)) ask(i + launch_.n_slots, slot, next);
      forward(n_groups);
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
    return sharing_ == 1 ||
           (add_in_order(&shared_.readers[slot], 1) & (sharing_ - 1)) == sharing_ - 1;
  }

  const Launch& launch_;
  const uint4* records_;
  const int count_, sharing_;
  uint8_t* memory_;
  Shared<kDim, kTiles>& shared_;
  const int warp_, lane_;
};

// The way of cards without bulk copies: the computing threads copy too, as many records at once as
// half of the slots hold.
template <int kDim, bool kFactors, int kTiles, bool kMasked>
__device__ void copy_and_compute(Warp<kDim, kFactors, kTiles, kMasked>& work, const Launch& launch,
                                 const Task& task, const Record* records, uint8_t* memory) {
  const int count = task.item.count;
  const int at_once = launch.n_slots >= 2 * kWarps ? kWarps : launch.n_slots >= kWarps ? 2 : 1;
  const int sharing = kWarps / at_once;
  const auto place = [&](int r) { return memory + r % (2 * at_once) * launch.slot_bytes; };
  const auto issue = [&](int r) {
    if (r < count) {
      const Record entry = records[r];
      const uint8_t* from = launch.args.pool + size_t(entry.at) * 16;
      for (int i = int(threadIdx.x); i < entry.size; i += kThreads)
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

template <int kOwn>
__device__ __forceinline__ void load_floats(const float* from, float (&x)[kOwn]) {
  if constexpr (kOwn == 2) {
    const float2 both = __ldcg(reinterpret_cast<const float2*>(from));
    x[0] = both.x;
    x[1] = both.y;
  } else {
#pragma unroll
    for (int i = 0; i < kOwn; i += 4) {
      const float4 four = __ldcg(reinterpret_cast<const float4*>(from + i));
      x[i] = four.x;
      x[i + 1] = four.y;
      x[i + 2] = four.z;
      x[i + 3] = four.w;
    }
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

// What a warp merges of one query row: a lane has kDim / 32 neighbouring channels of the sums.
template <int kDim>
struct Row {
  static constexpr int kOwn = kDim / kLanes;
  float sums[kOwn] = {};
  float peak = kLowest, mass = 0;

  // Adds n partial results; `load(i, peak, mass, x)` gets one.
  template <int kAtOnce, class Load>
  __device__ __forceinline__ void add(int n, Load&& load) {
#pragma unroll 1
    for (int first = 0; first < n; first += kAtOnce) {
      float peaks[kAtOnce], masses[kAtOnce], x[kAtOnce][kOwn] = {};
      float best = peak;
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) {
        peaks[i] = kLowest;
        masses[i] = 0;
        if (first + i < n) load(first + i, peaks[i], masses[i], x[i]);
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

// Sums of all warps into `space` [kWarps, rows, kDim] and shared peaks and masses.
template <int kDim, int kTiles, class Work>
__device__ void share_sums(Work& work, int n_rows, float* space, Shared<kDim, kTiles>& shared) {
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
}

template <int kDim>
__device__ float* part_of(const Launch& launch, int item, int head, int column) {
  const size_t row =
      (size_t(item) * size_t(launch.args.n_heads) + size_t(head)) * size_t(launch.n_columns) +
      size_t(column);
  return launch.parts + row * (kRowFloats + kDim);
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

// Stores a block's results as a part, and says whether it was the stream's and head's last one.
template <int kDim, int kTiles, class Merged>
__device__ __forceinline__ bool last_part(const Launch& launch, const Task& task, Merged&& merged,
                                          Shared<kDim, kTiles>& shared) {
  const WorkItem& item = task.item;
  const int warp = int(threadIdx.x) / kLanes, lane = int(threadIdx.x) % kLanes;
  for (int r = warp; r < task.n_columns; r += kWarps) {
    const Row<kDim> row = merged(r);
    float* part = part_of<kDim>(launch, int(blockIdx.x), task.head, task.first_column + r);
    if (lane == 0) __stcg(reinterpret_cast<float2*>(part), float2{row.peak, row.mass});
    store_floats(part + kRowFloats + lane * Row<kDim>::kOwn, row.sums);
  }
  __syncthreads();
  if (threadIdx.x == 0) {
    const int number = item.stream * launch.args.n_heads + task.head;
    int* ticket = launch.tickets + number * int(gridDim.z) + int(blockIdx.z);
    shared.last = add_in_order_of_device(ticket, 1) == item.part_count - 1;
    if (shared.last) *ticket = 0;  // for the next launch
  }
  __syncthreads();
  return shared.last;
}

template <int kDim, int kTiles>
__device__ void finish(const Launch& launch, const Task& task, const float* space,
                       Shared<kDim, kTiles>& shared) {
  constexpr int kRows = kTiles * kColumns, kOwn = Row<kDim>::kOwn;
  const WorkItem& item = task.item;
  const int warp = int(threadIdx.x) / kLanes, lane = int(threadIdx.x) % kLanes;
  const auto of_warps = [&](int r) {
    Row<kDim> row;
    row.template add<kWarps>(kWarps, [&](int w, float& peak, float& mass, float(&x)[kOwn]) {
      peak = shared.peaks[w][r];
      mass = shared.masses[w][r];
#pragma unroll
      for (int c = 0; c < kOwn; ++c) x[c] = space[(w * kRows + r) * kDim + lane * kOwn + c];
    });
    return row;
  };
  const auto of_parts = [&](int r) {
    Row<kDim> row;
    row.template add<kDim <= 128 ? 16 : 8>(
        item.part_count, [&](int p, float& peak, float& mass, float(&x)[kOwn]) {
          const float* part =
              part_of<kDim>(launch, item.part_first + p, task.head, task.first_column + r);
          const float2 own = __ldcg(reinterpret_cast<const float2*>(part));
          peak = own.x;
          mass = own.y;
          load_floats(part + kRowFloats + lane * kOwn, x);
        });
    return row;
  };
  const bool parts = item.part_count > 1;
  if (parts && !last_part<kDim, kTiles>(launch, task, of_warps, shared)) return;
  for (int r = warp; r < task.n_columns; r += kWarps) {
    Row<kDim> row = parts ? of_parts(r) : of_warps(r);
    store_row<kDim>(launch, task, task.first_column + r, row);
  }
}

template <int kDim, bool kFactors, int kTiles, bool kMasked, bool kBulk>
__global__ void __launch_bounds__(kThreads, kBlocks)
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
  // Before records, which would be in their way.
  Queries<kDim, kTiles> queries(launch, task);
  const Ring<kDim, kTiles> ring(launch, task, records, dynamic, shared);
  if constexpr (kBulk) ring.begin();
  const float scale = share_queries<kDim, kTiles>(launch, task, queries, shared);
  Warp<kDim, kFactors, kTiles, kMasked> work(
      launch, task, reinterpret_cast<const uint8_t*>(shared.queries), shared.q_sums, scale);
  if constexpr (kBulk)
    ring.run(work);
  else
    copy_and_compute(work, launch, task, records, dynamic);
  __syncthreads();
  auto* space = reinterpret_cast<float*>(dynamic);
  share_sums<kDim, kTiles>(work, task.n_columns, space, shared);
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
