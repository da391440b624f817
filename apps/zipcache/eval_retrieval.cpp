// `zipcache eval retrieval`: right answers about a line of a record, by the number of its lines.
#include <fmt/format.h>

#include <algorithm>
#include <memory>
#include <set>

#include "commands.hpp"
#include "eval_records.hpp"
#include "places.hpp"

namespace zipcache::cli {

namespace {

constexpr const char* kCure = "write the file with eval/retrieval_model/lines.py";

struct Options : RecordOptions {
  std::vector<int> lines;
};

Status check_lines(const Options& options, const std::set<int>& found) {
  for (const int lines : options.lines) {
    if (found.contains(lines)) continue;
    return {Code::BadArgument,
            fmt::format("--lines: found no records of {} lines in '{}'; write some with "
                        "eval/retrieval_model/lines.py",
                        lines, options.records)};
  }
  return ok();
}

Result<RecordTask> make_task(const Options& options) {
  const Result<std::vector<Json>> rows =
      read_records("--records", options.records, {"seed", "prompt", "answer"}, kCure);
  if (!rows.ok()) return rows.status();
  RecordTask task{.source = std::filesystem::path(options.records).filename().string(),
                  .metric = "exact",
                  .records = {},
                  .most_tokens = options.most_tokens,
                  .score = score_exact()};
  std::set<int> found;
  for (const Json& row : *rows) {
    if (!row.contains("lines") || !row["lines"].is_number_integer()) {
      return Status{Code::BadData,
                    fmt::format("--records: '{}': found a row without a whole number 'lines'; {}",
                                options.records, kCure)};
    }
    const int lines = row["lines"];
    found.insert(lines);
    if (!options.lines.empty() &&
        std::find(options.lines.begin(), options.lines.end(), lines) == options.lines.end())
      continue;
    const std::string answer = row["answer"];
    task.records.push_back({.row = {{"lines", lines}, {"records_seed", row["seed"]}},
                            .prompt = row["prompt"],
                            .reference = answer,
                            .most_characters = answer.size()});
  }
  ZC_TRY(check_lines(options, found));
  std::stable_sort(
      task.records.begin(), task.records.end(),
      [](const TaskRecord& a, const TaskRecord& b) { return a.row["lines"] < b.row["lines"]; });
  return task;
}

}  // namespace

void add_eval_retrieval(CLI::App& eval, Action& action) {
  auto options = std::make_shared<Options>();
  options->task = "retrieval";
  options->model = default_retrieval_file("retrieval-8m.gguf");
  options->records = default_retrieval_file("lines.jsonl");
  options->most_tokens = 16;
  CLI::App* command = eval.add_subcommand(
      "retrieval",
      "Line retrieval, the paper's task: right answers about one line of a record, by the number "
      "of\nits lines, with Wilson's 95 % interval. The 16-bit cache is always measured too.");
  command->footer(
      "Examples:\n"
      "  zipcache eval retrieval --policies 'zip;zipcache;uniform,k=2,v=2' --out rows.jsonl\n"
      "  python3 eval/retrieval_model/lines.py --lines 400 --samples 100 > long.jsonl\n"
      "  zipcache eval retrieval --records long.jsonl");
  command->add_option("-m,--model", options->model,
                      "GGUF file; default: the model in eval/retrieval_model, made for this");
  add_records_option(*command, *options,
                     "file of records as eval/retrieval_model/lines.py writes it; default: the "
                     "one beside it");
  command
      ->add_option("--lines", options->lines,
                   "numbers of lines, with commas; default: all that the file has")
      ->delimiter(',');
  add_record_options(*command, *options);
  command->callback([options, &action] {
    action = [options] {
      return eval_records(*options, [&](const TokenCount&) { return make_task(*options); });
    };
  });
}

}  // namespace zipcache::cli
