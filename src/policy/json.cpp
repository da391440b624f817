// The JSON form of a policy. Keys are the field names of the text form, so both forms say the same:
//
//   {"base": "zipcache", "name": "mine", "ratio": 0.7, "recent": 64,
//    "layers": [{"layers": "0-3", "set": "k=8,v=4"}], "evidence": {...}}
//
// "evidence" may hold any object: what the one who made the file measured. It is not part of the
// policy and not looked into.
#include <fmt/format.h>

#include <nlohmann/json.hpp>

#include "policy/fields.hpp"
#include "zipcache/policy.hpp"

namespace zipcache {
namespace {

using nlohmann::json;

// A JSON value as the text form writes it; empty for what no field accepts.
std::string value_text(const json& value) {
  if (value.is_string()) return value.get<std::string>();
  if (value.is_boolean()) return value.get<bool>() ? "1" : "0";
  if (value.is_number()) return value.dump();
  return {};
}

Result<LayerOverride> parse_override(const json& item, size_t index) {
  const std::string where = fmt::format("$.layers[{}]", index);
  if (!item.is_object() || !item.contains("layers") || !item.contains("set") || item.size() != 2 ||
      !item["layers"].is_string() || !item["set"].is_string()) {
    return Status{Code::BadPolicy,
                  where + ": expected {\"layers\": \"0-3\", \"set\": \"k=8,v=4\"}"};
  }
  const std::string range = item["layers"].get<std::string>();
  LayerOverride change;
  change.fields = item["set"].get<std::string>();
  if (!parse_layers(range, change)) {
    return Status{Code::BadPolicy, fmt::format("{}.layers: found {}, expected \"first-last\"",
                                               where, quote_text(range))};
  }
  return change;
}

Status parse_overrides(const json& list, Policy& policy) {
  if (!list.is_array()) return {Code::BadPolicy, "$.layers: expected an array"};
  for (size_t i = 0; i < list.size(); ++i) {
    Result<LayerOverride> change = parse_override(list[i], i);
    if (!change.ok()) return change.status();
    policy.overrides.push_back(*change);
  }
  return ok();
}

Status parse_member(const std::string& key, const json& value, Policy& policy) {
  if (key == "base") return ok();
  if (key == "evidence") {
    return value.is_object() ? ok() : Status{Code::BadPolicy, "$.evidence: expected an object"};
  }
  if (key == "layers") return parse_overrides(value, policy);
  if (key == "name") {
    if (!value.is_string() || value.get<std::string>().size() > 64) {
      return {Code::BadPolicy, "$.name: expected a text of at most 64 characters"};
    }
    policy.name = value.get<std::string>();
    return ok();
  }
  return apply_field(policy, key, value_text(value), fmt::format("$.{}", quote_text(key)), false);
}

}  // namespace

Result<Policy> policy_from_json(std::string_view text) {
  const json root = json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (root.is_discarded()) {
    return Status{Code::BadPolicy, fmt::format("not valid JSON: {}; expected an object such as "
                                               "{{\"base\": \"zipcache\", \"ratio\": 0.7}}",
                                               quote_text(text))};
  }
  if (!root.is_object()) return Status{Code::BadPolicy, "expected a JSON object at the top"};
  Policy policy;
  if (root.contains("base")) {
    if (!root["base"].is_string())
      return Status{Code::BadPolicy, "$.base: expected the name of a row"};
    const std::string base = root["base"].get<std::string>();
    if (base.find_first_of(",./") != std::string::npos) {
      return Status{Code::BadPolicy,
                    fmt::format("$.base: found {}, expected the name of a row", quote_text(base))};
    }
    Result<Policy> row = parse_policy(base);
    if (!row.ok()) return row;
    policy = *row;
  }
  for (const auto& [key, value] : root.items()) ZC_TRY(parse_member(key, value, policy));
  ZC_TRY(check(policy));
  return policy;
}

std::string policy_to_json(const Policy& policy) {
  nlohmann::ordered_json root;
  root["name"] = policy.name;
  for (const Field& field : policy_fields()) {
    if (field.get) root[std::string(field.name)] = field.get(policy);
  }
  if (!policy.overrides.empty()) {
    auto& list = root["layers"] = nlohmann::ordered_json::array();
    for (const LayerOverride& change : policy.overrides) {
      list.push_back({{"layers", layers_text(change)}, {"set", change.fields}});
    }
  }
  return root.dump(2);
}

}  // namespace zipcache
