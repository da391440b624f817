// `zipcache tune --check`: does a model collapse under a policy?
//
// Thread safety: one thread at a time.
#pragma once

#include <string>
#include <vector>

#include "tune_measure.hpp"

namespace zipcache::cli {

// Measures `policy` on the first chunk of `texts` (empty: prose of data/text) and prints what it
// costs. Incompatible, with the likely culprit and what to do, when it collapses.
Status check_policy(MeasureOptions options, const std::string& policy,
                    const std::vector<std::string>& texts);

}  // namespace zipcache::cli
