// The list of policies that `zipcache compare` takes.
#include "policy_list.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>

namespace zipcache::cli {

namespace {

constexpr std::string_view kPrefix = "llama:";

std::string_view trim(std::string_view text) {
  const size_t first = text.find_first_not_of(" \t\n");
  if (first == std::string_view::npos) return {};
  return text.substr(first, text.find_last_not_of(" \t\n") - first + 1);
}

// Adds the policies of `group`, which has no `;`: a piece with '=' continues the one before.
void split_group(std::string_view group, std::vector<std::string>& out) {
  bool continues = false;
  while (!group.empty()) {
    const size_t comma = group.find(',');
    const std::string_view piece = trim(group.substr(0, comma));
    group = comma == std::string_view::npos ? std::string_view{} : group.substr(comma + 1);
    if (piece.empty()) continue;
    if (continues && piece.find('=') != std::string_view::npos) {
      out.back() += fmt::format(",{}", piece);
    } else {
      out.emplace_back(piece);
      continues = true;
    }
  }
}

}  // namespace

std::vector<std::string_view> llama_cache_types() {
  return {"f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0", "iq4_nl"};
}

Result<PolicyChoice> parse_choice(std::string_view text) {
  const std::string_view name = trim(text);
  if (name == "q8_0" || name == "q4_0") return PolicyChoice{std::string(name), std::string(name)};
  if (!name.starts_with(kPrefix)) return PolicyChoice{std::string(name), ""};
  const std::string_view type = name.substr(kPrefix.size());
  const auto types = llama_cache_types();
  if (std::find(types.begin(), types.end(), type) == types.end()) {
    return Status{Code::BadPolicy,
                  fmt::format("policy '{}': found llama.cpp cache type '{}', expected {}", name,
                              type, fmt::join(types, ", "))};
  }
  return PolicyChoice{std::string(name), std::string(type)};
}

Result<std::vector<PolicyChoice>> parse_policy_list(std::string_view list) {
  std::vector<std::string> texts;
  for (std::string_view rest = list; !rest.empty();) {
    const size_t end = rest.find(';');
    split_group(rest.substr(0, end), texts);
    rest = end == std::string_view::npos ? std::string_view{} : rest.substr(end + 1);
  }
  if (texts.empty()) {
    return Status{
        Code::BadPolicy,
        "--policies: found an empty list, expected policies such as f16,q8_0,zipcache,zip"};
  }
  std::vector<PolicyChoice> out;
  for (const std::string& text : texts) {
    Result<PolicyChoice> choice = parse_choice(text);
    if (!choice.ok()) return choice.status();
    out.push_back(*choice);
  }
  return out;
}

}  // namespace zipcache::cli
