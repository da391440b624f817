// Divergences of several texts side by side.
//
// Thread safety: pure functions.
#pragma once

#include <string>
#include <vector>

#include "result_tables.hpp"

namespace zipcache::cli {

// One table for each model and length that was measured on more than one text: the policies that
// read all of them, with their mean divergence on each, and against llama.cpp's q4_0 where that was
// measured too. Empty if there is no such model.
std::string overviews(const std::vector<ResultGroup>& groups);

}  // namespace zipcache::cli
