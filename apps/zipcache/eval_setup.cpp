// What the tasks of `zipcache eval` share.
#include "eval_setup.hpp"

#include <fmt/format.h>

#include <filesystem>

#include "interrupt.hpp"
#include "llama_log.hpp"
#include "places.hpp"
#include "result_tables.hpp"
#include "terminal.hpp"
#include "zipcache/cache.hpp"
#include "zipcache/policy.hpp"

namespace zipcache::cli {

namespace {

// The program is what its backend does: another build of it makes other rows.
Result<std::string> build_text(const std::filesystem::path& backend) {
  const Result<std::string> print = fingerprint_of_file(backend);
  if (!print.ok()) return print.status();
  return fmt::format("{} {}", version(), *print);
}

}  // namespace

void add_eval_options(CLI::App& command, EvalOptions& options) {
  command
      .add_option("--policies", options.policies,
                  "policies, separated by ; or by commas, as `zipcache compare` takes them")
      ->capture_default_str();
  add_engine_options(command, options);
  command.add_option("-o,--output", options.output, "md, csv, json or jsonl")
      ->capture_default_str();
  command.add_option("--out", options.out,
                     "file that each row is appended to; rows that it has already are not measured "
                     "again");
  command.add_flag("--f32-weights", options.f32_weights,
                   "expand the weights to 32 bits first, as in `zipcache compare`");
}

void add_engine_options(CLI::App& command, EvalOptions& options) {
  command.add_option("--ubatch-size", options.ubatch, "(-ub) tokens of a micro-batch")
      ->check(CLI::Range(1, 1 << 16))
      ->capture_default_str();
  options.threads = available_threads();
  command.add_option("-t,--threads", options.threads, "threads")
      ->check(CLI::Range(1, 1024))
      ->capture_default_str();
  command.add_flag("-v,--verbose", options.verbose, "show llama.cpp's messages");
}

Result<std::vector<EvalText>> read_texts(const std::vector<std::string>& paths) {
  std::vector<EvalText> texts;
  for (const std::string& path : paths) {
    Result<std::string> content = read_text(path);
    if (!content.ok()) return content.status();
    const std::string print = fingerprint(*content);
    texts.push_back({std::filesystem::path(path).filename().string(), std::move(*content), print});
  }
  return texts;
}

Result<EvalSetup> set_up_eval(const EvalOptions& options) {
  capture_llama_log(options.verbose);
  EvalSetup setup;
  const Result<Format> format = parse_format(options.output);
  if (!format.ok()) return format.status();
  setup.format = *format;
  Result<std::vector<PolicyChoice>> choices = parse_policy_list(options.policies);
  if (!choices.ok()) return choices.status();
  setup.choices = std::move(*choices);
  ZC_TRY(check_policies(setup.choices,
                        options.task == "kld" ? ScoreFiles::Checked : ScoreFiles::Refused));
  Result<EngineFiles> files = find_engine_files(options.model);
  if (!files.ok()) return files.status();
  setup.files = std::move(*files);
  Result<ResultFile> kept = ResultFile::open(options.out);
  if (!kept.ok()) return kept.status();
  setup.kept = std::move(*kept);
  const Result<std::string> build = build_text(setup.files.backend);
  if (!build.ok()) return build.status();
  setup.key = {{"task", options.task},
               {"model", setup.files.model.filename().string()},
               {"model_bytes", std::filesystem::file_size(setup.files.model)},
               {"f32_weights", options.f32_weights},
               {"ubatch", options.ubatch},
               {"build", *build},
               {"llama_cpp", llama_version_text()}};
  return setup;
}

Result<Engines> open_eval_engines(const EvalOptions& options, const EvalSetup& setup,
                                  std::span<const PolicyChoice> choices) {
  llama_backend_init();
  return open_engines(setup.files, choices,
                      {options.f32_weights, options.ubatch, options.threads, options.verbose});
}

Json with_policy(Json key, const PolicyChoice& choice) {
  key["policy"] = choice.text;
  const Result<Policy> policy = parse_policy(choice.text);
  if (!choice.ours() || !policy.ok()) return key;
  // Another content of a file is another policy. One that cannot be read has no row.
  const auto add_print = [&](const char* field, const std::string& path) {
    const Result<std::string> print = fingerprint_of_file(path);
    key[field] = print.ok() ? Json(*print) : Json();
  };
  if (policy->saliency.statistic == Statistic::File)
    add_print("score_print", policy->saliency.file);
  if (!policy->rotations.empty()) add_print("rotations_print", policy->rotations);
  return key;
}

std::vector<PolicyChoice> missing_policies(const EvalSetup& setup, const Json& key) {
  std::vector<PolicyChoice> missing;
  for (const PolicyChoice& choice : setup.choices) {
    if (!setup.kept.find(with_policy(key, choice))) missing.push_back(choice);
  }
  return missing;
}

std::vector<Json> rows_of(const EvalSetup& setup, const Json& key) {
  std::vector<Json> rows;
  for (const PolicyChoice& choice : setup.choices) {
    if (auto row = setup.kept.find(with_policy(key, choice))) rows.push_back(std::move(*row));
  }
  return rows;
}

Json eval_facts(const EvalOptions& options, const Engines& engines, const PolicyChoice& choice) {
  Json facts = {
      {"attend", choice.ours() ? "a chunk reads itself and raw rows exactly, older tokens packed"
                               : "every row is read as the cache holds it"},
      {"weights", weights_text(llama_model_ftype(engines.served.get()), options.f32_weights)},
      {"threads", options.threads},
      {"cpu", processor_name()},
      {"date", date_of_today()}};
  const Result<Policy> policy = parse_policy(choice.text);
  facts["seed"] = choice.ours() && policy.ok() ? Json(policy->seed) : Json();
  return facts;
}

Json kld_row(const Json& key, const EvalOptions& options, const Engines& engines,
             const PolicyChoice& choice, const CompareRow& measured) {
  Json row = with_policy(key, choice);
  row.update(bits_json(measured));
  row["kv_tokens"] = measured.cache_tokens;
  row["n_scored"] = measured.summary.tokens;
  row.update(to_json(measured.summary));
  row.update(eval_facts(options, engines, choice));
  return row;
}

Json bits_json(const CacheFigures& figures) {
  return {{"bits_resident", figures.bits_per_element},
          {"bits_coded", figures.ratio_params > 0 ? Json(16 / figures.ratio_params) : Json()},
          {"kv_bytes", figures.bytes.now},
          {"kernel", figures.kernel}};
}

Status finish_eval(const EvalOptions& options, Format format, const std::vector<Json>& rows) {
  if (format == Format::Md) {
    const Result<std::string> tables = result_tables(rows, colours(stdout));
    if (!tables.ok()) return tables.status();
    fmt::print("{}", *tables);
  } else {
    fmt::print("{}", for_programs(format, rows));
  }
  if (!interrupted()) return ok();
  return {
      Code::Aborted,
      options.out.empty()
          ? fmt::format("interrupted after {} rows; with --out FILE a run can be taken up again",
                        rows.size())
          : fmt::format("interrupted; {} rows are in '{}', the same command goes on from there",
                        rows.size(), options.out)};
}

}  // namespace zipcache::cli
