// The attention that every token of a text receives.
#include "measure_scores.hpp"

#include <fmt/format.h>

#include <algorithm>

#include "interrupt.hpp"

namespace zipcache::cli {

namespace {

// Two tiers, so that scores are kept; every row a probe; a window that nothing ever leaves.
PolicyChoice keeps_all(int n_tokens, std::string_view score = "mean") {
  return {fmt::format("zipcache,probes=100+0,score={},recent={}", score, n_tokens), ""};
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

// Decodes tokens at positions `first` and on, in micro-batches; after_each(tokens so far) may fail.
template <class AfterEach>
Status read(llama_context* context, std::span<const llama_token> tokens, int first, int ubatch,
            Progress& progress, AfterEach&& after_each) {
  const int total = static_cast<int>(tokens.size());
  for (int at = 0; at < total; at += ubatch) {
    if (interrupted()) return {Code::Aborted, "interrupted; no scores were written"};
    const int n = std::min(ubatch, total - at);
    ZC_TRY(decode(context, tokens.subspan(at, n), first + at, n));
    progress.step(n);
    ZC_TRY(after_each(at + n));
  }
  return ok();
}

Status read(llama_context* context, std::span<const llama_token> tokens, int first, int ubatch,
            Progress& progress) {
  return read(context, tokens, first, ubatch, progress, [](int) { return ok(); });
}

// A request as KVzip makes it.
std::vector<llama_token> request(const llama_model* model) {
  return tokenise(model, "\n\nRepeat the previous context exactly:\n\n", false, false);
}

// A context that holds what another one has read, as 16-bit rows that nobody has looked at.
Status copy_rows(llama_context* from, llama_context* to) {
  std::vector<uint8_t> state(llama_state_seq_get_size(from, 0));
  const size_t n = llama_state_seq_get_data(from, state.data(), state.size(), 0);
  if (n > 0 && llama_state_seq_set_data(to, state.data(), n, 0) > 0) return ok();
  return {Code::Internal, "what the model read could not be copied from one cache to another"};
}

Result<TokenScores> measure_replay(const Engines& engines, const ModelFile& about,
                                   std::span<const llama_token> tokens, const ScorePlan& plan,
                                   Progress& progress) {
  const int n_text = static_cast<int>(tokens.size());
  std::vector<llama_token> again = request(engines.served.get());
  again.insert(again.end(), tokens.begin(), tokens.end());
  ContextOptions options{.n_ctx = n_text, .n_ubatch = plan.ubatch, .n_threads = plan.threads};
  const Result<PolicyContext> first = open_policy_context(engines, {"f16", ""}, options);
  if (!first.ok()) return first.status();
  ZC_TRY(read(first->context.get(), tokens, 0, plan.ubatch, progress));
  options.n_ctx += static_cast<int>(again.size());
  const Result<PolicyContext> second =
      open_policy_context(engines, keeps_all(options.n_ctx, "max"), options);
  if (!second.ok()) return second.status();
  ZC_TRY(check_layers(engines, second->cache_id, about));
  ZC_TRY(copy_rows(first->context.get(), second->context.get()));
  ZC_TRY(read(second->context.get(), again, n_text, plan.ubatch, progress));
  auto layers = engines.backend.scores(second->cache_id, about.layers, n_text);
  if (!layers.ok()) return layers.status();
  for (TokenScores::Layer& layer : *layers) std::fill(layer.seen.begin(), layer.seen.end(), 1);
  return TokenScores{{tokens.begin(), tokens.end()}, std::move(*layers)};
}

}  // namespace

int replay_tokens(const llama_model* model, int n_tokens) {
  return 2 * n_tokens + static_cast<int>(request(model).size());
}

Result<TokenScores> measure_scores(const Engines& engines, const ModelFile& about,
                                   std::span<const llama_token> tokens, const ScorePlan& plan,
                                   Progress& progress) {
  if (plan.replay) return measure_replay(engines, about, tokens, plan, progress);
  const int total = static_cast<int>(tokens.size());
  const Result<PolicyContext> opened =
      open_policy_context(engines, keeps_all(total),
                          {.n_ctx = total, .n_ubatch = plan.ubatch, .n_threads = plan.threads});
  if (!opened.ok()) return opened.status();
  ZC_TRY(check_layers(engines, opened->cache_id, about));
  Before before;
  const auto keep_due = [&](int n_read) {
    const size_t n_due = plan.packed_after ? packed_tokens(n_read, *plan.packed_after) : 0;
    if (n_due <= before.n_tokens) return ok();
    const auto now = engines.backend.scores(opened->cache_id, about.layers, n_read);
    if (!now.ok()) return now.status();
    keep(*now, n_read, n_due, tokens.size(), before);
    return ok();
  };
  ZC_TRY(read(opened->context.get(), tokens, 0, plan.ubatch, progress, keep_due));
  auto layers = engines.backend.scores(opened->cache_id, about.layers, total);
  if (!layers.ok()) return layers.status();
  if (plan.packed_after) subtract(before, tokens.size(), *layers);
  return TokenScores{{tokens.begin(), tokens.end()}, std::move(*layers)};
}

}  // namespace zipcache::cli
