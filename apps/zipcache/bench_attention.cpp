// `zipcache bench attention`: speed of attention over our cache against ggml's, in one run.
#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <memory>
#include <numeric>
#include <optional>
#include <span>
#include <thread>

#include "arguments.hpp"
#include "bench_math.hpp"
#include "commands.hpp"
#include "ggml_attention.hpp"
#include "interrupt.hpp"
#include "model.hpp"
#include "places.hpp"
#include "table.hpp"
#include "terminal.hpp"
#include "zipcache/cache.hpp"

namespace zipcache::cli {

namespace {

struct Options {
  std::vector<std::string> policies = {"zip", "zipcache"};
  std::vector<std::string> baselines = {"f16", "q8_0", "q4_0"};
  std::vector<int> d_head = {128}, gqa = {4}, depth = {4096}, batch = {1}, threads = {1};
  int n_head_kv = 8;
  int reps = 10;
  std::string output = "md";
};

// One contender's measurement of one shape.
struct Row {
  AttentionShape shape;
  int threads = 1;
  std::string kernel, isa, policy, precision;
  size_t bytes = 0;
  Spread ms;
  double rel_err = 0;
  std::optional<double> vs[3];  // against f16, q8_0, q4_0
  Spread read;                  // GB/s that the threads read between the rounds; `least` the best
};

// Our cache with `n_copies` layers that hold the same rows.
class OurAttention {
 public:
  static Result<std::unique_ptr<OurAttention>> create(const std::string& policy,
                                                      const AttentionShape& shape,
                                                      const AttentionData& data, int n_copies,
                                                      int n_threads);
  Status attend(int copy);
  const std::vector<float>& output() const { return out_; }
  CacheStats stats() const { return cache_->stats(); }
  Result<double> error(const AttentionData& data) const;

 private:
  static constexpr int kChunk = 512;
  // Enough query rows for a prompt's probes; they see only their chunk, so that filling is quick.
  static constexpr int kFillQueries = 32;
  Status fill(const AttentionData& data);
  Attention step(int layer, int stream, const float* q, int n_queries, float* out) const;

