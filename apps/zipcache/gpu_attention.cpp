#include "gpu_attention.hpp"

#include <cuda_runtime_api.h>
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <numeric>

#include "base/random.hpp"
#include "cache/pack.hpp"
#include "cuda/bandwidth.hpp"
#include "cuda/pack_form.hpp"
#include "cuda/record_set.hpp"
#include "cuda/rotated_attention.hpp"
#include "transform/hadamard.hpp"

#define ZC_CUDA(call)                                                                   \
  do {                                                                                  \
    const cudaError_t zc_error_ = (call);                                               \
    if (zc_error_ != cudaSuccess)                                                       \
      return Status{Code::Environment,                                                  \
                    fmt::format("CUDA: {}: {}", #call, cudaGetErrorString(zc_error_))}; \
  } while (false)

namespace zipcache::cli {
namespace {

using cuda::Record;
using cuda::RecordSet;

// Blocks of random rows whose records are repeated through the cache.
constexpr int kPatternBlocks = 64;
constexpr size_t kPiece = 16;

class DeviceMemory {
 public:
  ~DeviceMemory() { cudaFree(data_); }
  DeviceMemory() = default;
  DeviceMemory(const DeviceMemory&) = delete;
  DeviceMemory& operator=(const DeviceMemory&) = delete;
  Status take(size_t bytes) {
    cudaFree(data_);
    data_ = nullptr;
    const cudaError_t error = cudaMalloc(&data_, std::max<size_t>(bytes, kPiece));
    if (error == cudaSuccess) return ok();
    cudaGetLastError();
    return {
        Code::OverLimit,
        fmt::format("the GPU has no {} MB left; take a smaller --batch or --depth", bytes >> 20)};
  }
  template <class T>
  Status fill(const std::vector<T>& values) {
    ZC_TRY(take(values.size() * sizeof(T)));
    ZC_CUDA(cudaMemcpy(data_, values.data(), values.size() * sizeof(T), cudaMemcpyHostToDevice));
    return ok();
  }
  template <class T = uint8_t>
  T* get() const {
    return static_cast<T*>(data_);
  }

 private:
  void* data_ = nullptr;
};

// One head's packed blocks and 16-bit rows, as records.
struct Pattern {
  RecordSet set;
  cuda::RecordForm form;
  int n_raw;         // records of 16-bit rows in each head
  size_t raw_begin;  // where their bytes begin in the pool
};

// Rows that are ranked need scores; without queries a seeded draw stands in for them.
Policy drawn_tiers(Policy policy) {
  if (policy.needs_scores()) policy.saliency.statistic = Statistic::Random;
  return policy;
}

// Rotations from a file take as long whatever their matrices are, and the policy may name none:
// ones that leave rows as they are, which need no turning over either. [n_heads, dim, dim]
std::vector<float> idle_matrices(int n_heads, int dim) {
  const size_t n = size_t(dim);
  std::vector<float> out(size_t(n_heads) * n * n);
  for (size_t row = 0; row < size_t(n_heads) * n; ++row) out[row * n + row % n] = 1;
  return out;
}

Result<Pattern> make_pattern(const Policy& asked, const GpuShape& shape) {
  const Policy policy = drawn_tiers(asked);
  const LayerShape layer{1, shape.d_head, shape.d_head};
  const auto layout = cuda::RecordLayout::create(layer, policy);
  if (!layout.ok()) return layout.status();
  const int n_cells = kPatternBlocks * kBlockTokens;
  StreamLog log(n_cells, 1);
  const auto matrices = idle_matrices(1, shape.d_head);
  LayerStore store(layer, policy, StreamLog::max_blocks(n_cells),
                   std::make_shared<const LayerRotations>(layer, matrices, matrices));
  Arena arena;
  ZC_TRY(arena.reserve(size_t(1) << 30));
  const auto keys = synthetic_rows(n_cells, 1, shape.d_head, true, 1);
  const auto values = synthetic_rows(n_cells, 1, shape.d_head, false, 2);
  std::vector<int64_t> cells(size_t(n_cells), 0);
  std::iota(cells.begin(), cells.end(), int64_t{0});
  std::vector<RowId> rows;
  log.begin_write(0, SideId::K, Writer::Model);
  log.place(cells, rows, [](int) {});
  for (int i = 0; i < n_cells; ++i) {
    uint8_t* raw = store.raw_for_write(rows[size_t(i)].slot, arena);
    if (!raw) return Status{Code::Internal, "no storage for the pattern"};
    for (int c = 0; c < shape.d_head; ++c) {
      store.raw.k(raw, 0)[rows[size_t(i)].row * shape.d_head + c] =
          to_half(keys[size_t(i * shape.d_head + c)]);
      store.raw.v(raw, 0)[rows[size_t(i)].row * shape.d_head + c] =
          to_half(values[size_t(i * shape.d_head + c)]);
    }
  }
  const int n_raw_tokens = policy.window.recent + policy.window.sinks;
  Pattern pattern{RecordSet(shape.d_head, 1, 1, kPatternBlocks + 1), layout->form(),
                  (n_raw_tokens + cuda::kRawRecordTokens - 1) / cuda::kRawRecordTokens, 0};
  const auto raw_rows = [&](SideId side, const std::vector<float>& rows) {
    std::vector<half> out(size_t(cuda::kRawRecordTokens * shape.d_head));
    std::transform(rows.begin(), rows.begin() + ptrdiff_t(out.size()), out.begin(), to_half);
    return cuda::rows_for_record(store.rotation(side, 0), shape.d_head, cuda::kRawRecordTokens,
                                 out.data());
  };
  const std::vector<half> k = raw_rows(SideId::K, keys), v = raw_rows(SideId::V, values);
  for (const int slot : log.order()) {
    const int due[] = {slot};
    const auto packed = pack_blocks({0, due, false, {}, 1}, log, store, arena);
    if (!packed.ok()) return packed.status();
    pattern.set.add_packed(0, 0, *layout, store.head(slot, 0), {}, uint32_t(log.block(slot).first));
  }
  pattern.raw_begin = pattern.set.pool().size();
  pattern.set.add_raw(0, 0, cuda::kRawRecordTokens, k.data(), v.data(), 0);
  return pattern;
}

// Copies of a cache made of the pattern, on the GPU.
class Caches {
 public:
  Status make(const Pattern& pattern, const GpuShape& shape, double least_bytes) {
    pattern_ = &pattern;
    n_packed_ = shape.depth / kBlockTokens -
                (pattern.n_raw * cuda::kRawRecordTokens + kBlockTokens - 1) / kBlockTokens;
    if (n_packed_ < 0)
      return {Code::BadArgument, "--depth: found fewer tokens than the policy keeps at 16 bits"};
    n_lists_ = size_t(shape.batch) * size_t(shape.n_head_kv);
    const size_t raw_bytes = pattern.set.pool().size() - pattern.raw_begin;
    const size_t n_patterns = (n_lists_ * size_t(n_packed_) + kPatternBlocks - 1) / kPatternBlocks;
    raw_at_ = n_patterns * pattern.raw_begin;
    copy_bytes_ = raw_at_ + n_lists_ * size_t(pattern.n_raw) * raw_bytes;
    n_copies_ = std::clamp(int(least_bytes / bytes()) + 1, 2, 256);
    ZC_TRY(pool_.take(copy_bytes_ * size_t(n_copies_)));
    ZC_CUDA(cudaMemcpy(pool_.get(), pattern.set.pool().data(), pattern.raw_begin,
                       cudaMemcpyHostToDevice));
    for (size_t i = 1; i < n_patterns; ++i)
      ZC_CUDA(cudaMemcpy(pool_.get() + i * pattern.raw_begin, pool_.get(), pattern.raw_begin,
                         cudaMemcpyDeviceToDevice));
    for (size_t i = 0; i < n_lists_ * size_t(pattern.n_raw); ++i)
      ZC_CUDA(cudaMemcpy(pool_.get() + raw_at_ + i * raw_bytes,
                         pattern.set.pool().data() + pattern.raw_begin, raw_bytes,
                         cudaMemcpyHostToDevice));
    for (int copy = 1; copy < n_copies_; ++copy)
      ZC_CUDA(cudaMemcpy(pool_.get() + size_t(copy) * copy_bytes_, pool_.get(), copy_bytes_,
                         cudaMemcpyDeviceToDevice));
    return tables_.fill(make_tables(raw_bytes));
  }

  // Record `index` of a list, in the pattern.
  int pattern_index(size_t list, int index) const {
    if (index >= n_packed_) return kPatternBlocks;
    return int((list * size_t(n_packed_) + size_t(index)) % kPatternBlocks);
  }
  const Record& entry(size_t list, int index) const {
    return pattern_->set.record(0, 0, pattern_index(list, index));
  }
  int n_records() const { return n_packed_ + pattern_->n_raw; }
  int n_packed() const { return n_packed_; }
  int n_copies() const { return n_copies_; }
  const uint8_t* pool() const { return pool_.get(); }
  const Record* table(int copy) const {
    return tables_.get<Record>() + size_t(copy) * n_lists_ * size_t(n_records());
  }
  // That the records of one copy have.
  double bytes() const {
    double sum = 0;
    for (size_t list = 0; list < n_lists_; ++list) {
      for (int i = 0; i < n_records(); ++i) sum += double(entry(list, i).size) * kPiece;
    }
    return sum;
  }

 private:
  std::vector<Record> make_tables(size_t raw_bytes) const {
    std::vector<Record> tables;
    for (size_t copy = 0; copy < size_t(n_copies_); ++copy) {
      for (size_t list = 0; list < n_lists_; ++list) {
        for (int i = 0; i < n_records(); ++i) {
          Record record = entry(list, i);
          const size_t packed = list * size_t(n_packed_) + size_t(i);
          const size_t raw = list * size_t(pattern_->n_raw) + size_t(i - n_packed_);
          const size_t begin =
              copy * copy_bytes_ + (i < n_packed_ ? packed / kPatternBlocks * pattern_->raw_begin
                                                  : raw_at_ + raw * raw_bytes);
          record.at = uint32_t(begin / kPiece) + (i < n_packed_ ? record.at : 0);
          tables.push_back(record);
        }
      }
    }
    return tables;
  }

  const Pattern* pattern_ = nullptr;
  DeviceMemory pool_, tables_;
  size_t n_lists_ = 0, copy_bytes_ = 0, raw_at_ = 0;
  int n_packed_ = 0, n_copies_ = 0;
};

// Rows and scores of a layer on the GPU, several times over, and where their records go.
class PackWork {
 public:
  Status make(const Policy& policy, const GpuShape& shape, double least_bytes) {
    const auto form = cuda::pack_form({shape.n_head_kv, shape.d_head, shape.d_head}, policy);
    if (!form.ok()) return form.status();
    if (policy.tiers.size() > 1) ZC_TRY(cuda::check_ranks_by_scores(policy));
    args_.form = *form;
    args_.n_heads = shape.n_head_kv;
    copy_numbers_ = size_t(shape.batch) * size_t(shape.depth) * size_t(width(shape));
    n_copies_ = std::clamp(int(least_bytes / double(4 * copy_numbers_)) + 1, 1, 64);
    ZC_TRY(add_rows(shape, true, k_));
    ZC_TRY(add_rows(shape, false, v_));
    ZC_TRY(add_scores(policy, shape));
    ZC_TRY(add_feedback(shape));
    ZC_TRY(add_matrices(shape));
    return add_records(policy, shape);
  }

  // The layer's copy number `copy`.
  cuda::PackArgs args(int copy) const {
    cuda::PackArgs out = args_;
    out.k.data = k_.get<uint16_t>() + size_t(copy % n_copies_) * copy_numbers_;
    out.v.data = v_.get<uint16_t>() + size_t(copy % n_copies_) * copy_numbers_;
    return out;
  }
  int n_copies() const { return n_copies_; }
  double bytes() const { return double(4 * copy_numbers_ + record_bytes_); }
  Result<uint32_t> n_wrong() const {
    uint32_t n = 0;
    ZC_CUDA(cudaMemcpy(&n, n_wrong_.get(), sizeof(n), cudaMemcpyDeviceToHost));
    return n;
  }

 private:
  static int width(const GpuShape& shape) { return shape.n_head_kv * shape.d_head; }

  // Random rows of some blocks, repeated: [copies, batch, depth, heads, d_head].
  Status add_rows(const GpuShape& shape, bool keys, DeviceMemory& to) {
    constexpr int kTokens = 8 * kBlockTokens;
    const auto rows = synthetic_rows(kTokens, shape.n_head_kv, shape.d_head, keys, keys ? 1 : 2);
    std::vector<half> halves(rows.size());
    std::transform(rows.begin(), rows.end(), halves.begin(), to_half);
    const size_t all = size_t(n_copies_) * copy_numbers_;
    ZC_TRY(to.take(all * sizeof(half)));
    for (size_t at = 0; at < all; at += halves.size())
      ZC_CUDA(cudaMemcpy(to.get<half>() + at, halves.data(),
                         std::min(halves.size(), all - at) * sizeof(half), cudaMemcpyHostToDevice));
    cuda::InputRows& input = keys ? args_.k : args_.v;
    input.head_stride = shape.d_head;
    input.token_stride = width(shape);
    input.stream_stride = int64_t{shape.depth} * width(shape);
    return ok();
  }

  Status add_scores(const Policy& policy, const GpuShape& shape) {
    if (policy.tiers.size() == 1) return ok();
    Random random(4, 0);
    std::vector<float> scores(size_t(shape.batch) * size_t(shape.n_head_kv) * size_t(shape.depth));
    for (float& score : scores) score = random.unit();
    ZC_TRY(scores_.fill(scores));
    args_.scores = {scores_.get<float>(), int64_t{shape.n_head_kv} * shape.depth, shape.depth};
    return ok();
  }

  // What queries taught takes as long whatever it is.
  Status add_feedback(const GpuShape& shape) {
    if (!args_.form.k_by_queries) return ok();
    const size_t n_lists = size_t(shape.batch) * size_t(shape.n_head_kv);
    ZC_TRY(learnt_.fill(std::vector<uint32_t>(n_lists, 1)));
    ZC_TRY(feedback_.fill(
        std::vector<float>(n_lists * size_t(cuda::feedback_floats(shape.d_head)), 0.01f)));
    args_.learnt = learnt_.get<uint32_t>();
    args_.feedback = feedback_.get<float>();
    return ok();
  }

  Status add_matrices(const GpuShape& shape) {
    if (!args_.form.k_by_matrix && !args_.form.v_by_matrix) return ok();
    ZC_TRY(matrices_.fill(idle_matrices(shape.n_head_kv, shape.d_head)));
    args_.k_matrices = args_.v_matrices = matrices_.get<float>();
    return ok();
  }

  Status add_records(const Policy& policy, const GpuShape& shape) {
    const int n_blocks = shape.depth / kBlockTokens;
    std::vector<cuda::PackTask> tasks;
    std::vector<Record> records;
    size_t at = 0;
    for (int b = 0; b < n_blocks * shape.batch; ++b) {
      cuda::PackTask task = cuda::pack_task(policy, uint64_t(b % n_blocks), {}, true);
      task.stream = b / n_blocks;
      task.record = b % n_blocks;
      task.row = b % n_blocks * kBlockTokens;
      tasks.push_back(task);
    }
    for (int stream = 0; stream < shape.batch; ++stream) {
      for (int i = 0; i < shape.n_head_kv * n_blocks; ++i) {
        const cuda::PackTask& task = tasks[size_t(i % n_blocks)];
        cuda::TierHeader headers[cuda::kRecordTiers] = {};
        const int size = cuda::place_record(args_.form.record, task.counts, headers);
        int row_map = 0;
        for (int t = 0; t < args_.form.record.n_tiers; ++t)
          row_map += cuda::units_of(headers[t].count);
        records.push_back({uint32_t(at), uint16_t(size), 0, uint32_t(task.row), kBlockTokens});
        at += size_t(size + row_map);
      }
    }
    record_bytes_ = at * kPiece;
    ZC_TRY(pool_.take(record_bytes_));
    ZC_TRY(tasks_.fill(tasks));
    ZC_TRY(records_.fill(records));
    ZC_TRY(n_wrong_.fill(std::vector<uint32_t>{0}));
    args_.tasks = tasks_.get<cuda::PackTask>();
    args_.n_tasks = int(tasks.size());
    args_.pool = pool_.get();
    args_.records = records_.get<Record>();
    args_.record_stride = n_blocks;
    args_.n_wrong = n_wrong_.get<uint32_t>();
    return ok();
  }

  cuda::PackArgs args_;
  DeviceMemory k_, v_, scores_, learnt_, feedback_, matrices_, tasks_, records_, pool_, n_wrong_;
  size_t copy_numbers_ = 0, record_bytes_ = 0;  // of one copy
  int n_copies_ = 0;
};

// What the pattern's records decode to, values turned back.
struct Decoded {
  Decoded(const Policy& policy, const Pattern& pattern, int dim) {
    for (int i = 0; i <= kPatternBlocks; ++i) {
      keys.emplace_back();
      values.emplace_back();
      cuda::decode_record(pattern.form, pattern.set.bytes(pattern.set.record(0, 0, i)), keys.back(),
                          values.back());
      if (policy.v.rotation == Rotation::Hadamard)
        hadamard(values.back().data(), int(values.back().size()) / dim, dim, dim);
    }
  }
  std::vector<std::vector<float>> keys, values;  // [kPatternBlocks + 1][tokens, dim]
};

// A head's attention in double precision.
class ExactHead {
 public:
  explicit ExactHead(size_t dim) : dim_(dim) {}

  void add(const std::vector<float>& q, float scale, const std::vector<float>& keys,
           const std::vector<float>& values) {
    for (size_t t = 0; t < keys.size() / dim_; ++t) {
      double score = 0;
      for (size_t c = 0; c < dim_; ++c) score += double(q[c]) * double(keys[t * dim_ + c]);
      scores_.push_back(score * double(scale));
      rows_.push_back(&values[t * dim_]);
    }
  }

  std::vector<double> result() const {
    const double peak = *std::max_element(scores_.begin(), scores_.end());
    std::vector<double> out(dim_, 0.0);
    double mass = 0;
    for (size_t t = 0; t < scores_.size(); ++t) {
      const double weight = std::exp(scores_[t] - peak);
      mass += weight;
      for (size_t c = 0; c < dim_; ++c) out[c] += weight * double(rows_[t][c]);
    }
    for (double& x : out) x /= mass;
    return out;
  }

 private:
  size_t dim_;
  std::vector<double> scores_;
  std::vector<const float*> rows_;
};

class Bench final : public GpuBench {
 public:
  Status open() {
    int n = 0;
    if (cudaGetDeviceCount(&n) != cudaSuccess || n == 0) {
      cudaGetLastError();
      return {
          Code::Environment,
          "found no CUDA device, expected one; run on a machine with an NVIDIA GPU and its driver"};
    }
    cudaDeviceProp properties;
    ZC_CUDA(cudaGetDeviceProperties(&properties, 0));
    name_ = properties.name;
    own_cache_ = double(properties.l2CacheSize);
    ZC_CUDA(cudaStreamCreate(&stream_));
    ZC_CUDA(cudaEventCreate(&begin_));
    ZC_CUDA(cudaEventCreate(&end_));
    return ok();
  }
  ~Bench() override {
    if (begin_) cudaEventDestroy(begin_);
    if (end_) cudaEventDestroy(end_);
    if (stream_) cudaStreamDestroy(stream_);
  }

  const std::string& name() const override { return name_; }

  Result<Spread> copy_bandwidth() override {
    constexpr size_t kBytes = size_t(1) << 30;
    DeviceMemory from, to;
    ZC_TRY(from.take(kBytes));
    ZC_TRY(to.take(kBytes));
    ZC_CUDA(cudaMemset(from.get(), 0x5A, kBytes));
    Result<Spread> us = replay(
        4, 20, [&](int) { return cuda::copy_memory(to.get(), from.get(), kBytes, stream_); });
    if (!us.ok()) return us;
    const double moved = 2.0 * double(kBytes) / 1e3;  // GB/s of one microsecond
    return Spread{moved / us->median, moved / us->least, moved / us->median * us->iqr / us->median};
  }

  Result<GpuTiming> measure(const Policy& policy, const GpuShape& shape, int reps) override {
    const Result<Pattern> pattern = make_pattern(policy, shape);
    if (!pattern.ok()) return pattern.status();
    Caches caches;
    ZC_TRY(caches.make(*pattern, shape, 4.5 * own_cache_));
    const std::vector<float> q = queries(shape);
    std::vector<half> q_halves(q.size());
    std::transform(q.begin(), q.end(), q_halves.begin(), to_half);
    DeviceMemory queries, out, items, workspace;
    ZC_TRY(queries.fill(q_halves));
    ZC_TRY(out.take(q.size() * sizeof(half)));
    ZC_CUDA(cudaMemset(out.get(), 0xFF, q.size() * sizeof(half)));

    cuda::DecodeArgs args;
    args.dim = shape.d_head;
    args.n_heads = shape.n_head_kv;
    args.group = shape.n_head / shape.n_head_kv;
    args.n_queries = shape.n_queries;
    args.pool = caches.pool();
    args.record_stride = caches.n_records();
    args.form = pattern->form;
    args.max_record_bytes = pattern->set.max_record_bytes();
    args.k_hadamard = policy.k.rotation == Rotation::Hadamard;
    args.v_hadamard = policy.v.rotation == Rotation::Hadamard;
    args.scale = scale(shape);
    args.q = queries.get();
    args.out = out.get();
    args.n_items = 1;
    const Result<cuda::DecodeBlocks> blocks = cuda::decode_blocks(args);
    if (!blocks.ok()) return blocks.status();
    const std::vector<cuda::StreamRecords> streams(size_t(shape.batch),
                                                   {caches.n_packed(), pattern->n_raw});
    const auto plan = cuda::plan_decode(streams, shape.n_head_kv, *blocks);
    ZC_TRY(items.fill(plan.items));
    args.items = items.get<cuda::WorkItem>();
    args.n_items = int(plan.items.size());
    args.n_warps = plan.n_warps;
    ZC_TRY(workspace.take(cuda::decode_workspace(args)));
    ZC_CUDA(cudaMemset(workspace.get(), 0, cuda::decode_workspace(args)));
    args.workspace = workspace.get();
    DeviceMemory matrices;
    ZC_TRY(matrices.fill(idle_matrices(shape.n_head_kv, shape.d_head)));
    const cuda::SideMatrices idle{matrices.get<float>(), matrices.get<float>()};
    const auto matrices_of = [&](const Side& side) {
      return side.rotation == Rotation::File ? idle : cuda::SideMatrices{};
    };
    cuda::RotatedAttention attention;
    ZC_TRY(attention.allocate(q.size(), stream_));
    const auto attend = [&](int i) {
      args.records = caches.table(i % caches.n_copies());
      return attention.attend(args, shape.batch * shape.n_queries, matrices_of(policy.k),
                              matrices_of(policy.v), stream_);
    };
    Result<Spread> us = replay(std::max(12, caches.n_copies()), reps, attend);
    if (!us.ok()) return us.status();
    std::vector<half> found(q.size());
    ZC_CUDA(
        cudaMemcpy(found.data(), out.get(), found.size() * sizeof(half), cudaMemcpyDeviceToHost));
    return GpuTiming{*us, caches.bytes(),
                     worst_error(policy, shape, caches, *pattern, q_halves, found)};
  }

  Result<GpuTiming> measure_packing(const Policy& policy, const GpuShape& shape,
                                    int reps) override {
    PackWork work;
    ZC_TRY(work.make(policy, shape, 4.5 * own_cache_));
    Result<Spread> us = replay(std::max(12, work.n_copies()), reps,
                               [&](int i) { return cuda::pack_records(work.args(i), stream_); });
    if (!us.ok()) return us.status();
    const Result<uint32_t> n_wrong = work.n_wrong();
    if (!n_wrong.ok()) return n_wrong.status();
    if (*n_wrong > 0) return Status{Code::Internal, "packing left records out"};
    return GpuTiming{*us, work.bytes(), 0};
  }

 private:
  static float scale(const GpuShape& shape) { return 1 / std::sqrt(float(shape.d_head)); }

  // Logits with a standard deviation of about 2 over the pattern's keys.
  static std::vector<float> queries(const GpuShape& shape) {
    const auto keys = synthetic_rows(1024, shape.n_head_kv, shape.d_head, true, 1);
    return synthetic_queries(keys, shape.n_head * shape.batch * shape.n_queries, shape.n_head_kv,
                             shape.d_head, scale(shape), 3);
  }

  // Microseconds of one of `n` calls of `work(i)` in a graph.
  template <class Work>
  Result<Spread> replay(int n, int reps, Work&& work) {
    cudaGraph_t graph = nullptr;
    cudaGraphExec_t executable = nullptr;
    ZC_CUDA(cudaStreamBeginCapture(stream_, cudaStreamCaptureModeGlobal));
    Status status;
    for (int i = 0; i < n && status.ok(); ++i) status = work(i);
    const cudaError_t ended = cudaStreamEndCapture(stream_, &graph);
    ZC_TRY(status);
    ZC_CUDA(ended);
    ZC_CUDA(cudaGraphInstantiate(&executable, graph, 0));
    std::vector<double> us;
    for (int rep = -3; rep < reps; ++rep) {  // the first ones warm up
      ZC_CUDA(cudaEventRecord(begin_, stream_));
      ZC_CUDA(cudaGraphLaunch(executable, stream_));
      ZC_CUDA(cudaEventRecord(end_, stream_));
      ZC_CUDA(cudaEventSynchronize(end_));
      float ms = 0;
      ZC_CUDA(cudaEventElapsedTime(&ms, begin_, end_));
      if (rep >= 0) us.push_back(double(ms) * 1e3 / n);
    }
    cudaGraphExecDestroy(executable);
    cudaGraphDestroy(graph);
    return spread_of(us);
  }

  // The last replay ended with the last copy, and all copies are alike.
  static double worst_error(const Policy& policy, const GpuShape& shape, const Caches& caches,
                            const Pattern& pattern, const std::vector<half>& q,
                            const std::vector<half>& found) {
    const size_t dim = size_t(shape.d_head);
    const Decoded decoded(policy, pattern, shape.d_head);
    double worst = 0;
    for (int head = 0; head < shape.n_head; ++head) {
      std::vector<float> own(dim), out(dim);
      for (size_t c = 0; c < dim; ++c) {
        own[c] = to_float(q[size_t(head) * dim + c]);
        out[c] = to_float(found[size_t(head) * dim + c]);
      }
      const size_t list = size_t(head / (shape.n_head / shape.n_head_kv));
      if (policy.k.rotation == Rotation::Hadamard)
        hadamard(own.data(), 1, shape.d_head, shape.d_head);
      ExactHead exact(dim);
      for (int i = 0; i < caches.n_records(); ++i) {
        const size_t at = size_t(caches.pattern_index(list, i));
        exact.add(own, scale(shape), decoded.keys[at], decoded.values[at]);
      }
      const double error = worst_head_error(out, exact.result(), shape.d_head);
      if (!(error <= worst)) worst = error;  // NaN too
    }
    return worst;
  }

  std::string name_;
  double own_cache_ = 0;
  cudaStream_t stream_ = nullptr;
  cudaEvent_t begin_ = nullptr, end_ = nullptr;
};

}  // namespace

Result<std::unique_ptr<GpuBench>> GpuBench::create() {
  auto bench = std::make_unique<Bench>();
  ZC_TRY(bench->open());
  return std::unique_ptr<GpuBench>(std::move(bench));
}

}  // namespace zipcache::cli
