// What one block of threads does to make the keys or the values of a record: steps with a barrier
// after each, every step a function of the thread. Host code can run them one thread after another
// (tests/cuda/emulated_pack.hpp), so that all of it is tested without a GPU.
#pragma once

#include <type_traits>

#include "cuda/grid.hpp"
#include "cuda/hadamard.hpp"
#include "cuda/pack.hpp"

namespace zipcache::cuda {

inline constexpr int kPackThreads = 256;
inline constexpr int kPackWarps = kPackThreads / kLanes;
// Tokens in the order of their tiers, each tier filled up to whole units.
inline constexpr int kPackColumns = kPackRows + (kRecordTiers - 1) * kUnitTokens;
inline constexpr uint8_t kNoToken = 255;  // a column that only fills up
inline constexpr uint8_t kLeftOut = 255;  // tier of a row that stands elsewhere

// Order of scores as numbers without a sign: 0 and -0 are equal, and nothing is 0.
ZC_BOTH inline uint32_t rank_key(float score) {
  const uint32_t bits = bits_of(score + 0.0f);
  const uint32_t key = bits >> 31 ? ~bits : bits | 0x80000000u;
  return key > 0 ? key : 1;
}

// Widths that decide how words are put together, as types.
template <int kBits>
struct Width {
  static constexpr int value = kBits;
};
template <class Use>
ZC_BOTH void with_width(int bits, Use&& use) {
  switch (bits) {
    case 2:
      return use(Width<2>{});
    case 3:
      return use(Width<3>{});
    case 4:
      return use(Width<4>{});
    case 8:
      return use(Width<8>{});
    default:
      return use(Width<16>{});
  }
}

// ---- shared memory of a block of threads

template <int kDim, bool kRotated>
struct PackShared {
  using Value = std::conditional_t<kRotated, float, uint16_t>;
  // Rows stand 16 bytes apart beside their numbers, so that neither rows nor columns meet in a
  // bank.
  static constexpr int kStride = kDim + 16 / int(sizeof(Value));
  static constexpr int kParts = 2 * kPackThreads / kDim;  // in which rows are measured by channels

  alignas(16) Value tile[kPackRows][kStride];
  union {
    struct {  // of each channel, by the tier that owns its parameters and by part of the rows
      alignas(8) Value lo[kRecordTiers][kParts][kDim], hi[kRecordTiers][kParts][kDim];
    } channels;
    struct {  // of each row, by half of the channels; by half of the ranges that were tried
      Extremes ranges[2][kPackRows];
      Search searches[2][kPackRows];
    } tokens;
  };
  Grid channel_grids[kRecordTiers][kDim];
  Factor factors[kDim];
  alignas(16) Grid token_grids[kPackColumns];
  alignas(16) uint32_t keys[kPackRows];
  alignas(16) uint8_t tiers[kPackRows];
  alignas(16) uint8_t order[kPackColumns];         // the row behind each column
  uint32_t rows_of[kRecordTiers][kPackRows / 32];  // bit r % 32 of word r / 32: row r
  TierHeader headers[kRecordTiers];
  int starts[kRecordTiers + 1];  // columns where tiers begin, and where the last one ends
  uint32_t steps[kRecordTiers];  // largest step of each tier, as the bits of a float
  int n_coded, wrong;

  ZC_BOTH PackShared() {}
};

// Keys (kIsK) or values of one record. Where rows are rotated, or keys rounded by what queries see,
// the tile holds 32-bit numbers (kRotated).
template <int kDim, bool kIsK, bool kRotated>
class SidePacker {
 public:
  using Shared = PackShared<kDim, kRotated>;

  ZC_BOTH SidePacker(const PackArgs& args, int task, int head, int thread, Shared& shared)
      : args_(args),
        form_(args.form.record),
        task_(args.tasks[task]),
        entry_(args.records[(size_t(task_.stream) * size_t(args.n_heads) + size_t(head)) *
                                size_t(args.record_stride) +
                            size_t(task_.record)]),
        record_(args.pool + size_t(entry_.at) * 16),
        head_(head),
        thread_(thread),
        shared_(shared) {}

