// Token scores with seeded numbers.
#pragma once

#include "base/random.hpp"
#include "zipcache/token_scores.hpp"

namespace zipcache::test {

// Scores of tokens 100, 101, ... that differ from each other, each token seen by all later rows.
inline TokenScores random_scores(int n_tokens, const std::vector<int>& heads, uint64_t seed = 1) {
  TokenScores scores;
  for (int i = 0; i < n_tokens; ++i) scores.tokens.push_back(100 + i);
  for (size_t l = 0; l < heads.size(); ++l) {
    TokenScores::Layer layer{heads[l], {}, {}};
    Random random(seed, l);
    for (int i = 0; i < n_tokens; ++i) layer.seen.push_back(uint32_t(n_tokens - i));
    for (int i = 0; i < n_tokens * heads[l]; ++i) layer.sums.push_back(float(random.unit()));
    scores.layers.push_back(std::move(layer));
  }
  return scores;
}

}  // namespace zipcache::test
