// The work of `zipcache bench model`.
#include "model_bench.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <iterator>
#include <utility>

#include "interrupt.hpp"

namespace zipcache::cli {

namespace {

using Clock = std::chrono::steady_clock;

constexpr const char* kReference = "llama:f16";

// What a token alone costs the progress bar; a token among many costs 1.
constexpr int64_t kSingleToken = 8;

int64_t work_of(const SpeedTest& test) { return test.n_prompt + kSingleToken * test.n_gen; }

// Drops what follows the first `depth` tokens. A cache of ours is not told by llama.cpp: its rows
// stay, seen by no query, until their cells are written again.
Status rewind(llama_context* context, int depth) {
  llama_memory_t memory = llama_get_memory(context);
  if (depth == 0) {
    llama_memory_clear(memory, true);
    return ok();
  }
  if (llama_memory_seq_rm(memory, 0, depth, -1)) return ok();
  return {Code::Incompatible,
          fmt::format("the model's cache cannot drop the tokens after position {}; expected one "
                      "of keys and values, which can; use -d 0",
                      depth)};
}

CacheTime shares_of(const CacheTime& before, const CacheTime& after, double seconds) {
  return {(after.attention - before.attention) / seconds,
          (after.scoring - before.scoring) / seconds, (after.packing - before.packing) / seconds};
}

void add_ratios(std::vector<ModelBenchRow>& rows) {
  const auto reference = std::find_if(
      rows.begin(), rows.end(), [](const ModelBenchRow& row) { return row.policy == kReference; });
  if (reference == rows.end()) return;
  for (ModelBenchRow& row : rows) row.vs_llama_f16 = ratio_over_rounds(row.tps, reference->tps);
}

}  // namespace

int ModelBenchPlan::most_tokens() const {
  int most = 0;
  for (const std::vector<int>* lengths : {&n_prompt, &n_gen})
    for (const int n : *lengths) most = std::max(most, n);
  return most + *std::max_element(depth.begin(), depth.end());
}

ModelBench::ModelBench(const Engines& engines, const ModelFile& about, ModelBenchPlan plan,
                       std::vector<llama_token> tokens)
    : engines_(engines), about_(about), plan_(std::move(plan)), tokens_(std::move(tokens)) {}

int64_t ModelBench::work(std::span<const PolicyChoice> choices) const {
  int64_t total = 0;
  for (const int depth : plan_.depth) {
    total += depth;
    for (const SpeedTest& test : tests_at(depth, plan_.n_prompt, plan_.n_gen))
      total += (plan_.reps + 1) * work_of(test);
  }
  return total * static_cast<int64_t>(choices.size());
}

Status ModelBench::run(std::span<const PolicyChoice> choices) {
  Progress progress(work(choices));
  for (const int depth : plan_.depth) {
    ZC_TRY(run_depth(depth, choices, progress));
    if (interrupted()) break;
  }
  return ok();
}

Status ModelBench::run_depth(int depth, std::span<const PolicyChoice> choices, Progress& progress) {
  const std::vector<SpeedTest> tests = tests_at(depth, plan_.n_prompt, plan_.n_gen);
  ZC_TRY(open(depth + tests.back().tokens(), choices));
  ZC_TRY(fill(depth, progress));
  const auto first = static_cast<ptrdiff_t>(rows_.size());
  for (const SpeedTest& test : tests) {
    if (interrupted()) break;
    progress.stage(fmt::format("{}, {} policies", name_of(test), contenders_.size()));
    ZC_TRY(measure(test, progress));
  }
  std::stable_partition(rows_.begin() + first, rows_.end(),
                        [](const ModelBenchRow& row) { return row.test.n_prompt > 0; });
  return ok();
}

Status ModelBench::open(int n_ctx, std::span<const PolicyChoice> choices) {
  contenders_.clear();
  for (const PolicyChoice& choice : choices) {
    Result<PolicyContext> opened = open_policy_context(
        engines_, choice, {.n_ctx = n_ctx, .n_ubatch = plan_.ubatch, .n_threads = plan_.threads});
    if (!opened.ok()) return opened.status();
    contenders_.push_back(std::move(*opened));
  }
  return ok();
}

Status ModelBench::fill(int depth, Progress& progress) {
  const std::span<const llama_token> tokens(tokens_);
  for (const PolicyContext& contender : contenders_) {
    if (depth > 0)
      progress.stage(fmt::format("filling to depth {}: {}", depth, contender.choice.text));
    for (int at = 0; at < depth; at += plan_.ubatch) {
      if (interrupted()) return ok();
      const int n = std::min(plan_.ubatch, depth - at);
      ZC_TRY(decode(contender.context.get(), tokens.subspan(at, n), at, n));
      progress.step(n);
    }
  }
  return ok();
}

// Round after round, each begun by another contender, so that a disturbance of the machine meets
// all of them; the first round warms up.
Status ModelBench::measure(const SpeedTest& test, Progress& progress) {
  const size_t n = contenders_.size();
  std::vector<ModelBenchRow> rows(n);
  for (size_t i = 0; i < n; ++i) {
    rows[i].test = test;
    rows[i].policy = contenders_[i].choice.text;
    rows[i].kernel = contenders_[i].choice.ours() ? "zipcache" : "ggml";
  }
  for (int round = 0; round <= plan_.reps && !interrupted(); ++round) {
    for (size_t i = 0; i < n; ++i) {
      const size_t turn = (i + size_t(round)) % n;
      const PolicyContext& contender = contenders_[turn];
      // First, since a cache that is cleared forgets its times.
      ZC_TRY(rewind(contender.context.get(), test.depth));
      const auto before = read_cache(engines_, contender, about_, test.depth);
      if (!before.ok()) return before.status();
      const auto seconds = seconds_of(contender.context.get(), test);
      if (!seconds.ok()) return seconds.status();
      if (!*seconds) break;
      progress.step(work_of(test));
      if (round == 0) continue;
      rows[turn].tps.push_back(test.tokens() / **seconds);
      const auto after = read_cache(engines_, contender, about_, test.depth + test.tokens());
      if (!after.ok()) return after.status();
      rows[turn].kv_bytes = after->bytes.now;
      if (!contender.choice.ours()) continue;
      rows[turn].isa = after->kernel;
      rows[turn].shares = shares_of(before->seconds, after->seconds, **seconds);
    }
  }
  add_ratios(rows);
  std::copy_if(rows.begin(), rows.end(), std::back_inserter(rows_),
               [](const ModelBenchRow& row) { return !row.tps.empty(); });
  return ok();
}

Result<std::optional<double>> ModelBench::seconds_of(llama_context* context,
                                                     const SpeedTest& test) const {
  const int size = test.n_prompt > 0 ? plan_.ubatch : 1;
  const std::span<const llama_token> tokens(tokens_);
  const auto start = Clock::now();
  for (int done = 0; done < test.tokens(); done += size) {
    if (interrupted()) return std::optional<double>();
    const int n = std::min(size, test.tokens() - done), at = test.depth + done;
    // The last token's logits, as llama-bench asks for them.
    ZC_TRY(decode(context, tokens.subspan(at, n), at, n - 1));
  }
  return std::optional(std::chrono::duration<double>(Clock::now() - start).count());
}

}  // namespace zipcache::cli
