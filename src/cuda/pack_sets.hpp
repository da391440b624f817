// What one block of threads does to make a side of a record that the fast steps (pack_block.hpp) do
// not know: sets of parameters of any shape, codecs of levels, clips, dual scaling
// (pack_low_rank.hpp adds low rank). A thread makes one set after another, its codes where its
// numbers stood: simple, not fast. Steps with a barrier after each, every step a function of the
// thread, as there.
#pragma once

#include "codec/clip.hpp"
#include "codec/level_codes.hpp"
#include "cuda/pack_block.hpp"
#include "transform/dual_scale.hpp"

namespace zipcache::cuda {

template <int kDim>
struct SetShared : SortedTokens {
  static constexpr int kThreads = kSideThreads;
  using Tile = PackTile<kDim, true>;

  union {
    struct {  // what each round of dual scaling divides by
      double channel_spreads[kMostDual][kDim], token_spreads[kMostDual][kPackRows];
    };
    struct {  // low rank of one tier (pack_low_rank.hpp): [rank, kDim], and [rank, tokens]
      float channels[kMostRank * kDim], tokens[kMostRank * kPackRows], roots[kMostRank];
    } low_rank;
  };
  float channel_factors[kDim], token_factors[kPackRows];

  ZC_BOTH SetShared() {}
};

template <int kDim, bool kIsK>
class SetPacker : public RecordSide<kDim, kIsK, SetShared<kDim>> {
  using Base = RecordSide<kDim, kIsK, SetShared<kDim>>;

 public:
  using Shared = typename Base::Shared;

  using Tile = typename Base::Tile;

  ZC_BOTH SetPacker(const PackArgs& args, int task, int head, int thread, Tile& tile,
                    Shared& shared)
      : Base(args, task, head, thread, tile, shared),
        side_(kIsK ? form_.k : form_.v),
        sets_(kIsK ? args.form.k_sets : args.form.v_sets) {}

  // As in SidePacker.
  static constexpr int kOrdered = 2;
  ZC_BOTH static int n_steps(const PackArgs& args) {
    return kLoading + factor_steps(args.form) + 2;
  }
  ZC_BOTH bool has_step(int number) const {
    return (number != 2 || rotates()) && (number != 3 || this->by_hadamard());
  }
  ZC_BOTH void step(int number) const {
    const int after_loading = number - kLoading;
    if (number == 0) return this->load();
    if (number == 1) return this->order_and_wait();
    if (number == 2) return this->rotate();
    if (number == 3) return this->rotate_far();
    if (after_loading < factor_steps()) return factor_step(after_loading);
    if (number + 2 == n_steps()) return code_sets();
    write_codes();
    this->finish();
  }

 protected:
  static constexpr int kLoading = 4;  // steps
  using Base::args_, Base::entry_, Base::form_, Base::record_, Base::shared_, Base::thread_,
      Base::tile_;
  using Base::bits, Base::codes, Base::fit, Base::halves, Base::kFragments, Base::kOwn,
      Base::left_out, Base::own_channel, Base::own_place, Base::own_token, Base::params,
      Base::rotates;

  ZC_BOTH bool scales() const { return sets_.dual > 0; }
  ZC_BOTH bool coded(int tier) const { return in_codes(side_.bits[tier]); }

  // ---- factors: two steps for each round of dual scaling, then one that takes them and one that
  // divides by them

  ZC_BOTH static int factor_steps(const PackForm& form) {
    const SideForm& side = kIsK ? form.record.k : form.record.v;
    if (!side.channel_factors && !side.token_factors) return 0;
    return 2 * (kIsK ? form.k_sets : form.v_sets).dual + 2;
  }
  ZC_BOTH int factor_steps() const { return factor_steps(args_.form); }
  ZC_BOTH int n_steps() const { return n_steps(args_); }
  ZC_BOTH void factor_step(int number) const {
    if (number < 2 * sets_.dual) {
      if (number % 2 == 0) return measure_channel(number / 2);
      return measure_token(number / 2);
    }
    if (number + 2 == factor_steps()) {
      take_channel_factor();
      return take_token_factor();
    }
    divide();
  }