  static constexpr int kSteps = 11;
  ZC_BOTH void step(int number) const {
    if (number > 2 && shared_.wrong) return;
    switch (number) {
      case 0:
        return begin();
      case 1:
        return rank();
      case 2:
        return sort();
      case 3:
        return rotate_near();
      case 4:
        return rotate_far();
      case 5:
        return measure_channels();
      case 6:
        return kIsK ? fit_channels() : take_factors();
      case 7:
        return by_queries() ? round_keys() : measure_tokens();
      case 8:
        return search_tokens();
      case 9:
        return fit_tokens();
      default:
        code();
        return finish();
    }
  }

 private:
  using Value = typename Shared::Value;
  static constexpr int kFragments = kDim / 16;
  static constexpr int kPieceNumbers = 8;  // 16-bit numbers of 16 bytes

  ZC_BOTH bool by_channel() const { return kIsK && !form_.k_by_token; }
  ZC_BOTH bool rotates() const { return kIsK ? args_.form.k_hadamard : args_.form.v_hadamard; }
  // Of a head nothing may have been learnt yet.
  ZC_BOTH bool by_queries() const {
    return kIsK && kRotated && args_.form.k_by_queries && args_.learnt[list()] > 0;
  }
  ZC_BOTH size_t list() const {
    return size_t(task_.stream) * size_t(args_.n_heads) + size_t(head_);
  }
  ZC_BOTH Fit fit() const { return kIsK ? args_.form.k_fit : args_.form.v_fit; }
  ZC_BOTH bool ranks() const { return form_.n_tiers > 1 && args_.scores.data; }
  ZC_BOTH bool left_out(int row) const { return task_.left_out[row / 32] >> row % 32 & 1; }
  ZC_BOTH static int bits(const TierHeader& tier) { return kIsK ? tier.k_bits : tier.v_bits; }
  ZC_BOTH static int codes(const TierHeader& tier) { return kIsK ? tier.k_codes : tier.v_codes; }
  ZC_BOTH static int params(const TierHeader& tier) { return kIsK ? tier.k_params : tier.v_params; }
  ZC_BOTH uint16_t* halves(int place) const {
    return reinterpret_cast<uint16_t*>(record_ + place * 16);
  }

  ZC_BOTH static float number(uint16_t half_bits) { return float_of(half_bits); }
  ZC_BOTH static float number(float x) { return x; }
  ZC_BOTH static void store(uint16_t& to, float x) { to = half_of(x); }
  ZC_BOTH static void store(float& to, float x) { to = x; }

  // ---- tiers

  ZC_BOTH void begin() const {
    load_rows();
    if (thread_ < kPackColumns) shared_.order[thread_] = kNoToken;
    if (thread_ < kRecordTiers) {
      shared_.steps[thread_] = 0;
      for (uint32_t& rows : shared_.rows_of[thread_]) rows = 0;
    }
    if (thread_ >= kPackRows) return;
    const bool out = left_out(thread_);
    shared_.keys[thread_] = ranks() && !out ? rank_key(score()) : 0;
    shared_.tiers[thread_] = out ? kLeftOut : given_tier();
  }

  ZC_BOTH void load_rows() const {
    const InputRows& rows = kIsK ? args_.k : args_.v;
    constexpr int kPieces = kDim / kPieceNumbers;
    for (int i = thread_; i < kPackRows * kPieces; i += kPackThreads) {
      const int row = i / kPieces, channel = i % kPieces * kPieceNumbers;
      const uint16_t* from = rows.row(task_.stream, task_.row + row, head_) + channel;
      Value* to = &shared_.tile[row][channel];
      if constexpr (kRotated) {
        const SixteenBytes piece = *reinterpret_cast<const SixteenBytes*>(from);
        ZC_UNROLL
        for (int c = 0; c < kPieceNumbers; ++c)
          to[c] = float_of(uint16_t(piece.word[c / 2] >> 16 * (c % 2)));
      } else {
        copy_piece(to, from);
      }
    }
  }

