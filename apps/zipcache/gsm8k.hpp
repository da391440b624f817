// Word problems in the form of GSM8K: {"question", "answer"}, where the answer ends "#### NUMBER".
//
// Thread safety: pure functions, but for reading files.
#pragma once

#include <optional>
#include <string>

#include "record_task.hpp"

namespace zipcache::cli {

// The problems of `records` behind the first `shots` worked ones of `examples`.
Result<RecordTask> gsm8k_task(const std::filesystem::path& records,
                              const std::filesystem::path& examples, int shots);

// The number that a worked answer comes to: the first behind "The answer is", else the last one.
std::optional<double> final_number(const std::string& text);

}  // namespace zipcache::cli