  // A number after `round` rounds of dual scaling: made anew every time, since 64-bit numbers of
  // all rows have no place (transform/dual_scale.cpp).
  ZC_BOTH double scaled(int row, int channel, int round) const {
    double x = double(tile_.rows[row][channel]);
    for (int i = 0; i < round; ++i)
      x = x / shared_.channel_spreads[i][channel] / shared_.token_spreads[i][row];
    return x;
  }

  ZC_BOTH void measure_channel(int round) const {
    if (thread_ >= kDim) return;
    Moments moments;
    for (int row = 0; row < kPackRows; ++row) {
      if (!left_out(row)) moments.add(scaled(row, thread_, round));
    }
    shared_.channel_spreads[round][thread_] = sqrt(moments.variance(shared_.n_coded));
  }

  ZC_BOTH void measure_token(int round) const {
    if (thread_ >= kPackRows) return;
    Moments moments;
    for (int c = 0; c < kDim; ++c)
      moments.add(scaled(thread_, c, round) / shared_.channel_spreads[round][c]);
    shared_.token_spreads[round][thread_] = sqrt(moments.variance(kDim));
  }

  // Where nothing is coded they are 0.
  ZC_BOTH void take_channel_factor() const {
    if (!side_.channel_factors || thread_ >= kDim) return;
    uint16_t factor = 0;
    if (shared_.n_coded > 0) factor = scales() ? dual_factor() : this->cst_factor(largest_size());
    const int place = kIsK ? shared_.headers[0].k_factors : shared_.headers[0].v_factors;
    halves(place)[side_.as_tile ? thread_ : v_factor_place(thread_)] = factor;
    shared_.channel_factors[thread_] = float_of(factor);
  }

  ZC_BOTH uint16_t dual_factor() const {
    double product = 1;
    for (int i = 0; i < sets_.dual; ++i) product *= shared_.channel_spreads[i][thread_];
    return held_factor(product);
  }

  ZC_BOTH float largest_size() const {
    float size = 0;
    for (int row = 0; row < kPackRows; ++row) {
      if (!left_out(row)) size = fmaxf(size, fabsf(tile_.rows[row][thread_]));
    }
    return size;
  }

  // Each thread a column.
  ZC_BOTH void take_token_factor() const {
    if (!side_.token_factors || thread_ >= shared_.starts[kRecordTiers]) return;
    const int tier = tier_of(thread_), row = shared_.order[thread_];
    if (!coded(tier)) return;
    uint16_t factor = 0;
    if (row != kNoToken) {
      double product = 1;
      for (int i = 0; i < sets_.dual; ++i) product *= shared_.token_spreads[i][row];
      factor = held_factor(product);
      shared_.token_factors[row] = float_of(factor);
    }
    const TierHeader& header = shared_.headers[tier];
    const int bytes =
        token_factor_bytes(side_, header.count) + low_rank_bytes(side_, kDim, header.count);
    halves(codes(header) - bytes / 16)[thread_ - shared_.starts[tier]] = factor;
  }

  ZC_BOTH int tier_of(int column) const {
    int tier = 0;
    while (column >= shared_.starts[tier + 1]) ++tier;
    return tier;
  }

  // What becomes codes.
  ZC_BOTH void divide() const {
    for (int i = thread_; i < kPackRows * kDim; i += kSideThreads) {
      const int row = i / kDim, channel = i % kDim, tier = shared_.tiers[row];
      if (tier == kLeftOut || !coded(tier)) continue;
      float& x = tile_.rows[row][channel];
      if (side_.channel_factors) x /= shared_.channel_factors[channel];
      if (side_.token_factors) x /= shared_.token_factors[row];
    }
  }

  // ---- sets

  // Numbers that share parameters: channels of the tokens in columns `first` to `end` - 1, or one
  // channel of all rows that are coded on the tier's parameters (Axis::Channel).
  struct Set {
    int tier, first, end, channel, n_channels;
  };

