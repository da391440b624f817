// Every ZIPCACHE_* variable that the backend reads: one table, which `zipcache doctor` prints.
#pragma once

#include <string>

#include "zipcache/policy.hpp"

namespace zipcache {

struct Settings {
  std::string policy_text;    // as given
  int ubatch = 512;           // micro-batch that the announced cache size leaves room for
  bool pack_windows = false;  // caches of sliding-window layers follow the policy too
  bool check = false;         // hold the first packed tokens against 16 bits
  bool quiet = false;
  double log_interval = 0;  // seconds between lines of counters, 0 for none
  bool any_ggml = false;
};

// Read from the environment at the first call.
const Settings& settings();
// Reads the variables strictly: the error of a value that cannot be used names variable and cure.
Status check_settings();

// The policy for caches allocated from now on: set_policy()'s, else ZIPCACHE_POLICY's, else row
// zip.
Result<Policy> current_policy();
Status set_policy(const std::string& text);

// JSON array of {name, value, default, help}.
std::string settings_json();

}  // namespace zipcache
