// Tool calls as JSON.
#include "tool_calls.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>

namespace zipcache::cli {

namespace {

constexpr const char* kCure =
    "give JSON lines with tools (name, description, parameters), examples and a request with its "
    "call, as eval/tasks/tools.jsonl has them";

bool is_text(const Json& object, const char* field) {
  return object.is_object() && object.contains(field) && object[field].is_string();
}

bool is_type(const std::string& type, const Json& value) {
  if (type == "object") return value.is_object();
  if (type == "array") return value.is_array();
  if (type == "string") return value.is_string();
  if (type == "boolean") return value.is_boolean();
  if (type == "null") return value.is_null();
  if (type == "number") return value.is_number();
  return type == "integer" && value.is_number_integer();
}

bool any_type(const Json& types, const Json& value) {
  if (types.is_string()) return is_type(types, value);
  return std::any_of(types.begin(), types.end(),
                     [&](const Json& type) { return type.is_string() && is_type(type, value); });
}

std::string object_error(const Json& schema, const Json& value) {
  const Json properties = schema.value("properties", Json::object());
  for (const Json& name : schema.value("required", Json::array())) {
    if (name.is_string() && !value.contains(name.get<std::string>()))
      return fmt::format("lacks '{}'", name.get<std::string>());
  }
  for (const auto& [name, inner] : value.items()) {
    if (!properties.contains(name)) {
      // A call with arguments that nobody declared is a wrong one, unless the schema allows them.
      if (schema.value("additionalProperties", Json(false)) != true)
        return fmt::format("has an unknown '{}'", name);
      continue;
    }
    const std::string error = schema_error(properties[name], inner);
    if (!error.empty()) return fmt::format("{}: {}", name, error);
  }
  return "";
}

// The same JSON, with members of objects in any order.
bool same(const Json& a, const Json& b) { return nlohmann::json(a) == nlohmann::json(b); }

const Json* tool_named(const Json& tools, const std::string& name) {
  const auto found = std::find_if(tools.begin(), tools.end(),
                                  [&](const Json& tool) { return tool["name"] == name; });
  return found == tools.end() ? nullptr : &*found;
}

bool is_valid(const Json& tools, const Json& call) {
  if (!is_text(call, "name") || !call.contains("arguments")) return false;
  const Json* tool = tool_named(tools, call["name"]);
  return tool != nullptr && schema_error((*tool)["parameters"], call["arguments"]).empty();
}

std::string call_error(const Json& tools, const Json& holder) {
  if (!is_text(holder, "request") || !holder.contains("call"))
    return "found no text 'request' with its 'call'";
  return is_valid(tools, holder["call"])
             ? ""
             : fmt::format("the call {} is not one that its tools allow", holder["call"].dump());
}

std::string row_error(const Json& row) {
  const Json tools = row.value("tools", Json());
  if (!tools.is_array() || tools.empty()) return "found no list 'tools'";
  for (const Json& tool : tools) {
    if (!is_text(tool, "name") || !tool.contains("parameters"))
      return "found a tool without name or parameters";
    const std::string keyword = unknown_keyword(tool["parameters"]);
    if (!keyword.empty()) {
      return fmt::format("tool {}: its schema has '{}', which is not checked here",
                         tool["name"].dump(), keyword);
    }
  }
  for (const Json& example : row.value("examples", Json::array())) {
    const std::string error = call_error(tools, example);
    if (!error.empty()) return "examples: " + error;
  }
  return call_error(tools, row);
}

// The first `tokens` tokens of the talk, to within a line.
Result<std::string> part_of(const std::string& talk, int tokens, const TokenCount& count) {
  std::string out;
  size_t used = 0;
  for (size_t at = 0; at < talk.size() && used < static_cast<size_t>(tokens);) {
    const size_t end = std::min(talk.find('\n', at), talk.size() - 1) + 1;
    const std::string line = talk.substr(at, end - at);
    used += count(line);
    out += line;
    at = end;
  }
  if (used >= static_cast<size_t>(tokens)) return out;
  return Status{
      Code::BadArgument,
      fmt::format("--distances: found {}, but the talk has {} tokens; use a longer --talk", tokens,
                  used)};
}

std::string turn(const Json& holder) {
  return fmt::format("User: {}\nCall:", holder["request"].get<std::string>());
}

std::string prompt_of(const Json& row, const std::string& talk) {
  std::string out = "The assistant calls one of these tools with one line of JSON:\n";
  for (const Json& tool : row["tools"]) out += tool.dump() + "\n";
  out += "\n";
  for (const Json& example : row.value("examples", Json::array()))
    out += fmt::format("{} {}\n\n", turn(example), example["call"].dump());
  return out + talk + (talk.empty() ? "" : "\n") + turn(row);
}

}  // namespace

std::string unknown_keyword(const Json& schema) {
  constexpr std::array known = {"type",
                                "enum",
                                "properties",
                                "required",
                                "items",
                                "minimum",
                                "maximum",
                                "title",
                                "description",
                                "default",
                                "additionalProperties"};
  if (!schema.is_object()) return "a schema that is no object";
  for (const auto& [keyword, value] : schema.items()) {
    if (std::find(known.begin(), known.end(), keyword) == known.end()) return keyword;
  }
  const Json properties = schema.value("properties", Json::object());
  for (const auto& [name, inner] : properties.items()) {
    const std::string keyword = unknown_keyword(inner);
    if (!keyword.empty()) return keyword;
  }
  return schema.contains("items") ? unknown_keyword(schema["items"]) : "";
}

std::string schema_error(const Json& schema, const Json& value) {
  if (schema.contains("type") && !any_type(schema["type"], value))
    return fmt::format("is {}, expected {}", value.type_name(), schema["type"].dump());
  if (schema.contains("enum")) {
    const Json& allowed = schema["enum"];
    if (std::none_of(allowed.begin(), allowed.end(), [&](const Json& a) { return same(a, value); }))
      return fmt::format("is not one of {}", allowed.dump());
  }
  if (value.is_number()) {
    if (schema.contains("minimum") && value < schema["minimum"]) return "is too small";
    if (schema.contains("maximum") && value > schema["maximum"]) return "is too large";
  }
  if (value.is_object()) return object_error(schema, value);
  if (!value.is_array() || !schema.contains("items")) return "";
  for (const Json& item : value) {
    const std::string error = schema_error(schema["items"], item);
    if (!error.empty()) return error;
  }
  return "";
}

Json score_call(const Json& tools, const Json& call, const std::string& said) {
  const Json made = Json::parse(said, nullptr, false);
  return {{"score", same(made, call) ? 1 : 0},
          {"parsed", made.is_object() ? 1 : 0},
          {"valid", is_valid(tools, made) ? 1 : 0}};
}

Result<RecordTask> tools_task(const std::filesystem::path& records, const std::string& talk,
                              const std::vector<int>& distances, const TokenCount& count) {
  const Result<std::vector<Json>> rows = read_records("--records", records, {"request"}, kCure);
  if (!rows.ok()) return rows.status();
  RecordTask task{.source = records.filename().string(),
                  .metric = "exact",
                  .records = {},
                  .stops = {"\n"},
                  .score = score_each([](const TaskRecord& record, const std::string& said) {
                    return score_call(record.facts["tools"], record.facts["call"], said);
                  })};
  for (const int distance : distances) {
    const Result<std::string> between = part_of(talk, distance, count);
    if (!between.ok()) return between.status();
    for (size_t i = 0; i < rows->size(); ++i) {
      const Json& row = (*rows)[i];
      const std::string error = row_error(row);
      if (!error.empty()) {
        return Status{Code::BadData, fmt::format("--records: '{}', row {}: {}; {}",
                                                 records.string(), i + 1, error, kCure)};
      }
      task.records.push_back({.row = {{"distance", distance}},
                              .prompt = prompt_of(row, *between),
                              .reference = " " + row["call"].dump(),
                              .facts = {{"tools", row["tools"]}, {"call", row["call"]}}});
    }
  }
  return task;
}

}  // namespace zipcache::cli
