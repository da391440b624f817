// What the argument parser does not do by itself: llama.cpp's options with one dash and several
// letters, and the nearest option for a misspelt one.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace zipcache::cli {

// `arguments` with -ub, -sys and the like in their long form. What follows `--` stays.
std::vector<std::string> long_forms(std::vector<std::string> arguments);

// The name with the fewest edits from `found`; empty when none is near.
std::string nearest(std::string_view found, const std::vector<std::string>& names);

}  // namespace zipcache::cli
