// The work of `zipcache compare` and `zipcache eval kld`.
#include "comparison.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <thread>
#include <utility>

#include "zipcache/policy.hpp"

namespace zipcache::cli {

namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

// Layers may follow different policies; their ratios meet as bytes do, in the harmonic mean.
double paper_ratio_of(const Policy& policy, const std::vector<LayerShape>& layers, int tokens) {
  double bits = 0;
  for (size_t layer = 0; layer < layers.size(); ++layer) {
    const Result<Policy> own = policy_for_layer(policy, static_cast<int>(layer));
    const double channels = layers[layer].n_heads * layers[layer].k_dim;
    bits += 1 / paper_ratio(own.ok() ? *own : policy, channels, tokens);
  }
  return static_cast<double>(layers.size()) / bits;
}

// The scores that a policy ranks by, if it does so by a file.
Result<std::optional<TokenScores>> scores_of(const PolicyChoice& choice,
                                             const std::vector<LayerShape>& layers) {
  if (!choice.ours()) return std::optional<TokenScores>();
  const Result<Policy> policy = parse_policy(choice.text);
  if (!policy.ok()) return policy.status();
  if (policy->saliency.statistic != Statistic::File) return std::optional<TokenScores>();
  Result<TokenScores> scores = load_token_scores(policy->saliency.file);
  if (!scores.ok()) return scores.status();
  const Status fit = check_fit(*scores, layers);
  if (!fit.ok())
    return Status{fit.code(), fmt::format("policy '{}': {}", choice.text, fit.message())};
  return std::optional<TokenScores>(std::move(*scores));
}

}  // namespace

std::vector<llama_token> chunk_tokens(std::span<const llama_token> tokens, const ChunkPlan& plan,
                                      int index, const llama_vocab* vocab) {
  const auto chosen = tokens.subspan(static_cast<size_t>(index) * plan.ctx, plan.ctx);
  std::vector<llama_token> chunk(chosen.begin(), chosen.end());
  if (llama_vocab_get_add_bos(vocab)) chunk.front() = llama_vocab_bos(vocab);
  return chunk;
}

Comparison::Comparison(const Engines& engines, ModelFile file, const ComparisonPlan& plan)
    : engines_(engines),
      file_(std::move(file)),
      plan_(plan.chunks),
      threads_(plan.threads),
      decode_tokens_(plan.decode_tokens),
      depth_bin_(plan.depth_bin),
      n_vocab_(llama_vocab_n_tokens(llama_model_get_vocab(engines_.served.get()))),
      micro_batches_(micro_batches(plan.chunks)) {}

Result<std::vector<size_t>> Comparison::add_policies(std::span<const PolicyChoice> choices) {
  ZC_TRY(add(PolicyChoice{kReference, ""}));
  std::vector<size_t> places;
  bool reference_shown = false;
  for (const PolicyChoice& choice : choices) {
    if (choice.ours() && choice.text == kReference && !reference_shown) {
      reference_shown = true;
      places.push_back(0);
      continue;
    }
    ZC_TRY(add(choice));
    places.push_back(sessions_.size() - 1);
  }
  return places;
}

Status Comparison::add(const PolicyChoice& choice) {
  Result<std::optional<TokenScores>> scores = scores_of(choice, file_.layers);
  if (!scores.ok()) return scores.status();
  // One token more than are timed: the first builds the graph of single tokens.
  Result<PolicyContext> opened =
      open_policy_context(engines_, choice,
                          {.n_ctx = plan_.ctx + (decode_tokens_ > 0 ? decode_tokens_ + 1 : 0),
                           .n_ubatch = plan_.ubatch,
                           .n_threads = threads_});
  if (!opened.ok()) return opened.status();
  Session session(std::move(*opened), depth_bin_);
  session.row.policy = choice.text;
  session.row.reference = sessions_.empty();
  session.scores = std::move(*scores);
  sessions_.push_back(std::move(session));
  return ok();
}

Status Comparison::warm_up(std::span<const llama_token> tokens) {
  for (Session& session : sessions_) {
    ZC_TRY(decode(session.context.get(), tokens.first(2), 0, 1));
    llama_memory_clear(llama_get_memory(session.context.get()), true);
  }
  return ok();
}

// The caches know no tokens: a file of another text would be ranked by without a word.
Status Comparison::check_score_files(std::span<const llama_token> tokens) const {
  for (const Session& session : sessions_) {
    if (!session.scores) continue;
    const Status fit = check_text(*session.scores, tokens);
    if (!fit.ok())
      return {fit.code(), fmt::format("policy '{}': {}", session.row.policy, fit.message())};
  }
  return ok();
}

Status Comparison::run_chunk(std::span<const llama_token> tokens, Progress& progress) {
  ZC_TRY(check_score_files(tokens));
  for (Session& session : sessions_)
    llama_memory_clear(llama_get_memory(session.context.get()), true);
  position_ = 0;
  for (const MicroBatch& batch : micro_batches_) {
    if (interrupted()) return ok();
    ZC_TRY(run_micro_batch(tokens, batch));
    progress.step(batch.size() * static_cast<int64_t>(sessions_.size()));
  }
  return ok();
}

Status Comparison::run_micro_batch(std::span<const llama_token> chunk, const MicroBatch& batch) {
  ZC_TRY(decode_all(chunk.subspan(batch.begin, batch.size()), batch));
  score(chunk, batch);
  return ok();
}

Status Comparison::decode_all(std::span<const llama_token> tokens, const MicroBatch& batch) {
  for (Session& session : sessions_) {
    const auto start = Clock::now();
    ZC_TRY(decode(session.context.get(), tokens, batch.begin, batch.logits_from - batch.begin));
    session.prompt_seconds += seconds_since(start);
    session.prompt_tokens += batch.size();
  }
  position_ = batch.end;
  return ok();
}

