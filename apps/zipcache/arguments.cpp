// Long forms of llama.cpp's options, the nearest option for a misspelt one, ranges.
#include "arguments.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <numeric>
#include <utility>

namespace zipcache::cli {

namespace {

constexpr std::pair<std::string_view, std::string_view> kLongForms[] = {
    {"-ub", "--ubatch-size"},
    {"-sys", "--system-prompt"},
    {"-tb", "--threads-batch"},
};

// Levenshtein distance with one row of the table.
size_t distance(std::string_view a, std::string_view b) {
  std::vector<size_t> row(b.size() + 1);
  std::iota(row.begin(), row.end(), size_t{0});
  for (size_t i = 1; i <= a.size(); ++i) {
    size_t diagonal = std::exchange(row[0], i);
    for (size_t j = 1; j <= b.size(); ++j) {
      const size_t replaced = diagonal + (a[i - 1] == b[j - 1] ? 0 : 1);
      diagonal = row[j];
      row[j] = std::min({replaced, row[j] + 1, row[j - 1] + 1});
    }
  }
  return row.back();
}

}  // namespace

std::vector<std::string> long_forms(std::vector<std::string> arguments) {
  for (std::string& argument : arguments) {
    if (argument == "--") break;
    for (const auto& [short_form, long_form] : kLongForms) {
      if (argument == short_form) argument = long_form;
    }
  }
  return arguments;
}

std::string nearest(std::string_view found, const std::vector<std::string>& names) {
  std::string best;
  // Up to three edits, and never so many that every short name would do.
  size_t best_distance = std::min<size_t>(3, found.size() / 2) + 1;
  for (const std::string& name : names) {
    const size_t d = distance(found, name);
    if (d < best_distance) {
      best_distance = d;
      best = name;
    }
  }
  return best;
}

Status check_range(std::string_view option, const std::vector<int>& values, int lo, int hi) {
  for (const int value : values) {
    if (value >= lo && value <= hi) continue;
    return {Code::BadArgument,
            fmt::format("{}: found {}, expected {} to {}", option, value, lo, hi)};
  }
  return ok();
}

}  // namespace zipcache::cli
