// `zipcache plot`: pictures, each with the data that it draws.
#include <fmt/format.h>

#include <filesystem>
#include <memory>

#include "commands.hpp"
#include "llama_log.hpp"
#include "model_shape.hpp"
#include "plot_kinds.hpp"
#include "policy_list.hpp"
#include "result_file.hpp"
#include "zipcache/cache.hpp"
#include "zipcache/policy.hpp"

namespace zipcache::cli {

namespace {

namespace fs = std::filesystem;

struct BytesOptions {
  std::string policies = "f16;zipcache;zip";
  ShapeOptions shape;
  int n_tokens = 32768;
  int ubatch = 512;
  std::string folder;
};

struct FileOptions {
  std::vector<std::string> paths;
  bool ratio = false;
  std::string folder;
};

// Most columns of panels that are still legible.
constexpr size_t kMostPolicies = 5;

// What raw rows of `policy` are sinks inside packed blocks: those that go with sinks=0.
Result<size_t> sink_bytes(const Policy& policy, const std::vector<LayerShape>& layers, int n_tokens,
                          int ubatch, const Bytes& all) {
  Policy without = policy;
  without.window.sinks = 0;
  const Result<Bytes> bytes = footprint(without, layers, n_tokens, ubatch);
  if (!bytes.ok()) return bytes.status();
  return all.raw - bytes->raw;
}

Result<Json> bytes_row(const std::string& name, const Policy& policy,
                       const std::vector<LayerShape>& layers, int n_tokens, int ubatch) {
  const Result<Bytes> bytes = footprint(policy, layers, n_tokens, ubatch);
  if (!bytes.ok()) return bytes.status();
  const Result<size_t> sinks = sink_bytes(policy, layers, n_tokens, ubatch, *bytes);
  if (!sinks.ok()) return sinks.status();
  uint64_t elements = 0;
  for (const LayerShape& layer : layers)
    elements += uint64_t(n_tokens) * layer.n_heads * (layer.k_dim + layer.v_dim);
  return Json{{"policy", name},           {"tokens", n_tokens},
              {"elements", elements},     {"codes", bytes->codes},
              {"params", bytes->params},  {"tags", bytes->tags},
              {"sinks", *sinks},          {"window", bytes->raw - *sinks},
              {"scores", bytes->scores},  {"map", bytes->map},
              {"padding", bytes->padding}};
}

Status plot_bytes(const BytesOptions& options) {
  capture_llama_log(false);
  const Result<std::vector<PolicyChoice>> choices = parse_policy_list(options.policies);
  if (!choices.ok()) return choices.status();
  if (choices->size() > kMostPolicies) {
    return {Code::BadArgument, fmt::format("--policies: found {} policies, at most {} fit in a "
                                           "picture; draw several",
                                           choices->size(), kMostPolicies)};
  }
  const Result<ModelShape> shape = find_shape(options.shape);
  if (!shape.ok()) return shape.status();
  std::vector<std::string> names;
  std::vector<Json> rows;
  for (const PolicyChoice& choice : *choices) {
    if (!choice.ours()) {
      return {Code::BadPolicy, fmt::format("--policies: found {}, llama.cpp's own cache, expected "
                                           "policies of this backend",
                                           choice.text)};
    }
    const Result<Policy> policy = parse_policy(choice.text);
    if (!policy.ok()) return policy.status();
    names.push_back(choice.text);
    for (const int n_tokens : plotted_lengths(options.n_tokens)) {
      const Result<Json> row =
          bytes_row(choice.text, *policy, shape->layers, n_tokens, options.ubatch);
      if (!row.ok()) return row.status();
      rows.push_back(*row);
    }
  }
  return draw_all({bytes_plot(shape->subject, names, rows)}, options.folder);
}

Status plot_speed(const FileOptions& options) {
  const Result<std::vector<Json>> rows = read_all_rows(options.paths);
  if (!rows.ok()) return rows.status();
  const Result<std::vector<Plot>> plots = speed_plots(*rows, options.ratio);
  if (!plots.ok()) return plots.status();
  return draw_all(*plots, options.folder);
}

Status plot_roofline(const FileOptions& options) {
  const Result<std::vector<Json>> rows = read_all_rows(options.paths);
  if (!rows.ok()) return rows.status();
  const Result<std::vector<Plot>> plots = roofline_plots(*rows);
  if (!plots.ok()) return plots.status();
  return draw_all(*plots, options.folder);
}

Status plot_sensitivity(const FileOptions& options) {
  std::vector<Plot> plots;
  for (const std::string& path : options.paths) {
    const Result<std::string> content = read_file(path);
    if (!content.ok()) return content.status();
    const Json file = Json::parse(*content, nullptr, false);
    const Result<Plot> plot = sensitivity_plot(file, fs::path(path).stem().string());
    if (!plot.ok())
      return {plot.status().code(), fmt::format("'{}': {}", path, plot.status().message())};
    plots.push_back(*plot);
  }
  return draw_all(plots, options.folder);
}

void add_folder(CLI::App& command, std::string& folder) {
  command.add_option("-o,--out", folder, "folder for the pictures and their data")->required();
}

void add_bytes(CLI::App& plot, Action& action) {
  auto options = std::make_shared<BytesOptions>();
  CLI::App* command = plot.add_subcommand(
      "bytes",
      "Bytes of a cache by kind over the length of the text, in all and for each element.\n"
      "Pure arithmetic, as in `zipcache inspect`; no model is run.");
  command->footer(
      "Example:\n"
      "  zipcache plot bytes --policies 'f16;zipcache;zip' -m smollm2 -c 8192 -o pictures");
  command->add_option("--policies", options->policies, "policies, separated by ; or by commas")
      ->capture_default_str();
  add_shape_options(*command, options->shape);
  command->add_option("-c,--ctx-size", options->n_tokens, "tokens at the right end")
      ->check(CLI::Range(256, 1 << 20))
      ->capture_default_str();
  command->add_option("--ubatch-size", options->ubatch, "(-ub) tokens of a micro-batch")
      ->check(CLI::Range(1, 1 << 16))
      ->capture_default_str();
  add_folder(*command, options->folder);
  command->callback([options, &action] { action = [options] { return plot_bytes(*options); }; });
}

void add_speed(CLI::App& plot, Action& action) {
  auto options = std::make_shared<FileOptions>();
  CLI::App* command = plot.add_subcommand(
      "speed",
      "Time over depth, from rows of `zipcache bench attention` or `bench model` (-o jsonl): one\n"
      "picture for each machine, number of threads and shape.");
  command->footer(
      "Example:\n"
      "  zipcache bench model --policies 'llama:f16;zip' -d 512,4096 -o jsonl > rows.jsonl\n"
      "  zipcache plot speed rows.jsonl --ratio -o pictures");
  command->add_option("paths", options->paths, "files of rows, or folders of files *.jsonl")
      ->required();
  command->add_flag("--ratio", options->ratio,
                    "how many times as fast as llama.cpp's 16-bit cache in the same run");
  add_folder(*command, options->folder);
  command->callback([options, &action] { action = [options] { return plot_speed(*options); }; });
}

void add_roofline(CLI::App& plot, Action& action) {
  auto options = std::make_shared<FileOptions>();
  CLI::App* command =
      plot.add_subcommand("roofline",
                          "Attention on a GPU beside what its memory allows, from rows of "
                          "`zipcache bench cuda -o jsonl`\n"
                          "or bench/cuda_peers.py: one picture for each GPU and shape of heads.");
  command->footer(
      "Example:\n"
      "  zipcache bench cuda --depth 4096,32768 --batch 1,8 -o jsonl > rows.jsonl\n"
      "  zipcache plot roofline rows.jsonl -o pictures");
  command->add_option("paths", options->paths, "files of rows, or folders of files *.jsonl")
      ->required();
  add_folder(*command, options->folder);
  command->callback([options, &action] { action = [options] { return plot_roofline(*options); }; });
}

void add_sensitivity(CLI::App& plot, Action& action) {
  auto options = std::make_shared<FileOptions>();
  CLI::App* command = plot.add_subcommand(
      "sensitivity",
      "What each group of layers brings alone, K and V apart, from the evidence in a policy file\n"
      "of `zipcache tune`.");
  command->footer(
      "Example:\n"
      "  zipcache tune -m model.gguf -f chat.txt\n"
      "  zipcache plot sensitivity policy.json -o pictures");
  command->add_option("paths", options->paths, "policy files")->required();
  add_folder(*command, options->folder);
  command->callback(
      [options, &action] { action = [options] { return plot_sensitivity(*options); }; });
}

}  // namespace

void add_plot(CLI::App& program, Action& action) {
  CLI::App* command = program.add_subcommand(
      "plot",
      "Pictures by gnuplot (PNG and SVG) with the data that they draw (CSV): bytes, speed,\n"
      "roofline of a GPU, sensitive layers, saliency of tokens.");
  command->require_subcommand(1);
  add_bytes(*command, action);
  add_speed(*command, action);
  add_roofline(*command, action);
  add_sensitivity(*command, action);
  add_plot_saliency(*command, action);
}

}  // namespace zipcache::cli