  AttentionShape shape_;
  int n_copies_ = 0, n_threads_ = 1;
  std::unique_ptr<Cache> cache_;
  std::vector<float> q_, out_;
  float scale_ = 1;
};

Attention OurAttention::step(int layer, int stream, const float* q, int n_queries,
                             float* out) const {
  Attention step;
  step.layer = layer;
  step.stream = stream;
  step.n_queries = n_queries;
  step.n_heads = shape_.n_head;
  step.q = q;
  step.q_head_stride = step.out_head_stride = shape_.d_head;
  step.q_row_stride = step.out_row_stride = ptrdiff_t{shape_.n_head} * shape_.d_head;
  step.n_cells = shape_.depth;
  step.scale = scale_;
  step.out = out;
  step.n_threads = n_threads_;
  return step;
}

Result<std::unique_ptr<OurAttention>> OurAttention::create(const std::string& policy,
                                                           const AttentionShape& shape,
                                                           const AttentionData& data, int n_copies,
                                                           int n_threads) {
  const Result<Policy> parsed = parse_policy(policy);
  if (!parsed.ok()) return parsed.status();
  auto made = std::make_unique<OurAttention>();
  made->shape_ = shape;
  made->n_copies_ = n_copies;
  made->n_threads_ = n_threads;
  made->q_ = data.q;
  made->out_.resize(data.q.size());
  made->scale_ = data.scale;
  const LayerShape layer{shape.n_head_kv, shape.d_head, shape.d_head};
  Result<std::unique_ptr<Cache>> cache = Cache::create(
      {shape.batch, shape.depth, std::vector<LayerShape>(size_t(n_copies), layer)}, *parsed);
  if (!cache.ok()) return cache.status();
  made->cache_ = std::move(*cache);
  ZC_TRY(made->fill(data));
  return made;
}

Status OurAttention::fill(const AttentionData& data) {
  const ptrdiff_t width = ptrdiff_t{shape_.n_head_kv} * shape_.d_head;
  std::vector<float> q(size_t(kFillQueries) * q_.size()), out(q.size());
  for (int i = 0; i < kFillQueries; ++i)
    std::copy(q_.begin(), q_.end(), q.begin() + ptrdiff_t(size_t(i) * q_.size()));
  for (int stream = 0; stream < shape_.batch; ++stream) {
    for (int first = 0; first < shape_.depth; first += kChunk) {
      const int n = std::min(kChunk, shape_.depth - first);
      std::vector<int64_t> cells(size_t(n), 0);
      std::iota(cells.begin(), cells.end(), int64_t{first});
      std::vector<uint16_t> mask(size_t(shape_.depth), 0xFC00);
      std::fill_n(mask.begin() + first, n, uint16_t{0});
      for (int layer = 0; layer < n_copies_; ++layer) {
        ZC_TRY(
            cache_->write(layer, stream, SideId::K, cells, &data.k[size_t(first * width)], width));
        ZC_TRY(
            cache_->write(layer, stream, SideId::V, cells, &data.v[size_t(first * width)], width));
        Attention fill = step(layer, stream, q.data(), std::min(kFillQueries, n), out.data());
        fill.mask = mask.data();  // one row of the mask serves all
        ZC_TRY(cache_->attend(fill));
      }
      if (interrupted()) return {Code::Aborted, "bench: interrupted while filling the cache"};
    }
  }
  return ok();
}

Status OurAttention::attend(int copy) {
  for (int stream = 0; stream < shape_.batch; ++stream) {
    ZC_TRY(cache_->attend(step(copy, stream, q_.data(), 1, out_.data())));
  }
  return ok();
}

Result<double> OurAttention::error(const AttentionData& data) const {
  std::vector<float> k(data.k.size()), v(data.v.size());
  ZC_TRY(cache_->read(0, 0, SideId::K, 0, shape_.depth, k.data()));
  ZC_TRY(cache_->read(0, 0, SideId::V, 0, shape_.depth, v.data()));
  const auto exact =
      exact_attention(data.q, k, v, shape_.n_head, shape_.n_head_kv, shape_.d_head, data.scale);
  return worst_head_error(out_, exact, shape_.d_head);
}

double milliseconds_of(const auto& work, Status& status) {
  const auto start = std::chrono::steady_clock::now();
  status = work();
  return std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start)
      .count();
}

// Copies that one contender walks through, so that none finds its cache in the last-level cache.
int copies_for(double bytes) {
  return std::clamp(int(2.0 * double(last_level_cache()) / bytes) + 1, 2, 256);
}

class AttentionBench {
 public:
  explicit AttentionBench(const Options& options) : options_(options) {}

  // Calls done(rows) after each shape.
  template <class Done>
  Status run(Progress& progress, Done&& done) {
    buffer_.assign(4 * last_level_cache() / sizeof(uint64_t), 1);
    for (const int d_head : options_.d_head)
      for (const int gqa : options_.gqa)
        for (const int depth : options_.depth)
          for (const int batch : options_.batch)
            for (const int threads : options_.threads) {
              if (interrupted()) return ok();
              const AttentionShape shape{d_head, gqa * options_.n_head_kv, options_.n_head_kv,
                                         depth, batch};
              progress.stage(
                  fmt::format("head size {}, {}/{} heads, depth {}, batch {}, {} threads", d_head,
                              shape.n_head, shape.n_head_kv, depth, batch, threads));
              const size_t first = rows_.size();
              ZC_TRY(measure(shape, threads));
              done(std::span(rows_).subspan(first));
              progress.step();
            }
    return ok();
  }

  const std::vector<Row>& rows() const { return rows_; }

 private:
  struct Contender {
    Row row;
    std::unique_ptr<OurAttention> ours;
    std::unique_ptr<GgmlAttention> ggml;
    int n_copies = 1;
    std::vector<double> samples;
    Status attend(int i) {
      if (ours) return ours->attend(i % n_copies);
      // ggml's caches hold one sequence; a batch is one after another, as ours is.
      for (int b = 0; b < row.shape.batch; ++b)
        ZC_TRY(ggml->attend((i * row.shape.batch + b) % n_copies));
      return ok();
    }
  };

