// What a model says behind a prompt, and how likely it finds a given answer.
//
// Thread safety: one thread at a time.
#pragma once

#include <span>
#include <string>
#include <vector>

#include "model.hpp"
#include "zipcache/status.hpp"

namespace zipcache::cli {

struct AnswerLimits {
  int most_tokens = 64;
  size_t most_characters = 0;  // 0: no limit
  std::span<const std::string> stops = {};
};

// What `context` says after the prompt, most likely token first, up to the model's end of text, the
// first stop or a limit; computed in an emptied cache. The prompt is read in micro-batches of
// `ubatch`. An interrupt cuts the answer short.
Result<std::string> answer(const llama_model* model, llama_context* context,
                           std::span<const llama_token> prompt, const AnswerLimits& limits,
                           int ubatch);

// Mean over the tokens of `reference` of the logarithm of their probability, each after the prompt
// and the true tokens before it; computed in an emptied cache. Both parts are not empty.
Result<double> log_probability(const llama_model* model, llama_context* context,
                               std::span<const llama_token> prompt,
                               std::span<const llama_token> reference, int ubatch);

}  // namespace zipcache::cli
