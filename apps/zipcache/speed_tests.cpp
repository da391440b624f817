// Tests of `zipcache bench model`.
#include "speed_tests.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

namespace zipcache::cli {

std::string name_of(const SpeedTest& test) {
  const std::string what =
      test.n_prompt > 0 ? fmt::format("pp{}", test.n_prompt) : fmt::format("tg{}", test.n_gen);
  return test.depth > 0 ? fmt::format("{} @ d{}", what, test.depth) : what;
}

std::vector<SpeedTest> tests_at(int depth, const std::vector<int>& n_prompt,
                                const std::vector<int>& n_gen) {
  std::vector<SpeedTest> out;
  for (const int n : n_prompt)
    if (n > 0) out.push_back({n, 0, depth});
  for (const int n : n_gen)
    if (n > 0) out.push_back({0, n, depth});
  std::stable_sort(out.begin(), out.end(),
                   [](const SpeedTest& a, const SpeedTest& b) { return a.tokens() < b.tokens(); });
  return out;
}

MeanSd mean_sd(std::span<const double> values) {
  if (values.empty()) return {};
  const double n = static_cast<double>(values.size());
  double sum = 0, squares = 0;
  for (const double value : values) sum += value;
  const double mean = sum / n;
  for (const double value : values) squares += (value - mean) * (value - mean);
  return {mean, n < 2 ? 0 : std::sqrt(squares / (n - 1))};
}

std::optional<MeanSd> ratio_over_rounds(std::span<const double> values,
                                        std::span<const double> reference) {
  std::vector<double> ratios;
  for (size_t i = 0; i < std::min(values.size(), reference.size()); ++i)
    ratios.push_back(values[i] / reference[i]);
  if (ratios.empty()) return std::nullopt;
  return mean_sd(ratios);
}

std::vector<int> repeated(const std::vector<int>& tokens, size_t n) {
  std::vector<int> out(n);
  for (size_t i = 0; i < n; ++i) out[i] = tokens[i % tokens.size()];
  return out;
}

}  // namespace zipcache::cli