  // Score of this thread's row (saliency/probes.hpp: normalized_score).
  ZC_BOTH float score() const {
    const int place = task_.row + thread_;
    const float sum = args_.scores.tokens(task_.stream, head_)[place];
    if (!args_.seen.data) return sum;
    const uint32_t seen = args_.seen.tokens(task_.stream, head_)[place];
    return seen == 0 ? INFINITY : sum / float(seen);
  }

  ZC_BOTH uint8_t given_tier() const {
    if (form_.n_tiers == 1 || ranks()) return 0;
    return args_.tiers.tokens(task_.stream, head_)[task_.row + thread_];
  }

  // Each token's tier, and the rows of each tier.
  ZC_BOTH void rank() const {
    if (thread_ >= kPackRows || left_out(thread_)) return;
    if (ranks()) shared_.tiers[thread_] = uint8_t(tier_by_rank());
    const int tier = shared_.tiers[thread_];
    if (tier < form_.n_tiers) set_bit(shared_.rows_of[tier][thread_ / 32], thread_ % 32);
  }

  // By the number of more salient tokens.
  ZC_BOTH int tier_by_rank() const {
    const uint32_t own = shared_.keys[thread_];
    int rank = 0;
    for (int row = 0; row < kPackRows; row += 4) {
      const SixteenBytes others = reinterpret_cast<const SixteenBytes&>(shared_.keys[row]);
      ZC_UNROLL
      for (int i = 0; i < 4; ++i)
        rank += others.word[i] > own || (others.word[i] == own && row + i > thread_);
    }
    int tier = 0, better = 0;
    for (int t = 0; t + 1 < form_.n_tiers; ++t) {
      better += task_.counts[t];
      tier += rank >= better;
    }
    return tier;
  }

  // Of the rows of a tier, those before `row`.
  ZC_BOTH int rows_before(int tier, int row) const {
    int n = 0;
    ZC_UNROLL
    for (int word = 0; word < kPackRows / 32; ++word) {
      const int before = row - word * 32;
      const uint32_t mask = before <= 0 ? 0u : before >= 32 ? ~0u : (1u << before) - 1;
      n += ones_of(shared_.rows_of[tier][word] & mask);
    }
    return n;
  }

  // Where each token's column is: tiers one after another, filled up to whole units, tokens of each
  // in their order.
  ZC_BOTH void sort() const {
    wait_for_copies();
    if (thread_ >= kPackRows) return;
    int counts[kRecordTiers], starts[kRecordTiers + 1] = {};
    ZC_UNROLL
    for (int t = 0; t < kRecordTiers; ++t) {
      counts[t] = rows_before(t, kPackRows);
      const bool held = t < form_.n_tiers && form_.holds(t);
      starts[t + 1] = starts[t] + (held ? units_of(counts[t]) * kUnitTokens : 0);
      if (held && t == shared_.tiers[thread_])
        shared_.order[starts[t] + rows_before(t, thread_)] = uint8_t(thread_);
    }
    if (thread_ == 0) lay_out(counts, starts);
  }

  ZC_BOTH void lay_out(const int (&counts)[kRecordTiers],
                       const int (&starts)[kRecordTiers + 1]) const {
    const int size = place_record(form_, counts, shared_.headers);
    int n_coded = 0, expected = kPackRows;
    bool wrong = size != entry_.size;
    ZC_UNROLL
    for (int t = 0; t < kRecordTiers; ++t) {
      n_coded += counts[t];
      wrong = wrong || (ranks() && counts[t] != task_.counts[t]);
    }
    for (const uint32_t rows : task_.left_out) expected -= ones_of(rows);
    for (int t = 0; t <= kRecordTiers; ++t) shared_.starts[t] = starts[t];
    shared_.n_coded = n_coded;
    shared_.wrong = wrong || n_coded != expected;
    if (shared_.wrong && kIsK && args_.n_wrong) count_wrong();
  }

  ZC_BOTH void count_wrong() const {
#ifdef __CUDA_ARCH__
    atomicAdd(args_.n_wrong, 1u);
#else
    ++*args_.n_wrong;
#endif
  }

  // ---- rotation (transform/hadamard.hpp): widths 1 to 8 of 16 neighbours, then the others