  static Row row_of(const AttentionShape& shape, int threads, std::string kernel,
                    std::string policy) {
    Row row;
    row.shape = shape;
    row.threads = threads;
    row.kernel = std::move(kernel);
    row.policy = std::move(policy);
    return row;
  }

  Status add_ours(const AttentionShape& shape, const AttentionData& data, int threads,
                  std::vector<Contender>& all) {
    for (const std::string& policy : options_.policies) {
      Contender made;
      const double bits = 3.2;  // only decides how many copies there are
      made.n_copies = copies_for(double(data.k.size()) * 2 * bits / 8 * shape.batch);
      auto ours = OurAttention::create(policy, shape, data, made.n_copies, threads);
      if (!ours.ok()) return ours.status();
      made.ours = std::move(*ours);
      const CacheStats stats = made.ours->stats();
      const Bytes& b = stats.bytes;
      made.row = row_of(shape, threads, "zipcache", policy);
      made.row.isa = stats.kernel;
      made.row.precision = stats.precision;
      made.row.bytes = (b.codes + b.params + b.tags + b.raw) / size_t(made.n_copies);
      all.push_back(std::move(made));
    }
    return ok();
  }

  Status add_ggml(const AttentionShape& shape, const AttentionData& data, int threads,
                  std::vector<Contender>& all) {
    for (const std::string& type : options_.baselines) {
      Contender made;
      const ggml_type cache = cache_type(type);
      const double bytes =
          double(data.k.size()) * 2 * double(ggml_type_size(cache)) / double(ggml_blck_size(cache));
      made.n_copies = copies_for(bytes);
      auto ggml = GgmlAttention::create(shape, data, cache, made.n_copies, threads);
      if (!ggml.ok()) return ggml.status();
      made.ggml = std::move(*ggml);
      made.row = row_of(shape, threads, "ggml", "llama:" + type);
      made.row.bytes = made.ggml->bytes() * size_t(shape.batch);
      all.push_back(std::move(made));
    }
    return ok();
  }

  // A turn of a contender goes over all its copies, as a token goes over all layers: a cache that
  // rests for seconds is not what a model meets.
  static constexpr int kLeastOperations = 4;

  Status measure(const AttentionShape& shape, int threads) {
    AttentionData data;
    data.scale = 1.0f / std::sqrt(float(shape.d_head));
    data.k = synthetic_rows(shape.depth, shape.n_head_kv, shape.d_head, true, 1);
    data.v = synthetic_rows(shape.depth, shape.n_head_kv, shape.d_head, false, 2);
    data.q = synthetic_queries(data.k, shape.n_head, shape.n_head_kv, shape.d_head, data.scale, 3);
    std::vector<Contender> all;
    ZC_TRY(add_ours(shape, data, threads, all));
    ZC_TRY(add_ggml(shape, data, threads, all));
    std::vector<double> reads;
    // Round after round, each begun by another contender, so that a disturbance meets all of them;
    // the first round warms up.
    for (int rep = -1; rep < options_.reps && !interrupted(); ++rep) {
      for (size_t i = 0; i < all.size(); ++i) {
        Contender& contender = all[(i + size_t(rep + 1)) % all.size()];
        for (int j = 0; j < std::max(kLeastOperations, contender.n_copies); ++j) {
          Status status;
          const double ms = milliseconds_of([&] { return contender.attend(j); }, status);
          ZC_TRY(status);
          if (rep >= 0) contender.samples.push_back(ms);
        }
      }
      reads.push_back(read_bandwidth(buffer_, threads));
    }
    Spread read = spread_of(reads);
    read.least = reads.empty() ? 0 : *std::max_element(reads.begin(), reads.end());
    return finish(data, all, read);
  }

