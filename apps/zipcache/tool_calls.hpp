// Tool calls as JSON: a model is told of tools, hears other talk, and has to call one of them.
//
// Thread safety: pure functions, but for reading files.
#pragma once

#include <string>
#include <vector>

#include "record_task.hpp"

namespace zipcache::cli {

// The requests of `records`, each behind every one of `distances` tokens of `talk`, which stands
// between the tools and the request.
Result<RecordTask> tools_task(const std::filesystem::path& records, const std::string& talk,
                              const std::vector<int>& distances, const TokenCount& count);

// What is wrong with `value` under `schema`; empty when nothing is. Known are the keywords type,
// enum, properties, required, additionalProperties, items, minimum and maximum; texts such as
// description are skipped.
std::string schema_error(const Json& schema, const Json& value);

// A keyword of `schema` that is not known; empty when all are.
std::string unknown_keyword(const Json& schema);

// "parsed": `said` is a JSON object; "valid": it calls one of `tools` with arguments that its
// schema allows; "score": it is `call`, with the arguments in any order.
Json score_call(const Json& tools, const Json& call, const std::string& said);

}  // namespace zipcache::cli
