// The work of `zipcache compare`.
#include "comparison.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <thread>
#include <utility>

#include "interrupt.hpp"
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

}  // namespace

Comparison::Comparison(Engines engines, ModelFile file, ChunkPlan plan, int threads,
                       int decode_tokens)
    : engines_(std::move(engines)),
      file_(std::move(file)),
      plan_(plan),
      threads_(threads),
      decode_tokens_(decode_tokens),
      n_vocab_(llama_vocab_n_tokens(llama_model_get_vocab(engines_.served.get()))),
      micro_batches_(micro_batches(plan)) {}

Status Comparison::add(const PolicyChoice& choice) {
  // One token more than are timed: the first builds the graph of single tokens.
  Result<PolicyContext> opened =
      open_policy_context(engines_, choice,
                          {.n_ctx = plan_.ctx + (decode_tokens_ > 0 ? decode_tokens_ + 1 : 0),
                           .n_ubatch = plan_.ubatch,
                           .n_threads = threads_});
  if (!opened.ok()) return opened.status();
  Session session{std::move(*opened)};
  session.row.policy = choice.text;
  session.row.reference = sessions_.empty();
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

Status Comparison::run_chunk(std::span<const llama_token> tokens, Progress& progress) {
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
  const auto tokens = chunk.subspan(batch.begin, batch.size());
  for (Session& session : sessions_) {
    const auto start = Clock::now();
    ZC_TRY(decode(session.context.get(), tokens, batch.begin, batch.logits_from - batch.begin));
    session.prompt_seconds += seconds_since(start);
    session.prompt_tokens += batch.size();
  }
  position_ = batch.end;
  score(chunk, batch);
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
  for (size_t at = 0; at < scores.size(); ++at)
    sessions_[at % n_sessions].divergence.add(scores[at]);
}

Status Comparison::read_caches() {
  for (Session& session : sessions_) {
    session.row.cache_tokens = position_;
    session.row.kv_bytes_f16 = file_.elements_per_token() * position_ * 2;
    if (session.choice.ours()) {
      ZC_TRY(read_our_cache(session));
    } else {
      read_llama_cache(session);
    }
  }
  return ok();
}

Status Comparison::read_our_cache(Session& session) const {
  const Result<Json> cache = engines_.backend.cache(session.cache_id);
  if (!cache.ok()) return cache.status();
  CompareRow& row = session.row;
  row.bits_per_element = cache->value("bits_per_element", 0.0);
  row.ratio_params = cache->value("ratio_params", 0.0);
  row.ratio_resident = cache->value("ratio_resident", 0.0);
  row.kernel = cache->value("kernel", "");
  row.kv_bytes_f16 = cache->value("elements", uint64_t{0}) * 2;
  row.bytes = {cache->value("bytes_allocated", uint64_t{0}),
               cache->value("bytes_peak", uint64_t{0}), cache->value("bytes_planned", uint64_t{0}),
               cache->value("bytes", Json::object())};
  const Result<Policy> policy = parse_policy(session.choice.text);
  if (!policy.ok()) return policy.status();
  row.ratio_paper = paper_ratio_of(*policy, file_.layers, position_);
  return ok();
}

void Comparison::read_llama_cache(Session& session) const {
  CompareRow& row = session.row;
  const std::string& type = session.choice.llama_type;
  const uint64_t now = llama_cache_bytes(file_, type, position_);
  // llama.cpp allocates all cells when the context is made.
  const uint64_t all =
      llama_cache_bytes(file_, type, static_cast<int>(llama_n_ctx(session.context.get())));
  row.bytes = {now, all, all, Json{{"llama_cpp", now}}};
  const double ratio = static_cast<double>(row.kv_bytes_f16) / static_cast<double>(now);
  row.ratio_paper = row.ratio_params = row.ratio_resident = ratio;
  row.bits_per_element = 16 / ratio;
  row.kernel = "ggml";
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

CompareRow Comparison::row(size_t policy, bool partial) const {
  const Session& session = sessions_[policy];
  CompareRow row = session.row;
  row.partial = partial;
  row.summary = session.divergence.summary();
  row.prompt_tps = static_cast<double>(session.prompt_tokens) / session.prompt_seconds;
  row.decode_tps = session.decode_tps;
  return row;
}

}  // namespace zipcache::cli