  ZC_BOTH void rotate_near() const {
    if constexpr (kRotated) {
      if (!rotates()) return;
      constexpr int kGroups = kDim / 16;
      for (int i = thread_; i < kPackRows * kGroups; i += kPackThreads) {
        float* at = &shared_.tile[i / kGroups][i % kGroups * 16];
        float x[16];
        ZC_UNROLL
        for (int c = 0; c < 16; ++c) x[c] = at[c];
        add_and_subtract(x);
        ZC_UNROLL
        for (int c = 0; c < 16; ++c) at[c] = x[c];
      }
    }
  }

  ZC_BOTH void rotate_far() const {
    if constexpr (kRotated) {
      if (!rotates()) return;
      const float norm = 1.0f / sqrtf(float(kDim));
      for (int i = thread_; i < kPackRows * 16; i += kPackThreads) {
        float* at = &shared_.tile[i / 16][i % 16];
        float x[kDim / 16];
        ZC_UNROLL
        for (int c = 0; c < kDim / 16; ++c) x[c] = at[16 * c];
        add_and_subtract(x);
        ZC_UNROLL
        for (int c = 0; c < kDim / 16; ++c) at[16 * c] = x[c] * norm;
      }
    }
  }

  // ---- parameters of channels, and factors of channels

  // The tier on whose parameters a row's key is coded; none for what has no codes.
  ZC_BOTH int owner_of(int row) const {
    const int tier = shared_.tiers[row];
    if (tier == kLeftOut || !in_codes(form_.k_bits[tier])) return -1;
    return form_.k_params_tier[tier];
  }

  // Each thread two channels of a part of the rows.
  ZC_BOTH void measure_channels() const {
    if (!by_channel() && (kIsK || !form_.v_factors)) return;
    const int channel = thread_ % (kDim / 2) * 2, part = thread_ / (kDim / 2);
    constexpr int kRows = kPackRows / Shared::kParts;
    // A tier's two channels side by side: of an array of arrays nvcc 13.0 sets only the first array
    // to the initial values of its class, the others to zeros.
    Extremes found[kRecordTiers * 2];
    for (int i = 0; i < kRows; ++i) {
      const int row = part * kRows + i;
      const int owner = kIsK ? owner_of(row) : shared_.tiers[row] == kLeftOut ? -1 : 0;
      ZC_UNROLL
      for (int t = 0; t < (kIsK ? kRecordTiers : 1); ++t) {
        if (t != owner) continue;
        ZC_UNROLL
        for (int c = 0; c < 2; ++c) {
          const float x = number(shared_.tile[row][channel + c]);
          found[t * 2 + c].take(kIsK ? x : fabsf(x));
        }
      }
    }
    ZC_UNROLL
    for (int t = 0; t < (kIsK ? kRecordTiers : 1); ++t) {
      ZC_UNROLL
      for (int c = 0; c < 2; ++c) {
        store(shared_.channels.lo[t][part][channel + c], found[t * 2 + c].lo);
        store(shared_.channels.hi[t][part][channel + c], found[t * 2 + c].hi);
      }
    }
  }

  ZC_BOTH Extremes range_of_channel(int owner, int channel) const {
    Extremes range;
    ZC_UNROLL
    for (int part = 0; part < Shared::kParts; ++part) {
      Extremes next;
      next.lo = number(shared_.channels.lo[owner][part][channel]);
      next.hi = number(shared_.channels.hi[owner][part][channel]);
      range.take(next);
    }
    return range;
  }

  // The numbers of a channel of all rows that are coded on an owner's parameters.
  template <class Visit>
  ZC_BOTH void for_channel(int owner, int channel, Visit&& visit) const {
    for (int row = 0; row < kPackRows; ++row) {
      if (owner_of(row) == owner) visit(number(shared_.tile[row][channel]));
    }
  }

  ZC_BOTH int n_owned(int owner) const {
    int n = 0;
    for (int t = 0; t < form_.n_tiers; ++t) {
      if (form_.k_params_tier[t] == owner) n += shared_.headers[t].count;
    }
    return n;
  }

