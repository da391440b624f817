// Which tokens get the high tier: a pure function of scores.
#include <algorithm>
#include <numeric>

#include "zipcache/policy.hpp"

namespace zipcache {

int high_share(int n, int high_permille) {
  return n - int(int64_t{1000 - high_permille} * n / 1000);
}

int high_of_block(uint64_t block, int n_coded, int high_permille) {
  constexpr uint64_t kPortion = 16;
  // Portions that the first `blocks` blocks hold together, to the nearest.
  const auto portions = [&](uint64_t blocks) {
    return (blocks * kBlockTokens * uint64_t(high_permille) + 500 * kPortion) / (1000 * kPortion);
  };
  const uint64_t high = kPortion * (portions(block + 1) - portions(block));
  return int(std::min(high, uint64_t(n_coded)));
}

std::vector<uint8_t> allocate(std::span<const float> scores, int n_high) {
  const size_t n = scores.size();
  const size_t n_low = n - std::min(n, size_t(std::max(n_high, 0)));
  std::vector<size_t> order(n);
  std::iota(order.begin(), order.end(), size_t{0});
  // Ascending by (score, position): of equal scores the earlier token is the less salient one.
  const auto less_salient = [&](size_t a, size_t b) {
    return scores[a] != scores[b] ? scores[a] < scores[b] : a < b;
  };
  std::nth_element(order.begin(), order.begin() + static_cast<ptrdiff_t>(n_low), order.end(),
                   less_salient);
  std::vector<uint8_t> tiers(n, 0);
  for (size_t i = 0; i < n_low; ++i) tiers[order[i]] = 1;
  return tiers;
}

}  // namespace zipcache
