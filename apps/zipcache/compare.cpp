// `zipcache compare`: the same text through the 16-bit cache and through every policy, one row
// each.
#include <fmt/format.h>

#include <memory>

#include "commands.hpp"
#include "comparison.hpp"
#include "engines.hpp"
#include "interrupt.hpp"
#include "llama_log.hpp"
#include "places.hpp"
#include "waiting.hpp"
#include "zipcache/policy.hpp"

namespace zipcache::cli {

namespace {

struct Options {
  std::string model, text;
  std::string policies = "f16,q8_0,q4_0,zipcache,zip";
  int ctx = 2048;
  int chunks = 1;
  int ubatch = 128;
  int threads = available_threads();
  int decode_tokens = 32;
  uint64_t seed = 0;
  bool seed_given = false;
  bool f32_weights = false;
  std::string output = "md";
  bool verbose = false;
};

// What is known before the model is loaded.
struct Prepared {
  std::vector<PolicyChoice> choices;  // as they will be shown
  std::string text;
  EngineFiles files;
  Format format = Format::Md;
};

// Puts --seed into the policies of ours that do not name one.
void add_seed(const Options& options, std::vector<PolicyChoice>& choices) {
  for (PolicyChoice& choice : choices) {
    if (!choice.ours() || choice.text == kReference) continue;
    if (choice.text.find("seed=") == std::string::npos)
      choice.text += fmt::format(",seed={}", options.seed);
  }
}

Result<Prepared> prepare(const Options& options) {
  Prepared p;
  const Result<Format> format = parse_format(options.output);
  if (!format.ok()) return format.status();
  p.format = *format;
  Result<std::vector<PolicyChoice>> choices = parse_policy_list(options.policies);
  if (!choices.ok()) return choices.status();
  p.choices = std::move(*choices);
  if (options.seed_given) add_seed(options, p.choices);
  ZC_TRY(check_policies(p.choices, ScoreFiles::Checked));
  Result<std::string> text = read_text(options.text);
  if (!text.ok()) return text.status();
  p.text = std::move(*text);
  Result<EngineFiles> files = find_engine_files(options.model);
  if (!files.ok()) return files.status();
  p.files = std::move(*files);
  return p;
}

Status measure(Comparison& comparison, const std::vector<llama_token>& tokens,
               const ChunkPlan& plan, const llama_vocab* vocab, int decode_tokens) {
  const int64_t policies = static_cast<int64_t>(comparison.n_policies());
  const int64_t decode_steps = decode_tokens > 0 ? decode_tokens + 1 : 0;
  Progress progress(policies * (int64_t{plan.chunks} * plan.ctx + decode_steps));
  ZC_TRY(comparison.warm_up(tokens));
  for (int chunk = 0; chunk < plan.chunks && !interrupted(); ++chunk) {
    progress.stage(fmt::format("chunk {}/{}, {} policies", chunk + 1, plan.chunks, policies));
    ZC_TRY(comparison.run_chunk(chunk_tokens(tokens, plan, chunk, vocab), progress));
  }
  ZC_TRY(comparison.read_caches());
  if (decode_tokens > 0 && !interrupted()) {
    progress.stage(fmt::format("decoding {} tokens at {}", decode_tokens, plan.ctx));
    ZC_TRY(comparison.time_decode(progress));
  }
  return ok();
}

void print(const std::vector<CompareRow>& rows, const RunFacts& facts, Format format) {
  if (format == Format::Md) {
    fmt::print("{}", for_people(rows, facts, colours(stdout)));
    return;
  }
  std::vector<Json> objects;
  for (const CompareRow& row : rows) objects.push_back(to_json(row, facts));
  fmt::print("{}", for_programs(format, objects));
}

// Types whose products are computed without rounding the activations to 8 bits.
bool rounds_activations(llama_ftype weights) {
  return weights != LLAMA_FTYPE_ALL_F32 && weights != LLAMA_FTYPE_MOSTLY_F16 &&
         weights != LLAMA_FTYPE_MOSTLY_BF16;
}

RunFacts facts_of(const Options& options, const Prepared& p, const ChunkPlan& plan,
                  llama_ftype weights) {
  return {p.files.model.filename().string(),
          std::filesystem::path(options.text).filename().string(),
          plan.ctx,
          plan.chunks,
          plan.ubatch,
          options.decode_tokens,
          options.threads,
          options.seed_given ? options.seed : Policy{}.seed,
          llama_version_text(),
          processor_name(),
          wait_policy(),
          weights_text(weights, options.f32_weights),
          rounds_activations(weights)};
}

Status compare(const Options& options) {
  capture_llama_log(options.verbose);
  Result<Prepared> prepared = prepare(options);
  if (!prepared.ok()) return prepared.status();
  Prepared& p = *prepared;
  // A token has at least one byte, so this much is known without the vocabulary.
  const Result<ChunkPlan> possible =
      plan_chunks(p.text.size(), options.ctx, options.chunks, options.ubatch);
  if (!possible.ok()) return possible.status();
  warn_about_length(options.ctx + options.decode_tokens, p.files.about);

  llama_backend_init();
  Result<Engines> engines = open_engines(
      p.files, p.choices, {options.f32_weights, options.ubatch, options.threads, options.verbose});
  if (!engines.ok()) return engines.status();
  const llama_model* model = engines->served.get();
  const llama_vocab* vocab = llama_model_get_vocab(model);
  const std::vector<llama_token> tokens = tokenise(model, p.text, true, false);
  const Result<ChunkPlan> plan =
      plan_chunks(tokens.size(), options.ctx, options.chunks, options.ubatch);
  if (!plan.ok()) return plan.status();

  const llama_ftype weights = llama_model_ftype(model);
  Comparison comparison(*engines, p.files.about, {*plan, options.threads, options.decode_tokens});
  const auto shown = comparison.add_policies(p.choices);
  if (!shown.ok()) return shown.status();
  watch_interrupts();
  ZC_TRY(measure(comparison, tokens, *plan, vocab, options.decode_tokens));

  if (comparison.tokens_scored() > 0) {
    std::vector<CompareRow> rows;
    for (const size_t place : *shown) rows.push_back(comparison.row(place, interrupted()));
    print(rows, facts_of(options, p, *plan, weights), p.format);
  }
  if (!interrupted()) return ok();
  return {Code::Aborted,
          fmt::format("interrupted after {} scored tokens", comparison.tokens_scored())};
}

}  // namespace

void add_compare(CLI::App& program, Action& action) {
  auto options = std::make_shared<Options>();
  CLI::App* command = program.add_subcommand(
      "compare",
      "What a compressed cache costs on your model and your text: size, perplexity,\n"
      "divergence from the 16-bit cache and speed, one row per policy.");
  command->footer(
      "Policies are separated by ; or by commas. q8_0, q4_0 and llama:TYPE are llama.cpp's own "
      "cache types;\n"
      "all others are listed by `zipcache policies` and take changes, as in "
      "zipcache,recent=64,ratio=0.7.\n\n"
      "Example:\n"
      "  zipcache compare -m smollm2 -f book.txt -c 4096 --policies f16,q4_0,zipcache,zip -o "
      "jsonl");
  command->add_option("-m,--model", options->model, "GGUF file, or smollm2 for the default model")
      ->required();
  command->add_option("-f,--file", options->text, "text to read")->required();
  command->add_option("-c,--ctx-size", options->ctx, "tokens of a chunk; the second half is scored")
      ->check(CLI::Range(kShortestCtx, 1 << 24))
      ->capture_default_str();
  command
      ->add_option("--chunks", options->chunks,
                   "chunks to run, 0 for the whole text; more make ± smaller")
      ->check(CLI::Range(0, 1 << 24))
      ->capture_default_str();
  command->add_option("--policies", options->policies, "policies to compare")
      ->capture_default_str();
  command->add_option("--ubatch-size", options->ubatch, "(-ub) tokens of a micro-batch")
      ->check(CLI::Range(1, 1 << 16))
      ->capture_default_str();
  command
      ->add_option("-n,--predict", options->decode_tokens,
                   "tokens generated to time decoding, 0 for none")
      ->check(CLI::Range(0, 1 << 16))
      ->capture_default_str();
  command->add_option("-t,--threads", options->threads, "threads")
      ->check(CLI::Range(1, 1024))
      ->capture_default_str();
  command->add_option("-s,--seed", options->seed, "seed of all policies that draw random numbers");
  command->add_flag(
      "--f32-weights", options->f32_weights,
      "expand the weights to 32 bits first: shows the cache's own error, without the noise of "
      "rounded\n"
      "activations that quantized weights bring; takes 4 bytes of memory a parameter");
  command->add_option("-o,--output", options->output, "md, csv, json or jsonl")
      ->capture_default_str();
  command->add_flag("-v,--verbose", options->verbose, "show llama.cpp's messages");
  command->callback([command, options, &action] {
    options->seed_given = command->count("--seed") > 0;
    action = [options] { return compare(*options); };
  });
}

}  // namespace zipcache::cli