  // Each thread one channel at a time.
  ZC_BOTH void fit_channels() const {
    if (!by_channel()) return;
    for (int i = thread_; i < form_.n_tiers * kDim; i += kPackThreads) {
      const int owner = i / kDim, channel = i % kDim, place = params(shared_.headers[owner]);
      if (place == 0 || form_.k_params_tier[owner] != owner) continue;
      const int width = form_.k_bits[owner];
      const Extremes range = range_of_channel(owner, channel);
      Search found;
      if (searches(fit()))
        found = search_clips(range, n_owned(owner), width, fit(), 0, n_clips(width),
                             [&](auto&& visit) { for_channel(owner, channel, visit); });
      const FittedGrid fitted = fit_grid(range, width, fit(), found);
      halves(place)[k_param_place(channel)] = fitted.step;
      halves(place)[kDim + k_param_place(channel)] = fitted.floor;
      shared_.channel_grids[owner][channel] = fitted.grid;
      raise(shared_.steps[owner], bits_of(float_of(fitted.step)));
    }
  }

  // Each thread the channels of a group of a row, one after another (codec/query_rounding.cpp):
  // what of them stands in the tile becomes their codes.
  ZC_BOTH void round_keys() const {
    if constexpr (kIsK && kRotated) {
      constexpr int kGroups = kDim / kFeedbackGroup;
      for (int i = thread_; i < kPackRows * kGroups; i += kPackThreads) {
        const int row = i % kPackRows, group = i / kPackRows, owner = owner_of(row);
        if (owner >= 0) round_group(row, group * kFeedbackGroup, owner);
      }
    }
  }

  ZC_BOTH void round_group(int row, int first, int owner) const {
    constexpr int kAtOnce = 8, kChunks = kFeedbackGroup / kAtOnce;
    float* x = reinterpret_cast<float*>(&shared_.tile[row][first]);
    const float* feedback =
        args_.feedback + list() * size_t(feedback_floats(kDim)) + first * kFeedbackGroup;
    const uint16_t* params = halves(params_of(owner));
    const float top = top_code_of(form_.k_bits[owner]);
    uint32_t codes[kFeedbackGroup / 4] = {};
    ZC_UNROLL
    for (int chunk = 0; chunk < kChunks; ++chunk) {
      const int begin = chunk * kAtOnce;
      float own[kAtOnce], wanted[kAtOnce], error[kAtOnce];
      ZC_UNROLL
      for (int c = 0; c < kAtOnce; ++c) own[c] = wanted[c] = x[begin + c];
      for (int before = 0; before < begin; ++before) {
        const float left = x[before];  // the error of a channel before
        const float* of = feedback + before * kFeedbackGroup + begin;
        ZC_UNROLL
        for (int c = 0; c < kAtOnce; ++c) wanted[c] += left * of[c];
      }
      ZC_UNROLL
      for (int c = 0; c < kAtOnce; ++c) {
        ZC_UNROLL
        for (int b = 0; b < c; ++b)
          wanted[c] += error[b] * feedback[(begin + b) * kFeedbackGroup + begin + c];
        const int channel = first + begin + c;
        const float step = float_of(params[k_param_place(channel)]);
        const float floor = float_of(params[kDim + k_param_place(channel)]);
        const uint32_t code = code_on(shared_.channel_grids[owner][channel], wanted[c], top);
        error[c] = own[c] - (step * float(code) + floor);
        codes[(begin + c) / 4] |= code << (begin + c) % 4 * 8;
      }
      ZC_UNROLL
      for (int c = 0; c < kAtOnce; ++c) x[begin + c] = error[c];
    }
    ZC_UNROLL
    for (int c = 0; c < kFeedbackGroup; ++c) x[c] = float(codes[c / 4] >> c % 4 * 8 & 0xFF);
  }

  ZC_BOTH int params_of(int owner) const { return params(shared_.headers[owner]); }

