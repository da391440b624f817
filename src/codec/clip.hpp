// Clipping: the few values of a set that lie far out are moved to the ends of the range that is
// coded, so that the others get finer steps. Pure; what is constexpr runs on a GPU too.
#pragma once

#include <cmath>
#include <vector>

#include "zipcache/policy.hpp"

namespace zipcache {

// The range that is coded.
struct Ends {
  float lo = -INFINITY, hi = INFINITY;
  constexpr float clip(float x) const { return x < lo ? lo : hi < x ? hi : x; }
};

// The middle of a set's range that a clip without quantiles leaves.
constexpr Ends middle_of(float lo, float hi, const Clip& clip) {
  const double p = clip.permille / 1000.0;
  const double centre = 0.5 * (double(lo) + hi), reach = 0.5 * p * (double(hi) - lo);
  return {float(centre - reach), float(centre + reach)};
}

// The quantiles of a clip of n numbers; `ascending(i)` is the i-th of them, sorted.
template <class Ascending>
constexpr Ends quantiles_of(int n, const Clip& clip, Ascending&& ascending) {
  const auto quantile = [&](double p) {  // between neighbours in proportion
    const double at = p * double(n - 1);
    const int below = int(at), above = below + 1 < n ? below + 1 : n - 1;
    const float low = ascending(below);
    return float(low + (at - double(below)) * (double(ascending(above)) - low));
  };
  const double p = clip.permille / 1000.0;
  return {quantile(1 - p), quantile(p)};
}

// Clips each set of the rows [n, dim] of one tile as `side` says.
void clip_sets(const Side& side, int dim, std::vector<float>& rows);

}  // namespace zipcache
