// Line retrieval: records with a question each, and the answers that a context gives.
//
// Thread safety: one thread at a time.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "model.hpp"
#include "terminal.hpp"
#include "zipcache/status.hpp"

namespace zipcache::cli {

// One line of the file that eval/retrieval_model/lines.py writes.
struct RetrievalSample {
  int lines = 0;
  std::string seed;
  std::string prompt;  // ends where the answer has to follow
  std::string answer;
  std::vector<llama_token> tokens = {};  // of the prompt
};

// All samples of `path`; BadData for a row that lacks a field.
Result<std::vector<RetrievalSample>> read_samples(const std::filesystem::path& path);

// What `context` says after the prompt, most likely token first, as many characters as the answer
// has at most; computed in an emptied cache. The prompt is read in micro-batches of `ubatch`.
Result<std::string> ask(const llama_model* model, llama_context* context,
                        const RetrievalSample& sample, int ubatch);

}  // namespace zipcache::cli
