// `zipcache eval retrieval`: right answers about a line of a record, by the number of its lines.
#include <fmt/format.h>

#include <algorithm>
#include <memory>
#include <set>

#include "arguments.hpp"
#include "commands.hpp"
#include "eval_setup.hpp"
#include "interrupt.hpp"
#include "places.hpp"
#include "retrieval.hpp"
#include "statistics.hpp"

namespace zipcache::cli {

namespace {

// The policy whose accuracy stands in every row.
const PolicyChoice kFull = {"f16", ""};

struct Options : EvalOptions {
  std::string records = default_retrieval_file("lines.jsonl");
  std::vector<int> lines;
  int samples = 0;
};

// The samples of one number of lines, and what is missing of them.
struct Job {
  int lines = 0;
  std::vector<RetrievalSample> samples = {};
  Json key = {};
  std::vector<PolicyChoice> missing = {};
};

Result<std::vector<int>> wanted_lines(const Options& options,
                                      const std::vector<RetrievalSample>& samples) {
  std::set<int> found;
  for (const RetrievalSample& sample : samples) found.insert(sample.lines);
  if (options.lines.empty()) return std::vector<int>(found.begin(), found.end());
  for (const int lines : options.lines) {
    if (found.contains(lines)) continue;
    return Status{Code::BadArgument,
                  fmt::format("--lines: found no records of {} lines in '{}'; write some with "
                              "eval/retrieval_model/lines.py",
                              lines, options.records)};
  }
  return options.lines;
}

Result<std::vector<Job>> list_jobs(const Options& options, const EvalSetup& setup) {
  const Result<std::vector<RetrievalSample>> samples = read_samples(options.records);
  if (!samples.ok()) return samples.status();
  const Result<std::vector<int>> lines = wanted_lines(options, *samples);
  if (!lines.ok()) return lines.status();
  std::vector<Job> jobs;
  for (const int n_lines : *lines) {
    Job job{n_lines};
    std::string content;
    for (const RetrievalSample& sample : *samples) {
      const size_t most = options.samples > 0 ? options.samples : samples->size();
      if (sample.lines != n_lines || job.samples.size() == most) continue;
      job.samples.push_back(sample);
      content += sample.prompt + sample.answer + "\n";
    }
    job.key = setup.key;
    job.key.update(Json{{"records", std::filesystem::path(options.records).filename().string()},
                        {"records_print", fingerprint(content)},
                        {"lines", n_lines},
                        {"samples", job.samples.size()}});
    job.missing = missing_policies(setup, job.key);
    jobs.push_back(std::move(job));
  }
  return jobs;
}

int64_t tokens_of(const Job& job) {
  int64_t tokens = 0;
  for (const RetrievalSample& sample : job.samples)
    tokens += static_cast<int64_t>(sample.tokens.size());
  return tokens;
}

// Cells for the longest prompt and its answer.
int context_size(const Job& job) {
  size_t most = 0;
  for (const RetrievalSample& sample : job.samples)
    most = std::max(most, sample.tokens.size() + sample.answer.size());
  return static_cast<int>(most);
}

// The row of the 16-bit cache for `job`: absent while it is being measured.
Json accuracy_of_full(const EvalSetup& setup, const Job& job) {
  const auto row = setup.kept.find(with_policy(job.key, kFull));
  return row ? (*row)["accuracy"] : Json();
}

// Asks all questions with one policy; an interrupted policy leaves no row.
Status run_policy(const Options& options, EvalSetup& setup, const Job& job, const Engines& engines,
                  const PolicyChoice& choice, Progress& progress) {
  const Result<PolicyContext> opened = open_policy_context(
      engines, choice,
      {.n_ctx = context_size(job), .n_ubatch = options.ubatch, .n_threads = options.threads});
  if (!opened.ok()) return opened.status();
  const llama_model* model = (choice.ours() ? engines.served : engines.plain).get();
  progress.stage(fmt::format("{} lines, {}", job.lines, choice.text));
  size_t right = 0;
  for (const RetrievalSample& sample : job.samples) {
    const Result<std::string> said = ask(model, opened->context.get(), sample, options.ubatch);
    if (!said.ok()) return said.status();
    if (interrupted()) return ok();
    right += *said == sample.answer ? 1 : 0;
    progress.step(static_cast<int64_t>(sample.tokens.size()));
  }
  const int tokens = static_cast<int>(job.samples.back().tokens.size());
  const Result<CacheFigures> figures = read_cache(engines, *opened, setup.files.about, tokens);
  if (!figures.ok()) return figures.status();

  const double n = static_cast<double>(job.samples.size());
  const Interval interval = wilson(right, job.samples.size());
  Json row = with_policy(job.key, choice);
  row.update(bits_json(*figures));
  row.update(Json{{"n_scored", job.samples.size()},
                  {"right", right},
                  {"accuracy", static_cast<double>(right) / n},
                  {"low95", interval.low},
                  {"high95", interval.high},
                  {"accuracy_f16", accuracy_of_full(setup, job)},
                  {"tokens", static_cast<double>(tokens_of(job)) / n},
                  {"records_seed", job.samples.front().seed}});
  row.update(eval_facts(options, engines, choice));
  if (choice.text == kFull.text) row["accuracy_f16"] = row["accuracy"];
  return setup.kept.add(row);
}

Status run_jobs(const Options& options, EvalSetup& setup, std::vector<Job>& jobs) {
  std::vector<PolicyChoice> missing;
  for (const Job& job : jobs) missing.insert(missing.end(), job.missing.begin(), job.missing.end());
  if (missing.empty()) return ok();
  const Result<Engines> engines = open_eval_engines(options, setup, missing);
  if (!engines.ok()) return engines.status();

  int64_t work = 0;
  for (Job& job : jobs) {
    for (RetrievalSample& sample : job.samples)
      sample.tokens = tokenise(engines->served.get(), sample.prompt, true, false);
    work += tokens_of(job) * static_cast<int64_t>(job.missing.size());
  }
  watch_interrupts();
  Progress progress(work);
  for (const Job& job : jobs) {
    for (const PolicyChoice& choice : job.missing) {
      ZC_TRY(run_policy(options, setup, job, *engines, choice, progress));
      if (interrupted()) return ok();
    }
  }
  return ok();
}

// The 16-bit cache comes first, so that its accuracy is known when the others' rows are written.
void put_full_first(std::vector<PolicyChoice>& choices) {
  std::erase_if(choices, [](const PolicyChoice& choice) { return choice.text == kFull.text; });
  choices.insert(choices.begin(), kFull);
}

Status eval_retrieval(const Options& options) {
  Result<EvalSetup> setup = set_up_eval(options);
  if (!setup.ok()) return setup.status();
  put_full_first(setup->choices);
  Result<std::vector<Job>> jobs = list_jobs(options, *setup);
  if (!jobs.ok()) return jobs.status();
  ZC_TRY(run_jobs(options, *setup, *jobs));

  std::vector<Json> rows;
  for (const Job& job : *jobs) {
    for (Json& row : rows_of(*setup, job.key)) rows.push_back(std::move(row));
  }
  return finish_eval(options, setup->format, rows);
}

}  // namespace

void add_eval_retrieval(CLI::App& eval, Action& action) {
  auto options = std::make_shared<Options>();
  options->task = "retrieval";
  options->model = default_retrieval_file("retrieval-8m.gguf");
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
  command->add_option(
      "--records", options->records,
      "file of records as eval/retrieval_model/lines.py writes it; default: the one "
      "beside it");
  command
      ->add_option("--lines", options->lines,
                   "numbers of lines, with commas; default: all that the file has")
      ->delimiter(',');
  command->add_option("--samples", options->samples, "records for each number of lines, 0 for all")
      ->check(CLI::Range(0, 1 << 24))
      ->capture_default_str();
  add_eval_options(*command, *options);
  command->callback(
      [options, &action] { action = [options] { return eval_retrieval(*options); }; });
}

}  // namespace zipcache::cli