  // In the order of a tile (codec/tile.hpp: set_of). Columns that only fill up are sets of no
  // token.
  ZC_BOTH Set set_at(int tier, int number) const {
    const int start = shared_.starts[tier], count = shared_.headers[tier].count;
    const int filled = units_of(count) * kUnitTokens, group = side_.group;
    if (side_.axis == Axis::Channel) return {tier, 0, 0, number, 1};
    if (side_.axis == Axis::ChannelGroup) {
      const int first = number / kDim * group, end = first + group;
      return {tier, start + first, start + (end < count ? end : count), number % kDim, 1};
    }
    const int token = number % filled, end = start + token + (token < count);
    if (side_.axis == Axis::Group)
      return {tier, start + token, end, number / filled * group, group};
    return {tier, start + token, end, 0, kDim};
  }
  ZC_BOTH int n_sets(int tier) const {
    if (!coded(tier)) return 0;
    const TierHeader& header = shared_.headers[tier];
    // Tiers that share parameters have them where one of them has a token.
    if (side_.axis == Axis::Channel)
      return side_.params_tier[tier] == tier && params(header) != 0 ? kDim : 0;
    if (side_.axis == Axis::None) return header.count;
    return header.count > 0 ? sets_of(side_, kDim, header.count) : 0;
  }

  ZC_BOTH void code_sets() const {
    for (int tier = 0; tier < form_.n_tiers; ++tier) {
      const int n = n_sets(tier);
      for (int i = thread_; i < n; i += kSideThreads) {
        const Set set = set_at(tier, i);
        if (side_.axis != Axis::Channel && set.first == set.end)
          store_params(tier, i, n, 0, 0);
        else if (side_.codec == Codec::Affine)
          code_affine(set, i, n);
        else
          code_levels(set, i, n);
      }
    }
  }

  // Visits the numbers of a set in order.
  template <class Visit>
  ZC_BOTH void for_set(const Set& set, Visit&& visit) const {
    if (side_.axis == Axis::Channel) {
      for (int row = 0; row < kPackRows; ++row) {
        const int tier = shared_.tiers[row];
        if (tier != kLeftOut && coded(tier) && side_.params_tier[tier] == set.tier)
          visit(tile_.rows[row][set.channel]);
      }
      return;
    }
    for (int column = set.first; column < set.end; ++column) {
      float* row = tile_.rows[shared_.order[column]];
      for (int c = set.channel; c < set.channel + set.n_channels; ++c) visit(row[c]);
    }
  }

  ZC_BOTH int size_of(const Set& set) const {
    int n = 0;
    for_set(set, [&](float) { ++n; });
    return n;
  }

  // Of equal numbers the first.
  template <class ForEach>
  ZC_BOTH static Extremes extremes_of(ForEach&& for_each) {
    Extremes range;
    for_each([&](float x) {
      range.lo = x < range.lo ? x : range.lo;
      range.hi = range.hi < x ? x : range.hi;
    });
    return range;
  }

  // The number that stands at `place` of a set when it is sorted: bit by bit of its key.
  ZC_BOTH float ascending(const Set& set, int place) const {
    uint32_t key = 0;
    for (uint32_t bit = 1u << 31; bit != 0; bit >>= 1) {
      int n_below = 0;
      for_set(set, [&](float x) { n_below += rank_key(x) < (key | bit); });
      if (n_below <= place) key |= bit;
    }
    return float_of_key(key);
  }

  ZC_BOTH Ends ends_of(const Set& set) const {
    if (!sets_.clip.clips()) return {};
    if (sets_.clip.quantile)
      return quantiles_of(size_of(set), sets_.clip, [&](int i) { return ascending(set, i); });
    const Extremes range = extremes_of([&](auto&& visit) { for_set(set, visit); });
    return middle_of(range.lo, range.hi, sets_.clip);
  }

  // Channels over all tokens are coded as they are, other sets as they are clipped.
  ZC_BOTH void code_affine(const Set& set, int number, int n) const {
    const int width = side_.bits[set.tier];
    const Ends ends = ends_of(set);
    const auto clipped = [&](auto&& visit) { for_set(set, [&](float x) { visit(ends.clip(x)); }); };
    const Extremes range = extremes_of(clipped);
    Search found;
    if (searches(fit()))
      found = search_clips(range, size_of(set), width, fit(), 0, n_clips(width), clipped);
    const FittedGrid fitted = fit_grid(range, width, fit(), found);
    store_params(set.tier, number, n, fitted.step, fitted.floor);
    const bool as_it_is = side_.axis == Axis::Channel;
    for_set(set, [&](float& x) {
      x = float(code_on(fitted.grid, as_it_is ? x : ends.clip(x), top_code_of(width)));
    });
  }

