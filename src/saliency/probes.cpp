#include "saliency/probes.hpp"

#include <algorithm>
#include <cmath>

namespace zipcache {
namespace {

int newest_share(int n, int permille) { return std::min(n, (permille * n + 999) / 1000); }

}  // namespace

std::vector<int> choose_probes(int n, const Saliency& saliency, Random random) {
  const int n_recent = newest_share(n, saliency.recent_permille);
  const int others = n - n_recent;
  const int n_random = others > 0 ? std::min(others, saliency.random_permille * n / 1000) : 0;
  std::vector<int> rows;
  if (saliency.replacement) {
    for (int i = 0; i < n_random; ++i) rows.push_back(int(random.below(uint32_t(others))));
    std::sort(rows.begin(), rows.end());
  } else {
    rows = random.sample(others, n_random);
  }
  for (int row = others; row < n; ++row) rows.push_back(row);
  return rows;
}

std::bitset<kBlockTokens> choose_decode_probes(const Saliency& saliency, Random random) {
  std::bitset<kBlockTokens> rows;
  if (saliency.decode == DecodeProbes::Last) return rows.set(kBlockTokens - 1);
  for (const int row : choose_probes(kBlockTokens, saliency, random)) rows.set(size_t(row));
  return rows;
}

float normalized_score(float sum, uint32_t probes_seen, uint32_t rows_seen, Norm norm) {
  if (probes_seen == 0) return INFINITY;
  switch (norm) {
    case Norm::ProbeNnz:
      return sum / static_cast<float>(probes_seen);
    case Norm::FullCausal:
      return sum / static_cast<float>(std::max(rows_seen, probes_seen));
    case Norm::None:
      break;
  }
  return sum;
}

float score_deviation(float sum, float squares, uint32_t probes_seen) {
  if (probes_seen == 0) return 0;
  const float n = static_cast<float>(probes_seen), mean = sum / n;
  return std::sqrt(std::max(0.0f, squares / n - mean * mean));
}

std::vector<float> keep_uncertain(std::vector<float> scores, const std::vector<float>& deviations,
                                  int n_kept) {
  const std::vector<uint8_t> tiers = allocate(deviations, std::span(&n_kept, 1));
  for (size_t i = 0; i < scores.size(); ++i) {
    if (tiers[i] == 0) scores[i] = INFINITY;
  }
  return scores;
}

std::vector<float> pooled_scores(const std::vector<float>& scores, Pool pool, int width) {
  if (width == 1) return scores;
  const int n = int(scores.size()), reach = width / 2;
  std::vector<float> out = scores;
  for (int i = 0; i < n; ++i) {
    if (std::isinf(scores[size_t(i)])) continue;
    float sum = 0, largest = scores[size_t(i)];
    int count = 0;
    for (int j = std::max(0, i - reach); j <= std::min(n - 1, i + reach); ++j) {
      const float score = scores[size_t(j)];
      if (std::isinf(score)) continue;
      sum += score;
      largest = std::max(largest, score);
      ++count;
    }
    out[size_t(i)] = pool == Pool::Max ? largest : sum / static_cast<float>(count);
  }
  return out;
}

}  // namespace zipcache