  // codec/quantize.hpp: cst_factors. Where nothing is coded they stay 0.
  ZC_BOTH void take_factors() const {
    if (!form_.v_factors || thread_ >= kDim) return;
    uint16_t factor = 0;
    if (shared_.n_coded > 0) {
      factor = half_of(sqrtf(range_of_channel(0, thread_).hi));
      if (factor == 0) factor = half_of(1.0f);
    }
    halves(shared_.headers[0].v_factors)[v_factor_place(thread_)] = factor;
    const float value = float_of(factor);
    shared_.factors[thread_] = {value, 1.0f / value};
  }

  // ---- parameters of tokens

  // What is coded of a number of the tile.
  ZC_BOTH float taken(float x, int channel) const {
    if (kIsK || !form_.v_factors) return x;
    return divided<!kRotated>(x, shared_.factors[channel]);
  }

  // The numbers of a row that are coded, of channels `begin` to `end` - 1.
  template <class Visit>
  ZC_BOTH void for_row(int row, int begin, int end, Visit&& visit) const {
    constexpr int kNumbers = 16 / int(sizeof(Value));
    for (int channel = begin; channel < end; channel += kNumbers) {
      struct alignas(16) {
        Value x[kNumbers];
      } piece;
      reinterpret_cast<SixteenBytes&>(piece) =
          reinterpret_cast<const SixteenBytes&>(shared_.tile[row][channel]);
      ZC_UNROLL
      for (int c = 0; c < kNumbers; ++c) visit(taken(number(piece.x[c]), channel + c));
    }
  }

  // Each thread half the channels of a row.
  ZC_BOTH void measure_tokens() const {
    if (by_channel()) return;
    const int row = thread_ % kPackRows, part = thread_ / kPackRows;
    Extremes found;
    for_row(row, part * (kDim / 2), (part + 1) * (kDim / 2), [&](float x) { found.take(x); });
    shared_.tokens.ranges[part][row] = found;
  }

  ZC_BOTH Extremes range_of_token(int row) const {
    Extremes range = shared_.tokens.ranges[0][row];
    range.take(shared_.tokens.ranges[1][row]);
    return range;
  }

  // Each thread half the clipped ranges of a row.
  ZC_BOTH void search_tokens() const {
    if (by_channel() || !searches(fit())) return;
    const int row = thread_ % kPackRows, part = thread_ / kPackRows, tier = shared_.tiers[row];
    if (tier == kLeftOut || !in_codes(bits(shared_.headers[tier]))) return;
    const int width = bits(shared_.headers[tier]), middle = (n_clips(width) + 1) / 2;
    shared_.tokens.searches[part][row] = search_clips(
        range_of_token(row), kDim, width, fit(), part * middle, part == 0 ? middle : n_clips(width),
        [&](auto&& visit) { for_row(row, 0, kDim, visit); });
  }

  // Each thread one column.
  ZC_BOTH void fit_tokens() const {
    if (by_channel() || thread_ >= shared_.starts[kRecordTiers]) return;
    int tier = 0;
    while (thread_ >= shared_.starts[tier + 1]) ++tier;
    const TierHeader& header = shared_.headers[tier];
    if (!in_codes(bits(header))) return;
    FittedGrid fitted;
    const int row = shared_.order[thread_];
    if (row != kNoToken) {
      Search found;
      if (searches(fit())) {
        found = shared_.tokens.searches[0][row];
        found.take(shared_.tokens.searches[1][row]);
      }
      fitted = fit_grid(range_of_token(row), bits(header), fit(), found);
    }
    auto* pairs = reinterpret_cast<uint32_t*>(record_ + params(header) * 16);
    pairs[thread_ - shared_.starts[tier]] = fitted.step | uint32_t(fitted.floor) << 16;
    shared_.token_grids[thread_] = fitted.grid;
    raise(shared_.steps[tier], bits_of(float_of(fitted.step)));
  }

  // ---- codes

  ZC_BOTH void code() const {
    for (int t = 0; t < form_.n_tiers; ++t) {
      if (shared_.headers[t].count == 0) continue;
      with_width(bits(shared_.headers[t]),
                 [&](auto width) { code_tier<decltype(width)::value>(t); });
    }
  }

