// Which tokens get the high tier: a pure function of scores.
#include <algorithm>
#include <numeric>

#include "zipcache/policy.hpp"

namespace zipcache {

std::vector<uint8_t> allocate(std::span<const float> scores, int high_permille) {
  const size_t n = scores.size();
  const size_t n_low = static_cast<size_t>(1000 - high_permille) * n / 1000;
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
