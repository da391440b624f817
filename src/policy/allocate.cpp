// Which tokens get which tier: pure functions of scores and shares.
#include <algorithm>
#include <numeric>

#include "zipcache/policy.hpp"

namespace zipcache {

namespace {

constexpr uint64_t kPortion = 16;

// Of `n` portions the share part / whole, to the nearest.
uint64_t portions(uint64_t n, uint64_t part, uint64_t whole) {
  return whole == 0 ? 0 : (2 * n * part + whole) / (2 * whole);
}

// sums[t] is the share of the first t + 1 tiers, for all but the last.
std::array<int, kMaxTiers> summed(std::span<const int> shares) {
  std::array<int, kMaxTiers> sums = {};
  std::partial_sum(shares.begin(), shares.end(), sums.begin());
  return sums;
}

// Counts from how many tokens the first t + 1 tiers hold together; all `n_tiers` hold n.
TierCounts counts_from(std::array<int, kMaxTiers> together, int n, size_t n_tiers) {
  together[n_tiers - 1] = n;
  TierCounts counts = {};
  for (size_t t = 0; t < n_tiers; ++t) counts[t] = together[t] - (t ? together[t - 1] : 0);
  return counts;
}

}  // namespace

int high_share(int n, int permille) { return n - int(int64_t{1000 - permille} * n / 1000); }

TierCounts tier_counts(int n, std::span<const int> shares) {
  std::array<int, kMaxTiers> together = summed(shares);
  for (int& count : together) count = high_share(n, count);
  return counts_from(together, n, shares.size() + 1);
}

TierCounts tier_counts_of_block(uint64_t block, int n_coded, std::span<const int> shares) {
  const std::array<int, kMaxTiers> sums = summed(shares);
  std::array<int, kMaxTiers> together = {};
  // Portions that the first `before` and `after` blocks hold, of all tiers, then of one tier less
  // at a time. A share of whole portions, rounded, grows by no more than they do.
  uint64_t before = block * (kBlockTokens / kPortion), after = before + kBlockTokens / kPortion;
  int whole = 1000;
  for (size_t t = shares.size(); t-- > 0;) {
    before = portions(before, uint64_t(sums[t]), uint64_t(whole));
    after = portions(after, uint64_t(sums[t]), uint64_t(whole));
    together[t] = int(std::min(kPortion * (after - before), uint64_t(n_coded)));
    whole = sums[t];
  }
  return counts_from(together, n_coded, shares.size() + 1);
}

std::vector<uint8_t> allocate(std::span<const float> scores, std::span<const int> counts) {
  std::vector<uint8_t> tiers(scores.size(), uint8_t(counts.size()));
  std::vector<size_t> order(scores.size());
  std::iota(order.begin(), order.end(), size_t{0});
  // Descending by (score, position): of equal scores the later token is the more salient one.
  const auto more_salient = [&](size_t a, size_t b) {
    return scores[a] != scores[b] ? scores[a] > scores[b] : a > b;
  };
  auto begin = order.begin();
  for (size_t tier = 0; tier < counts.size(); ++tier) {
    const ptrdiff_t n = std::clamp(ptrdiff_t{counts[tier]}, ptrdiff_t{0}, order.end() - begin);
    std::nth_element(begin, begin + n, order.end(), more_salient);
    for (const auto end = begin + n; begin != end; ++begin) tiers[*begin] = uint8_t(tier);
  }
  return tiers;
}

}  // namespace zipcache
