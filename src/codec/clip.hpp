// Clipping: the few values of a set that lie far out are moved to the ends of the range that is
// coded, so that the others get finer steps. Pure.
#pragma once

#include <vector>

#include "zipcache/policy.hpp"

namespace zipcache {

// Clips each set of the rows [n, dim] of one tile as `side` says.
void clip_sets(const Side& side, int dim, std::vector<float>& rows);

}  // namespace zipcache
