// Questions about long texts in the form of LongBench: {"context", "input", "answers", "dataset"}.
//
// Thread safety: pure functions, but for reading files.
#pragma once

#include <span>
#include <string>

#include "record_task.hpp"

namespace zipcache::cli {

// The questions of `records`; of contexts that make a prompt longer than `most_tokens` (0: any) the
// middle is left out, as LongBench does. `metric` is f1 or exact.
Result<RecordTask> longbench_task(const std::filesystem::path& records, const std::string& metric,
                                  int most_tokens, const TokenCount& count);

// LongBench's scores for questions: words in common with the best of `answers`, after case,
// punctuation and articles are gone; and whether nothing else is there.
double f1_score(const std::string& said, std::span<const std::string> answers);
double exact_score(const std::string& said, std::span<const std::string> answers);

// Both ends of `text`, with at most `most` tokens.
std::string without_middle(const std::string& text, size_t most, const TokenCount& count);

}  // namespace zipcache::cli
