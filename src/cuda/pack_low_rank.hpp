// Packing of sets with a product of low rank beside the codes (codec/low_rank.hpp): after the steps
// of pack_sets.hpp rows are loaded once more, what the codes stand for is taken away, and the
// factors of one tier after another are fitted to the rest. Sums are in the CPU's order, so few
// threads have work; ranks are small.
#pragma once

#include "codec/low_rank.hpp"
#include "cuda/pack_sets.hpp"

namespace zipcache::cuda {

template <int kDim, bool kIsK>
class LowRankPacker : public SetPacker<kDim, kIsK> {
  using Base = SetPacker<kDim, kIsK>;

 public:
  using Shared = typename Base::Shared;
  using Base::Base;

  ZC_BOTH static int n_steps(const PackArgs& args) {
    const RecordForm& form = args.form.record;
    const int rank = kIsK ? form.k.rank : form.v.rank;
    return Base::n_steps(args) + (rank > 0 ? kReloading + form.n_tiers * tier_steps(rank) : 0);
  }
  ZC_BOTH bool has_step(int number) const {
    const int added = number - Base::n_steps(args_);
    if (added < 0) return Base::has_step(number);
    return (added != 1 || this->rotates()) && (added != 2 || this->by_hadamard());
  }
  ZC_BOTH void step(int number) const {
    const int added = number - Base::n_steps(args_);
    if (added < 0) return Base::step(number);
    if (added == 0) return this->load_rows();
    if (added == 1) return this->rotate();
    if (added == 2) return this->rotate_far();
    if (added == 3) return take_away_codes();
    tier_step((added - kReloading) / tier_steps(rank()), (added - kReloading) % tier_steps(rank()));
  }

 private:
  static constexpr int kReloading = 4;  // steps
  using Base::args_, Base::record_, Base::shared_, Base::side_, Base::thread_, Base::tile_;
  using Base::codes, Base::halves;

  ZC_BOTH int rank() const { return side_.rank; }

  // ---- what codes miss

  ZC_BOTH void take_away_codes() const {
    for (int i = thread_; i < shared_.starts[kRecordTiers] * kDim; i += kSideThreads) {
      const int column = i / kDim, channel = i % kDim, row = shared_.order[column];
      const int tier = this->tier_of(column);
      if (row == kNoToken || !this->coded(tier)) continue;
      tile_.rows[row][channel] -= decoded(tier, column - shared_.starts[tier], row, channel);
    }
  }

  // What the record says of a number, as decode_tile() does.
  ZC_BOTH float decoded(int tier, int token, int row, int channel) const {
    const int width = side_.bits[tier];
    const uint32_t code = stored_code(tier, token, channel);
    const float step = stored_step(tier, token, channel);
    float x;
    if (codes_are_numbers(side_.codec)) {
      x = float(code) * step + (side_.codec == Codec::Affine
                                    ? stored_floor(tier, token, channel)
                                    : step * implied_floor(side_.codec, width));
    } else {
      x = level_of(LevelSizes{side_.codec, width}, code) * step;
    }
    if (side_.channel_factors) x *= shared_.channel_factors[channel];
    if (side_.token_factors) x *= shared_.token_factors[row];
    return x;
  }

  ZC_BOTH static float level_of(const LevelSizes& sizes, uint32_t code) {
    const uint32_t sign = 1u << (sizes.bits - 1);
    const float size = sizes[int(code & (sign - 1))];
    return code & sign ? -size : size;
  }

  ZC_BOTH uint32_t stored_code(int tier, int token, int channel) const {
    const int width = side_.bits[tier], unit = token / kUnitTokens, in_unit = token % kUnitTokens;
    const auto* words = reinterpret_cast<const uint32_t*>(
        record_ + codes(shared_.headers[tier]) * 16 + unit * unit_bytes(kDim, width));
    const Place at = code_place(kIsK, kDim, width, in_unit, channel);
    if (width != 3) return words[at.word] >> at.shift & ((1u << width) - 1);
    const Place top = top_bit_place(kIsK, in_unit, channel);
    return (words[at.word] >> at.shift & 3) | (words[top.word] >> top.shift & 1) << 2;
  }

