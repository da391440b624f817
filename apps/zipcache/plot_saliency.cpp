// `zipcache plot saliency`: attention that tokens receive, by position; and the file of it that
// policies can rank by.
#include <fmt/format.h>

#include <filesystem>
#include <memory>

#include "chunks.hpp"
#include "commands.hpp"
#include "comparison.hpp"
#include "eval_setup.hpp"
#include "llama_log.hpp"
#include "measure_scores.hpp"
#include "places.hpp"
#include "plot_kinds.hpp"
#include "terminal.hpp"

namespace zipcache::cli {

namespace {

namespace fs = std::filesystem;

struct Options : EvalOptions {
  std::string text = default_text();
  int ctx = 1024;
  std::vector<int> layers;
  std::string scores;  // file to write; empty: beside the pictures
  std::string from;    // file to draw instead of measuring
  ScorePlan plan;
};

constexpr size_t kMostLayers = 6;

// Four layers from the first to the last, unless the user says.
Result<std::vector<int>> chosen_layers(const Options& options, int n_layers) {
  std::vector<int> layers = options.layers;
  for (int i = 0; i < 4 && options.layers.empty(); ++i) {
    const int layer = i * (n_layers - 1) / 3;
    if (layers.empty() || layers.back() != layer) layers.push_back(layer);
  }
  if (layers.size() > kMostLayers) {
    return Status{Code::BadArgument, fmt::format("--layers: found {} layers, at most {} fit in a "
                                                 "picture",
                                                 layers.size(), kMostLayers)};
  }
  for (const int layer : layers) {
    if (layer >= 0 && layer < n_layers) continue;
    return Status{Code::BadArgument,
                  fmt::format("--layers: found {}, expected 0 to {}", layer, n_layers - 1)};
  }
  return layers;
}

Status draw_scores(const Options& options, const TokenScores& scores, const std::string& name,
                   const std::string& title) {
  const auto layers = chosen_layers(options, static_cast<int>(scores.layers.size()));
  if (!layers.ok()) return layers.status();
  return draw_all({saliency_plot(scores, *layers, title, name)}, options.out);
}

// The first chunk of the text, as `eval kld` and `compare` read it.
Result<std::vector<llama_token>> read_chunk(const Options& options, const std::string& text,
                                            const llama_model* model) {
  const std::vector<llama_token> tokens = tokenise(model, text, true, false);
  const Result<ChunkPlan> plan = plan_chunks(tokens.size(), options.ctx, 1, options.ubatch);
  if (!plan.ok()) {
    return Status{plan.status().code(),
                  fmt::format("--file: '{}': {}", options.text, plan.status().message())};
  }
  return chunk_tokens(tokens, *plan, 0, llama_model_get_vocab(model));
}

Result<TokenScores> measure(const Options& options, const EngineFiles& files,
                            const std::string& text) {
  llama_backend_init();
  const Result<Engines> engines = open_engines(
      files, {}, {options.f32_weights, options.ubatch, options.threads, options.verbose});
  if (!engines.ok()) return engines.status();
  const auto tokens = read_chunk(options, text, engines->served.get());
  if (!tokens.ok()) return tokens.status();
  ScorePlan plan = options.plan;
  plan.ubatch = options.ubatch;
  plan.threads = options.threads;
  watch_interrupts();
  const int n_read = plan.replay ? replay_tokens(engines->served.get(), options.ctx) : options.ctx;
  Progress progress(n_read);
  progress.stage(fmt::format("attention over {} tokens", n_read));
  return measure_scores(*engines, files.about, *tokens, plan, progress);
}

Status measure_and_draw(const Options& options) {
  capture_llama_log(options.verbose);
  const Result<std::string> text = read_text(options.text);
  if (!text.ok()) return text.status();
  const Result<EngineFiles> files = find_engine_files(options.model);
  if (!files.ok()) return files.status();
  const auto layers = chosen_layers(options, static_cast<int>(files->about.layers.size()));
  if (!layers.ok()) return layers.status();
  warn_about_length(options.plan.replay ? 2 * options.ctx : options.ctx, files->about);
  const Result<TokenScores> scores = measure(options, *files, *text);
  if (!scores.ok()) return scores.status();

  const std::string model = files->model.filename().string();
  const std::string source = fs::path(options.text).filename().string();
  std::string name = slug(fmt::format("saliency-{}-{}-ctx{}", model, source, options.ctx));
  std::string title = fmt::format("{} · {} · {} tokens", model, source, options.ctx);
  if (options.plan.packed_after) {
    name += fmt::format("-after{}", *options.plan.packed_after);
    title += fmt::format(" · once packed behind a window of {}", *options.plan.packed_after);
  }
  if (options.plan.replay) {
    name += "-replay";
    title += " · the most from one row of a repetition";
  }
  ZC_TRY(make_folder(options.out));
  const std::string file =
      options.scores.empty() ? (fs::path(options.out) / (name + ".zcs")).string() : options.scores;
  ZC_TRY(save_token_scores(file, *scores));
  fmt::print("token scores: {}\n", file);
  return draw_scores(options, *scores, name, title);
}

Status plot_saliency(const Options& options) {
  if (options.from.empty()) return measure_and_draw(options);
  const Result<TokenScores> scores = load_token_scores(options.from);
  if (!scores.ok()) return scores.status();
  const std::string name = fs::path(options.from).stem().string();
  return draw_scores(options, *scores, slug(name),
                     fmt::format("{} · {} tokens", name, scores->n_tokens()));
}

}  // namespace

void add_plot_saliency(CLI::App& plot, Action& action) {
  auto options = std::make_shared<Options>();
  options->model = kDefaultModel;
  CLI::App* command = plot.add_subcommand(
      "saliency",
      "Attention that tokens receive, by position, in chosen layers: normalized, as the paper "
      "ranks\ntokens, beside accumulated, as others do. Runs a model, and writes what it measured "
      "to a file\nthat policies can rank by (score=file:PATH).");
  command->footer(
      "Examples:\n"
      "  zipcache plot saliency -m smollm2 -f book.txt -c 1024 --layers 0,10,20,29 -o pictures\n"
      "  zipcache plot saliency --scores book.zcs -f book.txt -c 1024 -o pictures\n"
      "  zipcache eval kld -f book.txt -c 1024 --policies 'zip;zip,score=file:book.zcs'\n"
      "  zipcache plot saliency --replay --scores again.zcs -f book.txt -c 1024 -o pictures\n"
      "  zipcache eval kld -f book.txt -c 1024 --policies 'kvzip,score=file:again.zcs'\n"
      "  zipcache plot saliency --from book.zcs -o pictures");
  CLI::Option* from =
      command->add_option("--from", options->from, "file of token scores to draw; no model is run");
  const auto measured = [&](CLI::Option* option) { return option->excludes(from); };
  measured(command->add_option("-m,--model", options->model,
                               "GGUF file, or smollm2 for the default model"))
      ->capture_default_str();
  measured(command->add_option("-f,--file", options->text,
                               "text to read; default: the book in data/text"));
  measured(command->add_option("-c,--ctx-size", options->ctx, "tokens that are read"))
      ->check(CLI::Range(kShortestCtx, 1 << 20))
      ->capture_default_str();
  command->add_option("--layers", options->layers, "layers to draw, with commas; default: four")
      ->delimiter(',');
  measured(command->add_option("--scores", options->scores,
                               "file of token scores to write; default: beside the pictures"));
  CLI::Option* packed_after =
      measured(
          command->add_option("--packed-after", options->plan.packed_after,
                              "count only query rows that come once a token's block has left a "
                              "window of so many\ntokens: those that meet it packed under a policy "
                              "with this recent"))
          ->check(CLI::Range(0, 1 << 20));
  measured(
      command->add_flag("--replay", options->plan.replay,
                        "the most attention that one row gives while the model reads the text "
                        "a second time, asked\nto repeat it, instead of sums: what kvzip ranks "
                        "by"))
      ->excludes(packed_after);
  command->add_option("-o,--out", options->out, "folder for the pictures and their data")
      ->required();
  add_engine_options(*command, *options);
  command->add_flag("--f32-weights", options->f32_weights,
                    "expand the weights to 32 bits first, as in `zipcache compare`");
  command->callback([options, &action] { action = [options] { return plot_saliency(*options); }; });
}

}  // namespace zipcache::cli
