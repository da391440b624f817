#include "ggml/settings.hpp"

#include <fmt/format.h>

#include <charconv>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <nlohmann/json.hpp>
#include <optional>

#include "zipcache/cache.hpp"
#include "zipcache/rotations.hpp"
#include "zipcache/token_scores.hpp"

namespace zipcache {
namespace {

struct Variable {
  const char* name;
  const char* standard;
  const char* help;
};

constexpr Variable kVariables[] = {
    {"ZIPCACHE_POLICY", "zip",
     "row, row with changed fields, or .json file; see: zipcache policies"},
    {"ZIPCACHE_UBATCH", "512", "micro-batch (-ub) that the announced cache size leaves room for"},
    {"ZIPCACHE_ISA", "", "kernel set to use instead of the best: avx512, avx2 or plain"},
    {"ZIPCACHE_CHECK", "1",
     "attention over the first packed tokens is held against 16 bits, with a warning in the log if "
     "the model does not stand the policy; 0 for not"},
    {"ZIPCACHE_WINDOW", "f16",
     "caches of sliding-window layers, where smaller than the others': f16, or policy to pack "
     "them"},
    {"ZIPCACHE_LOG", "normal", "normal, or quiet for errors only"},
    {"ZIPCACHE_LOG_INTERVAL", "0", "seconds between lines of counters in the log; 0 for none"},
    {"ZIPCACHE_ANY_GGML", "0", "1 loads into ggml versions that were never tested"},
};

std::string value_of(const char* name) {
  for (const Variable& variable : kVariables) {
    if (std::strcmp(variable.name, name) != 0) continue;
    const char* value = std::getenv(name);
    return value && *value ? value : variable.standard;
  }
  return {};
}

std::mutex g_lock;
std::string g_policy_text;  // set_policy()'s, empty when none

bool parse_ubatch(const std::string& text, int& value) {
  const auto result = std::from_chars(text.data(), text.data() + text.size(), value);
  return result.ec == std::errc() && result.ptr == text.data() + text.size() && value >= 1 &&
         value <= 1 << 20;
}

Status check_either(const char* name, std::string_view one, std::string_view other) {
  const std::string value = value_of(name);
  if (value == one || value == other) return ok();
  return {Code::BadPolicy, fmt::format("{}={}: expected {} or {}", name, value, one, other)};
}

// Seconds up to a year.
bool parse_interval(const std::string& text, double& value) {
  const auto result = std::from_chars(text.data(), text.data() + text.size(), value);
  return result.ec == std::errc() && result.ptr == text.data() + text.size() && value >= 0 &&
         value <= 366 * 86400.0;
}

}  // namespace

const Settings& settings() {
  static const Settings read = [] {
    Settings found;
    found.policy_text = value_of("ZIPCACHE_POLICY");
    parse_ubatch(value_of("ZIPCACHE_UBATCH"), found.ubatch);
    parse_interval(value_of("ZIPCACHE_LOG_INTERVAL"), found.log_interval);
    found.quiet = value_of("ZIPCACHE_LOG") == "quiet";
    found.pack_windows = value_of("ZIPCACHE_WINDOW") == "policy";
    found.check = value_of("ZIPCACHE_CHECK") == "1";
    found.any_ggml = value_of("ZIPCACHE_ANY_GGML") == "1";
    return found;
  }();
  return read;
}

Status check_settings() {
  int ubatch = 0;
  if (!parse_ubatch(value_of("ZIPCACHE_UBATCH"), ubatch)) {
    return {Code::BadPolicy,
            fmt::format("ZIPCACHE_UBATCH={}: expected a whole number from 1 to 1048576",
                        value_of("ZIPCACHE_UBATCH"))};
  }
  ZC_TRY(check_either("ZIPCACHE_LOG", "normal", "quiet"));
  double interval = 0;
  if (!parse_interval(value_of("ZIPCACHE_LOG_INTERVAL"), interval)) {
    return {Code::BadPolicy,
            fmt::format("ZIPCACHE_LOG_INTERVAL={}: expected seconds, 0 or more (0: no lines)",
                        value_of("ZIPCACHE_LOG_INTERVAL"))};
  }
  ZC_TRY(check_either("ZIPCACHE_WINDOW", "f16", "policy"));
  ZC_TRY(check_either("ZIPCACHE_CHECK", "0", "1"));
  const Result<std::string> kernel = kernel_name();
  if (!kernel.ok()) return kernel.status();
  const Result<Policy> policy = current_policy();
  if (!policy.ok()) return policy.status();
  ZC_TRY(check_scores_named(*policy));
  return check_rotations(*policy);
}

Result<Policy> current_policy() {
  const std::lock_guard<std::mutex> guard(g_lock);
  if (!g_policy_text.empty()) return parse_policy(g_policy_text);
  Result<Policy> policy = parse_policy(settings().policy_text);
  if (policy.ok()) return policy;
  return Status{policy.status().code(), "ZIPCACHE_POLICY: " + policy.status().message()};
}

Status set_policy(const std::string& text) {
  const Result<Policy> policy = parse_policy(text);
  if (!policy.ok()) return policy.status();
  ZC_TRY(check_scores_named(*policy));
  ZC_TRY(check_rotations(*policy));
  const std::lock_guard<std::mutex> guard(g_lock);
  g_policy_text = text;
  return ok();
}

std::string settings_json() {
  auto list = nlohmann::ordered_json::array();
  for (const Variable& variable : kVariables) {
    list.push_back({{"name", variable.name},
                    {"value", value_of(variable.name)},
                    {"default", variable.standard},
                    {"help", variable.help}});
  }
  return list.dump();
}

}  // namespace zipcache