  // A lane's numbers of a fragment.
  static constexpr int kOwn = 8;
  ZC_BOTH static constexpr FragmentPlace own_place(int i, int fragment) {
    return kIsK ? FragmentPlace{fragment, 0, i / 2 % 2, i / 4, i % 2}
                : FragmentPlace{fragment, 0, i / 4, i / 2 % 2, i % 2};
  }
  // Token of the unit and channel of the fragment of a lane's number (record.hpp: fragment_place).
  ZC_BOTH static int own_token(int i, int lane) {
    return kIsK ? lane / 4 + i / 2 % 2 * 8 : lane % 4 * 2 + i % 2 + i / 2 % 2 * 8;
  }
  ZC_BOTH static int own_channel(int i, int lane) {
    return kIsK ? lane % 4 * 2 + i % 2 + i / 4 * 8 : lane / 4 + i / 4 * 8;
  }

  // Each warp a piece of a unit: as many fragments as make 16 bytes of a lane, or three words of
  // it.
  template <int kBits>
  ZC_BOTH void code_tier(int tier) const {
    constexpr int kWide = wide_words(kDim, kBits), kWords = kBits == 3 ? 3 : kWide;
    constexpr int kPiece = kBits == 3 ? 4 : kWide * 4 / kBits, kPieces = kFragments / kPiece;
    const TierHeader& header = shared_.headers[tier];
    const int warp = thread_ / kLanes, lane = thread_ % kLanes;
    for (int i = warp; i < units_of(header.count) * kPieces; i += kPackWarps) {
      const int unit = i / kPieces, piece = i % kPieces;
      uint32_t words[kWords] = {};
      const UnitOfLane own = unit_of(tier, unit, lane);
      ZC_UNROLL
      for (int f = 0; f < kPiece; ++f)
        add_codes<kBits>(tier, own, piece * kPiece + f, f, lane, words);
      uint8_t* unit_codes = record_ + codes(header) * 16 + unit * unit_bytes(kDim, kBits);
      store_words<kBits>(unit_codes, piece * kWords, lane, words);
    }
  }

  // What a lane needs of a unit beside its numbers.
  struct UnitOfLane {
    int rows[kOwn / 2];  // of the tile: of its tokens, by [second][odd]; 0 where there is none
    bool present[kOwn / 2];
    Grid grids[kOwn / 2];  // of tokens
    int fragment_row;      // whose address the lane gives where a warp reads a fragment together
  };

  ZC_BOTH UnitOfLane unit_of(int tier, int unit, int lane) const {
    UnitOfLane own;
    const int first = shared_.starts[tier] + unit * kUnitTokens;
    const int left = shared_.headers[tier].count - unit * kUnitTokens;
    ZC_UNROLL
    for (int i = 0; i < kOwn / 2; ++i) {
      const int token = own_token(i, lane);
      own.present[i] = token < left;
      own.rows[i] = token < left ? shared_.order[first + token] : 0;
      if (!by_channel()) own.grids[i] = shared_.token_grids[first + token];
    }
    const int token = lane % 16;
    own.fragment_row = token < left ? shared_.order[first + token] : 0;
    return own;
  }

  // A lane's numbers of a fragment of the tile.
  ZC_BOTH void load_fragment(const UnitOfLane& own, int fragment, int lane,
                             float (&x)[kOwn]) const {
#ifdef __CUDA_ARCH__
    constexpr bool kTogether = !kRotated;
#else
    constexpr bool kTogether = false;
#endif
    if constexpr (kTogether) {
      load_together(own, fragment, lane, x);
    } else {
      ZC_UNROLL
      for (int i = 0; i < kOwn; ++i)
        x[i] = number(shared_.tile[own.rows[i % 4]][fragment * 16 + own_channel(i, lane)]);
    }
  }

#ifdef __CUDACC__
  // The same by the whole warp: four matrices of 8 tokens x 8 channels (ldmatrix), of values
  // turned.
  __device__ __forceinline__ void load_together(const UnitOfLane& own, int fragment, int lane,
                                                float (&x)[kOwn]) const {
    // Lane l gives the address of token l % 16, of the first or the second 8 channels: the four
    // matrices come in the order of x.
    const auto* row = &shared_.tile[own.fragment_row][fragment * 16 + lane / 16 * 8];
    uint32_t pairs[4];
    if constexpr (kIsK)
      load_matrices(shared_address(row), pairs);
    else
      load_turned_matrices(shared_address(row), pairs);
    ZC_UNROLL
    for (int i = 0; i < kOwn; ++i) x[i] = float_of(uint16_t(pairs[i / 2] >> 16 * (i % 2)));
  }
#endif

