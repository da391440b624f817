// The work of `zipcache bench model`: one context per policy at each depth, all fed the same
// tokens, which take turns test by test.
//
// Thread safety: one thread at a time.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "engines.hpp"
#include "speed_tests.hpp"
#include "terminal.hpp"

namespace zipcache::cli {

struct ModelBenchPlan {
  std::vector<int> n_prompt, n_gen, depth;
  int reps = 1;  // measured rounds of each test; one more warms up
  int ubatch = 512;
  int threads = 1;

  // Tokens of the longest test at the greatest depth.
  int most_tokens() const;
};

// One test of one policy.
struct ModelBenchRow {
  SpeedTest test;
  std::string kernel;                  // "zipcache" or "ggml"
  std::string isa;                     // kernel set of ours
  std::string policy;                  // as the user gave it
  uint64_t kv_bytes = 0;               // of the cache when the test ended
  std::vector<double> tps;             // tokens a second, one a round
  std::optional<CacheTime> shares;     // of the last round's time, for a cache of ours
  std::optional<MeanSd> vs_llama_f16;  // over the rounds of both; none without llama:f16
};

class ModelBench {
 public:
  // `tokens` [plan.most_tokens()] are what every policy reads.
  ModelBench(const Engines& engines, const ModelFile& about, ModelBenchPlan plan,
             std::vector<llama_token> tokens);

  // Returns early, and without error, when interrupted.
  Status run(std::span<const PolicyChoice> choices);

  // What was measured, a depth after another, prompts first; a row has at least one round.
  const std::vector<ModelBenchRow>& rows() const { return rows_; }

 private:
  Status run_depth(int depth, std::span<const PolicyChoice> choices, Progress& progress);
  Status open(int n_ctx, std::span<const PolicyChoice> choices);
  Status fill(int depth, Progress& progress);
  Status measure(const SpeedTest& test, Progress& progress);
  // Seconds that `test` takes on a rewound context; nothing when interrupted.
  Result<std::optional<double>> seconds_of(llama_context* context, const SpeedTest& test) const;
  int64_t work(std::span<const PolicyChoice> choices) const;

  const Engines& engines_;
  const ModelFile& about_;
  ModelBenchPlan plan_;
  std::vector<llama_token> tokens_;
  std::vector<PolicyContext> contenders_;  // of the depth being measured
  std::vector<ModelBenchRow> rows_;
};

}  // namespace zipcache::cli
