#include "base/random.hpp"

#include <algorithm>

namespace zipcache {

std::vector<int> Random::sample(int n, int count) {
  std::vector<int> chosen;
  chosen.reserve(static_cast<size_t>(count));
  for (int j = n - count; j < n; ++j) {
    const int candidate = static_cast<int>(below(static_cast<uint32_t>(j) + 1));
    const bool taken = std::find(chosen.begin(), chosen.end(), candidate) != chosen.end();
    chosen.push_back(taken ? j : candidate);
  }
  std::sort(chosen.begin(), chosen.end());
  return chosen;
}

}  // namespace zipcache
