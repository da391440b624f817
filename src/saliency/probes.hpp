// Which query rows score the tokens before them (paper, section 4.2 and Table 2; decisions A2, A3,
// A9). Pure functions, thread-safe.
#pragma once

#include <bitset>
#include <vector>

#include "base/random.hpp"
#include "zipcache/policy.hpp"

namespace zipcache {

// Probe rows of a chunk of `n` rows, ascending: the newest ceil(recent share), and floor(random
// share) of the others. A row drawn twice (Saliency::replacement) stands twice.
std::vector<int> choose_probes(int n, const Saliency& saliency, Random random);

// Rows of a block, by their place in it, that score when tokens come one or a few at a time.
std::bitset<kBlockTokens> choose_decode_probes(const Saliency& saliency, Random random);

// Score of a token: `sum` of the attention that probes gave it, over `probes_seen` probe rows and
// `rows_seen` rows of any kind that could see it. A token that no probe saw has no score: infinity,
// so that it is not demoted for lack of evidence.
float normalized_score(float sum, uint32_t probes_seen, uint32_t rows_seen, Norm norm);

// Spread of what the probes gave a token, from the sum over them of its square: the standard
// deviation over the probe rows that could see it. 0 for a token that none saw.
float score_deviation(float sum, float squares, uint32_t probes_seen);

// The scores [n] with those of the `n_kept` largest deviations raised to infinity, so that they are
// kept whatever their score (RoCo). Of equal deviations the later token is kept.
std::vector<float> keep_uncertain(std::vector<float> scores, const std::vector<float>& deviations,
                                  int n_kept);

// Each score [n] merged with those of its (width - 1) / 2 neighbours on either side, as far as
// there are any. Tokens without a score keep infinity and lend it to nobody.
std::vector<float> pooled_scores(const std::vector<float>& scores, Pool pool, int width);

}  // namespace zipcache
