// `zipcache bench cuda`: speed of decode attention over a packed cache on a GPU, or of packing it.
#include <fmt/format.h>

#include <cstdio>
#include <optional>

#include "arguments.hpp"
#include "commands.hpp"
#include "gpu_attention.hpp"
#include "interrupt.hpp"
#include "table.hpp"
#include "terminal.hpp"

namespace zipcache::cli {
namespace {

struct Options {
  std::vector<std::string> policies = {"zip", "zipcache", "uniform4", "uniform2"};
  std::vector<int> depth = {4096, 32768, 131072}, batch = {1, 8, 32};
  int d_head = 128, n_head = 32, n_head_kv = 8, n_queries = 1, reps = 52;
  double most_gb = 60;
  bool pack = false;
  std::string output = "md";
};

struct Row {
  std::string policy;
  GpuShape shape;
  GpuTiming timing;
  Spread copy;
};

double gbps(const Row& row) { return row.timing.bytes / row.timing.us.median / 1e3; }

Json to_json(const Row& row, const std::string& gpu, bool pack) {
  return {{"kind", pack ? "gpu_packing" : "gpu_attention"},
          {"kernel", "zipcache"},
          {"policy", row.policy},
          {"gpu", gpu},
          {"d_head", row.shape.d_head},
          {"n_head", row.shape.n_head},
          {"n_head_kv", row.shape.n_head_kv},
          {"batch", row.shape.batch},
          {"depth", row.shape.depth},
          {"n_queries", row.shape.n_queries},
          {"us", row.timing.us.median},
          {"us_min", row.timing.us.least},
          {"us_iqr", row.timing.us.iqr},
          {"gbps", gbps(row)},
          {"copy_gbps", row.copy.median},
          {"bw_share", gbps(row) / row.copy.median},
          {"rel_err", row.timing.rel_err},
          {"bytes", row.timing.bytes}};
}

void print_table(const std::vector<Row>& rows, const std::string& gpu) {
  std::vector<std::vector<std::string>> lines;
  for (const Row& row : rows) {
    lines.push_back({row.policy, fmt::format("{}", row.shape.d_head),
                     fmt::format("{}/{}", row.shape.n_head, row.shape.n_head_kv),
                     fmt::format("{}", row.shape.depth), fmt::format("{}", row.shape.batch),
                     fmt::format("{:.1f}", row.timing.bytes / 1e6),
                     fmt::format("{:.1f} ± {:.1f}", row.timing.us.median, row.timing.us.iqr / 2),
                     fmt::format("{:.0f}", gbps(row)),
                     fmt::format("{:.2f}", gbps(row) / row.copy.median),
                     fmt::format("{:.1e}", row.timing.rel_err)});
  }
  fmt::print("{}", markdown({{"policy", false},
                             {"head"},
                             {"heads"},
                             {"depth"},
                             {"batch"},
                             {"MB"},
                             {"us"},
                             {"GB/s"},
                             {"of copy"},
                             {"error"}},
                            lines, colours(stdout)));
  fmt::print(
      "\nus: one token's attention of one layer, or its packing, median of graph replays ± half "
      "the middle half's "
      "width. of copy: "
      "GB/s against a copy's {:.0f}.\nerror: worst head of the first stream against double "
      "precision over the same "
      "codes; 0 of packing, whose bytes tests compare.\n{}\n",
      rows.empty() ? 0.0 : rows.front().copy.median, gpu);
}

Status check(const Options& options) {
  ZC_TRY(check_range("--depth", options.depth, kBlockTokens, 1 << 20));
  ZC_TRY(check_range("--batch", options.batch, 1, 1024));
  ZC_TRY(check_range("--reps", {options.reps}, 1, 10000));
  ZC_TRY(check_range("--n-queries", {options.n_queries}, 1, 64));
  ZC_TRY(check_range("--n-head-kv", {options.n_head_kv}, 1, 128));
  if (options.n_head % options.n_head_kv != 0 || options.n_head < options.n_head_kv)
    return {Code::BadArgument,
            fmt::format("--n-head: found {}, expected a multiple of --n-head-kv {}", options.n_head,
                        options.n_head_kv)};
  for (const int depth : options.depth) {
    if (depth % kBlockTokens != 0)
      return {Code::BadArgument,
              fmt::format("--depth: found {}, expected multiples of {}", depth, kBlockTokens)};
  }
  return ok();
}

Status run(const Options& options) {
  ZC_TRY(check(options));
  const Result<Format> format = parse_format(options.output);
  if (!format.ok()) return format.status();
  std::vector<Policy> policies;
  for (const std::string& text : options.policies) {
    auto policy = parse_policy(text);
    if (!policy.ok()) return policy.status();
    policies.push_back(std::move(*policy));
  }
  auto bench = GpuBench::create();
  if (!bench.ok()) return bench.status();
  std::vector<Row> rows;
  Progress progress(int64_t(policies.size() * options.depth.size() * options.batch.size()));
  for (size_t p = 0; p < policies.size(); ++p) {
    for (const int depth : options.depth) {
      for (const int batch : options.batch) {
        if (interrupted()) break;
        const GpuShape shape{options.d_head, options.n_head, options.n_head_kv,
                             depth,          batch,          options.n_queries};
        progress.step();
        // Copies of a cache and its neighbours have to fit.
        if (double(depth) * batch * options.n_head_kv * options.d_head * 2 > options.most_gb * 1e9)
          continue;
        progress.stage(fmt::format("{}, depth {}, batch {}", options.policies[p], depth, batch));
        const Result<Spread> copy = (*bench)->copy_bandwidth();
        if (!copy.ok()) return copy.status();
        const Result<GpuTiming> timing =
            options.pack ? (*bench)->measure_packing(policies[p], shape, options.reps)
                         : (*bench)->measure(policies[p], shape, options.reps);
        if (!timing.ok()) return timing.status();
        rows.push_back({options.policies[p], shape, *timing, *copy});
        if (*format != Format::Jsonl) continue;
        progress.clear();
        fmt::print("{}",
                   for_programs(*format, {to_json(rows.back(), (*bench)->name(), options.pack)}));
        std::fflush(stdout);
      }
    }
  }
  progress.clear();
  if (*format == Format::Md) {
    print_table(rows, (*bench)->name());
  } else if (*format != Format::Jsonl) {
    std::vector<Json> objects;
    for (const Row& row : rows) objects.push_back(to_json(row, (*bench)->name(), options.pack));
    fmt::print("{}", for_programs(*format, objects));
  }
  if (interrupted()) return {Code::Aborted, "bench cuda: interrupted; what was measured is above"};
  return ok();
}

}  // namespace

void add_bench_cuda(CLI::App& bench, Action& action) {
  auto options = std::make_shared<Options>();
  CLI::App* command = bench.add_subcommand(
      "cuda",
      "Decode attention over a packed cache on an NVIDIA GPU (sm_80 and newer): time, share of the "
      "copy\n"
      "bandwidth, and the distance from double precision. The cache is made of random rows.");
  command->add_option("-p,--policies", options->policies, "policies, separated by ;")
      ->delimiter(';')
      ->capture_default_str();
  command->add_option("--depth", options->depth, "tokens of each stream, multiples of 128")
      ->delimiter(',')
      ->capture_default_str();
  command->add_option("--batch", options->batch, "streams")->delimiter(',')->capture_default_str();
  command->add_option("--d-head", options->d_head, "channels of a head: 64, 128 or 256")
      ->capture_default_str();
  command->add_option("--n-head", options->n_head, "query heads")->capture_default_str();
  command->add_option("--n-head-kv", options->n_head_kv, "KV heads")->capture_default_str();
  command->add_option("--n-queries", options->n_queries, "tokens of a step, as with a draft model")
      ->capture_default_str();
  command
      ->add_option("--most-gb", options->most_gb,
                   "shapes whose 16-bit cache exceeds twice this are left out")
      ->capture_default_str();
  command->add_flag("--pack", options->pack,
                    "time the packing of one layer's tokens instead of attention: MB are rows read "
                    "and records written");
  command->add_option("-r,--reps", options->reps, "replays of the graph")->capture_default_str();
  command->add_option("-o,--output", options->output, "md, csv, json or jsonl")
      ->capture_default_str();
  command->footer(
      "Example: zipcache bench cuda -p 'zip;zipcache' --depth 32768 --batch 1,8 -o jsonl");
  command->callback([options, &action] { action = [options] { return run(*options); }; });
}

}  // namespace zipcache::cli