  // Adds the codes of a fragment, the `in_piece`-th of its piece, to the piece's words.
  template <int kBits, int kWords>
  ZC_BOTH void add_codes(int tier, const UnitOfLane& own, int fragment, int in_piece, int lane,
                         uint32_t (&words)[kWords]) const {
    float x[kOwn];
    load_fragment(own, fragment, lane, x);
    const Grid* channels = shared_.channel_grids[form_.k_params_tier[tier]];
    const bool rounded = by_queries();
    ZC_UNROLL
    for (int i = 0; i < kOwn; ++i) {
      const int channel = fragment * 16 + own_channel(i, lane);
      const bool present = own.present[i % 4];
      uint32_t code;
      if constexpr (kBits == 16) {
        code = present ? half_of(x[i]) : 0;
      } else if (rounded) {
        code = present ? uint32_t(x[i]) : 0;
      } else {
        const Grid grid = by_channel() ? channels[channel] : own.grids[i % 4];
        code = code_on(grid, taken(x[i], channel), present ? top_code_of(kBits) : 0.0f);
      }
      const Place at = lane_place(own_place(i, in_piece), kBits);
      words[at.word] |= (kBits == 3 ? code & 3 : code) << at.shift;
      if constexpr (kBits == 3) {
        const Place top = lane_top_place(own_place(i, in_piece));
        words[top.word] |= code >> 2 << top.shift;
      }
    }
  }

  // The words from `first` on of a lane.
  template <int kBits, int kWords>
  ZC_BOTH static void store_words(uint8_t* unit, int first, int lane,
                                  const uint32_t (&words)[kWords]) {
    auto* to = reinterpret_cast<uint32_t*>(unit);
    if constexpr (kBits != 3 && kWords == 4) {
      auto* four = reinterpret_cast<SixteenBytes*>(to + unit_word(kDim, kBits, lane, first));
      *four = {words[0], words[1], words[2], words[3]};
    } else {
      ZC_UNROLL
      for (int w = 0; w < kWords; ++w) to[unit_word(kDim, kBits, lane, first + w)] = words[w];
    }
  }

  // ---- header and row map

  // The threads of keys write all of a header but the last byte, which is of the values.
  ZC_BOTH void finish() const {
    if (thread_ < form_.n_tiers) {
      const TierHeader& header = shared_.headers[thread_];
      auto* to = reinterpret_cast<TierHeader*>(record_) + thread_;
      const bool has_params = header.count > 0 && in_codes(bits(header));
      if constexpr (kIsK) {
        alignas(16) TierHeader own = header;
        const uint32_t step = shared_.steps[form_.k_params_tier[thread_]];
        if (has_params && by_channel()) own.k_exponent = k_exponent_of(float_from(step));
        const auto& words = reinterpret_cast<const SixteenBytes&>(own);
        for (int w = 0; w < 3; ++w) reinterpret_cast<uint32_t*>(to)[w] = words.word[w];
        to->v_factors = own.v_factors;
        to->tiers_and_form = own.tiers_and_form;
      } else {
        to->v_exponent = has_params ? v_exponent_of(float_from(shared_.steps[thread_])) : int8_t{0};
      }
    }
    if (kIsK && thread_ < shared_.starts[kRecordTiers] / 16) {
      auto* rows = reinterpret_cast<SixteenBytes*>(record_ + entry_.size * 16);
      rows[thread_] = reinterpret_cast<const SixteenBytes*>(shared_.order)[thread_];
    }
  }

  const PackArgs& args_;
  const RecordForm& form_;
  const PackTask& task_;
  const Record entry_;
  uint8_t* const record_;
  const int head_, thread_;
  Shared& shared_;
};

}  // namespace zipcache::cuda
