// The search of `zipcache tune`: which policies are measured, in which order, and what follows from
// them.
//
// Thread safety: one thread at a time.
#pragma once

#include <string>
#include <vector>

#include "tune_measure.hpp"
#include "tuning.hpp"

namespace zipcache::cli {

// Caches that the search will fill, about: for the progress bar.
int planned_caches(const ModelFile& about, int together);

// OverLimit, with what was nearest, when no policy meets the target.
Result<SearchResult> search(Measurer& measurer, const Part& part, const Target& target);

}  // namespace zipcache::cli