  Status finish(const AttentionData& data, std::vector<Contender>& all, const Spread& read) {
    static constexpr const char* kAgainst[] = {"llama:f16", "llama:q8_0", "llama:q4_0"};
    const AttentionShape& shape = all.front().row.shape;
    const auto exact = exact_attention(data.q, data.k, data.v, shape.n_head, shape.n_head_kv,
                                       shape.d_head, data.scale);
    for (Contender& contender : all) {
      contender.row.ms = spread_of(contender.samples);
      contender.row.read = read;
      if (contender.ours) {
        const Result<double> error = contender.ours->error(data);
        if (!error.ok()) return error.status();
        contender.row.rel_err = *error;
      } else {
        contender.row.rel_err = worst_head_error(contender.ggml->output(0), exact, shape.d_head);
      }
    }
    for (Contender& contender : all) {
      for (size_t i = 0; i < 3; ++i) {
        for (const Contender& other : all) {
          if (other.row.policy == kAgainst[i] && contender.row.ms.median > 0)
            contender.row.vs[i] = other.row.ms.median / contender.row.ms.median;
        }
      }
      rows_.push_back(contender.row);
    }
    return ok();
  }

  const Options& options_;
  std::vector<uint64_t> buffer_;
  std::vector<Row> rows_;
};

Json to_json(const Row& row) {
  const double gbps = double(row.bytes) / row.ms.median / 1e6;
  const auto ratio = [](const std::optional<double>& value) {
    return value ? Json(*value) : Json();
  };
  return {{"kind", "attention"},
          {"kernel", row.kernel},
          {"isa", row.isa},
          {"policy", row.policy},
          {"d_head", row.shape.d_head},
          {"n_head", row.shape.n_head},
          {"n_head_kv", row.shape.n_head_kv},
          {"depth", row.shape.depth},
          {"batch", row.shape.batch},
          {"threads", row.threads},
          {"ms", row.ms.median},
          {"gbps", gbps},
          {"bw_share", gbps / row.read.median},
          {"vs_ggml_f16", ratio(row.vs[0])},
          {"vs_ggml_q8_0", ratio(row.vs[1])},
          {"vs_ggml_q4_0", ratio(row.vs[2])},
          {"rel_err", row.rel_err},
          {"cpu", processor_name()},
          {"precision", row.precision},
          {"bytes", row.bytes},
          {"ms_min", row.ms.least},
          {"ms_iqr", row.ms.iqr},
          {"read_gbps", row.read.median},
          {"read_gbps_best", row.read.least}};
}

void print_objects(Format format, std::span<const Row> rows) {
  std::vector<Json> objects;
  for (const Row& row : rows) objects.push_back(to_json(row));
  fmt::print("{}", for_programs(format, objects));
  std::fflush(stdout);
}

void print_table(const AttentionBench& bench) {
  std::vector<std::vector<std::string>> lines;
  const auto ratio = [](const std::optional<double>& v) {
    return v ? fmt::format("{:.2f}x", *v) : std::string("-");
  };
  for (const Row& row : bench.rows()) {
    const double gbps = double(row.bytes) / row.ms.median / 1e6;
    lines.push_back({row.policy, row.isa.empty() ? "ggml" : row.isa + " " + row.precision,
                     fmt::format("{}", row.shape.d_head),
                     fmt::format("{}/{}", row.shape.n_head, row.shape.n_head_kv),
                     fmt::format("{}", row.shape.depth), fmt::format("{}", row.shape.batch),
                     fmt::format("{}", row.threads),
                     fmt::format("{:.3f} ± {:.3f}", row.ms.median, row.ms.iqr / 2),
                     fmt::format("{:.1f}", gbps), fmt::format("{:.2f}", gbps / row.read.median),
                     ratio(row.vs[0]), ratio(row.vs[1]), ratio(row.vs[2]),
                     fmt::format("{:.1e}", row.rel_err)});
  }
  fmt::print("{}", markdown({{"cache", false},
                             {"kernel", false},
                             {"head"},
                             {"heads"},
                             {"depth"},
                             {"batch"},
                             {"threads"},
                             {"ms"},
                             {"GB/s"},
                             {"of read"},
                             {"vs f16"},
                             {"vs q8_0"},
                             {"vs q4_0"},
                             {"error"}},
                            lines, colours(stdout)));
  fmt::print(
      "\nms: median of one token's attention in one layer ± half the middle half's width. GB/s of "
      "the bytes that must be read;\nof read: its share of the read bandwidth measured between the "
      "rows. vs: how many times faster than ggml's cache of that type.\nerror: worst head against "
      "double precision, over what the cache holds (ggml: over the rows before it coded "
      "them).\n{}\n",
      processor_name());
}

Status check(const Options& options) {
  ZC_TRY(check_range("--d-head", options.d_head, 32, 256));
  ZC_TRY(check_range("--gqa", options.gqa, 1, 64));
  ZC_TRY(check_range("--depth", options.depth, 1, 1 << 20));
  ZC_TRY(check_range("--batch", options.batch, 1, 64));
  ZC_TRY(check_range("--threads", options.threads, 1, 1024));
  ZC_TRY(check_range("--n-head-kv", {options.n_head_kv}, 1, 128));
  ZC_TRY(check_range("--reps", {options.reps}, 1, 10000));
  for (const int d_head : options.d_head) {
    if (d_head % 32 == 0) continue;
    return {Code::BadArgument,
            fmt::format("--d-head: found {}, expected a multiple of 32, as ggml's quantized types "
                        "need",
                        d_head)};
  }
  for (const std::string& type : options.baselines) {
    if (type == "f16" || type == "q8_0" || type == "q4_0") continue;
    return {Code::BadArgument,
            fmt::format("--baselines: found {}, expected f16, q8_0 or q4_0", type)};
  }
  return ok();
}

Status bench_attention(const Options& options) {
  const Result<Format> format = parse_format(options.output);
  if (!format.ok()) return format.status();
  ZC_TRY(check(options));
  AttentionBench bench(options);
  {
    Progress progress(int64_t(options.d_head.size() * options.gqa.size() * options.depth.size() *
                              options.batch.size() * options.threads.size()));
    // Lines are complete by themselves: whatever ends a long run leaves those before it.
    ZC_TRY(bench.run(progress, [&](std::span<const Row> rows) {
      if (*format == Format::Jsonl) print_objects(*format, rows);
    }));
  }
  if (*format == Format::Md) print_table(bench);
  if (*format == Format::Csv || *format == Format::Json) print_objects(*format, bench.rows());
  if (interrupted()) return {Code::Aborted, "interrupted; what was complete stands above"};
  return ok();
}

}  // namespace