  ZC_BOTH int set_of(int tier, int token, int channel) const {
    return cuda::set_of(side_, kDim, shared_.headers[tier].count, token, channel);
  }
  ZC_BOTH float stored_step(int tier, int token, int channel) const {
    if (side_.axis == Axis::None) return 1;
    const int place = this->params(shared_.headers[tier]), set = set_of(tier, token, channel);
    if (side_.codec == Codec::E2m1) return LevelSizes{}[record_[place * 16 + set]];
    return float_of(halves(place)[set]);
  }
  ZC_BOTH float stored_floor(int tier, int token, int channel) const {
    const int n = sets_of(side_, kDim, shared_.headers[tier].count);
    return float_of(halves(this->params(shared_.headers[tier]))[n + set_of(tier, token, channel)]);
  }

  // ---- factors of a tier: where the rounds begin; in each round two steps for each column of the
  // tokens and one for all of the channels; lengths, and what is stored

  ZC_BOTH static int tier_steps(int rank) { return 3 + kLowRankRounds * (2 * rank + 1); }
  ZC_BOTH void tier_step(int tier, int number) const {
    const int of_round = 2 * rank() + 1, in_rounds = number - 1;
    if (!this->coded(tier) || n_tokens(tier) == 0) return;
    if (number == 0) return begin();
    if (in_rounds < kLowRankRounds * of_round) {
      const int in_round = in_rounds % of_round;
      if (in_round == of_round - 1) return sum_channels(tier);
      if (in_round % 2 == 0) return sum_tokens(tier, in_round / 2);
      if (thread_ == 0) orthonormalize(shared_.low_rank.tokens, in_round / 2, n_tokens(tier));
      return;
    }
    if (number + 1 < tier_steps(rank())) return take_roots();
    store(tier);
  }

  ZC_BOTH int n_tokens(int tier) const { return shared_.headers[tier].count; }
  ZC_BOTH const float* row_of(int tier, int token) const {
    return tile_.rows[shared_.order[shared_.starts[tier] + token]];
  }

  ZC_BOTH void begin() const {
    for (int i = thread_; i < rank() * kDim; i += kSideThreads)
      shared_.low_rank.channels[i] = low_rank_start(rank(), i);
  }

  ZC_BOTH void sum_tokens(int tier, int column) const {
    if (thread_ >= n_tokens(tier)) return;
    shared_.low_rank.tokens[column * n_tokens(tier) + thread_] =
        dot_in_order(row_of(tier, thread_), shared_.low_rank.channels + column * kDim, kDim);
  }

  ZC_BOTH void sum_channels(int tier) const {
    for (int i = thread_; i < rank() * kDim; i += kSideThreads) {
      const int column = i / kDim, channel = i % kDim;
      float sum = 0;
      for (int token = 0; token < n_tokens(tier); ++token)
        sum +=
            shared_.low_rank.tokens[column * n_tokens(tier) + token] * row_of(tier, token)[channel];
      shared_.low_rank.channels[i] = sum;
    }
  }

  ZC_BOTH void take_roots() const {
    if (thread_ >= rank()) return;
    shared_.low_rank.roots[thread_] =
        low_rank_root(shared_.low_rank.channels + thread_ * kDim, kDim);
  }

  ZC_BOTH void store(int tier) const {
    const int n = n_tokens(tier), filled = units_of(n) * kUnitTokens;
    uint16_t* channels = halves(codes(shared_.headers[tier]) - low_rank_bytes(side_, kDim, n) / 16);
    for (int i = thread_; i < rank() * kDim; i += kSideThreads)
      channels[i] =
          half_of(shared_.low_rank.channels[i] * inverse_of_root(shared_.low_rank.roots[i / kDim]));
    for (int i = thread_; i < rank() * filled; i += kSideThreads) {
      const int column = i / filled, token = i % filled;
      channels[rank() * kDim + i] = token < n
                                        ? half_of(shared_.low_rank.tokens[column * n + token] *
                                                  shared_.low_rank.roots[column])
                                        : uint16_t{0};
    }
  }
};

}  // namespace zipcache::cuda
