// `zipcache fit-rotations`: the matrices of rotate=file, fitted to a model by letting it read text.
#include <fmt/format.h>
#include <unistd.h>

#include <chrono>
#include <filesystem>
#include <memory>

#include "calibration.hpp"
#include "commands.hpp"
#include "comparison.hpp"
#include "eval_setup.hpp"
#include "interrupt.hpp"
#include "llama_log.hpp"
#include "places.hpp"
#include "terminal.hpp"
#include "zipcache/policy.hpp"

namespace zipcache::cli {

namespace {

namespace fs = std::filesystem;

struct Options {
  std::string model = kDefaultModel;
  std::vector<std::string> texts = {default_text()};
  std::string method = "oscar";
  std::string out;
  int ctx = 1024;
  int chunks = 16;
  int ubatch = 512;
  int threads = available_threads();
  bool verbose = false;
};

// Before minutes of work: the file can be written, and a policy can name it.
Status check_out(const std::string& path) {
  Policy policy = *parse_policy("f16,rotate=file");
  policy.rotations = path;
  const Status nameable = check(policy);
  if (!nameable.ok()) {
    return {Code::BadArgument, fmt::format("--out: found '{}', which no policy could name: {}",
                                           path, nameable.message())};
  }
  const fs::path folder = fs::absolute(path).parent_path();
  std::error_code error;
  if (fs::is_directory(folder, error) && !fs::is_directory(path, error) &&
      access(folder.c_str(), W_OK) == 0)
    return ok();
  return {Code::Environment,
          fmt::format("--out: found '{}', expected a file in a folder that can be written", path)};
}

// A text and the chunks of it that are read.
struct Reading {
  EvalText text;
  ChunkPlan plan;
};

Result<std::vector<Reading>> plan_readings(const Options& options, const llama_model* model) {
  Result<std::vector<EvalText>> texts = read_texts(options.texts);
  if (!texts.ok()) return texts.status();
  std::vector<Reading> readings;
  for (EvalText& text : *texts) {
    text.tokens = tokenise(model, text.content, true, false);
    const Result<ChunkPlan> plan =
        plan_chunks(text.tokens.size(), options.ctx, options.chunks, options.ubatch);
    if (!plan.ok()) {
      return Status{plan.status().code(),
                    fmt::format("--file: '{}': {}", text.name, plan.status().message())};
    }
    readings.push_back({std::move(text), *plan});
  }
  return readings;
}

int64_t tokens_of(const std::vector<Reading>& readings) {
  int64_t n = 0;
  for (const Reading& reading : readings) n += int64_t{reading.plan.ctx} * reading.plan.chunks;
  return n;
}

Status read_chunk(llama_context* context, std::span<const llama_token> chunk, const ChunkPlan& plan,
                  const Calibration& calibration, Progress& progress) {
  llama_memory_clear(llama_get_memory(context), true);
  for (const MicroBatch& batch : micro_batches(plan)) {
    if (interrupted()) return {Code::Aborted, "interrupted; nothing was written"};
    ZC_TRY(decode(context, chunk.subspan(batch.begin, batch.size()), batch.begin, batch.size()));
    ZC_TRY(calibration.status());
    progress.step(batch.size());
  }
  return ok();
}

// Lets the model read everything, under the eyes of `calibration`.
Status read_all(const Options& options, llama_model* model, const std::vector<Reading>& readings,
                Calibration& calibration) {
  ContextOptions context_options{
      .n_ctx = options.ctx, .n_ubatch = options.ubatch, .n_threads = options.threads};
  context_options.observe = Calibration::observe;
  context_options.observer = &calibration;
  const Result<Context> context = open_context(model, context_options, "f16");
  if (!context.ok()) return context.status();
  watch_interrupts();
  Progress progress(tokens_of(readings));
  for (const auto& [text, plan] : readings) {
    for (int chunk = 0; chunk < plan.chunks; ++chunk) {
      progress.stage(
          fmt::format("{}, chunk {}/{} of {} tokens", text.name, chunk + 1, plan.chunks, plan.ctx));
      const auto tokens = chunk_tokens(text.tokens, plan, chunk, llama_model_get_vocab(model));
      ZC_TRY(read_chunk(context->get(), tokens, plan, calibration, progress));
    }
  }
  return ok();
}

// Where the matrices come from; the file keeps it.
std::string about(const Options& options, const fs::path& model,
                  const std::vector<Reading>& readings) {
  Json texts = Json::array();
  for (const Reading& reading : readings)
    texts.push_back({{"text", reading.text.name}, {"text_print", reading.text.print}});
  return Json{{"by", "zipcache fit-rotations"},
              {"method", options.method},
              {"model", model.filename().string()},
              {"model_bytes", fs::file_size(model)},
              {"texts", texts},
              {"tokens", tokens_of(readings)},
              {"ctx", options.ctx},
              {"date", date_of_today()}}
      .dump();
}

Status fit(const Options& options) {
  const auto start = std::chrono::steady_clock::now();
  capture_llama_log(options.verbose);
  const Result<RotationMethod> method = parse_method(options.method);
  if (!method.ok()) return method.status();
  ZC_TRY(check_out(options.out));
  const Result<fs::path> path = find_model(options.model);
  if (!path.ok()) return path.status();
  const Result<ModelFile> file = read_model_file(*path);
  if (!file.ok()) return file.status();
  llama_backend_init();
  const Result<Model> model = load_model(*path, nullptr);
  if (!model.ok()) return model.status();
  const auto readings = plan_readings(options, model->get());
  if (!readings.ok()) return readings.status();

  Calibration calibration;
  ZC_TRY(read_all(options, model->get(), *readings, calibration));
  Result<Rotations> rotations = calibration.fit(*method);
  if (!rotations.ok()) return rotations.status();
  rotations->about = about(options, *path, *readings);
  ZC_TRY(save_rotations(options.out, *rotations));
  const double seconds =
      std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  fmt::print(
      "Wrote {}: {} layers, fitted to {} tokens in {:.0f} s.\nUse it as {},rotations={} or "
      "in another policy as zip2,rotate=file,rotations={}\n",
      options.out, rotations->layers.size(), tokens_of(*readings), seconds,
      *method == RotationMethod::Oscar ? "oscar2" : "skvq", options.out, options.out);
  return ok();
}

}  // namespace

void add_fit_rotations(CLI::App& program, Action& action) {
  auto options = std::make_shared<Options>();
  CLI::App* command = program.add_subcommand(
      "fit-rotations",
      "Fits rotations of keys and values to your model and writes them to a file, for policies\n"
      "with rotate=file such as oscar2 and skvq. The model reads the text once; a file serves all\n"
      "quantizations of one model.\n\n"
      "Methods:\n"
      "  oscar    for each KV head the directions that queries (for K) and attended values (for "
      "V)\n"
      "           take are spread evenly over the channels: eigenvectors, then Hadamard\n"
      "  permute  channels sorted by size, so that groups of a token's channels are alike");
  command->footer(
      "Examples:\n"
      "  zipcache fit-rotations -m model.gguf -f book.txt -o model.rot\n"
      "  zipcache compare -m model.gguf -f chat.txt --policies "
      "'oscar2,rotations=model.rot;zip2,rotate=file,rotations=model.rot'\n"
      "  zipcache fit-rotations -m model.gguf --method permute -o model.perm");
  command->add_option("-m,--model", options->model, "GGUF file, or smollm2 for the default model")
      ->capture_default_str();
  command->add_option(
      "-f,--file", options->texts,
      "text to read, may be given again; default: the book in data/text.\nTake other "
      "text than the one you will measure on");
  command->add_option("--method", options->method, "oscar or permute")->capture_default_str();
  command->add_option("-o,--out", options->out, "the file that is written")->required();
  command->add_option("-c,--ctx-size", options->ctx, "tokens of a chunk")
      ->check(CLI::Range(kShortestCtx, 1 << 24))
      ->capture_default_str();
  command->add_option("--chunks", options->chunks, "chunks to read of each text, 0 for all of it")
      ->check(CLI::Range(0, 1 << 24))
      ->capture_default_str();
  command->add_option("--ubatch-size", options->ubatch, "(-ub) tokens of a micro-batch")
      ->check(CLI::Range(1, 1 << 16))
      ->capture_default_str();
  command->add_option("-t,--threads", options->threads, "threads")
      ->check(CLI::Range(1, 1024))
      ->capture_default_str();
  command->add_flag("-v,--verbose", options->verbose, "show llama.cpp's messages");
  command->callback([options, &action] { action = [options] { return fit(*options); }; });
}

}  // namespace zipcache::cli
