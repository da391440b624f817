// Attention that the tokens of one text received, in every layer and KV head: measured once over
// the whole text, kept in a file, and what `score=file:PATH` ranks by. The format is told in
// docs/formats.md.
//
// Thread safety: plain values and pure functions.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "zipcache/cache.hpp"
#include "zipcache/status.hpp"

namespace zipcache {

struct TokenScores {
  struct Layer {
    int n_heads = 0;             // KV heads
    std::vector<uint32_t> seen;  // [token] query rows that could see it
    std::vector<float> sums;     // [head, token] attention from them, over the head's query heads
    bool operator==(const Layer&) const = default;
  };
  std::vector<int32_t> tokens;  // the text, in the numbers of the model's vocabulary
  std::vector<Layer> layers;
  bool operator==(const TokenScores&) const = default;

  int n_tokens() const { return int(tokens.size()); }
};

// Both refuse scores that contradict themselves with BadData, and what cannot be read or written
// with Environment.
Result<TokenScores> load_token_scores(const std::string& path);
Status save_token_scores(const std::string& path, const TokenScores& scores);

// BadPolicy where a policy ranks by a file and names none (row kvzip).
Status check_scores_named(const Policy& policy);

// Whether they are of a model of this shape; Incompatible says where not.
Status check_fit(const TokenScores& scores, const std::vector<LayerShape>& layers);
// Whether `tokens` begin the text that was scored, or are all of it; Incompatible says where not.
Status check_text(const TokenScores& scores, std::span<const int32_t> tokens);

}  // namespace zipcache