Status Comparison::generate(std::span<const llama_token> prompt, int n, const Choose& choose,
                            std::vector<llama_token>& stream, Progress& progress) {
  for (Session& session : sessions_)
    llama_memory_clear(llama_get_memory(session.context.get()), true);
  const int n_prompt = static_cast<int>(prompt.size());
  std::vector<llama_token> tokens(prompt.begin(), prompt.end());
  for (int at = 0; at < n_prompt && !interrupted(); at += plan_.ubatch) {
    const int end = std::min(n_prompt, at + plan_.ubatch);
    const int logits_from = end == n_prompt ? end - 1 : end;
    ZC_TRY(decode_all(prompt.subspan(at, end - at), {at, end, logits_from}));
    progress.step((end - at) * static_cast<int64_t>(sessions_.size()));
  }
  for (int i = 0; i < n && !interrupted(); ++i) {
    const int newest = n_prompt + i - 1;
    if (i > 0) ZC_TRY(decode_all({&tokens.back(), 1}, {newest, newest + 1, newest}));
    tokens.push_back(choose(logits(sessions_.front(), 0)));
    stream.push_back(tokens.back());
    score(tokens, {newest, newest + 1, newest});
    progress.step(static_cast<int64_t>(sessions_.size()));
  }
  return ok();
}

std::span<const float> Comparison::logits(const Session& session, int output) const {
  return {llama_get_logits(session.context.get()) + static_cast<size_t>(output) * n_vocab_,
          n_vocab_};
}

void Comparison::score(std::span<const llama_token> chunk, const MicroBatch& batch) {
  // Nothing follows the last position of a chunk.
  const int n_scored = std::min(batch.end, plan_.ctx - 1) - batch.logits_from;
  if (n_scored <= 0) return;
  const size_t n_sessions = sessions_.size();
  std::vector<TokenScore> scores(n_scored * n_sessions);  // [n_scored, n_sessions]
  const auto work = [&](int first) {
    Distribution reference;
    for (int i = first; i < n_scored; i += threads_) {
      softmax(logits(sessions_.front(), i), reference);
      const llama_token next = chunk[batch.logits_from + i + 1];
      for (size_t s = 0; s < n_sessions; ++s) {
        scores[i * n_sessions + s] = cli::score(reference, logits(sessions_[s], i), next);
      }
    }
  };
  {
    std::vector<std::jthread> threads;
    for (int t = 1; t < threads_; ++t) threads.emplace_back(work, t);
    work(0);
  }
  for (size_t at = 0; at < scores.size(); ++at) {
    Session& session = sessions_[at % n_sessions];
    const int position = batch.logits_from + static_cast<int>(at / n_sessions);
    session.by_depth.add(position, scores[at]);
    if (position >= plan_.total) session.divergence.add(scores[at]);
  }
}

Status Comparison::read_caches() {
  for (Session& session : sessions_) {
    const Result<CacheFigures> figures = read_cache(engines_, session, file_, position_);
    if (!figures.ok()) return figures.status();
    CompareRow& row = session.row;
    static_cast<CacheFigures&>(row) = *figures;
    row.cache_tokens = position_;
    row.ratio_paper = row.ratio_resident;
    if (!session.choice.ours()) continue;
    const Result<Policy> policy = parse_policy(session.choice.text);
    if (!policy.ok()) return policy.status();
    row.ratio_paper = paper_ratio_of(*policy, file_.layers, position_);
  }
  return ok();
}

Status Comparison::time_decode(Progress& progress) {
  const int last = micro_batches_.back().n_logits() - 1;
  for (Session& session : sessions_) {
    llama_token token = most_likely(logits(session, last));
    Clock::time_point start = Clock::now();
    for (int i = 0; i <= decode_tokens_; ++i) {
      if (interrupted()) return ok();
      if (i == 1) start = Clock::now();
      ZC_TRY(decode(session.context.get(), {&token, 1}, plan_.ctx + i, 0));
      token = most_likely(logits(session, 0));
      progress.step();
    }
    session.decode_tps = decode_tokens_ / seconds_since(start);
  }
  return ok();
}

Result<std::vector<CompareRow>> compare_over(const Engines& engines, const ModelFile& about,
                                             const ComparisonPlan& plan,
                                             std::span<const std::vector<llama_token>> chunks,
                                             std::span<const PolicyChoice> choices,
                                             Progress& progress,
                                             const std::function<void(size_t chunk)>& stage) {
  Comparison comparison(engines, about, plan);
  const auto places = comparison.add_policies(choices);
  if (!places.ok()) return places.status();
  for (size_t chunk = 0; chunk < chunks.size(); ++chunk) {
    stage(chunk);
    ZC_TRY(comparison.run_chunk(chunks[chunk], progress));
    if (interrupted()) return std::vector<CompareRow>{};
  }
  ZC_TRY(comparison.read_caches());
  std::vector<CompareRow> rows;
  for (const size_t place : *places) rows.push_back(comparison.row(place, false));
  return rows;
}

int64_t caches_of(std::span<const PolicyChoice> choices) {
  return 1 + std::count_if(choices.begin(), choices.end(), [](const PolicyChoice& choice) {
           return !choice.ours() || choice.text != kReference;
         });
}

CompareRow Comparison::row(size_t policy, bool partial) const {
  const Session& session = sessions_[policy];
  CompareRow row = session.row;
  row.partial = partial;
  row.summary = session.divergence.summary();
  row.by_depth = session.by_depth.summary();
  row.prompt_tps = static_cast<double>(session.prompt_tokens) / session.prompt_seconds;
  row.decode_tps = session.decode_tps;
  return row;
}

}  // namespace zipcache::cli
