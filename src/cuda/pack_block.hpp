// What one block of threads does to make the keys or the values of a record: steps with a barrier
// after each, every step a function of the thread. Host code can run them one thread after another
// (tests/cuda/emulated_pack.hpp), so that all of it is tested without a GPU.
#pragma once

#include <type_traits>

#include "cuda/grid.hpp"
#include "cuda/hadamard.hpp"
#include "cuda/pack.hpp"
#include "cuda/row_matrix.hpp"

namespace zipcache::cuda {

inline constexpr int kSideThreads = 256;  // of a block that makes one side of a record
// Tokens in the order of their tiers, each tier filled up to whole units.
inline constexpr int kPackColumns = kPackRows + (kRecordTiers - 1) * kUnitTokens;
inline constexpr uint8_t kNoToken = 255;  // a column that only fills up
inline constexpr uint8_t kLeftOut = 255;  // tier of a row that stands elsewhere

// Order of scores as numbers without a sign: 0 and -0 are equal.
ZC_BOTH inline uint32_t rank_key(float score) {
  const uint32_t bits = bits_of(score + 0.0f);
  return bits >> 31 ? ~bits : bits | 0x80000000u;
}

ZC_BOTH inline float float_of_key(uint32_t key) {
  return std::bit_cast<float>(key >> 31 ? key & 0x7FFFFFFFu : ~key);
}

// A set of rows: bit r % 32 of word r / 32.
struct RowSet {
  static constexpr int kWords = kPackRows / 32;
  uint32_t words[kWords] = {};

  ZC_BOTH bool has(int row) const { return words[row / 32] >> row % 32 & 1; }
  ZC_BOTH int size() const {
    int n = 0;
    ZC_UNROLL
    for (int w = 0; w < kWords; ++w) n += ones_of(words[w]);
    return n;
  }
  // Those before row `lane` of a word.
  ZC_BOTH int before(int word, int lane) const {
    int n = ones_of(words[word] & ((1u << lane) - 1));
    ZC_UNROLL
    for (int w = 0; w < kWords; ++w) n += w < word ? ones_of(words[w]) : 0;
    return n;
  }
  ZC_BOTH void add(const RowSet& others) {
    ZC_UNROLL
    for (int w = 0; w < kWords; ++w) words[w] |= others.words[w];
  }
  ZC_BOTH void remove(const RowSet& others) {
    ZC_UNROLL
    for (int w = 0; w < kWords; ++w) words[w] &= ~others.words[w];
  }
};

// A number of each row, held by a warp: a lane has those of row `lane` of each word. On the host,
// where lanes come one after another, each has all.
class RowNumbers {
 public:
  template <class Of>
  ZC_BOTH RowNumbers(int lane, Of&& number_of) : lane_(lane) {
    ZC_UNROLL
    for (int i = 0; i < kHeld; ++i) held_[i] = number_of(row(i));
  }

  // Bits in which the numbers of these rows differ. Asked by all lanes of the warp together.
  ZC_BOTH uint32_t differing(const RowSet& among) const {
    uint32_t in_all = ~0u, in_any = 0;
    ZC_UNROLL
    for (int i = 0; i < kHeld; ++i) {
      if (!among.has(row(i))) continue;
      in_all &= held_[i];
      in_any |= held_[i];
    }
#ifdef __CUDA_ARCH__
    in_all = __reduce_and_sync(~0u, in_all);
    in_any = __reduce_or_sync(~0u, in_any);
#endif
    return in_any & ~in_all;
  }

  // The rows of `among` whose number passes a test. Asked by all lanes of the warp together.
  template <class Test>
  ZC_BOTH RowSet rows(const RowSet& among, Test&& passes) const {
    RowSet found;
    ZC_UNROLL
    for (int w = 0; w < RowSet::kWords; ++w) {
#ifdef __CUDA_ARCH__
      found.words[w] = __ballot_sync(~0u, passes(held_[w]));
#else
      for (int lane = 0; lane < kLanes; ++lane)
        found.words[w] |= uint32_t(passes(held_[w * kLanes + lane])) << lane;
#endif
      found.words[w] &= among.words[w];
    }
    return found;
  }

 private:
#ifdef __CUDA_ARCH__
  static constexpr int kHeld = kPackRows / kLanes;
#else
  static constexpr int kHeld = kPackRows;
#endif
  ZC_BOTH int row(int i) const { return kHeld == kPackRows ? i : i * kLanes + lane_; }

