// The attention that every token of a text receives.
#include "measure_scores.hpp"

#include <fmt/format.h>

#include <algorithm>

#include "interrupt.hpp"

namespace zipcache::cli {

namespace {

// Two tiers, so that scores are kept; every row a probe; a window that nothing ever leaves.
PolicyChoice keeps_all(size_t n_tokens) {
  return {fmt::format("zipcache,probes=100+0,recent={}", n_tokens), ""};
}

// Layers whose cache is elsewhere, as in models with two kinds of attention, have no scores here.
Status check_layers(const Engines& engines, int64_t cache_id, const ModelFile& about) {
  const Result<Json> cache = engines.backend.cache(cache_id);
  if (!cache.ok()) return cache.status();
  const size_t n_layers = cache->value("n_layers", size_t{0});
  if (n_layers == about.layers.size()) return ok();
  return {Code::Incompatible,
          fmt::format("the cache holds {} of {} layers, expected all; scores of models with "
                      "several kinds of attention cannot be measured",
                      n_layers, about.layers.size())};
}

// What tokens had received when they were first packed, and how many blocks' tokens that is known
// of.
struct Before {
  std::vector<TokenScores::Layer> layers;
  size_t n_tokens = 0;
};

// Keeps the scores of tokens [before.n_tokens, n_due), which are packed now, from those of the
// first `n_now` tokens.
void keep(const std::vector<TokenScores::Layer>& now, size_t n_now, size_t n_due, size_t n_tokens,
          Before& before) {
  before.layers.resize(now.size());
  for (size_t l = 0; l < now.size(); ++l) {
    TokenScores::Layer& layer = before.layers[l];
    layer.seen.resize(n_tokens);
    layer.sums.resize(n_tokens * static_cast<size_t>(now[l].n_heads));
    for (size_t i = before.n_tokens; i < n_due; ++i) {
      layer.seen[i] = now[l].seen[i];
      for (int head = 0; head < now[l].n_heads; ++head)
        layer.sums[head * n_tokens + i] = now[l].sums[head * n_now + i];
    }
  }
  before.n_tokens = n_due;
}

// Leaves what came after a token was packed; tokens that never were have nothing.
void subtract(const Before& before, size_t n_tokens, std::vector<TokenScores::Layer>& layers) {
  for (size_t l = 0; l < layers.size(); ++l) {
    TokenScores::Layer& layer = layers[l];
    for (size_t i = 0; i < n_tokens; ++i) {
      const bool packed = i < before.n_tokens;
      layer.seen[i] = packed ? layer.seen[i] - before.layers[l].seen[i] : 0;
      for (size_t at = i; at < layer.sums.size(); at += n_tokens) {
        const float given = packed ? layer.sums[at] - before.layers[l].sums[at] : 0;
        layer.sums[at] = layer.seen[i] > 0 ? std::max(given, 0.0f) : 0;
      }
    }
  }
}

// Tokens in blocks that a window of `recent` has let go of after `n` tokens.
size_t packed_tokens(size_t n, int recent) {
  const size_t old = n - std::min(n, static_cast<size_t>(recent));
  return old / kBlockTokens * kBlockTokens;
}

}  // namespace

Result<TokenScores> measure_scores(const Engines& engines, const ModelFile& about,
                                   std::span<const llama_token> tokens, const ScorePlan& plan,
                                   Progress& progress) {
  const int total = static_cast<int>(tokens.size());
  const Result<PolicyContext> opened =
      open_policy_context(engines, keeps_all(tokens.size()),
                          {.n_ctx = total, .n_ubatch = plan.ubatch, .n_threads = plan.threads});
  if (!opened.ok()) return opened.status();
  ZC_TRY(check_layers(engines, opened->cache_id, about));
  Before before;
  for (int at = 0; at < total; at += plan.ubatch) {
    if (interrupted()) return Status{Code::Aborted, "interrupted; no scores were written"};
    const int n = std::min(plan.ubatch, total - at);
    ZC_TRY(decode(opened->context.get(), tokens.subspan(at, n), at, n));
    progress.step(n);
    const size_t n_due = plan.packed_after ? packed_tokens(at + n, *plan.packed_after) : 0;
    if (n_due <= before.n_tokens) continue;
    const auto now = engines.backend.scores(opened->cache_id, about.layers, at + n);
    if (!now.ok()) return now.status();
    keep(*now, at + n, n_due, tokens.size(), before);
  }
  auto layers = engines.backend.scores(opened->cache_id, about.layers, total);
  if (!layers.ok()) return layers.status();
  if (plan.packed_after) subtract(before, tokens.size(), *layers);
  return TokenScores{{tokens.begin(), tokens.end()}, std::move(*layers)};
}

}  // namespace zipcache::cli
