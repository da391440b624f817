// What `zipcache tune` found, as the evidence that its policy file carries, and for people.
//
// Thread safety: pure functions.
#pragma once

#include <string>

#include "result_plots.hpp"
#include "table.hpp"
#include "tuning.hpp"
#include "zipcache/status.hpp"

namespace zipcache::cli {

// What the evidence keeps of a measured row; `bits` are coded bits.
Json evidence_row(const std::string& policy, double bits, const Json& row);

// The evidence of a search: the rows that the choice was made from, what layers bring alone.
Json search_evidence(const SearchResult& result);

// The JSON text of a policy with `evidence` inside.
std::string policy_file(const std::string& policy_json, const Json& evidence);

// Layers, the table of policies and the choice in plain words. BadData for evidence that lacks a
// field.
Result<std::string> tune_report(const Json& evidence, bool bold);

// Divergence over coded bits of every policy in `evidence` that has a place there.
Plot tune_plot(const Json& evidence, const std::string& name);

}  // namespace zipcache::cli
