// `zipcache bench model`: prompt and generation speed of a model at depths, one row per test and
// policy.
#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <memory>

#include "arguments.hpp"
#include "commands.hpp"
#include "interrupt.hpp"
#include "llama_log.hpp"
#include "model_bench.hpp"
#include "places.hpp"
#include "waiting.hpp"

namespace zipcache::cli {

namespace {

constexpr double kMiB = 1024.0 * 1024.0;

struct Options {
  std::string model = kDefaultModel;
  std::string text = default_text();
  std::string policies = "f16,llama:f16,llama:q8_0,llama:q4_0,zipcache,zip";
  ModelBenchPlan plan = {.n_prompt = {512},
                         .n_gen = {32},
                         .depth = {0, 512, 8192},
                         .reps = 3,
                         .ubatch = 512,
                         .threads = available_threads()};
  bool f32_weights = false;
  std::string output = "md";
  bool verbose = false;
};

// What is the same for all rows of one run.
struct Facts {
  std::string file, type;  // of the model; type as llama.cpp describes it
  uint64_t bytes = 0, n_params = 0;
  int threads = 0, ubatch = 0;
  std::string cpu, date, llama_cpp, wait_policy;
};

Status check(const ModelBenchPlan& plan) {
  constexpr int kMost = 1 << 24;
  ZC_TRY(check_range("--n-prompt", plan.n_prompt, 0, kMost));
  ZC_TRY(check_range("--n-gen", plan.n_gen, 0, kMost));
  ZC_TRY(check_range("--n-depth", plan.depth, 0, kMost));
  ZC_TRY(check_range("--threads", {plan.threads}, 1, 1024));
  ZC_TRY(check_range("--ubatch-size", {plan.ubatch}, 1, 1 << 16));
  ZC_TRY(check_range("--reps", {plan.reps}, 1, 10000));
  if (!tests_at(0, plan.n_prompt, plan.n_gen).empty()) return ok();
  return {
      Code::BadArgument,
      "--n-prompt, --n-gen: found 0 in both, expected a length above 0 in one of them; 0 leaves "
      "a kind of test out"};
}

// Speed does not suffer where a test goes past the context's end, but a depth or a length beyond
// it can only be a mistake.
Status check_length(const ModelBenchPlan& plan, const ModelFile& about) {
  if (about.trained_ctx == 0) return ok();
  for (const auto& [name, values] :
       {std::pair("--n-depth", &plan.depth), std::pair("--n-prompt", &plan.n_prompt),
        std::pair("--n-gen", &plan.n_gen)}) {
    for (const int value : *values) {
      if (value <= about.trained_ctx) continue;
      return {Code::OverLimit,
              fmt::format("{}: found {}, expected at most {}, the context that {} was trained for",
                          name, value, about.trained_ctx, about.name)};
    }
  }
  return ok();
}

Facts facts_of(const Options& options, const EngineFiles& files, const llama_model* model) {
  std::array<char, 128> type{};
  llama_model_desc(model, type.data(), type.size());
  return {files.model.filename().string(),
          type.data(),
          llama_model_size(model),
          llama_model_n_params(model),
          options.plan.threads,
          options.plan.ubatch,
          processor_name(),
          date_of_today(),
          llama_version_text(),
          wait_policy()};
}

Json to_json(const ModelBenchRow& row, const Facts& facts) {
  const MeanSd tps = mean_sd(row.tps);
  const auto& ratio = row.vs_llama_f16;
  const auto share = [&](double CacheTime::*part) {
    return row.shares ? Json((*row.shares).*part) : Json();
  };
  return {{"kind", "model"},
          {"model", facts.file},
          {"kernel", row.kernel},
          {"isa", row.isa},
          {"policy", row.policy},
          {"test", name_of(row.test)},
          {"n_prompt", row.test.n_prompt},
          {"n_gen", row.test.n_gen},
          {"depth", row.test.depth},
          {"threads", facts.threads},
          {"ubatch", facts.ubatch},
          {"tps_mean", tps.mean},
          {"tps_sd", tps.sd},
          {"tps", row.tps},
          {"vs_llama_f16", ratio ? Json(ratio->mean) : Json()},
          {"vs_llama_f16_sd", ratio ? Json(ratio->sd) : Json()},
          {"kv_mib", static_cast<double>(row.kv_bytes) / kMiB},
          {"cpu", facts.cpu},
          {"date", facts.date},
          {"model_type", facts.type},
          {"model_size", facts.bytes},
          {"model_n_params", facts.n_params},
          {"llama_cpp", facts.llama_cpp},
          {"wait_policy", facts.wait_policy},
          {"share_attention", share(&CacheTime::attention)},
          {"share_scoring", share(&CacheTime::scoring)},
          {"share_packing", share(&CacheTime::packing)}};
}

std::vector<std::string> cells(const ModelBenchRow& row, const Facts& facts) {
  const MeanSd tps = mean_sd(row.tps);
  const auto& ratio = row.vs_llama_f16;
  return {facts.type,
          fmt::format("{:.2f} MiB", static_cast<double>(facts.bytes) / kMiB),
          fmt::format("{:.2f} M", static_cast<double>(facts.n_params) / 1e6),
          row.isa.empty() ? "CPU" : "ZipCache " + row.isa,
          fmt::format("{}", facts.threads),
          row.policy,
          "1",  // flash attention, the only kind that is measured
          name_of(row.test),
          fmt::format("{:.2f} ± {:.2f}", tps.mean, tps.sd),
          ratio ? fmt::format("{:.2f} ± {:.2f}", ratio->mean, ratio->sd) : "-",
          fmt::format("{:.2f}", static_cast<double>(row.kv_bytes) / kMiB)};
}

void print_table(const std::vector<ModelBenchRow>& rows, const Facts& facts, int reps) {
  std::vector<std::vector<std::string>> lines;
  for (const ModelBenchRow& row : rows) lines.push_back(cells(row, facts));
  fmt::print("{}", markdown({{"model", false},
                             {"size"},
                             {"params"},
                             {"backend", false},
                             {"threads"},
                             {"policy", false},
                             {"fa"},
                             {"test"},
                             {"t/s"},
                             {"vs llama:f16"},
                             {"KV MiB"}},
                            lines, colours(stdout)));
  fmt::print(
      "\npp512 @ d4096: a prompt of 512 tokens in micro-batches of {} after 4,096 tokens; tg32: 32 "
      "tokens one at a time.\nt/s: mean ± standard deviation of {} rounds, which the policies take "
      "in turn. vs llama:f16: speed against it in\n  the same rounds, ± the standard deviation of "
      "the rounds' ratios. KV MiB: all bytes of the cache when the test ended.\n{} · {} · "
      "llama.cpp {}\n",
      facts.ubatch, reps, facts.cpu, facts.date, facts.llama_cpp);
}

void print(const std::vector<ModelBenchRow>& rows, const Facts& facts, int reps, Format format) {
  if (format == Format::Md) return print_table(rows, facts, reps);
  std::vector<Json> objects;
  for (const ModelBenchRow& row : rows) objects.push_back(to_json(row, facts));
  fmt::print("{}", for_programs(format, objects));
}

Status bench_model(const Options& options) {
  capture_llama_log(options.verbose);
  const Result<Format> format = parse_format(options.output);
  if (!format.ok()) return format.status();
  ZC_TRY(check(options.plan));
  const auto choices = parse_policy_list(options.policies);
  if (!choices.ok()) return choices.status();
  ZC_TRY(check_policies(*choices));
  const Result<std::string> text = read_text(options.text);
  if (!text.ok()) return text.status();
  const Result<EngineFiles> files = find_engine_files(options.model);
  if (!files.ok()) return files.status();
  ZC_TRY(check_length(options.plan, files->about));

  llama_backend_init();
  const Result<Engines> engines = open_engines(
      *files, *choices,
      {options.f32_weights, options.plan.ubatch, options.plan.threads, options.verbose});
  if (!engines.ok()) return engines.status();
  const llama_model* model = engines->served.get();
  const Facts facts = facts_of(options, *files, model);
  const std::vector<llama_token> tokens = tokenise(model, *text, true, false);
  ModelBench bench(*engines, files->about, options.plan,
                   repeated(tokens, size_t(options.plan.most_tokens())));
  watch_interrupts();
  ZC_TRY(bench.run(*choices));
  if (!bench.rows().empty()) print(bench.rows(), facts, options.plan.reps, *format);
  if (!interrupted()) return ok();
  return {Code::Aborted, fmt::format("interrupted after {} rows", bench.rows().size())};
}

}  // namespace

void add_bench_model(CLI::App& bench, Action& action) {
  auto options = std::make_shared<Options>();
  CLI::App* command = bench.add_subcommand(
      "model",
      "Speed of a whole model with each cache: prompts (pp) and generation (tg) after a number of\n"
      "tokens (d), named and measured as llama-bench does, but with the caches taking turns.");
  command->footer(
      "A context is filled to each depth once; after a repetition its newest tokens are dropped "
      "and written again.\n"
      "All policies of a depth are in memory together. The speed of reading a whole text of 8,192 "
      "tokens is\n"
      "pp8192 at depth 0: -p 8192 -n 0 -d 0.\n\n"
      "Policies are those of `zipcache compare`: q8_0, q4_0 and llama:TYPE are llama.cpp's own "
      "caches, without\n"
      "our backend; all others are listed by `zipcache policies`.\n\n"
      "Examples:\n"
      "  zipcache bench model -d 0,4096\n"
      "  zipcache bench model -m model.gguf --policies llama:f16,zip -p 0 -n 64 -d 16384 -r 5 -o "
      "jsonl");
  const auto list = [&](const char* name, auto& values, const char* help) {
    command->add_option(name, values, help)->delimiter(',')->capture_default_str();
  };
  ModelBenchPlan& plan = options->plan;
  command->add_option("-m,--model", options->model, "GGUF file, or smollm2 for the default model")
      ->capture_default_str();
  command->add_option(
      "-f,--file", options->text,
      "text to read, repeated when it is too short; default: the book in data/text");
  command->add_option("--policies", options->policies, "caches to measure")->capture_default_str();
  list("-p,--n-prompt", plan.n_prompt, "lengths of prompts, 0 for none");
  list("-n,--n-gen", plan.n_gen, "lengths of generations, 0 for none");
  list("-d,--n-depth", plan.depth, "tokens in the cache before a test begins");
  command->add_option("-r,--reps", plan.reps, "rounds of each test; one more warms up")
      ->capture_default_str();
  command->add_option("--ubatch-size", plan.ubatch, "(-ub) tokens of a micro-batch")
      ->capture_default_str();
  command->add_option("-t,--threads", plan.threads, "threads")->capture_default_str();
  command->add_flag("--f32-weights", options->f32_weights,
                    "expand the weights to 32 bits first; takes 4 bytes of memory a parameter");
  command->add_option("-o,--output", options->output, "md, csv, json or jsonl")
      ->capture_default_str();
  command->add_flag("-v,--verbose", options->verbose, "show llama.cpp's messages");
  command->callback([options, &action] { action = [options] { return bench_model(*options); }; });
}

}  // namespace zipcache::cli
