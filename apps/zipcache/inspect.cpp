// `zipcache inspect`: what a policy does and costs at a length, by arithmetic alone; no model is
// run.
#include <fmt/format.h>

#include <cmath>
#include <memory>

#include "commands.hpp"
#include "llama_log.hpp"
#include "model_shape.hpp"
#include "table.hpp"
#include "terminal.hpp"
#include "zipcache/cache.hpp"
#include "zipcache/policy.hpp"

namespace zipcache::cli {

namespace {

struct Options {
  std::string policy;
  ShapeOptions shape;
  int n_tokens = 0;
  int ubatch = 512;
  std::string output = "md";
};

// What one layer, or each of several like it, holds beside what all layers share.
struct Cost {
  Policy policy;
  LayerShape shape;
  int first = 0, last = 0;  // layers, inclusive
  Bytes bytes;
  uint64_t elements = 0;
};

struct Report {
  Policy policy;
  std::vector<Cost> layers;
  Bytes bytes;  // of all layers, with what they share
  uint64_t elements = 0;
  size_t shared = 0;  // of these, held once for all layers
  size_t planned = 0;
  double ratio_paper = 0;
};

double bits_per_element(const Bytes& bytes, uint64_t elements) {
  return 8.0 * static_cast<double>(bytes.allocated()) / static_cast<double>(elements);
}

// Ratio of what is held as codes, with its parameters and tags; 1 when nothing is.
double ratio_params(const Bytes& bytes, uint64_t elements) {
  const double packed = static_cast<double>(bytes.codes + bytes.params + bytes.tags);
  const double coded = 2.0 * static_cast<double>(elements) - static_cast<double>(bytes.raw);
  return packed == 0 ? 1 : coded / packed;
}

double ratio_resident(const Bytes& bytes, uint64_t elements) {
  return 2.0 * static_cast<double>(elements) / static_cast<double>(bytes.allocated());
}

Bytes difference(const Bytes& a, const Bytes& b) {
  return {a.codes - b.codes,   a.params - b.params, a.tags - b.tags,      a.raw - b.raw,
          a.scores - b.scores, a.map - b.map,       a.padding - b.padding};
}

// What a second layer of this kind adds to a first one: cell map and spare raw blocks belong to
// all.
Result<Cost> cost_of_layer(const Options& options, const Policy& policy, const LayerShape& shape,
                           int layer) {
  const Result<Policy> own = policy_for_layer(policy, layer);
  if (!own.ok()) return own.status();
  const Result<Bytes> one = footprint(*own, {shape}, options.n_tokens, options.ubatch);
  if (!one.ok()) return one.status();
  const Result<Bytes> two = footprint(*own, {shape, shape}, options.n_tokens, options.ubatch);
  if (!two.ok()) return two.status();
  const uint64_t elements =
      uint64_t(options.n_tokens) * shape.n_heads * (shape.k_dim + shape.v_dim);
  return Cost{*own, shape, layer, layer, difference(*two, *one), elements};
}

Result<Report> make_report(const Options& options, const Policy& policy,
                           const std::vector<LayerShape>& layers) {
  Report report;
  report.policy = policy;
  double paper_bits = 0;
  for (size_t i = 0; i < layers.size(); ++i) {
    Result<Cost> cost = cost_of_layer(options, policy, layers[i], static_cast<int>(i));
    if (!cost.ok()) return cost.status();
    report.elements += cost->elements;
    paper_bits +=
        1 / paper_ratio(cost->policy, layers[i].n_heads * layers[i].k_dim, options.n_tokens);
    report.layers.push_back(std::move(*cost));
  }
  report.ratio_paper = static_cast<double>(layers.size()) / paper_bits;
  const Result<Bytes> all = footprint(policy, layers, options.n_tokens, options.ubatch);
  if (!all.ok()) return all.status();
  report.bytes = *all;
  report.shared = report.bytes.allocated();
  for (const Cost& cost : report.layers) report.shared -= cost.bytes.allocated();
  const CacheShape shape{.n_streams = 1, .n_cells = options.n_tokens, .layers = layers};
  const Result<size_t> planned = planned_bytes(policy, shape, options.ubatch);
  if (!planned.ok()) return planned.status();
  report.planned = *planned;
  return report;
}

Json bytes_json(const Bytes& b) {
  return {{"codes", b.codes},   {"params", b.params}, {"tags", b.tags},      {"raw", b.raw},
          {"scores", b.scores}, {"map", b.map},       {"padding", b.padding}};
}

Json to_json(const Report& report, const Options& options) {
  Json layers = Json::array();
  for (const Cost& cost : report.layers) {
    layers.push_back({{"layer", cost.first},
                      {"policy", to_text(cost.policy)},
                      {"heads", cost.shape.n_heads},
                      {"k_dim", cost.shape.k_dim},
                      {"v_dim", cost.shape.v_dim},
                      {"kv_bytes", cost.bytes.allocated()},
                      {"bits_per_element", bits_per_element(cost.bytes, cost.elements)},
                      {"bytes", bytes_json(cost.bytes)}});
  }
  return {{"policy", options.policy},
          {"settings", Json::parse(policy_to_json(report.policy), nullptr, false)},
          {"tokens", options.n_tokens},
          {"ubatch", options.ubatch},
          {"bits_per_element", bits_per_element(report.bytes, report.elements)},
          {"kv_bytes", report.bytes.allocated()},
          {"kv_bytes_f16", report.elements * 2},
          {"kv_bytes_planned", report.planned},
          {"kv_bytes_shared", report.shared},
          {"bytes", bytes_json(report.bytes)},
          {"ratio_paper", report.ratio_paper},
          {"ratio_params", ratio_params(report.bytes, report.elements)},
          {"ratio_resident", ratio_resident(report.bytes, report.elements)},
          {"layers", layers}};
}

// Neighbouring layers that cost the same, as one.
std::vector<Cost> merged(const std::vector<Cost>& layers) {
  std::vector<Cost> out;
  for (const Cost& cost : layers) {
    if (!out.empty() && out.back().policy == cost.policy && out.back().shape == cost.shape) {
      out.back().last = cost.last;
    } else {
      out.push_back(cost);
    }
  }
  return out;
}

std::string bits_text(const Policy& policy, int Tier::*side) {
  std::string out;
  for (const Tier& tier : policy.tiers)
    out += (out.empty() ? "" : "/") + std::to_string(tier.*side);
  return out;
}

void print_layers(const Report& report) {
  std::vector<std::vector<std::string>> lines;
  for (const Cost& cost : merged(report.layers)) {
    const Bytes& b = cost.bytes;
    lines.push_back(
        {cost.first == cost.last ? fmt::format("{}", cost.first)
                                 : fmt::format("{}-{}", cost.first, cost.last),
         fmt::format("{} x {}/{}", cost.shape.n_heads, cost.shape.k_dim, cost.shape.v_dim),
         bits_text(cost.policy, &Tier::k_bits), bits_text(cost.policy, &Tier::v_bits),
         fmt::format("{}", b.codes), fmt::format("{}", b.params), fmt::format("{}", b.tags),
         fmt::format("{}", b.raw), fmt::format("{}", b.scores), fmt::format("{}", b.padding),
         fmt::format("{}", b.allocated()),
         fmt::format("{:.3f}", bits_per_element(b, cost.elements))});
  }
  const std::vector<Column> columns = {{"layers", false}, {"heads x K/V", false},
                                       {"K bits"},        {"V bits"},
                                       {"codes"},         {"params"},
                                       {"tags"},          {"raw"},
                                       {"scores"},        {"padding"},
                                       {"bytes"},         {"bits/element"}};
  fmt::print("Bytes of one layer, without what all layers share:\n\n{}\n",
             markdown(columns, lines, colours(stdout)));
}

void print_totals(const Report& report, const Options& options) {
  const Bytes& b = report.bytes;
  const double all = static_cast<double>(b.allocated());
  const std::pair<const char*, size_t> kinds[] = {
      {"codes", b.codes},   {"parameters", b.params}, {"tags", b.tags},      {"raw rows", b.raw},
      {"scores", b.scores}, {"cell map", b.map},      {"padding", b.padding}};
  std::vector<std::vector<std::string>> lines;
  for (const auto& [name, bytes] : kinds) {
    lines.push_back({name, fmt::format("{}", bytes),
                     fmt::format("{:.1f}", 100 * static_cast<double>(bytes) / all),
                     fmt::format("{:.3f}", 8.0 * static_cast<double>(bytes) /
                                               static_cast<double>(report.elements))});
  }
  lines.push_back({"all", fmt::format("{}", b.allocated()), "100.0",
                   fmt::format("{:.3f}", bits_per_element(b, report.elements))});
  fmt::print(
      "All layers together, {} tokens of one sequence read in micro-batches of {}:\n\n{}\n",
      options.n_tokens, options.ubatch,
      markdown({{"what", false}, {"bytes"}, {"%"}, {"bits/element"}}, lines, colours(stdout)));
  fmt::print("16 bits would take {}; this takes {}; llama.cpp reserves {} for {} cells.\n",
             bytes_text(2.0 * static_cast<double>(report.elements)), bytes_text(all),
             bytes_text(static_cast<double>(report.planned)), options.n_tokens);
  fmt::print("{} of it is the cell map and spare raw blocks, shared by all layers.\n",
             bytes_text(static_cast<double>(report.shared)));
  fmt::print(
      "ratio paper {:.3f} (published formula) · params {:.3f} (packed part, exact) · resident "
      "{:.3f} (every byte)\n",
      report.ratio_paper, ratio_params(b, report.elements), ratio_resident(b, report.elements));
}

Status inspect(const Options& options) {
  capture_llama_log(false);
  const Result<Format> format = parse_format(options.output);
  if (!format.ok()) return format.status();
  const Result<Policy> policy = parse_policy(options.policy);
  if (!policy.ok()) return policy.status();
  const Result<ModelShape> shape = find_shape(options.shape);
  if (!shape.ok()) return shape.status();
  const Result<Report> report = make_report(options, *policy, shape->layers);
  if (!report.ok()) return report.status();
  if (*format != Format::Md) {
    fmt::print("{}", for_programs(*format, {to_json(*report, options)}));
    return ok();
  }
  fmt::print("{}\non {}\n\n", to_text(*policy), shape->subject);
  print_layers(*report);
  print_totals(*report, options);
  return ok();
}

}  // namespace

void add_inspect(CLI::App& program, Action& action) {
  auto options = std::make_shared<Options>();
  CLI::App* command = program.add_subcommand("inspect",
                                             "What a policy does and costs at a length: bytes by "
                                             "layer and by kind, and the three ratios.\n"
                                             "Pure arithmetic; no model is run.");
  command->footer(
      "Example:\n"
      "  zipcache inspect zipcache -c 4096\n"
      "  zipcache inspect zip,recent=64 -c 2048 -m smollm2 -o json");
  command->add_option("policy", options->policy, "policy text or .json file")->required();
  command->add_option("-c,--ctx-size", options->n_tokens, "tokens")
      ->required()
      ->check(CLI::Range(1, 1 << 24));
  add_shape_options(*command, options->shape);
  command->add_option("--ubatch-size", options->ubatch, "(-ub) tokens of a micro-batch")
      ->check(CLI::Range(1, 1 << 16))
      ->capture_default_str();
  command->add_option("-o,--output", options->output, "md, csv, json or jsonl")
      ->capture_default_str();
  command->callback([options, &action] { action = [options] { return inspect(*options); }; });
}

}  // namespace zipcache::cli
