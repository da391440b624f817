// `zipcache eval drift`: agreement with the 16-bit cache over a long generation.
//
// Forced, all policies read the tokens that the 16-bit cache chose, one at a time, and differences
// come from the cache alone. Free, each policy reads its own tokens, as in use.
#include <fmt/format.h>

#include <algorithm>
#include <limits>
#include <memory>

#include "commands.hpp"
#include "comparison.hpp"
#include "drift.hpp"
#include "eval_setup.hpp"
#include "interrupt.hpp"
#include "places.hpp"

namespace zipcache::cli {

namespace {

// So many tokens in a row that stood in the stream before are a repetition.
constexpr size_t kRepeatedTokens = 8;

struct Options : EvalOptions {
  std::string text = default_text();
  int prompt_tokens = 256;
  int tokens = 512;
  int bin = 128;
  bool free = false;
  float temperature = 0;
  uint64_t seed = 1;
};

// What one run of this command measures.
struct Job {
  Json key;
  std::vector<PolicyChoice> missing;
  std::vector<llama_token> prompt = {};
};

Job make_job(const Options& options, const EvalSetup& setup, const std::string& text) {
  Json key = setup.key;
  key.update(Json{{"text", std::filesystem::path(options.text).filename().string()},
                  {"text_print", fingerprint(text)},
                  {"prompt_tokens", options.prompt_tokens},
                  {"generated", options.tokens},
                  {"mode", options.free ? "free" : "forced"},
                  {"temperature", options.temperature},
                  {"sampling_seed", options.seed},
                  {"depth_bin", options.bin}});
  return {key, missing_policies(setup, key)};
}

Status read_prompt(const Options& options, const std::string& text, const llama_model* model,
                   Job& job) {
  job.prompt = tokenise(model, text, true, false);
  if (job.prompt.size() < static_cast<size_t>(options.prompt_tokens)) {
    return {Code::BadData, fmt::format("--file: '{}' has {} tokens, expected at least {}; use a "
                                       "longer text or fewer --prompt-tokens",
                                       options.text, job.prompt.size(), options.prompt_tokens)};
  }
  job.prompt.resize(options.prompt_tokens);
  return ok();
}

// Never the end of the text, so that every stream has its length.
Comparison::Choose endless(const llama_model* model, TokenChoice choice) {
  const llama_vocab* vocab = llama_model_get_vocab(model);
  return [vocab, choice, logits = std::vector<float>()](std::span<const float> given) mutable {
    logits.assign(given.begin(), given.end());
    for (int i = 0; i < static_cast<int>(logits.size()); ++i) {
      if (llama_vocab_is_eog(vocab, i)) logits[i] = -std::numeric_limits<float>::infinity();
    }
    return static_cast<llama_token>(choice(logits));
  };
}

ComparisonPlan plan_of(const Options& options) {
  const int all = options.prompt_tokens + options.tokens;
  // Scored is what predicts a generated token, from the prompt's last token on.
  return {.chunks = {.ctx = all,
                     .chunks = 1,
                     .first = options.prompt_tokens - 1,
                     .ubatch = options.ubatch,
                     .total = options.prompt_tokens - 1},
          .threads = options.threads,
          .depth_bin = options.bin};
}

Json bins_json(const CompareRow& measured) {
  Json out = Json::array();
  for (const DepthSummary& bin : measured.by_depth) {
    if (bin.summary.tokens == 0) continue;  // of the prompt
    Json fields = {{"from", bin.begin}, {"to", bin.end}, {"n_scored", bin.summary.tokens}};
    fields.update(to_json(bin.summary));
    out.push_back(std::move(fields));
  }
  return out;
}

Status keep_row(const Options& options, EvalSetup& setup, const Job& job, const Engines& engines,
                const PolicyChoice& choice, const CacheFigures& figures, const Json& measured) {
  Json row = with_policy(job.key, choice);
  row.update(bits_json(figures));
  row["n_scored"] = options.tokens;
  row.update(measured);
  row.update(eval_facts(options, engines, choice));
  return setup.kept.add(row);
}

// All policies beside the 16-bit cache, token by token.
Status run_forced(const Options& options, EvalSetup& setup, const Job& job,
                  const Engines& engines) {
  Comparison comparison(engines, setup.files.about, plan_of(options));
  const auto places = comparison.add_policies(job.missing);
  if (!places.ok()) return places.status();
  Progress progress(static_cast<int64_t>(comparison.n_policies()) *
                    (options.prompt_tokens + options.tokens));
  progress.stage(fmt::format("{} tokens forced, {} policies", options.tokens, job.missing.size()));
  std::vector<llama_token> stream;
  ZC_TRY(comparison.generate(
      job.prompt, options.tokens,
      endless(engines.served.get(), TokenChoice(options.temperature, options.seed)), stream,
      progress));
  if (interrupted()) return ok();
  ZC_TRY(comparison.read_caches());
  for (size_t i = 0; i < job.missing.size(); ++i) {
    const CompareRow row = comparison.row((*places)[i], false);
    Json measured = to_json(row.summary);
    measured["repeated"] = repeated_share(stream, kRepeatedTokens);
    measured["by_depth"] = bins_json(row);
    ZC_TRY(keep_row(options, setup, job, engines, job.missing[i], row, measured));
  }
  return ok();
}

// The stream that `choice` makes by itself; the cache's figures at its end.
Result<std::vector<llama_token>> run_alone(const Options& options, const EvalSetup& setup,
                                           const Job& job, const Engines& engines,
                                           const PolicyChoice& choice, Progress& progress,
                                           CacheFigures& figures) {
  const int all = options.prompt_tokens + options.tokens;
  const Result<PolicyContext> opened = open_policy_context(
      engines, choice, {.n_ctx = all, .n_ubatch = options.ubatch, .n_threads = options.threads});
  if (!opened.ok()) return opened.status();
  const llama_model* model = (choice.ours() ? engines.served : engines.plain).get();
  llama_context* context = opened->context.get();
  progress.stage(fmt::format("{} tokens free, {}", options.tokens, choice.text));
  const Result<int> read = decode_prompt(context, job.prompt, options.ubatch);
  if (!read.ok()) return read.status();
  const Comparison::Choose choose = endless(model, TokenChoice(options.temperature, options.seed));
  const size_t n_vocab = llama_vocab_n_tokens(llama_model_get_vocab(model));
  std::vector<llama_token> stream;
  for (int i = 0; i < options.tokens && !interrupted(); ++i) {
    if (i > 0) ZC_TRY(decode(context, {&stream.back(), 1}, *read + i - 1, 0));
    stream.push_back(choose({llama_get_logits(context), n_vocab}));
    progress.step();
  }
  const Result<CacheFigures> now = read_cache(engines, *opened, setup.files.about, all - 1);
  if (!now.ok()) return now.status();
  figures = *now;
  return stream;
}

// Each policy after the other, held against the stream of the 16-bit cache.
Status run_free(const Options& options, EvalSetup& setup, const Job& job, const Engines& engines) {
  const PolicyChoice full = {kReference, ""};
  Progress progress(static_cast<int64_t>(job.missing.size() + 1) * options.tokens);
  CacheFigures figures;
  const auto reference = run_alone(options, setup, job, engines, full, progress, figures);
  if (!reference.ok()) return reference.status();
  for (const PolicyChoice& choice : job.missing) {
    if (interrupted()) return ok();
    const bool is_full = choice.text == full.text;
    const auto stream =
        is_full ? reference : run_alone(options, setup, job, engines, choice, progress, figures);
    if (!stream.ok()) return stream.status();
    if (interrupted()) return ok();
    const StreamDifference difference = compare_streams(*reference, *stream);
    const Json measured = {
        {"first_difference", difference.first ? Json(*difference.first) : Json()},
        {"equal_after", difference.first ? Json(difference.equal_after) : Json()},
        {"repeated", repeated_share(*stream, kRepeatedTokens)}};
    ZC_TRY(keep_row(options, setup, job, engines, choice, figures, measured));
  }
  return ok();
}

Status run_job(const Options& options, EvalSetup& setup, const std::string& text, Job& job) {
  if (job.missing.empty()) return ok();
  const Result<Engines> engines = open_eval_engines(options, setup, job.missing);
  if (!engines.ok()) return engines.status();
  ZC_TRY(read_prompt(options, text, engines->served.get(), job));
  watch_interrupts();
  return options.free ? run_free(options, setup, job, *engines)
                      : run_forced(options, setup, job, *engines);
}

Status eval_drift(const Options& options) {
  const Result<std::string> text = read_text(options.text);
  if (!text.ok()) return text.status();
  Result<EvalSetup> setup = set_up_eval(options);
  if (!setup.ok()) return setup.status();
  // Where the free streams start from, whether it was asked for or not.
  std::stable_partition(setup->choices.begin(), setup->choices.end(),
                        [](const PolicyChoice& choice) { return choice.text == kReference; });
  warn_about_length(options.prompt_tokens + options.tokens, setup->files.about);
  Job job = make_job(options, *setup, *text);
  ZC_TRY(run_job(options, *setup, *text, job));
  return finish_eval(options, setup->format, rows_of(*setup, job.key));
}

}  // namespace

void add_eval_drift(CLI::App& eval, Action& action) {
  auto options = std::make_shared<Options>();
  options->task = "drift";
  options->model = kDefaultModel;
  CLI::App* command = eval.add_subcommand(
      "drift",
      "Long generation: how far a cache drifts from the 16-bit cache, token by token. All "
      "policies\n"
      "read the stream that the 16-bit cache chooses, so that differences come from the cache "
      "alone;\nwith --free each reads its own, as in use.");
  command->footer(
      "Examples:\n"
      "  zipcache eval drift -n 4000 --policies 'zip;zipcache;q4_0' --out rows.jsonl\n"
      "  zipcache eval drift --free -n 1000 -f chat.txt\n"
      "A small model's most likely text falls into loops, on which all caches agree; the share of\n"
      "repeated tokens is printed, and --temp 1 avoids them: the tokens are then drawn, with the\n"
      "same random numbers for all policies.");
  command->add_option("-m,--model", options->model, "GGUF file, or smollm2 for the default model")
      ->capture_default_str();
  command->add_option("-f,--file", options->text,
                      "text whose beginning is the prompt; default: the book in data/text");
  command->add_option("--prompt-tokens", options->prompt_tokens, "tokens of the prompt")
      ->check(CLI::Range(1, 1 << 24))
      ->capture_default_str();
  command->add_option("-n,--tokens", options->tokens, "tokens to generate")
      ->check(CLI::Range(1, 1 << 24))
      ->capture_default_str();
  command->add_option("--depth-bin", options->bin, "tokens of a bin of positions")
      ->check(CLI::Range(1, 1 << 24))
      ->capture_default_str();
  command->add_flag("--free", options->free,
                    "each policy goes on with its own tokens: where the first other token stands, "
                    "and\nhow many are the same behind it");
  command
      ->add_option("--temp,--temperature", options->temperature,
                   "temperature, 0: most likely token")
      ->check(CLI::Range(0.0, 100.0))
      ->capture_default_str();
  command->add_option("-s,--seed", options->seed, "seed of the drawn tokens")
      ->capture_default_str();
  add_eval_options(*command, *options);
  command->callback([options, &action] { action = [options] { return eval_drift(*options); }; });
}

}  // namespace zipcache::cli