  int lane_;
  uint32_t held_[kHeld];
};

// The last n rows of a set that has as many.
ZC_BOTH inline RowSet last_of(RowSet rows, int n) {
  int surplus = rows.size() - n;
  for (int w = 0; w < RowSet::kWords && surplus > 0; ++w) {
    for (; rows.words[w] != 0 && surplus > 0; --surplus) rows.words[w] &= rows.words[w] - 1;
  }
  return rows;
}

// The n rows of `among` with the largest keys, of equal ones the later; all where there are fewer.
// Bit by bit of the keys, from the first in which they differ: those that have it stand before
// those that are without.
ZC_BOTH inline RowSet largest_of(const RowNumbers& keys, const RowSet& among, int n) {
  RowSet chosen, open = among;  // open: those whose keys are the same so far
  int n_open = open.size();
  const int n_bits = n > 0 && n < n_open ? bits_below(keys.differing(among)) : 0;
  for (int bit = n_bits - 1; bit >= 0 && n > 0 && n < n_open; --bit) {
    const RowSet with = keys.rows(open, [bit](uint32_t key) { return (key >> bit & 1) != 0; });
    const int n_with = with.size();
    if (n_with <= n) {
      chosen.add(with);
      open.remove(with);
      n -= n_with;
      n_open -= n_with;
    } else {
      open = with;
      n_open = n_with;
    }
  }
  if (n > 0) chosen.add(n < n_open ? last_of(open, n) : open);
  return chosen;
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

// Rows of one side, [row][channel].
template <int kDim, bool kRotated>
struct PackTile {
  using Value = std::conditional_t<kRotated, float, uint16_t>;
  // Rows stand 16 bytes apart beside their numbers, so that neither rows nor columns meet in a
  // bank.
  alignas(16) Value rows[kPackRows][kDim + 16 / int(sizeof(Value))];

  ZC_BOTH PackTile() {}
};

// Tokens by tiers, and where the parts of the record stand.
struct SortedTokens {
  float sums[kPackRows];  // of scores
  uint32_t seen[kPackRows];
  alignas(16) uint8_t tiers[kPackRows];
  alignas(16) uint8_t order[kPackColumns];  // the row behind each column
  alignas(16) TierHeader headers[kRecordTiers];
  int counts[kRecordTiers];      // tokens of each tier, evicted ones among them
  int starts[kRecordTiers + 1];  // columns where tiers begin, and where the last one ends
  int n_coded;
  bool wrong_counts, wrong_size;
  bool cut_off[2][kRecordTiers];  // values, keys: some codes on the tier's grids must be
};

// What else the threads share.
template <int kDim, bool kRotated>
struct PackShared : SortedTokens {
  static constexpr int kThreads = kSideThreads, kWarps = kThreads / kLanes;
  using Tile = PackTile<kDim, kRotated>;
  using Value = typename Tile::Value;
  using Chunk = EightBytesOf<Value>;
  // Channels are measured by chunks of 8 bytes, every kGroups-th row by the same thread.
  static constexpr int kOfChunk = 8 / int(sizeof(Value)), kChunks = kDim / kOfChunk;
  static constexpr int kGroups = kThreads / kChunks;

  union {
    struct {  // of each channel, by the tier that owns its parameters and by group of rows
      Chunk lo[kRecordTiers][kGroups][kChunks], hi[kRecordTiers][kGroups][kChunks];
    } channels;
    struct {  // of each row, by part of the channels; by half of the ranges that were tried
      SpanBits ranges[kWarps][kPackRows];
      Search searches[2][kPackRows];
    } tokens;
  };
  union {
    alignas(16) Grid channel_grids[kRecordTiers][kDim];  // keys by channel
    struct {
      alignas(16) Inverse factors[kDim];  // of values' channels
      alignas(16) Grid token_grids[kPackColumns];
    };
  };

  ZC_BOTH PackShared() {}
};

// What all ways to pack the keys (kIsK) or the values of one record have in common: rows are
// loaded, rotated and sorted, the parts of the record get their places. The tile holds 16-bit
// numbers, or 32-bit ones (kRotated).
template <int kDim, bool kIsK, class SharedMemory>
class RecordSide {
 public:
  using Shared = SharedMemory;
  using Tile = typename Shared::Tile;
  static constexpr bool kKeys = kIsK;
  static constexpr bool kRotated = sizeof(typename Tile::Value) == sizeof(float);

  ZC_BOTH RecordSide(const PackArgs& args, int task, int head, int thread, Tile& tile,
                     Shared& shared)
      : args_(args),
        form_(args.form.record),
        task_(args.tasks[task]),
        entry_(args.records[(size_t(task_.stream) * size_t(args.n_heads) + size_t(head)) *
                                size_t(args.record_stride) +
                            size_t(task_.record)]),
        record_(args.pool + size_t(entry_.at) * 16),
        head_(head),
        thread_(thread),
        tile_(tile),
        shared_(shared) {}

  // What the tiers hold does not add up, or makes a record of another size than the entry's. Known
  // before step kOrdered.
  ZC_BOTH bool refused() const { return shared_.wrong_counts || shared_.wrong_size; }
  // One thread of a refused record's keys.
  ZC_BOTH void count_refused() const {
    if (!args_.n_wrong) return;
#ifdef __CUDA_ARCH__
    atomicAdd(args_.n_wrong, 1u);
#else
    ++*args_.n_wrong;
#endif
  }

  // Asks for what ranks the tokens: each lane of a warp for that of its own rows, which it alone
  // reads.
  ZC_BOTH void load_scores() const {
    if (thread_ >= kLanes || !ranks()) return;
    const float* sums = args_.scores.tokens(task_.stream, head_) + task_.row + thread_;
    ZC_UNROLL
    for (int i = 0; i < kPackRows; i += kLanes) copy_word(&shared_.sums[i + thread_], sums + i);
    if (!args_.seen.data) return;
    const uint32_t* seen = args_.seen.tokens(task_.stream, head_) + task_.row + thread_;
    ZC_UNROLL
    for (int i = 0; i < kPackRows; i += kLanes) copy_word(&shared_.seen[i + thread_], seen + i);
  }

  // A warp puts the tokens in order, a thread of another makes the headers.
  ZC_BOTH void order_tokens() const {
    if (thread_ < kLanes) sort();
    const bool counts_known = ranks() || form_.n_tiers == 1;
    if (thread_ == (counts_known ? kThreads - 1 : 0)) lay_out(counts_known);
  }

  // Each thread the same channels of every so many rows.
  ZC_BOTH void load_rows() const {
    const InputRows& rows = kIsK ? args_.k : args_.v;
    constexpr int kPieces = kDim / kPieceNumbers, kAtOnce = kThreads / kPieces;
    const int first = thread_ / kPieces, channel = thread_ % kPieces * kPieceNumbers;
    const uint16_t* from = rows.row(task_.stream, task_.row, head_);
    from += first * rows.token_stride + channel;
    const int64_t stride = kAtOnce * rows.token_stride;
    ZC_UNROLL
    for (int i = 0; i < kPackRows / kAtOnce; ++i) {
      Value* to = &tile_.rows[first + i * kAtOnce][channel];
      if constexpr (kRotated) {
        const SixteenBytes piece = *reinterpret_cast<const SixteenBytes*>(from);
        ZC_UNROLL
        for (int c = 0; c < kPieceNumbers; ++c)
          to[c] = float_of(uint16_t(piece.word[c / 2] >> 16 * (c % 2)));
      } else {
        copy_piece(to, from);
      }
      from += stride;
    }
  }

 protected:
  using Value = typename Tile::Value;
  static constexpr int kThreads = Shared::kThreads;
  static constexpr int kFragments = kDim / 16;
  static constexpr int kPieceNumbers = 8;  // 16-bit numbers of 16 bytes

  ZC_BOTH bool by_hadamard() const { return kIsK ? args_.form.k_hadamard : args_.form.v_hadamard; }
  ZC_BOTH bool by_matrix() const { return kIsK ? args_.form.k_by_matrix : args_.form.v_by_matrix; }
  ZC_BOTH bool rotates() const { return by_hadamard() || by_matrix(); }
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

  // ---- tiers

  // Scores before rows, which would be in their way.
  ZC_BOTH void load() const {
    load_scores();
    end_copy_group();
    load_rows();
    end_copy_group();
  }
  ZC_BOTH void order_and_wait() const {
    wait_for_copies<1>();
    order_tokens();
    wait_for_copies<0>();
  }

  // What decides a row's tier, the larger the more salient (saliency/probes.hpp:
  // normalized_score); or the tier itself.
  ZC_BOTH RowNumbers rank_keys() const {
    if (form_.n_tiers == 1) return {thread_, [](int) { return 0; }};
    if (!ranks()) {
      const uint8_t* tiers = args_.tiers.tokens(task_.stream, head_) + task_.row;
      return {thread_, [=](int row) { return tiers[row]; }};
    }
    const bool divided = args_.seen.data;
    return {thread_, [this, divided](int row) {
              const uint32_t seen = divided ? shared_.seen[row] : 1;
              return rank_key(seen == 0 ? INFINITY : shared_.sums[row] / float(seen));
            }};
  }

  ZC_BOTH RowSet coded_rows() const {
    RowSet rows;
    ZC_UNROLL
    for (int w = 0; w < RowSet::kWords; ++w) rows.words[w] = ~task_.left_out[w];
    return rows;
  }

  // A warp: each token's tier and column. Columns are tiers one after another, filled up to whole
  // units, tokens of each in their order.
  ZC_BOTH void sort() const {
    const RowNumbers numbers = rank_keys();
    RowSet left = coded_rows();
    RowSet out;
    ZC_UNROLL
    for (uint32_t& word : out.words) word = ~0u;
    out.remove(left);
    place_rows(out, kLeftOut, -1);
    const int expected = left.size();
    int start = 0, n_coded = 0;
    bool wrong = false;
    for (int t = 0; t < form_.n_tiers; ++t) {
      const RowSet rows = rows_of_tier(t, numbers, left);
      left.remove(rows);
      const int count = rows.size();
      const bool held = form_.holds(t);
      place_rows(rows, uint8_t(t), held ? start : -1);
      if (thread_ == 0) shared_.counts[t] = count, shared_.starts[t] = start;
      if (held) start = fill_up(start + count);
      n_coded += count;
      wrong = wrong || (ranks() && count != task_.counts[t]);
    }
    if (thread_ != 0) return;
    for (int t = form_.n_tiers; t <= kRecordTiers; ++t) shared_.starts[t] = start;
    for (int t = 0; t < kRecordTiers; ++t) shared_.cut_off[0][t] = shared_.cut_off[1][t] = false;
    shared_.n_coded = n_coded;
    shared_.wrong_counts = wrong || n_coded != expected;
  }

  ZC_BOTH RowSet rows_of_tier(int tier, const RowNumbers& numbers, const RowSet& left) const {
    if (!ranks()) return numbers.rows(left, [=](uint32_t of) { return of == uint32_t(tier); });
    return tier + 1 < form_.n_tiers ? largest_of(numbers, left, task_.counts[tier]) : left;
  }

  // Gives rows their tier, and the columns from `start` on unless that is below 0.
  ZC_BOTH void place_rows(const RowSet& rows, uint8_t tier, int start) const {
    ZC_UNROLL
    for (int w = 0; w < RowSet::kWords; ++w) {
      if (!(rows.words[w] >> thread_ & 1)) continue;
      const int row = w * kLanes + thread_;
      shared_.tiers[row] = tier;
      if (start >= 0) shared_.order[start + rows.before(w, thread_)] = uint8_t(row);
    }
  }

  // The end of the unit in which a tier ends.
  ZC_BOTH int fill_up(int end) const {
    const int filled = units_of(end) * kUnitTokens;
    if (end + thread_ < filled) shared_.order[end + thread_] = kNoToken;
    return filled;
  }

  // One thread; beside the sorting where tiers have the counts of the task.
  ZC_BOTH void lay_out(bool counts_known) const {
    int counts[kRecordTiers];
    ZC_UNROLL
    for (int t = 0; t < kRecordTiers; ++t)
      counts[t] = counts_known ? task_.counts[t] : shared_.counts[t];
    if (form_.n_tiers == 1) counts[0] = coded_rows().size();
    shared_.wrong_size = place(counts) != entry_.size;
  }

  // place_record(), without loops where tiers are as few as usual: one thread is slow at them.
  ZC_BOTH int place(const int (&counts)[kRecordTiers]) const {
    switch (form_.n_tiers) {
      case 1:
        return place_tiers(form_, 1, counts, shared_.headers);
      case 2:
        return place_tiers(form_, 2, counts, shared_.headers);
      default:
        return place_record(form_, counts, shared_.headers);
    }
  }

  // ---- rotation (transform/rotation.hpp): of Hadamard's the widths 1 to 8 of 16 neighbours, then
  // the others; by a matrix at once

  ZC_BOTH void rotate() const {
    if (by_matrix()) return rotate_by_matrix();
    rotate_near();
  }

  // Each warp some rows.
  ZC_BOTH void rotate_by_matrix() const {
    if constexpr (kRotated) {
      constexpr int kRows = kDim < 256 ? 8 : 4, kWarps = kThreads / kLanes;
      const float* matrix =
          (kIsK ? args_.k_matrices : args_.v_matrices) + size_t(head_) * kDim * kDim;
      for (int row = thread_ / kLanes * kRows; row < kPackRows; row += kWarps * kRows)
        turn_in_place<kDim, kRows>(tile_.rows[row], int(sizeof(tile_.rows[0]) / sizeof(float)),
                                   matrix, thread_ % kLanes);
    }
  }

  ZC_BOTH void rotate_near() const {
    if constexpr (kRotated) {
      constexpr int kGroups = kDim / 16;
      for (int i = thread_; i < kPackRows * kGroups; i += kThreads) {
        float* at = &tile_.rows[i / kGroups][i % kGroups * 16];
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
      const float norm = 1.0f / sqrtf(float(kDim));
      for (int i = thread_; i < kPackRows * 16; i += kThreads) {
        float* at = &tile_.rows[i / 16][i % 16];
        float x[kDim / 16];
        ZC_UNROLL
        for (int c = 0; c < kDim / 16; ++c) x[c] = at[16 * c];
        add_and_subtract(x);
        ZC_UNROLL
        for (int c = 0; c < kDim / 16; ++c) at[16 * c] = x[c] * norm;
      }
    }
  }

  // codec/quantize.hpp: cst_factors.
  ZC_BOTH static uint16_t cst_factor(float largest_size) {
    const uint16_t factor = half_of(sqrtf(largest_size));
    return factor != 0 ? factor : half_of(1.0f);
  }

  // ---- header and row map

  // What both sides have in common is written by the keys' threads.
  ZC_BOTH void finish() const {
    if (!kIsK) return;
    if (thread_ < form_.n_tiers)
      reinterpret_cast<SixteenBytes*>(record_)[thread_] =
          reinterpret_cast<const SixteenBytes*>(shared_.headers)[thread_];
    if (thread_ < shared_.starts[kRecordTiers] / 16) {
      auto* rows = reinterpret_cast<SixteenBytes*>(record_ + entry_.size * 16);
      rows[thread_] = reinterpret_cast<const SixteenBytes*>(shared_.order)[thread_];
    }
  }

  // ---- codes

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

  const PackArgs& args_;
  const RecordForm& form_;
  const PackTask& task_;
  const Record entry_;
  uint8_t* const record_;
  const int head_, thread_;
  Tile& tile_;
  Shared& shared_;
};

// Keys (kIsK) or values of one record. Where rows are rotated, or keys rounded by what queries see,
// the tile holds 32-bit numbers (kRotated).
template <int kDim, bool kIsK, bool kRotated>
class SidePacker : public RecordSide<kDim, kIsK, PackShared<kDim, kRotated>> {
  using Base = RecordSide<kDim, kIsK, PackShared<kDim, kRotated>>;

 public:
  using Shared = typename Base::Shared;
  using Base::Base;

  // Steps with a barrier before each; threads of a block agree on which of them there are. The
  // first two bring the rows and put the tokens in order; the others are for records that are not
  // refused() then.
  static constexpr int kSteps = 10, kOrdered = 2;
  ZC_BOTH bool has_step(int number) const {
    switch (number) {
      case 2:
        return kRotated ? rotates() : !kIsK && !form_.v.channel_factors;
      case 3:
        return kRotated && this->by_hadamard();
      case 4:
      case 5:
        return kIsK ? by_channel() : form_.v.channel_factors;
      case 6:
        return !by_channel() || (kRotated && args_.form.k_by_queries);
      case 7:
        return !by_channel() && searches(fit());
      case 8:
        return !by_channel();
      default:
        return true;
    }
  }
  ZC_BOTH void step(int number) const {
    switch (number) {
      case 0:
        return this->load();
      case 1:
        return this->order_and_wait();
      case 2:
        return kRotated ? this->rotate() : set_factors();
      case 3:
        return this->rotate_far();
      case 4:
        return measure_channels();
      case 5:
        return kIsK ? fit_channels() : take_factors();
      case 6:
        return by_channel() ? round_keys() : measure_tokens();
      case 7:
        return search_tokens();
      case 8:
        return fit_tokens();
      default:
        code();
        return this->finish();
    }
  }

 private:
  using Value = typename Base::Value;
  using Chunk = typename Shared::Chunk;
  static constexpr int kOfChunk = Shared::kOfChunk;
  using Base::args_, Base::entry_, Base::form_, Base::record_, Base::shared_, Base::task_,
      Base::thread_, Base::tile_;
  using Base::bits, Base::codes, Base::fit, Base::halves, Base::kFragments, Base::kOwn, Base::list,
      Base::number, Base::own_channel, Base::own_place, Base::own_token, Base::params,
      Base::rotates;

  ZC_BOTH bool by_channel() const { return kIsK && !form_.k_by_token(); }
  // Of a head nothing may have been learnt yet.
  ZC_BOTH bool by_queries() const {
    return kIsK && kRotated && args_.form.k_by_queries && args_.learnt[list()] > 0;
  }

  // ---- parameters of channels, and factors of channels

  // The tier on whose parameters a row's key is coded; none for what has no codes.
  ZC_BOTH int owner_of(int row) const {
    const int tier = shared_.tiers[row];
    if (tier == kLeftOut || !in_codes(form_.k.bits[tier])) return -1;
    return form_.k.params_tier[tier];
  }

  ZC_BOTH const Chunk& chunk_of(int row, int chunk) const {
    return reinterpret_cast<const Chunk&>(tile_.rows[row][chunk * kOfChunk]);
  }

  // Each thread a chunk of channels of a group of the rows.
  ZC_BOTH void measure_channels() const {
    const int chunk = thread_ % Shared::kChunks, group = thread_ / Shared::kChunks;
    if (group >= Shared::kGroups) return;
    if constexpr (kIsK) {
      for (int t = 0; t < form_.n_tiers; ++t) {
        if (form_.k.params_tier[t] == t) measure_owned(t, group, chunk);
      }
    } else {
      measure_sizes(group, chunk);
    }
  }

  ZC_BOTH void measure_owned(int owner, int group, int chunk) const {
    Chunk lo = Chunk::all(INFINITY), hi = Chunk::all(-INFINITY);
    for (int t = owner; t < form_.n_tiers; ++t) {
      if (form_.k.params_tier[t] != owner || !in_codes(form_.k.bits[t])) continue;
      const int end = shared_.starts[t] + shared_.counts[t];
      for (int column = shared_.starts[t] + group; column < end; column += Shared::kGroups) {
        const Chunk& x = chunk_of(shared_.order[column], chunk);
        lo.lower(x);
        hi.raise(x);
      }
    }
    shared_.channels.lo[owner][group][chunk] = lo;
    shared_.channels.hi[owner][group][chunk] = hi;
  }

  // The largest numbers without their signs.
  ZC_BOTH void measure_sizes(int group, int chunk) const {
    const bool all = shared_.n_coded == kPackRows;
    Chunk hi = Chunk::all(0);
    ZC_UNROLL
    for (int i = 0; i < kPackRows / Shared::kGroups; ++i) {
      const int row = i * Shared::kGroups + group;
      if (all || shared_.tiers[row] != kLeftOut) hi.raise(chunk_of(row, chunk).size());
    }
    shared_.channels.hi[0][group][chunk] = hi;
  }

  ZC_BOTH Extremes range_of_channel(int owner, int channel) const {
    Extremes range;
    ZC_UNROLL
    for (int group = 0; group < Shared::kGroups; ++group) {
      const auto &lo = shared_.channels.lo[owner][group], &hi = shared_.channels.hi[owner][group];
      range.lo = fminf(range.lo, lo[channel / kOfChunk].at(channel % kOfChunk));
      range.hi = fmaxf(range.hi, hi[channel / kOfChunk].at(channel % kOfChunk));
    }
    if (range.lo == 0) range.lo = first_zero_of_channel(owner, channel);
    return range;
  }

  // The sign of a smallest number 0 is that of the first.
  ZC_BOTH float first_zero_of_channel(int owner, int channel) const {
    for (int row = 0; row < kPackRows; ++row) {
      const float x = number(tile_.rows[row][channel]);
      if (x == 0 && owner_of(row) == owner) return x;
    }
    return 0;
  }

  // The numbers of a channel of all rows that are coded on an owner's parameters.
  template <class Visit>
  ZC_BOTH void for_channel(int owner, int channel, Visit&& visit) const {
    for (int row = 0; row < kPackRows; ++row) {
      if (owner_of(row) == owner) visit(number(tile_.rows[row][channel]));
    }
  }

  ZC_BOTH int n_owned(int owner) const {
    int n = 0;
    for (int t = 0; t < form_.n_tiers; ++t) {
      if (form_.k.params_tier[t] == owner) n += shared_.headers[t].count;
    }
    return n;
  }

  // Each thread one channel at a time.
  ZC_BOTH void fit_channels() const {
    for (int i = thread_; i < form_.n_tiers * kDim; i += kSideThreads) {
      const int owner = i / kDim, channel = i % kDim, place = params(shared_.headers[owner]);
      if (place == 0 || form_.k.params_tier[owner] != owner) continue;
      const int width = form_.k.bits[owner];
      const Extremes range = range_of_channel(owner, channel);
      Search found;
      if (searches(fit()))
        found = search_clips(range, n_owned(owner), width, fit(), 0, n_clips(width),
                             [&](auto&& visit) { for_channel(owner, channel, visit); });
      const FittedGrid fitted = fit_grid(range, width, fit(), found);
      halves(place)[k_param_place(channel)] = fitted.step;
      halves(place)[kDim + k_param_place(channel)] = fitted.floor;
      shared_.channel_grids[owner][channel] = fitted.grid;
      note_cutting(owner, fitted.grid, range, width);
    }
  }

  // Each thread the channels of a group of a row, one after another (codec/query_rounding.cpp):
  // what of them stands in the tile becomes their codes.
  ZC_BOTH void round_keys() const {
    if constexpr (kIsK && kRotated) {
      if (!by_queries()) return;
      constexpr int kGroups = kDim / kFeedbackGroup;
      for (int i = thread_; i < kPackRows * kGroups; i += kSideThreads) {
        const int row = i % kPackRows, group = i / kPackRows, owner = owner_of(row);
        if (owner >= 0) round_group(row, group * kFeedbackGroup, owner);
      }
    }
  }

  ZC_BOTH void round_group(int row, int first, int owner) const {
    constexpr int kAtOnce = 8, kChunks = kFeedbackGroup / kAtOnce;
    float* x = reinterpret_cast<float*>(&tile_.rows[row][first]);
    const float* feedback =
        args_.feedback + list() * size_t(feedback_floats(kDim)) + first * kFeedbackGroup;
    const uint16_t* params = halves(params_of(owner));
    const float top = top_code_of(form_.k.bits[owner]);
    uint32_t codes[kFeedbackGroup / 4] = {};
    ZC_UNROLL
    for (int chunk = 0; chunk < kChunks; ++chunk) {
      const int begin = chunk * kAtOnce;
      float own[kAtOnce], wanted[kAtOnce], error[kAtOnce];
      ZC_UNROLL
      for (int c = 0; c < kAtOnce; ++c) own[c] = wanted[c] = x[begin + c];
      for (int before = 0; before < begin; ++before) {
        const float left = x[before];  // the error of a channel before
        float of[kAtOnce];
        load_floats(feedback + before * kFeedbackGroup + begin, of);
        ZC_UNROLL
        for (int c = 0; c < kAtOnce; ++c) wanted[c] += left * of[c];
      }
      float of[kAtOnce][kAtOnce];  // of those of this chunk
      ZC_UNROLL
      for (int b = 0; b < kAtOnce; ++b)
        load_floats(feedback + (begin + b) * kFeedbackGroup + begin, of[b]);
      ZC_UNROLL
      for (int c = 0; c < kAtOnce; ++c) {
        ZC_UNROLL
        for (int b = 0; b < c; ++b) wanted[c] += error[b] * of[b][c];
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

  // Neighbours at a multiple of 16 bytes.
  template <int kCount>
  ZC_BOTH static void load_floats(const float* from, float (&to)[kCount]) {
    ZC_UNROLL
    for (int i = 0; i < kCount; i += 4) {
      const auto four = *reinterpret_cast<const SixteenBytes*>(from + i);
      ZC_UNROLL
      for (int c = 0; c < 4; ++c) to[i + c] = float_from(four.word[c]);
    }
  }

  ZC_BOTH int params_of(int owner) const { return params(shared_.headers[owner]); }

  ZC_BOTH float size_of_channel(int channel) const {
    float size = 0;
    ZC_UNROLL
    for (int group = 0; group < Shared::kGroups; ++group)
      size = fmaxf(size, shared_.channels.hi[0][group][channel / kOfChunk].at(channel % kOfChunk));
    return size;
  }

  // Of values without factors.
  ZC_BOTH void set_factors() const {
    if (thread_ < kDim) shared_.factors[thread_] = {};
  }

  // Where nothing is coded they stay 0.
  ZC_BOTH void take_factors() const {
    if (thread_ >= kDim) return;
    uint16_t factor = 0;
    if (shared_.n_coded > 0) factor = this->cst_factor(size_of_channel(thread_));
    halves(shared_.headers[0].v_factors)[v_factor_place(thread_)] = factor;
    shared_.factors[thread_] = inverse_of_half(float_of(factor));
  }

  // ---- parameters of tokens

  // What is coded of a number of the tile. Where values have no factors, these are 1.
  ZC_BOTH float taken(float x, int channel) const {
    if (kIsK || (kRotated && !form_.v.channel_factors)) return x;
    return divided(x, shared_.factors[channel]);
  }

  static constexpr int kNumbers = 16 / int(sizeof(Value));  // of 16 bytes
  struct alignas(16) Piece {
    Value x[kNumbers];
  };
  ZC_BOTH Piece piece(int row, int channel) const {
    Piece out;
    reinterpret_cast<SixteenBytes&>(out) =
        reinterpret_cast<const SixteenBytes&>(tile_.rows[row][channel]);
    return out;
  }

  // The numbers of a row that are coded.
  template <class Visit>
  ZC_BOTH void for_row(int row, Visit&& visit) const {
    for (int channel = 0; channel < kDim; channel += kNumbers) {
      const Piece numbers = piece(row, channel);
      ZC_UNROLL
      for (int c = 0; c < kNumbers; ++c) visit(taken(number(numbers.x[c]), channel + c));
    }
  }

  // Each warp a part of the channels, each lane of it four rows.
  ZC_BOTH void measure_tokens() const {
    constexpr int kOfLane = kPackRows / kLanes, kOfWarp = kDim / Shared::kWarps;
    const int warp = thread_ / kLanes, lane = thread_ % kLanes;
    SpanBits found[kOfLane];
    for (int channel = warp * kOfWarp; channel < (warp + 1) * kOfWarp; channel += kNumbers) {
      ZC_UNROLL
      for (int i = 0; i < kOfLane; ++i) {
        const Piece numbers = piece(i * kLanes + lane, channel);
        ZC_UNROLL
        for (int c = 0; c < kNumbers; c += 2)
          found[i].take(taken(number(numbers.x[c]), channel + c),
                        taken(number(numbers.x[c + 1]), channel + c + 1));
      }
    }
    ZC_UNROLL
    for (int i = 0; i < kOfLane; ++i) shared_.tokens.ranges[warp][i * kLanes + lane] = found[i];
  }

  ZC_BOTH Extremes range_of_token(int row) const {
    SpanBits span;
    ZC_UNROLL
    for (int part = 0; part < Shared::kWarps; part += 2)
      span.take(shared_.tokens.ranges[part][row], shared_.tokens.ranges[part + 1][row]);
    Extremes range = span.extremes();
    if (!span.about_zero()) {
      range = {};
      for_row(row, [&](float x) { range = {fminf(range.lo, x), fmaxf(range.hi, x)}; });
    }
    if (range.lo == 0) range.lo = first_zero_of_token(row);
    return range;
  }

  ZC_BOTH float first_zero_of_token(int row) const {
    for (int channel = 0; channel < kDim; ++channel) {
      const float x = taken(number(tile_.rows[row][channel]), channel);
      if (x == 0) return x;
    }
    return 0;
  }

  // Each thread half the clipped ranges of a row.
  ZC_BOTH void search_tokens() const {
    if (thread_ >= 2 * kPackRows) return;
    const int row = thread_ % kPackRows, part = thread_ / kPackRows, tier = shared_.tiers[row];
    if (tier == kLeftOut || !in_codes(bits(shared_.headers[tier]))) return;
    const int width = bits(shared_.headers[tier]), middle = (n_clips(width) + 1) / 2;
    shared_.tokens.searches[part][row] = search_clips(
        range_of_token(row), kDim, width, fit(), part * middle, part == 0 ? middle : n_clips(width),
        [&](auto&& visit) { for_row(row, visit); });
  }

  // Each thread one column.
  ZC_BOTH void fit_tokens() const {
    if (thread_ >= shared_.starts[kRecordTiers]) return;
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
      const Extremes range = range_of_token(row);
      fitted = fit_grid(range, bits(header), fit(), found);
      note_cutting(tier, fitted.grid, range, bits(header));
    }
    auto* pairs = reinterpret_cast<uint32_t*>(record_ + params(header) * 16);
    pairs[thread_ - shared_.starts[tier]] = fitted.step | uint32_t(fitted.floor) << 16;
    shared_.token_grids[thread_] = fitted.grid;
  }

  // ---- codes

  ZC_BOTH void code() const {
    for (int t = 0; t < form_.n_tiers; ++t) {
      if (shared_.headers[t].count == 0) continue;
      with_width(bits(shared_.headers[t]), [&](auto width) {
        constexpr int kBits = decltype(width)::value;
        if (by_channel())
          code_tier<kBits, kIsK>(t);
        else
          code_tier<kBits, false>(t);
      });
    }
  }

  // Each warp a piece of a unit: as many fragments as make 16 bytes of a lane, or three words of
  // it.
  template <int kBits, bool kByChannel>
  ZC_BOTH void code_tier(int tier) const {
    constexpr int kWide = wide_words(kDim, kBits), kWords = kBits == 3 ? 3 : kWide;
    constexpr int kPiece = kBits == 3 ? 4 : kWide * 4 / kBits, kPieces = kFragments / kPiece;
    const TierHeader& header = shared_.headers[tier];
    const int lane = thread_ % kLanes, ahead = thread_ / kLanes;
    const int warp =
        tier % 2 == 0 ? ahead : Shared::kWarps - 1 - ahead;  // tiers share out the warps
    for (int i = warp; i < units_of(header.count) * kPieces; i += Shared::kWarps) {
      const int unit = i / kPieces, piece = i % kPieces;
      uint32_t words[kWords] = {};
      const UnitOfLane own = unit_of(tier, unit, lane);
      const auto add_all = [&](auto cut) {
        ZC_UNROLL
        for (int f = 0; f < kPiece; ++f)
          add_codes<kBits, kByChannel, cut.value>(own, piece * kPiece + f, f, lane, words);
      };
      if constexpr (kBits == 2 || kBits == 4) {
        const bool filled_up = kByChannel && header.count < (unit + 1) * kUnitTokens;
        if (filled_up || by_queries() || shared_.cut_off[kIsK][grid_tier(tier)])
          add_all(std::true_type{});
        else
          add_all(std::false_type{});
      } else {
        add_all(std::true_type{});
      }
      uint8_t* unit_codes = record_ + codes(header) * 16 + unit * unit_bytes(kDim, kBits);
      store_words<kBits>(unit_codes, piece * kWords, lane, words);
    }
  }

  // The tier on whose grids one is coded.
  ZC_BOTH int grid_tier(int tier) const { return by_channel() ? form_.k.params_tier[tier] : tier; }

  // Where codes on a fitted grid need cutting off, its tier says so.
  ZC_BOTH void note_cutting(int tier, const Grid& grid, const Extremes& range, int width) const {
    if (!in_range(grid, range, (1 << width) - 1)) shared_.cut_off[kIsK][tier] = true;
  }

  // What a lane needs of a unit beside its numbers.
  struct UnitOfLane {
    int rows[kOwn / 2];  // of the tile: of its tokens, by [second][odd]; 0 where there is none
    bool present[kOwn / 2];
    Grid grids[kOwn / 2];  // of tokens
    const Grid* channels;
    int fragment_row;  // whose address the lane gives where a warp reads a fragment together
  };

  ZC_BOTH UnitOfLane unit_of(int tier, int unit, int lane) const {
    UnitOfLane own;
    own.channels = shared_.channel_grids[form_.k.params_tier[tier]];
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
        x[i] = number(tile_.rows[own.rows[i % 4]][fragment * 16 + own_channel(i, lane)]);
    }
  }

#ifdef __CUDACC__
  // The same by the whole warp: four matrices of 8 tokens x 8 channels (ldmatrix), of values
  // turned.
  __device__ __forceinline__ void load_together(const UnitOfLane& own, int fragment, int lane,
                                                float (&x)[kOwn]) const {
    // Lane l gives the address of token l % 16, of the first or the second 8 channels: the four
    // matrices come in the order of x.
    const auto* row = &tile_.rows[own.fragment_row][fragment * 16 + lane / 16 * 8];
    uint32_t pairs[4];
    if constexpr (kIsK)
      load_matrices(shared_address(row), pairs);
    else
      load_turned_matrices(shared_address(row), pairs);
    ZC_UNROLL
    for (int i = 0; i < kOwn; ++i) x[i] = float_of(uint16_t(pairs[i / 2] >> 16 * (i % 2)));
  }
#endif

  // Adds the codes of a fragment, the `in_piece`-th of its piece, to the piece's words: the four of
  // a row of the fragment are bytes of one word, or neighbouring bits of bytes.
  template <int kBits, bool kByChannel, bool kCut, int kWords>
  ZC_BOTH void add_codes(const UnitOfLane& own, int fragment, int in_piece, int lane,
                         uint32_t (&words)[kWords]) const {
    float x[kOwn];
    load_fragment(own, fragment, lane, x);
    if constexpr (kBits == 16) return add_halves(own, x, in_piece, words);
    Grid grids[kOwn];
    find_grids<kByChannel>(own, fragment, lane, grids);
    constexpr int kRow = kIsK ? 2 : 4, kColumn = kIsK ? 4 : 2;  // steps of i to the others
    ZC_UNROLL
    for (int first = 0; first <= kRow; first += kRow) {
      const auto code = [&](int i) {
        return code_of<kCut>(grids[i], x[i], fragment * 16 + own_channel(i, lane),
                             own.present[i % 4] ? (1 << kBits) - 1 : 0);
      };
      const uint32_t bytes =
          low_bytes(code(first), code(first + kColumn), code(first + 1), code(first + 1 + kColumn));
      const FragmentPlace place = own_place(first, in_piece);
      const Place at = lane_place(place, kBits);
      if constexpr (kBits == 3) {
        const Place top = lane_top_place(place);
        words[at.word] += (bytes & 0x03030303) << at.shift;
        words[top.word] += (bytes >> 2 & 0x01010101) << top.shift;
      } else {
        words[at.word] += bytes << at.shift;
      }
    }
  }

  template <int kWords>
  ZC_BOTH static void add_halves(const UnitOfLane& own, const float (&x)[kOwn], int in_piece,
                                 uint32_t (&words)[kWords]) {
    ZC_UNROLL
    for (int i = 0; i < kOwn; ++i) {
      const Place at = lane_place(own_place(i, in_piece), 16);
      words[at.word] += (own.present[i % 4] ? half_of(x[i]) : 0u) << at.shift;
    }
  }

  // The grids of a lane's numbers of a fragment: of channels, which are neighbours two by two, or
  // of tokens.
  template <bool kByChannel>
  ZC_BOTH void find_grids(const UnitOfLane& own, int fragment, int lane,
                          Grid (&grids)[kOwn]) const {
    ZC_UNROLL
    for (int i = 0; i < kOwn; i += 2) {
      if constexpr (kByChannel) {
        const Grid* pair = own.channels + fragment * 16 + own_channel(i, lane);
        const auto both = *reinterpret_cast<const SixteenBytes*>(pair);
        grids[i] = {float_from(both.word[0]), float_from(both.word[1])};
        grids[i + 1] = {float_from(both.word[2]), float_from(both.word[3])};
      } else {
        grids[i] = own.grids[i % 4];
        grids[i + 1] = own.grids[(i + 1) % 4];
      }
    }
  }

  // The code in the lowest byte. `top`: the largest one. Where none is cut off,
  // bits of a float stand above it.
  template <bool kCut>
  ZC_BOTH uint32_t code_of(const Grid& grid, float x, int channel, int top) const {
    if constexpr (!kCut) return uncut_code(grid, taken(x, channel));
    if (by_queries()) return top > 0 ? uint32_t(x) : 0;
    if constexpr (kRotated) return code_on(grid, taken(x, channel), float(top));
    return near_code_on(grid, taken(x, channel), top);
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
};

}  // namespace zipcache::cuda
