// What the argument parser does not do by itself: llama.cpp's options with one dash and several
// letters, the nearest option for a misspelt one, and lists of numbers held against their range.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "zipcache/status.hpp"

namespace zipcache::cli {

// `arguments` with -ub, -sys and the like in their long form. What follows `--` stays.
std::vector<std::string> long_forms(std::vector<std::string> arguments);

// The name with the fewest edits from `found`; empty when none is near.
std::string nearest(std::string_view found, const std::vector<std::string>& names);

// BadArgument, with the value found and the range, for the first of `values` outside lo to hi.
Status check_range(std::string_view option, const std::vector<int>& values, int lo, int hi);

}  // namespace zipcache::cli
