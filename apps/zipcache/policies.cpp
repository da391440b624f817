// `zipcache policies`: the built-in policies, as the library's own table has them.
#include <fmt/format.h>

#include <memory>

#include "commands.hpp"
#include "policy_list.hpp"
#include "table.hpp"
#include "terminal.hpp"
#include "zipcache/policy.hpp"

namespace zipcache::cli {

namespace {

Status list_policies(const std::string& output) {
  const Result<Format> format = parse_format(output);
  if (!format.ok()) return format.status();
  std::vector<Json> objects;
  std::vector<std::vector<std::string>> lines;
  for (const PolicyRow& row : policy_rows()) {
    const std::string name(row.name), text(row.text), summary(row.summary);
    lines.push_back({name, text, summary});
    Json object = {{"policy", name}, {"fields", text}, {"summary", summary}};
    const Result<Policy> policy = parse_policy(name);
    if (!policy.ok()) return policy.status();
    object["settings"] = Json::parse(policy_to_json(*policy), nullptr, false);
    objects.push_back(std::move(object));
  }
  if (*format != Format::Md) {
    fmt::print("{}", for_programs(*format, objects));
    return ok();
  }
  fmt::print("{}",
             markdown({{"policy", false}, {"fields, against f16", false}, {"what it is", false}},
                      lines, colours(stdout)));
  fmt::print(
      "\nA policy takes changes: zipcache,recent=64,k=4/2,ratio=0.7. A path that ends in .json is "
      "a policy file.\n"
      "`zipcache compare` also takes llama.cpp's own cache types:");
  for (const std::string_view type : llama_cache_types()) fmt::print(" llama:{}", type);
  fmt::print("\n");
  return ok();
}

}  // namespace

void add_policies(CLI::App& program, Action& action) {
  auto output = std::make_shared<std::string>("md");
  CLI::App* command = program.add_subcommand(
      "policies",
      "The built-in policies: what each is for, and the fields that make it.\n"
      "Their texts work in every command and in ZIPCACHE_POLICY.");
  command->footer("Example:\n  zipcache policies -o json");
  command->add_option("-o,--output", *output, "md, csv, json or jsonl")->capture_default_str();
  command->callback([output, &action] { action = [output] { return list_policies(*output); }; });
}

}  // namespace zipcache::cli
