#include "policy/knapsack.hpp"

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>

namespace zipcache {
namespace {

// Errors at 2, 3, 4 and 8 bits.
struct Errors {
  double two, three, four, eight;
  double at(int bits) const {
    return bits == 2 ? two : bits == 3 ? three : bits == 4 ? four : eight;
  }
};

// Of normal numbers, as a test measures them; fits of the affine codec differ most at 2 bits.
Errors errors_of(const Side& side) {
  switch (side.codec) {
    case Codec::Symmetric:
      return {.180, .0430, .0106, 4e-5};
    case Codec::Lloyd:
      return {.117, .0346, .0095, 0};
    case Codec::E4m3:
      return {0, 0, 0, 6e-4};
    case Codec::E2m1:
      return {0, 0, .0114, 0};
    case Codec::Affine:
      break;
  }
  switch (side.fit) {
    case Fit::Endpoint:
      break;
    case Fit::Midpoint:
      return {.146, .0367, .0091, 3.4e-5};
    case Fit::Unbiased:
      return {.132, .0353, .0091, 3.4e-5};
    case Fit::Mse:
      return {.118, .0346, .0091, 3.4e-5};
  }
  return {.251, .0457, .0099, 3.4e-5};
}

class Search {
 public:
  Search(const Knapsack& sack, const std::vector<double>& weights)
      : sack_(sack), n_(int(weights.size())), sums_(weights.size() + 1) {
    for (size_t i = 0; i < weights.size(); ++i) sums_[i + 1] = sums_[i] + weights[i];
    best_[sack.errors.size() - 1] = n_;
  }

  TierCounts best() {
    place(0, 0, 0, 0.0);
    return best_;
  }

 private:
  // Puts the tokens from `first` on into the tiers from `tier` on, in all ways that may be the
  // best; false when none of them fits.
  bool place(size_t tier, int first, size_t bytes, double error) {
    const int left = n_ - first;
    const bool last = tier + 1 == sack_.errors.size();
    bool fits = false;
    for (int n = last ? left : left - left % sack_.portion; n >= 0; n -= sack_.portion) {
      counts_[tier] = n;
      const size_t used = bytes + sack_.bytes[tier][size_t(n)];
      const double more =
          error + sack_.errors[tier] * (sums_[size_t(first + n)] - sums_[size_t(first)]);
      if (last) return used <= sack_.budget && (keep(more), true);
      if (used > sack_.budget || !place(tier + 1, first + n, used, more)) continue;
      fits = true;
      // Fewer tokens in the last tier but one, and more in the last, can only be worse.
      if (tier + 2 == sack_.errors.size()) break;
    }
    return fits;
  }

  void keep(double error) {
    if (error >= least_) return;
    least_ = error;
    best_ = counts_;
  }

  const Knapsack& sack_;
  const int n_;
  std::vector<double> sums_;  // of the i heaviest tokens
  TierCounts counts_ = {}, best_ = {};
  double least_ = std::numeric_limits<double>::infinity();
};

}  // namespace

double distortion(const Side& side, int bits) {
  if (bits == 0) return 1;
  return bits == 16 ? 0 : errors_of(side).at(bits);
}

std::vector<double> knapsack_weights(std::span<const float> scores, bool squared) {
  double heaviest = 0;
  bool all_known = true;
  for (const float score : scores) {
    if (std::isfinite(score))
      heaviest = std::max(heaviest, double(score));
    else
      all_known = false;
  }
  if (heaviest == 0 && all_known) return std::vector<double>(scores.size(), 1.0);
  if (heaviest == 0) heaviest = 1;
  std::vector<double> weights;
  for (const float score : scores) {
    const double weight = std::isfinite(score) ? std::max(0.0, double(score)) : heaviest;
    weights.push_back(squared ? weight * weight : weight);
  }
  return weights;
}

TierCounts fill_knapsack(const Knapsack& sack, std::vector<double> weights) {
  std::sort(weights.begin(), weights.end(), std::greater<>());
  return Search(sack, weights).best();
}

}  // namespace zipcache
