// Measures a task with records: asks every policy, scores the answers, and holds the probability of
// the reference answers against the 16-bit cache's.
//
// Thread safety: one thread at a time.
#pragma once

#include <CLI/CLI.hpp>
#include <functional>
#include <string>

#include "eval_setup.hpp"
#include "record_task.hpp"

namespace zipcache::cli {

struct RecordOptions : EvalOptions {
  std::string records;        // file that the records are read from, where there is one
  int samples = 0;            // records of each row, 0: all
  int most_tokens = 64;       // of an answer
  std::string measure = "both";
  std::string answers;  // file that every answer is appended to; empty: none
};

// Adds --records and --samples; `about` says what the file holds.
void add_records_option(CLI::App& command, RecordOptions& options, const std::string& about);

// Adds -n, --measure, --answers and what all tasks have.
void add_record_options(CLI::App& command, RecordOptions& options);

using MakeTask = std::function<Result<RecordTask>(const TokenCount&)>;

Status eval_records(const RecordOptions& options, const MakeTask& make);

}  // namespace zipcache::cli
