// The work of `zipcache compare` and `zipcache eval kld`: one context per policy, all fed the same
// micro-batches in lock-step, so that only one micro-batch of reference logits exists at a time.
//
// Thread safety: one thread at a time; scoring uses threads of its own inside a call.
#pragma once

#include <algorithm>
#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "chunks.hpp"
#include "engines.hpp"
#include "interrupt.hpp"
#include "report.hpp"
#include "terminal.hpp"

namespace zipcache::cli {

// The policy that the others are held against.
inline constexpr const char* kReference = "f16";

struct ComparisonPlan {
  ChunkPlan chunks;
  int threads = 1;
  int decode_tokens = 0;  // generated after the last chunk to time decoding
  int depth_bin = 512;    // tokens of a bin of depth
};

// The tokens of chunk `index`; llama-perplexity puts the beginning-of-text token first, so does
// this.
std::vector<llama_token> chunk_tokens(std::span<const llama_token> tokens, const ChunkPlan& plan,
                                      int index, const llama_vocab* vocab);

class Comparison {
 public:
  // `engines` outlive it.
  Comparison(const Engines& engines, ModelFile file, const ComparisonPlan& plan);

  // Adds the reference and then the choices; the answer is the place of each choice. The reference
  // is not run twice when it is among them.
  Result<std::vector<size_t>> add_policies(std::span<const PolicyChoice> choices);

  // Touches all weights once in every context, so that the first timed step does not pay for it.
  Status warm_up(std::span<const llama_token> tokens);

  // Empties all caches and runs `tokens` [ctx]. Returns early, and without error, when interrupted.
  Status run_chunk(std::span<const llama_token> tokens, Progress& progress);

  // Empties all caches, reads `prompt` and goes on with `n` tokens, each chosen by `choose` from
  // the reference's logits: the same for all policies, which read them one at a time, as in
  // generation. The plan's chunk has room for all. Appends the new tokens to `stream`; fewer after
  // an interrupt.
  using Choose = std::function<llama_token(std::span<const float> logits)>;
  Status generate(std::span<const llama_token> prompt, int n, const Choose& choose,
                  std::vector<llama_token>& stream, Progress& progress);

  // Reads the bytes of all caches, as they are now.
  Status read_caches();

  // Generates `decode_tokens` tokens with each policy, most likely token first; needs a whole
  // chunk.
  Status time_decode(Progress& progress);

  size_t n_policies() const { return sessions_.size(); }
  size_t tokens_scored() const { return sessions_.front().divergence.tokens(); }
  CompareRow row(size_t policy, bool partial) const;

 private:
  struct Session : PolicyContext {
    explicit Session(PolicyContext opened, int depth_bin)
        : PolicyContext(std::move(opened)), by_depth(depth_bin) {}
    Divergence divergence = {};
    DivergenceByDepth by_depth;
    double prompt_seconds = 0;
    int64_t prompt_tokens = 0;
    std::optional<double> decode_tps = {};
    CompareRow row = {};                     // what is known about the cache
    std::optional<TokenScores> scores = {};  // that the policy ranks by
  };

  Status add(const PolicyChoice& choice);
  Status check_score_files(std::span<const llama_token> tokens) const;
  Status run_micro_batch(std::span<const llama_token> chunk, const MicroBatch& batch);
  Status decode_all(std::span<const llama_token> tokens, const MicroBatch& batch);
  void score(std::span<const llama_token> chunk, const MicroBatch& batch);
  std::span<const float> logits(const Session& session, int output) const;

  const Engines& engines_;
  ModelFile file_;
  ChunkPlan plan_;
  int threads_;
  int decode_tokens_;
  int depth_bin_;
  size_t n_vocab_;
  std::vector<MicroBatch> micro_batches_;
  std::vector<Session> sessions_;  // the reference first
  int position_ = 0;               // tokens in the caches
};

// Runs `choices` beside the reference over `chunks`, each of plan.chunks.ctx tokens; `stage` is
// told the number of each chunk that begins. One row for each choice; none after an interrupt.
Result<std::vector<CompareRow>> compare_over(const Engines& engines, const ModelFile& about,
                                             const ComparisonPlan& plan,
                                             std::span<const std::vector<llama_token>> chunks,
                                             std::span<const PolicyChoice> choices,
                                             Progress& progress,
                                             const std::function<void(size_t chunk)>& stage);

// Calls `visit` with each part of `choices`, at most `together` of them, until an interrupt.
template <class Visit>
Status for_groups(std::span<const PolicyChoice> choices, size_t together, const Visit& visit) {
  for (size_t first = 0; first < choices.size(); first += together) {
    ZC_TRY(visit(choices.subspan(first, std::min(together, choices.size() - first))));
    if (interrupted()) break;
  }
  return ok();
}

// How many caches are filled for `choices` beside the reference, the reference included.
int64_t caches_of(std::span<const PolicyChoice> choices);

}  // namespace zipcache::cli
