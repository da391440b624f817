#include "cache/pack.hpp"

#include <algorithm>
#include <cstring>
#include <numeric>

#include "base/parallel.hpp"
#include "codec/clip.hpp"
#include "codec/kernels.hpp"
#include "codec/low_rank.hpp"
#include "saliency/probes.hpp"
#include "transform/dual_scale.hpp"

namespace zipcache {
namespace {

// One block of a job: which of its rows are coded, and each head's tiers.
struct Plan {
  int slot = 0;
  BlockBits sinks;
  int n_coded = 0;
  std::vector<std::vector<uint8_t>> tiers;  // [head][coded token, in order]
  std::vector<TierCounts> counts;           // [head]
  StoredBlock result;
};

bool unscored(const LayerStore& store, const Plan& plan) {
  if (!store.packed.policy().needs_scores()) return false;
  const uint32_t* seen = store.raw.probes_seen(store.block(plan.slot).raw);
  return std::all_of(seen, seen + kBlockTokens, [](uint32_t n) { return n == 0; });
}

float row_score(const PackJob& job, const StreamLog& log, const LayerStore& store, int slot,
                int head, int row) {
  const Saliency& saliency = store.packed.policy().saliency;
  const uint64_t place = log.block(slot).first + uint64_t(row);
  switch (saliency.statistic) {
    case Statistic::Recency:
      return float(row);
    case Statistic::Random:
      // Not by stream: a text has the same tiers in whatever slot of a server it is.
      return Random(store.packed.policy().seed, 0, uint64_t(job.layer) << 16 | uint64_t(head),
                    place)
          .unit();
    case Statistic::File: {
      const TokenScores::Layer& layer = job.scores->layers[size_t(job.layer)];
      const size_t n_tokens = job.scores->tokens.size();
      return normalized_score(layer.sums[size_t(head) * n_tokens + place], layer.seen[place],
                              layer.seen[place], saliency.norm);
    }
    case Statistic::Mean:
    case Statistic::MeanStd:
    case Statistic::Last:
    case Statistic::Max:
      break;
  }
  uint8_t* raw = store.block(slot).raw;
  const bool one_row =
      saliency.statistic == Statistic::Last || saliency.statistic == Statistic::Max;
  const Norm norm = one_row ? Norm::None : saliency.norm;
  return normalized_score(store.raw.sums(raw, head)[row], store.raw.probes_seen(raw)[row],
                          store.raw.rows_seen(raw)[row], norm);
}

// Tokens evicted before their rows moved here are evicted again, whatever their rank.
void keep_evicted(const LayerStore& store, Plan& plan) {
  if (store.packed.n_tiers() == 1 || !store.packed.policy().evicts()) return;
  for (size_t head = 0; head < plan.tiers.size(); ++head) {
    const BlockBits held = store.held(plan.slot, int(head));
    size_t token = 0;
    for (int row = 0; row < kBlockTokens; ++row) {
      if (plan.sinks.test(size_t(row))) continue;
      uint8_t& tier = plan.tiers[head][token++];
      if (!held.test(size_t(row))) tier = uint8_t(store.packed.n_tiers() - 1);
    }
  }
}

// What ranks the coded tokens of the job's ranked blocks, in log order.
struct Ranking {
  std::vector<float> scores;
  std::vector<float> deviations;  // Statistic::MeanStd, else empty
};

// A budget is not spent on tokens that were evicted before their rows moved here.
void spare_nothing_for_evicted(const LayerStore& store, const std::vector<Plan*>& ranked, int head,
                               Ranking& ranking) {
  if (!store.packed.policy().evicts()) return;
  size_t token = 0;
  for (const Plan* plan : ranked) {
    const BlockBits held = store.held(plan->slot, head);
    for (int row = 0; row < kBlockTokens; ++row) {
      if (plan->sinks.test(size_t(row))) continue;
      if (!held.test(size_t(row))) ranking.scores[token] = 0;
      ++token;
    }
  }
}

Ranking head_ranking(const PackJob& job, const StreamLog& log, const LayerStore& store,
                     const std::vector<Plan*>& ranked, int head) {
  Ranking ranking;
  for (const Plan* plan : ranked) {
    uint8_t* raw = store.block(plan->slot).raw;
    const float* squares = store.raw.squares(raw, head);
    for (int row = 0; row < kBlockTokens; ++row) {
      if (plan->sinks.test(size_t(row))) continue;
      ranking.scores.push_back(row_score(job, log, store, plan->slot, head, row));
      if (!squares) continue;
      ranking.deviations.push_back(score_deviation(store.raw.sums(raw, head)[row], squares[row],
                                                   store.raw.probes_seen(raw)[row]));
    }
  }
  const Saliency& saliency = store.packed.policy().saliency;
  ranking.scores = pooled_scores(ranking.scores, saliency.pool, saliency.pool_width);
  if (store.packed.policy().fills_budget()) spare_nothing_for_evicted(store, ranked, head, ranking);
  return ranking;
}

void add(const std::vector<float>& values, std::vector<float>& sums) {
  sums.resize(values.size(), 0.0f);
  for (size_t i = 0; i < values.size(); ++i) sums[i] += values[i];
}

void hand_out(const std::vector<uint8_t>& tiers, const std::vector<Plan*>& ranked, int head) {
  auto next = tiers.begin();
  for (Plan* plan : ranked) {
    plan->tiers[size_t(head)].assign(next, next + plan->n_coded);
    next += plan->n_coded;
  }
}

// The tiers of the coded tokens of blocks that are ranked together.
class Allocator {
 public:
  Allocator(const PackJob& job, const StreamLog& log, const LayerStore& store,
            const std::vector<Plan*>& ranked)
      : job_(job), log_(log), store_(store), ranked_(ranked) {}