void add_bench_attention(CLI::App& bench, Action& action) {
  auto options = std::make_shared<Options>();
  options->threads = {int(std::max(1u, std::thread::hardware_concurrency()))};
  CLI::App* attention = bench.add_subcommand(
      "attention",
      "One token's attention over caches of random rows, in the same process and with the same\n"
      "rows and threads as ggml's flash attention on its own caches.");
  attention->footer(
      "Example:\n  zipcache bench attention --depth 4096,32768 --threads 1,2 -o jsonl");
  attention->add_option("--policy", options->policies, "policies of ours")
      ->delimiter(';')
      ->capture_default_str();
  const auto list = [&](const char* name, auto& values, const char* help) {
    attention->add_option(name, values, help)->delimiter(',')->capture_default_str();
  };
  list("--baselines", options->baselines, "ggml's caches: f16, q8_0, q4_0");
  list("--d-head", options->d_head, "head sizes");
  list("--gqa", options->gqa, "query heads per KV head");
  list("--depth", options->depth, "tokens in the cache");
  list("--batch", options->batch, "sequences, each with its cache");
  list("-t,--threads", options->threads, "threads");
  attention->add_option("--n-head-kv", options->n_head_kv, "KV heads")->capture_default_str();
  attention->add_option("-r,--reps", options->reps, "rounds; in each, a cache is gone over once")
      ->capture_default_str();
  attention->add_option("-o,--output", options->output, "md, csv, json or jsonl")
      ->capture_default_str();
  attention->callback(
      [options, &action] { action = [options] { return bench_attention(*options); }; });
}

}  // namespace zipcache::cli
