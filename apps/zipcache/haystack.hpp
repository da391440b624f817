// Numbers hidden in filler text, and a question for one of them: passkey retrieval with one number,
// multi-key needles with several. The wording is what the model in eval/retrieval_model learned.
//
// Thread safety: pure functions, but for reading the words.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "record_task.hpp"

namespace zipcache::cli {

// What names and filler are made of; each list has words, and none is empty text.
struct HaystackWords {
  std::vector<std::string> adjectives, nouns, verbs;
};

// Reads eval/retrieval_model/words.json or a file of the same form.
Result<HaystackWords> read_words(const std::filesystem::path& path);

struct HaystackPlan {
  int length = 1024;  // tokens of the prompt, to within a sentence
  int depth = 50;     // where the wanted number stands, in percent of the filler before it
  int keys = 1;       // numbers in the text, each with its own name; the others stand anywhere
  uint64_t seed = 1;
};

// Record number `index` of a plan: the same for the same plan, index and vocabulary on every
// machine. BadArgument when the numbers and the question alone are longer than the plan.
Result<TaskRecord> make_haystack(const HaystackWords& words, const HaystackPlan& plan, int index,
                                 const TokenCount& count);

}  // namespace zipcache::cli