  void run() const {
    const int n_heads = store_.raw.shape.n_heads;
    Ranking all_heads;
    for (int head = 0; head < n_heads; ++head) {
      const Ranking ranking = head_ranking(job_, log_, store_, ranked_, head);
      if (store_.packed.policy().saliency.scope == Scope::Head) {
        hand_out(tiers_of(ranking), ranked_, head);
        continue;
      }
      add(ranking.scores, all_heads.scores);
      add(ranking.deviations, all_heads.deviations);
    }
    if (store_.packed.policy().saliency.scope == Scope::Layer) {
      const auto tiers = tiers_of(all_heads);
      for (int head = 0; head < n_heads; ++head) hand_out(tiers, ranked_, head);
    }
  }

 private:
  // Tokens of each tier: what fills the budget best, or the policy's shares of one ranking over
  // many blocks, or a block's portion of them in whole units (decision 19).
  TierCounts counts_of(const std::vector<float>& scores) const {
    const Policy& policy = store_.packed.policy();
    if (policy.fills_budget()) return store_.packed.counts_of_budget(scores);
    const int n = int(scores.size());
    if (job_.shared) return tier_counts(n, policy.shares);
    return tier_counts_of_block(log_.block(ranked_[0]->slot).first / kBlockTokens, n,
                                policy.shares);
  }

  // Of the tokens that are kept, three in ten because their attention varies most (RoCo).
  std::vector<uint8_t> tiers_of(const Ranking& ranking) const {
    const TierCounts counts = counts_of(ranking.scores);
    const auto better = std::span(counts).first(size_t(store_.packed.n_tiers() - 1));
    if (ranking.deviations.empty()) return allocate(ranking.scores, better);
    const int n_kept = std::accumulate(better.begin(), better.end(), 0);
    return allocate(keep_uncertain(ranking.scores, ranking.deviations, 3 * n_kept / 10), better);
  }

