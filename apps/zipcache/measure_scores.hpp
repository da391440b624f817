// The attention that every token of a text receives, measured on a model with a cache that packs
// nothing.
//
// Thread safety: one thread at a time.
#pragma once

#include <optional>
#include <span>

#include "engines.hpp"
#include "terminal.hpp"
#include "zipcache/token_scores.hpp"

namespace zipcache::cli {

struct ScorePlan {
  int ubatch = 128;
  int threads = 1;
  // Only what query rows gave once the token's block had left a window of so many tokens: what a
  // policy with that `recent` reads packed. None: all query rows count, the token's own included.
  std::optional<int> packed_after = {};
  // What rows of a repetition of the text gave, in the words of KVzip: after the text the model
  // reads a request to repeat it, and the text once more. Sums are then the most that one of these
  // rows gave with one query head, and each token has been seen by one row.
  bool replay = false;
};

// Tokens that are read, for the progress: those of the text, and of its repetition.
int replay_tokens(const llama_model* model, int n_tokens);

// Aborted after an interrupt.
Result<TokenScores> measure_scores(const Engines& engines, const ModelFile& about,
                                   std::span<const llama_token> tokens, const ScorePlan& plan,
                                   Progress& progress);

}  // namespace zipcache::cli
