// A task with records: prompts, reference answers, and a scorer of what a model says. A new task is
// a reader that makes records and a scorer; eval_records.hpp measures it.
//
// Thread safety: pure functions, but for reading files.
#pragma once

#include <filesystem>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "result_file.hpp"
#include "zipcache/status.hpp"

namespace zipcache::cli {

struct TaskRecord {
  std::string id = {};         // its name in its file, where it has one
  Json row = Json::object();   // fields that tell its row of results from others: {"lines": 50}
  std::string prompt;          // ends where the answer has to follow
  std::string reference = {};  // a right answer as a model would write it; empty: there is none
  Json facts = {};             // what the scorer needs beyond the reference
  size_t most_characters = 0;  // of an answer that is worth reading; 0: no limit
};

// One object for each answer: "score" from 0 to 1, and other shares of the same kind by name.
using Scorer = std::function<Result<std::vector<Json>>(std::span<const TaskRecord>,
                                                       std::span<const std::string>)>;

struct RecordTask {
  std::string source;  // where the records come from, as rows name it
  std::string metric;  // what the score is: "exact", "number", "f1"
  std::vector<TaskRecord> records;
  int most_tokens = 64;                 // of an answer
  std::vector<std::string> stops = {};  // an answer ends before the first of them
  Scorer score;
};

// Number of tokens of a text in the vocabulary of the model that is measured.
using TokenCount = std::function<size_t(const std::string&)>;

// The objects of a file of JSON lines, of which each has text in the fields `texts`. BadData names
// the row and says `cure`; a file without rows is BadData too. `option` named the file.
Result<std::vector<Json>> read_records(const std::string& option, const std::filesystem::path& path,
                                       const std::vector<const char*>& texts,
                                       const std::string& cure);

// A scorer that needs nothing but one record and its answer; and the one that wants the reference.
Scorer score_each(std::function<Json(const TaskRecord&, const std::string&)> score);
Scorer score_exact();

// `said` up to the first of `stops`, and whether one was found.
std::pair<std::string, bool> cut_at_stop(const std::string& said,
                                         const std::vector<std::string>& stops);

}  // namespace zipcache::cli