  const PackJob& job_;
  const StreamLog& log_;
  const LayerStore& store_;
  const std::vector<Plan*>& ranked_;
};

// Decides every head's tiers. Blocks without any score stay out of a ranking by shares, at the best
// tier; a budget holds for each block by itself, and for those too.
int decide_tiers(const PackJob& job, const StreamLog& log, const LayerStore& store,
                 std::vector<Plan>& plans) {
  const Policy& policy = store.packed.policy();
  std::vector<Plan*> ranked;
  int n_unscored = 0;
  for (Plan& plan : plans) {
    plan.tiers.assign(size_t(store.raw.shape.n_heads),
                      std::vector<uint8_t>(size_t(plan.n_coded), 0));
    if (policy.tiers.size() < 2) continue;
    const bool scoreless = unscored(store, plan);
    n_unscored += scoreless;
    if (policy.fills_budget())
      Allocator(job, log, store, {&plan}).run();
    else if (!scoreless)
      ranked.push_back(&plan);
  }
  if (!ranked.empty()) Allocator(job, log, store, ranked).run();
  for (Plan& plan : plans) {
    keep_evicted(store, plan);
    plan.counts.assign(plan.tiers.size(), {});
    for (size_t head = 0; head < plan.tiers.size(); ++head) {
      for (const uint8_t tier : plan.tiers[head]) ++plan.counts[head][tier];
    }
  }
  return n_unscored;
}

// Coded rows of one side and head of a block as floats, rotated if the policy says so: [n_coded,
// dim].
std::vector<float> coded_rows(const LayerStore& store, const Plan& plan, SideId side, int head) {
  const bool is_k = side == SideId::K;
  const int dim = is_k ? store.raw.shape.k_dim : store.raw.shape.v_dim;
  const half* rows = store.raw.rows(store.block(plan.slot).raw, side, head);
  std::vector<float> x(size_t(plan.n_coded) * size_t(dim));
  float* out = x.data();
  for (int row = 0; row < kBlockTokens; ++row) {
    if (plan.sinks.test(size_t(row))) continue;
    best_kernels().halves(rows + row * dim, out, dim);
    out += dim;
  }
  store.rotation(side, head).turn(x.data(), plan.n_coded, dim, dim);
  return x;
}

// What values are divided by before they are coded, in numbers that 16 bits hold; empty for none.
struct Factors {
  std::vector<float> channels, tokens;
};

Factors factors_of(const Side& side, const std::vector<float>& x, int dim) {
  if (x.empty() || !(side.channel_factors() || side.token_factors())) return {};
  const int n = int(x.size()) / dim;
  Factors factors;
  if (side.axis == Axis::Cst) {
    std::vector<half> roots(static_cast<size_t>(dim));
    cst_factors(x.data(), n, dim, roots.data());
    factors.channels.resize(roots.size());
    best_kernels().halves(roots.data(), factors.channels.data(), dim);
    return factors;
  }
  DualScale scale = dual_scale(x.data(), n, dim, side.dual);
  if (side.channel_factors()) factors.channels = std::move(scale.channels);
  if (side.token_factors()) factors.tokens = std::move(scale.tokens);
  return factors;
}

std::vector<float> divided_by(std::vector<float> x, int dim, const Factors& factors) {
  const size_t width = size_t(dim), n = x.size() / width;
  for (size_t t = 0; t < n && !factors.channels.empty(); ++t) {
    for (size_t c = 0; c < width; ++c) x[t * width + c] /= factors.channels[c];
  }
  for (size_t t = 0; t < n && !factors.tokens.empty(); ++t) {
    for (size_t c = 0; c < width; ++c) x[t * width + c] /= factors.tokens[t];
  }
  return x;
}

// Factors as 16-bit numbers, filled up with zeros to whole units of `n`; `out` is null where a side
// has none.
void store_factors(const std::vector<float>& factors, int n, half* out) {
  if (!out) return;
  std::fill_n(out, padded_to(n, kUnitRows), half{0});
  best_kernels().to_halves(factors.data(), out, int(factors.size()));
}

// The rows of x [tokens, dim] whose token's tier is wanted.
template <class Wanted>
std::vector<float> rows_where(const std::vector<float>& x, int dim,
                              const std::vector<uint8_t>& tiers, Wanted&& wanted) {
  std::vector<float> rows;
  for (size_t t = 0; t < tiers.size() && !x.empty(); ++t) {
    if (!wanted(tiers[t])) continue;
    rows.insert(rows.end(), x.begin() + ptrdiff_t(t) * dim, x.begin() + ptrdiff_t(t + 1) * dim);
  }
  return rows;
}

std::vector<float> rows_of_tier(const std::vector<float>& x, int dim,
                                const std::vector<uint8_t>& tiers, size_t tier) {
  return rows_where(x, dim, tiers, [tier](uint8_t other) { return other == tier; });
}

// All rows that are coded on the channel parameters of `tier`.
std::vector<float> rows_on_params(const PackedLayout& layout, SideId side,
                                  const std::vector<float>& x, int dim,
                                  const std::vector<uint8_t>& tiers, size_t tier) {
  return rows_where(x, dim, tiers,
                    [&](uint8_t other) { return layout.params_tier(side, other) == tier; });
}

// The numbers of a tier as its tile holds them: raw ones are not divided by factors.
const std::vector<float>& as_held(const TileShape& tile, const std::vector<float>& rows,
                                  const std::vector<float>& divided) {
  return tile.bits == 16 ? rows : divided;
}

void store_token_factors(const Factors& factors, const std::vector<uint8_t>& tiers, size_t tier,
                         const TileView& tile) {
  store_factors(rows_of_tier(factors.tokens, 1, tiers, tier), tile.shape.n_tokens,
                const_cast<half*>(tile.token_factors));
}

// Null where keys go to the nearest code.
const QueryRounding* rounding_of(std::span<const QueryRounding> roundings, int head) {
  if (roundings.empty() || !roundings[size_t(head)].known()) return nullptr;
  return &roundings[size_t(head)];
}

// Codes of rows x [n, dim] on given channel parameters; without `rounding` the nearest.
void encode_rows(const QueryRounding* rounding, const TileShape& tile, std::span<const SetFit> fits,
                 std::vector<float> x, uint8_t* codes) {
  if (rounding) rounding->round(x.data(), tile.n_tokens, fits, tile.bits);
  encode_with(tile, fits, x.data(), codes);
}

// What the parameters of a tile's sets are fitted to; `space` holds it where that is not `rows`.
const std::vector<float>& clipped(const Side& side, const TileShape& tile,
                                  const std::vector<float>& rows, std::vector<float>& space) {
  if (!side.clip.clips() || !coded(tile.bits)) return rows;
  space = rows;
  clip_sets(side, tile.dim, space);
  return space;
}

// Each channel of the tile has affine parameters over all tokens.
bool fitted_by_channel(const TileShape& tile) {
  return tile.axis == Axis::Channel && tile.codec == Codec::Affine && coded(tile.bits);
}

// Channel parameters over `rows`, stored with the tile; none without rows.
std::vector<SetFit> fit_tier(const std::vector<float>& rows, const TileView& tile, Fit fit) {
  if (rows.empty()) return {};
  const int dim = tile.shape.dim;
  auto fits = fit_channels(rows.data(), int(rows.size()) / dim, dim, tile.shape.bits, fit);
  store_params(fits, const_cast<half*>(tile.params));
  return fits;
}

void encode_side(const LayerStore& store, SideId side, const QueryRounding* rounding,
                 const PackedSide& out, const std::vector<float>& x,
                 const std::vector<uint8_t>& tiers) {
  const Policy& policy = store.packed.policy();
  const Side& spec = side == SideId::K ? policy.k : policy.v;
  const int dim = out.tiers[0].shape.dim;
  const Factors factors = factors_of(spec, x, dim);
  store_factors(factors.channels, dim, out.factors);
  const std::vector<float> divided = divided_by(x, dim, factors);
  std::vector<float> space;
  std::vector<SetFit> fits;
  for (size_t tier = 0; tier < policy.tiers.size(); ++tier) {
    const TileView& tile = out.tiers[tier];
    auto* params = const_cast<half*>(tile.params);
    if (fitted_by_channel(tile.shape) && store.packed.params_tier(side, tier) == tier)
      fits = fit_tier(clipped(spec, tile.shape,
                              rows_on_params(store.packed, side, divided, dim, tiers, tier), space),
                      tile, spec.fit);
    auto rows = rows_of_tier(as_held(tile.shape, x, divided), dim, tiers, tier);
    auto* codes = const_cast<uint8_t*>(tile.codes);
    store_token_factors(factors, tiers, tier, tile);
    if (!fitted_by_channel(tile.shape))
      encode_tile(tile.shape, spec.fit, clipped(spec, tile.shape, rows, space).data(), codes,
                  params);
    else if (!rows.empty())
      encode_rows(rounding, tile.shape, fits, std::move(rows), codes);
    if (tile.low_rank) store_low_rank(tile, rows_of_tier(x, dim, tiers, tier));
  }
}

// One ranking's blocks with channel parameters and factors over all of them.
void encode_side_shared(const LayerStore& store, SideId side, const QueryRounding* rounding,
                        int head, std::vector<Plan>& plans, uint8_t* set) {
  const Policy& policy = store.packed.policy();
  const Side& spec = side == SideId::K ? policy.k : policy.v;
  std::vector<std::vector<float>> x;
  std::vector<PackedSide> out;
  std::vector<float> all, space;
  for (const Plan& plan : plans) {
    const PackedHead packed =
        store.packed.head(plan.result.packed, head, plan.n_coded, int(plan.sinks.count()), set);
    out.push_back(side == SideId::K ? packed.k : packed.v);
    x.push_back(coded_rows(store, plan, side, head));
    all.insert(all.end(), x.back().begin(), x.back().end());
  }
  const int dim = out[0].tiers[0].shape.dim;
  const Factors factors = factors_of(spec, all, dim);
  store_factors(factors.channels, dim, out[0].factors);
  std::vector<Factors> own(plans.size(), factors);
  std::vector<std::vector<float>> divided;
  auto next = factors.tokens.begin();
  for (size_t b = 0; b < plans.size(); ++b) {
    if (!factors.tokens.empty()) own[b].tokens.assign(next, next + plans[b].n_coded);
    next += factors.tokens.empty() ? 0 : plans[b].n_coded;
    divided.push_back(divided_by(x[b], dim, own[b]));
  }
  std::vector<SetFit> fits;
  for (size_t tier = 0; tier < policy.tiers.size(); ++tier) {
    const TileView& first = out[0].tiers[tier];
    const bool common = fitted_by_channel(first.shape);
    if (common && store.packed.params_tier(side, tier) == tier) {
      all.clear();
      for (size_t b = 0; b < plans.size(); ++b) {
        const auto rows =
            rows_on_params(store.packed, side, divided[b], dim, plans[b].tiers[size_t(head)], tier);
        all.insert(all.end(), rows.begin(), rows.end());
      }
      fits = fit_tier(clipped(spec, first.shape, all, space), first, spec.fit);
    }
    for (size_t b = 0; b < plans.size(); ++b) {
      const TileView& tile = out[b].tiers[tier];
      const auto& tiers = plans[b].tiers[size_t(head)];
      store_token_factors(own[b], tiers, tier, tile);
      auto rows = rows_of_tier(as_held(tile.shape, x[b], divided[b]), dim, tiers, tier);
      auto* codes = const_cast<uint8_t*>(tile.codes);
      if (!common)
        encode_tile(tile.shape, spec.fit, clipped(spec, tile.shape, rows, space).data(), codes,
                    const_cast<half*>(tile.params));
      else if (!rows.empty())
        encode_rows(rounding, tile.shape, fits, std::move(rows), codes);
      if (tile.low_rank) store_low_rank(tile, rows_of_tier(x[b], dim, tiers, tier));
    }
  }
}

void store_sinks(const LayerStore& store, const Plan& plan, int head, const PackedHead& packed) {
  const LayerShape& shape = store.raw.shape;
  uint8_t* raw = store.block(plan.slot).raw;
  int sink = 0;
  for (int row = 0; row < kBlockTokens; ++row) {
    if (!plan.sinks.test(size_t(row))) continue;
    std::copy_n(store.raw.k(raw, head) + row * shape.k_dim, shape.k_dim,
                packed.k_sinks + sink * shape.k_dim);
    std::copy_n(store.raw.v(raw, head) + row * shape.v_dim, shape.v_dim,
                packed.v_sinks + sink * shape.v_dim);
    ++sink;
  }
}

void store_tags(const Plan& plan, int head, int n_tiers, uint8_t* tags) {
  if (!tags) return;
  std::memset(tags, 0, size_t(tag_planes(n_tiers)) * kBlockTokens / 8);
  size_t token = 0;
  for (int row = 0; row < kBlockTokens; ++row) {
    if (plan.sinks.test(size_t(row))) continue;
    set_tags(tags, n_tiers, row, plan.tiers[size_t(head)][token++]);
  }
}

// What a packed head holds beside the codes of both sides.
void store_rest(const LayerStore& store, const Plan& plan, int head, const PackedHead& packed) {
  store_tags(plan, head, packed.n_tiers, packed.tags);
  store_sinks(store, plan, head, packed);
}

PackedHead packed_head(const LayerStore& store, const Plan& plan, int head, uint8_t* set) {
  return store.packed.head(plan.result.packed, head, plan.n_coded, int(plan.sinks.count()), set);
}

// Keys or values of one head of one block that has parameters of its own; with the keys the rest.
void encode_head(const PackJob& job, const LayerStore& store, const Plan& plan, int head,
                 SideId side) {
  const PackedHead packed = packed_head(store, plan, head, nullptr);
  const bool is_k = side == SideId::K;
  if (is_k) store_rest(store, plan, head, packed);
  encode_side(store, side, is_k ? rounding_of(job.roundings, head) : nullptr,
              is_k ? packed.k : packed.v, coded_rows(store, plan, side, head),
              plan.tiers[size_t(head)]);
}

// The same of all blocks, which share the parameters in `set`.
void encode_head_shared(const PackJob& job, const LayerStore& store, std::vector<Plan>& plans,
                        int head, SideId side, uint8_t* set) {
  const bool is_k = side == SideId::K;
  for (const Plan& plan : plans) {
    if (is_k) store_rest(store, plan, head, packed_head(store, plan, head, set));
  }
  encode_side_shared(store, side, is_k ? rounding_of(job.roundings, head) : nullptr, head, plans,
                     set);
}

// Codes all blocks: a task for each side of each head, of each block where they share nothing.
void encode(const PackJob& job, const LayerStore& store, std::vector<Plan>& plans, uint8_t* set) {
  const int n_heads = store.raw.shape.n_heads;
  const int n_blocks = set ? 1 : int(plans.size());
  parallel_for(job.n_threads, 2 * n_heads * n_blocks, [&](int task, int) {
    const SideId side = task % 2 ? SideId::V : SideId::K;
    const int head = task / 2 % n_heads;
    if (set)
      encode_head_shared(job, store, plans, head, side, set);
    else
      encode_head(job, store, plans[size_t(task / 2 / n_heads)], head, side);
  });
}

// Takes the storage of all plans, or none.
Status take_storage(const PackJob& job, LayerStore& store, Arena& arena, std::vector<Plan>& plans,
                    SharedSet& set) {
  bool complete = true;
  if (job.shared) {
    set.bytes = store.packed.shared_bytes();
    set.piece = arena.take(set.bytes);
    complete = set.piece != nullptr;
    if (complete) std::memset(set.piece, 0, set.bytes);
  }
  for (Plan& plan : plans) {
    StoredBlock& result = plan.result;
    result.n_coded = plan.n_coded;
    result.sinks = plan.sinks;
    result.bytes = store.packed.bytes(plan.counts, int(plan.sinks.count()), job.shared);
    result.packed = complete ? arena.take(result.bytes.total) : nullptr;
    complete = complete && result.packed;
    if (result.packed) {
      store.packed.begin(result.packed, plan.counts, int(plan.sinks.count()), job.shared);
    }
  }
  if (complete) return ok();
  for (Plan& plan : plans) arena.give(plan.result.packed, plan.result.bytes.total);
  arena.give(set.piece, set.bytes);
  return {Code::OverLimit,
          "cache storage is used up while packing; create the cache with more cells"};
}

}  // namespace

std::vector<QueryRounding> key_roundings(const LayerStore& store, int n_threads) {
  std::vector<QueryRounding> roundings(store.moments.size());
  parallel_for(n_threads, int(roundings.size()), [&](int head, int) {
    const QueryMoment& moment = store.moments[size_t(head)];
    if (moment.known()) roundings[size_t(head)] = QueryRounding(moment);
  });
  return roundings;
}

Result<PackOutcome> pack_blocks(const PackJob& job, const StreamLog& log, LayerStore& store,
                                Arena& arena) {
  std::vector<Plan> plans;
  for (const int slot : job.slots) {
    if (!store.raw_for_write(slot, arena))
      return Status{Code::OverLimit, "cache storage is used up"};
    Plan plan;
    plan.slot = slot;
    plan.sinks = log.block(slot).sinks;
    plan.n_coded = kBlockTokens - int(plan.sinks.count());
    plans.push_back(std::move(plan));
  }
  PackOutcome outcome;
  outcome.unscored_blocks = decide_tiers(job, log, store, plans);
  SharedSet set;
  ZC_TRY(take_storage(job, store, arena, plans, set));
  encode(job, store, plans, set.piece);
  const int shared = job.shared ? store.add_shared(set) : -1;
  for (Plan& plan : plans) {
    plan.result.shared = shared;
    store.become_packed(plan.slot, plan.result, arena);
  }
  return outcome;
}

namespace {

void turn_halves(half* key, int dim, int32_t by, const KeyTurn& turn) {
  if (by == 0) return;
  std::vector<float> row(static_cast<size_t>(dim));
  std::transform(key, key + dim, row.begin(), to_float);
  turn.apply(row.data(), 1, dim, by);
  std::transform(row.begin(), row.end(), key, finite_half);
}

// Codes the keys of a head anew from rows [token, k_dim].
void recode_head(LayerStore& store, int slot, int head, const QueryRounding* rounding,
                 const float* rows) {
  const StoredBlock& stored = store.block(slot);
  const int dim = store.raw.shape.k_dim;
  const PackedHead packed = store.head(slot, head);
  std::vector<float> x;
  std::vector<uint8_t> tiers;
  half* sink = packed.k_sinks;
  for (int row = 0; row < kBlockTokens; ++row) {
    const float* from = rows + row * dim;
    if (stored.sinks.test(size_t(row))) {
      sink = std::transform(from, from + dim, sink, finite_half);
      continue;
    }
    x.insert(x.end(), from, from + dim);
    tiers.push_back(uint8_t(packed.tier_of(row)));
  }
  store.rotation(SideId::K, head).turn(x.data(), stored.n_coded, dim, dim);
  encode_side(store, SideId::K, rounding, packed.k, x, tiers);
}

}  // namespace

void turn_raw_keys(const LayerStore& store, const StoredBlock& stored, const RowShifts& by,
                   const KeyTurn& turn) {
  const int dim = store.raw.shape.k_dim;
  for (int head = 0; head < store.raw.shape.n_heads; ++head) {
    half* key = store.raw.k(stored.raw, head);
    for (int row = 0; row < kBlockTokens; ++row, key += dim)
      turn_halves(key, dim, by[size_t(row)], turn);
  }
}

void turn_sinks(const LayerStore& store, int slot, const RowShifts& by, const KeyTurn& turn) {
  const BlockBits& sinks = store.block(slot).sinks;
  const int dim = store.raw.shape.k_dim;
  for (int head = 0; sinks.any() && head < store.raw.shape.n_heads; ++head) {
    half* key = store.head(slot, head).k_sinks;
    for (int row = 0; row < kBlockTokens; ++row) {
      if (!sinks.test(size_t(row))) continue;
      turn_halves(key, dim, by[size_t(row)], turn);
      key += dim;
    }
  }
}

void recode_keys(LayerStore& store, int slot, const RowShifts& by, const KeyTurn& turn,
                 std::span<const QueryRounding> roundings) {
  const int dim = store.raw.shape.k_dim, n_heads = store.raw.shape.n_heads;
  std::vector<float> keys(size_t(kBlockTokens) * size_t(dim));
  for (int head = 0; head < n_heads; ++head) {
    decode_rows(store, slot, SideId::K, head, kBlockTokens, keys.data());
    for (int row = 0; row < kBlockTokens; ++row) {
      if (by[size_t(row)] != 0) turn.apply(&keys[size_t(row * dim)], 1, dim, by[size_t(row)]);
    }
    recode_head(store, slot, head, rounding_of(roundings, head), keys.data());
  }
  store.block(slot).turns = {};
}

}  // namespace zipcache
