// Programming problems in the form of HumanEval: {"task_id", "prompt", "entry_point", "test",
// "canonical_solution"}. What a model writes is run by eval/tasks/run_humaneval.py, in child
// processes with limits.
//
// Thread safety: one thread at a time.
#pragma once

#include <string>
#include <vector>

#include "record_task.hpp"

namespace zipcache::cli {

struct ProgramLimits {
  int seconds = 5;      // of one problem
  int megabytes = 512;  // of memory
};

// The problems of `records`. `script` is run with `python` to score; both are tried here with the
// first problem's own solution and with a wrong one, so that a machine that cannot run programs is
// found out before a model is asked.
Result<RecordTask> humaneval_task(const std::filesystem::path& records, const std::string& python,
                                  const std::filesystem::path& script, const ProgramLimits& limits);

}  // namespace zipcache::cli
