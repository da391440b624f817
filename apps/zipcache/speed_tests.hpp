// The parts of `zipcache bench model` that need no llama.cpp: which tests there are, in which
// order they run, their names, and statistics of speeds.
//
// Thread safety: pure functions.
#pragma once

#include <optional>
#include <span>
#include <string>
#include <vector>

namespace zipcache::cli {

// A prompt of `n_prompt` tokens, or `n_gen` tokens one at a time, after `depth` tokens.
struct SpeedTest {
  int n_prompt = 0, n_gen = 0, depth = 0;
  int tokens() const { return n_prompt + n_gen; }
};

// llama-bench's name: "pp512", "tg32 @ d4096".
std::string name_of(const SpeedTest& test);

// One test for each length above 0, after `depth` tokens. The shortest comes first: each test then
// writes every cell that an earlier one left behind, and none of those stays in a cache that is
// not told of removals.
std::vector<SpeedTest> tests_at(int depth, const std::vector<int>& n_prompt,
                                const std::vector<int>& n_gen);

struct MeanSd {
  double mean = 0, sd = 0;  // sd of a sample, 0 for fewer than two values
};
MeanSd mean_sd(std::span<const double> values);

// Of values[i] / reference[i], over the rounds that both have; nothing when there are none.
std::optional<MeanSd> ratio_over_rounds(std::span<const double> values,
                                        std::span<const double> reference);

// The first `n` of `tokens` repeated without end; there must be some.
std::vector<int> repeated(const std::vector<int>& tokens, size_t n);

}  // namespace zipcache::cli