  ZC_BOTH void code_levels(const Set& set, int number, int n) const {
    const int width = side_.bits[set.tier];
    const LevelSizes sizes{side_.codec, width};
    if (side_.axis == Axis::None)
      return for_set(set, [&](float& x) { x = level_code(sizes, width, x); });
    const float step = code_in_order(
        side_.codec, width, size_of(set), sizes, [&](auto&& visit) { for_set(set, visit); },
        [&](auto&& code) { for_set(set, [&](float& x) { x = code(x); }); });
    const bool of_8_bits = side_.codec == Codec::E2m1;
    store_params(set.tier, number, n, of_8_bits ? to_e4m3(step) : half_of(step), 0);
  }

  // Of set `number` of n, in the bits that the codec has for them.
  ZC_BOTH void store_params(int tier, int number, int n, uint16_t step, uint16_t floor) const {
    const int place = params(shared_.headers[tier]);
    if (side_.codec == Codec::E2m1) {
      record_[place * 16 + number] = uint8_t(step);
    } else if (side_.codec != Codec::Affine) {
      halves(place)[number] = step;
    } else if (side_.as_tile) {
      halves(place)[number] = step;
      halves(place)[n + number] = floor;
    } else if (side_.axis == Axis::Channel) {
      halves(place)[k_param_place(number)] = step;
      halves(place)[kDim + k_param_place(number)] = floor;
    } else {
      halves(place)[2 * number] = step;
      halves(place)[2 * number + 1] = floor;
    }
  }

  // ---- codes

  ZC_BOTH void write_codes() const {
    for (int tier = 0; tier < form_.n_tiers; ++tier) {
      if (shared_.headers[tier].count == 0) continue;
      with_width(side_.bits[tier], [&](auto width) { write_tier<decltype(width)::value>(tier); });
    }
  }

  // Each thread what a lane has of four fragments of a unit: as many words as a code has bits.
  template <int kBits>
  ZC_BOTH void write_tier(int tier) const {
    constexpr int kPieces = kFragments / 4;
    const TierHeader& header = shared_.headers[tier];
    for (int i = thread_; i < units_of(header.count) * kPieces * kLanes; i += kSideThreads) {
      const int lane = i % kLanes, piece = i / kLanes % kPieces, unit = i / kLanes / kPieces;
      uint32_t words[kBits] = {};
      for (int fragment = 0; fragment < 4; ++fragment)
        add_codes<kBits>(tier, unit, piece * 4 + fragment, lane, words);
      auto* to = reinterpret_cast<uint32_t*>(record_ + codes(header) * 16 +
                                             unit * unit_bytes(kDim, kBits));
      ZC_UNROLL
      for (int w = 0; w < kBits; ++w)
        to[unit_word(kDim, kBits, lane, piece * kBits + w)] = words[w];
    }
  }

  template <int kBits>
  ZC_BOTH void add_codes(int tier, int unit, int fragment, int lane,
                         uint32_t (&words)[kBits]) const {
    ZC_UNROLL
    for (int i = 0; i < kOwn; ++i) {
      const int token = unit * kUnitTokens + own_token(i, lane);
      if (token >= shared_.headers[tier].count) continue;
      const int row = shared_.order[shared_.starts[tier] + token];
      const float x = tile_.rows[row][fragment * 16 + own_channel(i, lane)];
      const uint32_t code = kBits == 16 ? half_of(x) : uint32_t(x);
      const Place at = lane_place(own_place(i, fragment % 4), kBits);
      if constexpr (kBits == 3) {
        const Place top = lane_top_place(own_place(i, fragment % 4));
        words[at.word] |= (code & 3) << at.shift;
        words[top.word] |= (code >> 2) << top.shift;
      } else {
        words[at.word] |= code << at.shift;
      }
    }
  }

  const SideForm& side_;
  const SetPackForm& sets_;
};

}  // namespace zipcache::cuda
