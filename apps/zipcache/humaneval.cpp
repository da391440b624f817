// Programming problems in the form of HumanEval.
#include "humaneval.hpp"

#include <fmt/format.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <fstream>

#include "child.hpp"

namespace zipcache::cli {

namespace {

namespace fs = std::filesystem;

constexpr const char* kCure = "give JSON lines in the form of HumanEval";

// A folder that is gone with its owner.
class TemporaryFolder {
 public:
  TemporaryFolder() {
    std::string name = (fs::temp_directory_path() / "zipcache-XXXXXX").string();
    if (mkdtemp(name.data()) != nullptr) path_ = name;
  }
  ~TemporaryFolder() {
    std::error_code error;
    if (!path_.empty()) fs::remove_all(path_, error);
  }
  TemporaryFolder(const TemporaryFolder&) = delete;
  TemporaryFolder& operator=(const TemporaryFolder&) = delete;
  const fs::path& path() const { return path_; }

 private:
  fs::path path_;
};

struct Runner {
  std::string python;
  fs::path script;
  ProgramLimits limits;
};

// The rows that the script writes: {"passed": true or false, ...}, one for each sample.
Result<std::vector<Json>> run_samples(const Runner& runner, const std::vector<Json>& samples) {
  const TemporaryFolder folder;
  const fs::path in = folder.path() / "samples.jsonl", out = folder.path() / "results.jsonl";
  std::ofstream file(in, std::ios::binary);
  file << jsonl(samples) << std::flush;
  if (folder.path().empty() || !file) {
    return Status{Code::Environment,
                  fmt::format("cannot write '{}': {}", in.string(), std::strerror(errno))};
  }
  const Result<int> status =
      run_program({runner.python, runner.script.string(), in.string(), out.string(), "--seconds",
                   fmt::format("{}", runner.limits.seconds), "--megabytes",
                   fmt::format("{}", runner.limits.megabytes)});
  if (!status.ok() || *status != 0) {
    return Status{Code::Environment,
                  fmt::format("--python: '{}' {}; expected a Python 3 that runs {}", runner.python,
                              status.ok() ? fmt::format("ended with status {}", *status)
                                          : "cannot be started",
                              runner.script.string())};
  }
  Result<std::vector<Json>> results = read_rows(out);
  if (!results.ok()) return results.status();
  if (results->size() == samples.size()) return results;
  return Status{Code::Environment,
                fmt::format("{}: found {} results, expected {}", runner.script.string(),
                            results->size(), samples.size())};
}

Json sample(const Json& problem, const std::string& completion) {
  Json out = problem;
  out["completion"] = completion;
  return out;
}

Status try_out(const Runner& runner, const Json& problem) {
  const auto results = run_samples(runner, {sample(problem, problem["canonical_solution"]),
                                            sample(problem, "    raise NotImplementedError\n")});
  if (!results.ok()) return results.status();
  if ((*results)[0]["passed"] == true && (*results)[1]["passed"] == false) return ok();
  return {Code::BadData,
          fmt::format(
              "--records: problem {}: its own solution {} (found: {}); expected solutions "
              "that pass and a wrong one that fails",
              problem["task_id"].dump(),
              (*results)[0]["passed"] == true ? "passes, but so does a wrong one" : "does not pass",
              (*results)[0].value("result", ""))};
}

}  // namespace

Result<RecordTask> humaneval_task(const fs::path& records, const std::string& python,
                                  const fs::path& script, const ProgramLimits& limits) {
  const Result<std::vector<Json>> rows =
      read_records("--records", records,
                   {"task_id", "prompt", "entry_point", "test", "canonical_solution"}, kCure);
  if (!rows.ok()) return rows.status();
  const Runner runner{python, script, limits};
  ZC_TRY(try_out(runner, rows->front()));
  RecordTask task{.source = records.filename().string(),
                  .metric = "pass@1",
                  .records = {},
                  .stops = {"\nclass", "\ndef", "\n#", "\nif", "\nprint", "\n@", "\nassert"},
                  .score = {}};
  task.score = [runner](std::span<const TaskRecord> asked,
                        std::span<const std::string> said) -> Result<std::vector<Json>> {
    std::vector<Json> samples;
    for (size_t i = 0; i < asked.size(); ++i) samples.push_back(sample(asked[i].facts, said[i]));
    const auto results = run_samples(runner, samples);
    if (!results.ok()) return results.status();
    std::vector<Json> marks;
    for (const Json& result : *results)
      marks.push_back({{"score", result.value("passed", false) ? 1 : 0}});
    return marks;
  };
  for (const Json& row : *rows) {
    TaskRecord record{.prompt = row["prompt"].get<std::string>()};
    record.id = row["task_id"].get<std::string>();
    record.reference = row["canonical_solution"].get<std::string>();
    record.facts = row;
    task.records.push_back(std::move(record));
  }
  return task;
}

}  // namespace zipcache::cli
