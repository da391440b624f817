// The list of policies that `zipcache compare` takes, and which engine serves each of them.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "zipcache/status.hpp"

namespace zipcache::cli {

// One entry of the list: a policy of ours, or one of llama.cpp's own cache types.
struct PolicyChoice {
  std::string text;        // as a table shows it
  std::string llama_type;  // "q8_0" and the like; empty for a policy of ours
  bool ours() const { return llama_type.empty(); }
};

// llama.cpp's cache types that its flash attention on a CPU can read.
std::vector<std::string_view> llama_cache_types();

// One policy: `q8_0` and `q4_0` are short for `llama:q8_0` and `llama:q4_0`. An unknown type after
// `llama:` is an error; whether a policy of ours is right is left to parse_policy().
Result<PolicyChoice> parse_choice(std::string_view text);

// Policies separated by `;`, or by commas: what follows a comma belongs to the policy before it
// when it has the form field=value.
Result<std::vector<PolicyChoice>> parse_policy_list(std::string_view list);

}  // namespace zipcache::cli
