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
};

// Aborted after an interrupt.
Result<TokenScores> measure_scores(const Engines& engines, const ModelFile& about,
                                   std::span<const llama_token> tokens, const ScorePlan& plan,
                                   Progress& progress);

}  // namespace zipcache::cli
