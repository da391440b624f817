#include "cuda/gpu_cache.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstring>

#include "codec/query_rounding.hpp"
#include "cuda/device_memory.hpp"
#include "cuda/keep_rows.hpp"
#include "cuda/pack.hpp"
#include "cuda/probe.hpp"
#include "cuda/prompt.hpp"
#include "cuda/query_moments.hpp"
#include "cuda/unpack.hpp"
#include "saliency/probes.hpp"

namespace zipcache::cuda {
namespace {

// Of a piece of the past that is unpacked at once, K and V of all streams together; rows of a
// stream, in whole blocks.
constexpr size_t kPieceBytes = size_t{128} << 20;
constexpr int kLeastPieceRows = 1024, kMostPieceRows = 8192;

Status wrong(std::string_view what, long long found, std::string_view expected) {
  return {Code::BadArgument,
          fmt::format("the GPU cache found {} = {}, expected {}", what, found, expected)};
}

Status check_scale(float scale) {
  if (scale > 0 && std::isfinite(scale)) return ok();
  return {Code::BadArgument,
          fmt::format("the GPU cache found scale = {}, expected a number above 0", scale)};
}

// Scores that the saliency pass of a GPU makes.
Status check_scores(const Policy& policy) {
  const auto refused = [](std::string_view what) {
    return Status(Code::Incompatible,
                  fmt::format("the GPU cache found {}, expected one tier, or tiers by score=mean "
                              "divided by the probes that saw a token; take such a policy "
                              "(zip, zipcache, uniform4)",
                              what));
  };
  if (policy.tiers.size() == 1) return ok();
  if (policy.saliency.statistic != Statistic::Mean) return refused("another score than mean");
  if (policy.saliency.norm == Norm::FullCausal) return refused("norm=full");
  return ok();
}

// Data of a step on its way to the device: one copy for all of it.
class Parcel {
 public:
  void clear() { host_.clear(); }
  // Where these will be, in bytes from the parcel's begin.
  template <class T>
  size_t add(std::span<const T> items) {
    const size_t at = (host_.size() + 15) / 16 * 16;
    host_.resize(at + items.size_bytes());
    if (!items.empty()) std::memcpy(host_.data() + at, items.data(), items.size_bytes());
    return at;
  }
  // What is on the device before is read by then, in the order of the stream.
  Status send(cudaStream_t stream) {
    ZC_TRY(device_.grow(std::max<size_t>(host_.size(), 1), stream));
    return from_cuda(cudaMemcpyAsync(device_.at<void>(), host_.data(), host_.size(),
                                     cudaMemcpyHostToDevice, stream),
                     "sending a step's plan");
  }
  template <class T>
  const T* at(size_t byte) const {
    return device_.at<const T>(byte);
  }

 private:
  std::vector<uint8_t> host_;
  DeviceMemory device_;
};

struct Layer {
  DeviceMemory pool, k_ring, v_ring, sums, seen, moments;
};

class Cache final : public GpuCache {
 public:
  Cache(const GpuCacheShape& shape, const Policy& policy, Schedule schedule)
      : shape_(shape),
        policy_(policy),
        schedule_(std::move(schedule)),
        layers_(size_t(shape.n_layers)),
        forgets_(size_t(shape.n_streams)) {}

  Status allocate(cudaStream_t stream);
  Status begin(std::span<const int> n_new, cudaStream_t stream) override;
  Status decode(int layer, const DecodeStep& step, cudaStream_t stream) override;
  Status prefill(int layer, const PromptStep& step, cudaStream_t stream) override;

  int length(int stream) const override { return schedule_.length(stream); }
  Status truncate(int stream, int length) override { return schedule_.truncate(stream, length); }
  Status clear(int stream) override;
  GpuCacheBytes bytes() const override;
  Result<Image> image(int layer, cudaStream_t stream) const override;

 private:
  bool scored() const { return policy_.needs_scores(); }
  bool by_queries() const { return schedule_.form().k_by_queries; }
  // Bytes of what is learnt of a stream's queries in a layer.
  size_t moment_bytes() const {
    return size_t(shape_.n_heads) * size_t(shape_.dim / kFeedbackGroup) * sizeof(MomentGroup);
  }
  const ScheduleSizes& sizes() const { return schedule_.sizes(); }
  Layer& layer(int index) { return layers_[size_t(index)]; }
  Status check_step(int layer, bool is_prompt) const;
  Status plan(cudaStream_t stream);
  Status prepare_decode(cudaStream_t stream);
  int piece_rows() const;
  PastPieces past_pieces() const;
  DecodeArgs decode_args(const Layer& own) const;
  DecodeArgs step_args(const Layer& own, const float* sinks, float scale) const;

  PerToken<float> ring_sums(const Layer& own) const;
  PerToken<uint32_t> ring_seen(const Layer& own) const;
  InputRows ring_rows(const DeviceMemory& rows) const;
  InputRows query_rows(const DecodeStep& step) const;
  Status keep(const Layer& own, const InputRows& k, const InputRows& v, size_t rows, int most,
              bool from_prompt, cudaStream_t stream);
  Status forget(cudaStream_t stream);
  std::vector<int32_t> teaching() const;
  Status learn(const Layer& own, const InputRows& q, float scale, cudaStream_t stream);
  Status make_coefficients(const Layer& own, cudaStream_t stream);
  Status pack(const Layer& own, bool own_rows, const InputRows& k, const InputRows& v,
              cudaStream_t stream);
  Random probe_key(int layer, uint64_t round) const {
    return Random(policy_.seed, 0, uint64_t(layer), round);
  }
  using Probes = std::vector<std::vector<int>>;  // of each stream, counted from its first new token
  Probes choose(int layer) const;
  Status score_step(int layer, const DecodeStep& step, const Probes& chosen, const float* log_sums,
                    cudaStream_t stream);
  Status score_prompt(int layer, const PromptStep& step, cudaStream_t stream);
  Status sum_chosen(ProbeArgs args, const InputRows& q, const Probes& chosen, int n_before,
                    const float* log_sums, int64_t log_sums_stride, cudaStream_t stream);
  Status pick_probes(const int32_t* picked, int64_t log_sums_stride, ProbeArgs& args,
                     cudaStream_t stream);
  bool is_long() const { return most_new_ > kMostStepTokens; }
  int most_going_on() const;
  Status pick_queries(const PromptStep& step, cudaStream_t stream);
  Status attend(const Layer& own, const PromptStep& step, cudaStream_t stream);
  Status attend_short(const Layer& own, const PromptStep& step, cudaStream_t stream);
  PromptArgs prompt_args(const PromptStep& step) const;
  UnpackArgs unpack_args(const Layer& own) const;
  Status attend_past(const Layer& own, const PromptStep& step, cudaStream_t stream);

  GpuCacheShape shape_;
  Policy policy_;
  Schedule schedule_;
  std::vector<Layer> layers_;
  DeviceMemory table_, workspace_, log_sums_;
  DeviceMemory prompt_sums_, prompt_seen_, picked_, picked_sums_, probe_space_;
  DeviceMemory prompt_log_sums_, queries_;  // of a prompt's attention
  DeviceMemory past_k_, past_v_;            // [n_streams, n_heads, piece_rows(), dim]
  DeviceMemory turns_;                      // [kPromptTurns]
  DeviceMemory feedback_, learnt_;
  std::vector<bool> forgets_;  // streams that were cleared since the last step
  Parcel parcel_, probes_;
  // Of the step at hand.
  std::vector<int> n_new_;
  int most_new_ = 0, most_first_ = 0, most_last_ = 0;
  DecodePlan plan_;
  size_t changes_at_ = 0, first_at_ = 0, last_at_ = 0, items_at_ = 0, visible_at_ = 0;
  size_t oldest_at_ = 0;  // [n_streams] the ring's rows that the next token will take
  size_t teaching_at_ = 0, n_new_at_ = 0;
  PastPieces past_;  // of long steps
  size_t past_tasks_at_ = 0, past_rows_at_ = 0;
  bool teaches_ = false;  // keys are rounded by what this step's queries teach
  Status fault_;          // of a step whose plan did not get to the device
  size_t ring_tasks_at_ = 0, own_tasks_at_ = 0;
  DecodeBlocks device_blocks_;
};

Status Cache::allocate(cudaStream_t stream) {
  const size_t rows = size_t(shape_.n_streams) * size_t(sizes().ring);
  const size_t heads = size_t(shape_.n_heads);
  for (Layer& own : layers_) {
    ZC_TRY(own.pool.allocate(sizes().pool, stream));
    for (DeviceMemory* ring : {&own.k_ring, &own.v_ring})
      ZC_TRY(ring->allocate(rows * heads * size_t(shape_.dim) * sizeof(uint16_t), stream));
    if (by_queries())
      ZC_TRY(own.moments.allocate(size_t(shape_.n_streams) * moment_bytes(), stream));
    if (!scored()) continue;
    ZC_TRY(own.sums.allocate(rows * heads * sizeof(float), stream));
    ZC_TRY(own.seen.allocate(rows * sizeof(uint32_t), stream));
  }
  if (by_queries()) {
    const size_t lists = size_t(shape_.n_streams) * heads;
    const size_t floats = lists * size_t(feedback_floats(shape_.dim));
    ZC_TRY(feedback_.allocate(floats * sizeof(float), stream));
    ZC_TRY(learnt_.allocate(lists * sizeof(uint32_t), stream));
  }
  const size_t entries = size_t(shape_.n_streams) * heads * size_t(sizes().record_stride);
  ZC_TRY(table_.allocate(entries * sizeof(Record), stream));
  DecodeArgs args = decode_args(layers_[0]);
  args.n_queries = 1;
  args.n_items = 1;
  const Result<DecodeBlocks> blocks = decode_blocks(args);
  if (!blocks.ok()) return blocks.status();
  device_blocks_ = *blocks;
  return ok();
}

Status Cache::begin(std::span<const int> n_new, cudaStream_t stream) {
  ZC_TRY(fault_);
  ZC_TRY(schedule_.begin(n_new));
  n_new_.assign(n_new.begin(), n_new.end());
  most_new_ = *std::max_element(n_new_.begin(), n_new_.end());
  const auto most_of = [](std::span<const StreamRows> rows) {
    int most = 0;
    for (const StreamRows& own : rows) most = std::max({most, own.end - own.begin, own.n_sinks});
    return most;
  };
  most_first_ = most_of(schedule_.first_rows());
  most_last_ = most_of(schedule_.last_rows());
  const Status planned = plan(stream);
  if (planned.ok()) return ok();
  // Host and device no longer agree on what the cache holds.
  n_new_.clear();
  fault_ = {Code::Environment,
            fmt::format("the GPU cache cannot go on: a step's plan did not get to the device ({}); "
                        "make a new cache",
                        planned.message())};
  return fault_;
}

// Rows of a stream in a piece of the past.
int Cache::piece_rows() const {
  const size_t of_row =
      size_t(shape_.n_streams) * size_t(shape_.n_heads) * size_t(shape_.dim) * 2 * sizeof(half);
  const size_t fitting = std::min<size_t>(kPieceBytes / of_row, kMostPieceRows);
  const int wanted =
      shape_.piece_tokens > 0 ? shape_.piece_tokens : std::max(int(fitting), kLeastPieceRows);
  const int rows = std::min(wanted, shape_.max_tokens);
  return (rows + kBlockTokens - 1) / kBlockTokens * kBlockTokens;
}

// Of the streams that go on.
PastPieces Cache::past_pieces() const {
  std::vector<std::span<const Record>> records(n_new_.size());
  for (size_t s = 0; s < records.size(); ++s) {
    if (n_new_[s] > 0) records[s] = schedule_.records(int(s));
  }
  return plan_past(records, piece_rows());
}

Status Cache::plan(cudaStream_t stream) {
  plan_ =
      is_long() ? DecodePlan{} : plan_decode(schedule_.counts(), shape_.n_heads, device_blocks_);
  past_ = is_long() ? past_pieces() : PastPieces{};
  std::vector<int32_t> visible, oldest;
  for (int s = 0; s < shape_.n_streams; ++s) {
    oldest.push_back(schedule_.length(s) % sizes().ring);
    visible.push_back(schedule_.length(s) - std::max(1, n_new_[size_t(s)]) + 1);
  }
  parcel_.clear();
  changes_at_ = parcel_.add(schedule_.changes());
  first_at_ = parcel_.add(schedule_.first_rows());
  last_at_ = parcel_.add(schedule_.last_rows());
  items_at_ = parcel_.add(std::span<const WorkItem>(plan_.items));
  visible_at_ = parcel_.add(std::span<const int32_t>(visible));
  oldest_at_ = parcel_.add(std::span<const int32_t>(oldest));
  n_new_at_ = parcel_.add(std::span<const int>(n_new_));
  past_tasks_at_ = parcel_.add(std::span<const UnpackTask>(past_.tasks));
  past_rows_at_ = parcel_.add(std::span<const int32_t>(past_.rows));
  const std::vector<int32_t> counts = teaching();
  teaches_ = by_queries() && std::any_of(counts.begin(), counts.end(), [](int n) { return n > 0; });
  teaching_at_ = parcel_.add(std::span<const int32_t>(counts));
  ring_tasks_at_ = parcel_.add(schedule_.ring_tasks());
  own_tasks_at_ = parcel_.add(schedule_.own_tasks());
  ZC_TRY(parcel_.send(stream));
  ZC_TRY(forget(stream));
  ZC_TRY(change_table(parcel_.at<TableChange>(changes_at_), int(schedule_.changes().size()),
                      table_.at<Record>(), shape_.n_heads, sizes().record_stride, stream));
  return is_long() ? ok() : prepare_decode(stream);
}

Status Cache::prepare_decode(cudaStream_t stream) {
  DecodeArgs args = decode_args(layers_[0]);
  args.n_queries = std::max(most_new_, 1);
  ZC_TRY(workspace_.grow(decode_workspace(args), stream));
  // Where this plan has its tickets another one may have left results.
  const size_t tickets = decode_workspace(args) - decode_part_bytes(args);
  return from_cuda(cudaMemsetAsync(workspace_.at<void>(), 0, tickets, stream), "clearing tickets");
}

Status Cache::check_step(int layer, bool is_prompt) const {
  if (layer < 0 || layer >= shape_.n_layers)
    return wrong("layer", layer, fmt::format("0 to {}", shape_.n_layers - 1));
  if (n_new_.empty()) return wrong("steps that were begun", 0, "begin() before a layer's part");
  if (is_prompt) return ok();
  if (most_new_ > kMostStepTokens)
    return wrong("new tokens", most_new_,
                 fmt::format("at most {}; longer ones are for prefill()", kMostStepTokens));
  for (const int n : n_new_) {
    if (n != 0 && n != most_new_)
      return wrong("new tokens of a stream", n, fmt::format("0 or {}, as others have", most_new_));
  }
  return ok();
}

DecodeArgs Cache::decode_args(const Layer& own) const {
  const PackForm& form = schedule_.form();
  DecodeArgs args;
  args.dim = shape_.dim, args.n_heads = shape_.n_heads, args.group = shape_.group;
  args.pool = own.pool.at<uint8_t>();
  args.records = table_.at<Record>();
  args.record_stride = sizes().record_stride;
  args.n_items = int(plan_.items.size());
  args.n_warps = plan_.n_warps;
  args.form = form.record;
  args.max_record_bytes = sizes().max_record;
  args.k_hadamard = form.k_hadamard, args.v_hadamard = form.v_hadamard;
  args.workspace = workspace_.at<void>();
  return args;
}

PerToken<float> Cache::ring_sums(const Layer& own) const {
  const int64_t ring = sizes().ring;
  return {own.sums.at<float>(), ring * shape_.n_heads, ring};
}
PerToken<uint32_t> Cache::ring_seen(const Layer& own) const {
  return {own.seen.at<uint32_t>(), sizes().ring, 0};
}
InputRows Cache::ring_rows(const DeviceMemory& rows) const {
  const int64_t token = int64_t{shape_.n_heads} * shape_.dim;
  return {rows.at<uint16_t>(), sizes().ring * token, token, shape_.dim};
}

Status Cache::keep(const Layer& own, const InputRows& k, const InputRows& v, size_t rows, int most,
                   bool from_prompt, cudaStream_t stream) {
  KeepRowsArgs args;
  args.dim = shape_.dim, args.n_heads = shape_.n_heads, args.n_streams = shape_.n_streams;
  args.k = k, args.v = v;
  args.rows = parcel_.at<StreamRows>(rows);
  args.most_rows = most;
  args.ring = sizes().ring;
  args.k_ring = own.k_ring.at<uint16_t>(), args.v_ring = own.v_ring.at<uint16_t>();
  args.pool = own.pool.at<uint8_t>();
  args.sinks_at = sizes().sinks_at, args.ring_at = sizes().ring_at;
  args.raw = sizes().raw, args.sink_records = sizes().sink_records;
  args.k_hadamard = policy_.k.rotation == Rotation::Hadamard;
  args.v_hadamard = policy_.v.rotation == Rotation::Hadamard;
  if (scored()) {
    args.sums = ring_sums(own);
    args.seen = ring_seen(own);
  }
  if (scored() && from_prompt) {
    const int64_t tokens = most_new_;
    args.from_sums = {prompt_sums_.at<const float>(), tokens * shape_.n_heads, tokens};
    args.from_seen = {prompt_seen_.at<const uint32_t>(), tokens, 0};
  }
  return keep_rows(args, stream);
}

Status Cache::forget(cudaStream_t stream) {
  for (size_t s = 0; s < forgets_.size(); ++s) {
    if (!forgets_[s]) continue;
    for (const Layer& own : layers_) {
      if (own.moments.bytes() == 0) continue;
      ZC_TRY(from_cuda(
          cudaMemsetAsync(own.moments.at<void>(s * moment_bytes()), 0, moment_bytes(), stream),
          "forgetting a stream's queries"));
    }
    forgets_[s] = false;
  }
  return ok();
}

// For each stream the step's tokens whose queries are learnt from; 0 where they are too few.
std::vector<int32_t> Cache::teaching() const {
  std::vector<int32_t> counts;
  for (const int n : n_new_)
    counts.push_back(n >= kShortStep && n * shape_.group >= kMomentRows ? n : 0);
  return counts;
}

Status Cache::learn(const Layer& own, const InputRows& q, float scale, cudaStream_t stream) {
  if (!teaches_) return ok();
  LearnArgs args;
  args.dim = shape_.dim, args.n_heads = shape_.n_heads, args.group = shape_.group;
  args.n_streams = shape_.n_streams;
  args.q = q;
  args.counts = parcel_.at<int32_t>(teaching_at_);
  args.most_rows = kMomentMostRows;
  args.scale = scale;
  args.hadamard = schedule_.form().k_hadamard;
  args.moments = own.moments.at<MomentGroup>();
  return learn_queries(args, stream);
}

// For the blocks of a layer that this step packs.
Status Cache::make_coefficients(const Layer& own, cudaStream_t stream) {
  if (!by_queries() || (schedule_.own_tasks().empty() && schedule_.ring_tasks().empty()))
    return ok();
  return make_feedback(own.moments.at<MomentGroup>(), shape_.dim, shape_.n_heads, shape_.n_streams,
                       feedback_.at<float>(), learnt_.at<uint32_t>(), stream);
}

// Blocks from the ring, or from a step's own rows.
Status Cache::pack(const Layer& own, bool own_rows, const InputRows& k, const InputRows& v,
                   cudaStream_t stream) {
  const auto tasks = own_rows ? schedule_.own_tasks() : schedule_.ring_tasks();
  if (tasks.empty()) return ok();
  PackArgs args;
  args.form = schedule_.form();
  args.n_heads = shape_.n_heads;
  args.k = k, args.v = v;
  if (by_queries()) args.feedback = feedback_.at<float>(), args.learnt = learnt_.at<uint32_t>();
  args.tasks = parcel_.at<PackTask>(own_rows ? own_tasks_at_ : ring_tasks_at_);
  args.n_tasks = int(tasks.size());
  args.pool = own.pool.at<uint8_t>();
  args.records = table_.at<Record>();
  args.record_stride = sizes().record_stride;
  if (scored()) {
    const bool divided = policy_.saliency.norm == Norm::ProbeNnz;
    const int64_t tokens = own_rows ? most_new_ : sizes().ring;
    const DeviceMemory& sums = own_rows ? prompt_sums_ : own.sums;
    const DeviceMemory& seen = own_rows ? prompt_seen_ : own.seen;
    args.scores = {sums.at<const float>(), tokens * shape_.n_heads, tokens};
    if (divided) args.seen = {seen.at<const uint32_t>(), tokens, 0};
  }
  return pack_records(args, stream);
}

// Of the step's new tokens, which see all tokens up to their own.
DecodeArgs Cache::step_args(const Layer& own, const float* sinks, float scale) const {
  DecodeArgs args = decode_args(own);
  args.n_queries = most_new_;
  args.items = parcel_.at<WorkItem>(items_at_);
  args.visible = parcel_.at<int32_t>(visible_at_);
  args.sinks = sinks;
  args.scale = scale;
  return args;
}

Status Cache::decode(int index, const DecodeStep& step, cudaStream_t stream) {
  ZC_TRY(check_step(index, false));
  if ((scored() || by_queries()) && step.q_type != Number::F16)
    return wrong("q_type of a policy that looks at queries", int(step.q_type),
                 "0 (16-bit numbers)");
  ZC_TRY(check_scale(step.scale));
  if (most_new_ == 0) return ok();
  const Layer& own = layer(index);
  ZC_TRY(keep(own, step.k, step.v, first_at_, most_first_, false, stream));
  DecodeArgs args = step_args(own, step.sinks, step.scale);
  args.mask = step.mask;
  args.q = step.q, args.out = step.out;
  args.q_type = step.q_type, args.out_type = step.out_type;
  args.log_sums = step.log_sums;
  args.early = true;  // begin() sent the plan before keep()
  Probes probes;
  if (scored()) probes = choose(index);
  const bool probed = std::any_of(probes.begin(), probes.end(),
                                  [](const std::vector<int>& rows) { return !rows.empty(); });
  if (probed && !args.log_sums) {
    const size_t n =
        size_t(shape_.n_streams) * size_t(most_new_) * size_t(shape_.n_heads * shape_.group);
    ZC_TRY(log_sums_.grow(n * sizeof(float), stream));
    args.log_sums = log_sums_.at<float>();
  }
  ZC_TRY(decode_attention(args, stream));
  if (probed) ZC_TRY(score_step(index, step, probes, args.log_sums, stream));
  ZC_TRY(learn(own, query_rows(step), step.scale, stream));
  ZC_TRY(make_coefficients(own, stream));
  return pack(own, false, ring_rows(own.k_ring), ring_rows(own.v_ring), stream);
}

// New tokens whose queries are probes: drawn from the step, or where that is short token by token
// (Engine::probes_of).
Cache::Probes Cache::choose(int index) const {
  Probes chosen(n_new_.size());
  for (int s = 0; s < shape_.n_streams; ++s) {
    const int n = n_new_[size_t(s)], length = schedule_.length(s);
    if (n >= kShortStep) {
      chosen[size_t(s)] = choose_probes(n, policy_.saliency, probe_key(index, uint64_t(length)));
      continue;
    }
    for (int token = 0; token < n; ++token) {
      const int place = length - n + token, first = place / kBlockTokens * kBlockTokens;
      if (choose_decode_probes(policy_.saliency, probe_key(index, uint64_t(first)))
              .test(size_t(place - first)))
        chosen[size_t(s)].push_back(token);
    }
  }
  return chosen;
}

InputRows Cache::query_rows(const DecodeStep& step) const {
  const int64_t token = int64_t{shape_.n_heads} * shape_.group * shape_.dim;
  return {static_cast<const uint16_t*>(step.q), most_new_ * token, token, shape_.dim};
}

// The ring's rows are in the order of tokens from the oldest on; a probe sees all but those of the
// step's tokens behind it.
Status Cache::score_step(int index, const DecodeStep& step, const Probes& chosen,
                         const float* log_sums, cudaStream_t stream) {
  const Layer& own = layer(index);
  ProbeArgs args;
  args.n_tokens = sizes().ring;
  args.k = ring_rows(own.k_ring);
  args.oldest = parcel_.at<int32_t>(oldest_at_);
  args.scale = step.scale;
  args.sums = ring_sums(own);
  args.seen = ring_seen(own);
  return sum_chosen(args, query_rows(step), chosen, sizes().ring - most_new_, log_sums, most_new_,
                    stream);
}

Status Cache::prefill(int index, const PromptStep& step, cudaStream_t stream) {
  ZC_TRY(check_step(index, true));
  if (most_new_ == 0) return ok();
  if (scored() || by_queries() || step.out) {
    ZC_TRY(check_scale(step.scale));
    if (const char* fault = fault_of(step.q))
      return {Code::BadArgument, fmt::format("the GPU cache found for q {}", fault)};
  }
  const Layer& own = layer(index);
  PromptStep attended = step;
  if (step.out) {
    ZC_TRY(attend(own, step, stream));
    attended.log_sums = prompt_log_sums_.at<float>();
    attended.log_sums_stride = most_new_;
  }
  if (scored()) ZC_TRY(score_prompt(index, attended, stream));
  ZC_TRY(keep(own, step.k, step.v, first_at_, most_first_, true, stream));
  ZC_TRY(learn(own, step.q, step.scale, stream));
  ZC_TRY(make_coefficients(own, stream));
  ZC_TRY(pack(own, false, ring_rows(own.k_ring), ring_rows(own.v_ring), stream));
  ZC_TRY(pack(own, true, step.k, step.v, stream));
  return keep(own, step.k, step.v, last_at_, most_last_, true, stream);
}

// The attention of a prompt's tokens, and the logarithms of its softmax sums.
Status Cache::attend(const Layer& own, const PromptStep& step, cudaStream_t stream) {
  const size_t rows = size_t(shape_.n_streams) * size_t(most_new_);
  ZC_TRY(
      prompt_log_sums_.grow(rows * size_t(shape_.n_heads * shape_.group) * sizeof(float), stream));
  if (!is_long()) return attend_short(own, step, stream);
  ZC_TRY(attend_prompt(prompt_args(step), stream));
  return attend_past(own, step, stream);
}

// Few tokens attend to records, their own among them. They come into the ring once more when they
// have scores.
Status Cache::attend_short(const Layer& own, const PromptStep& step, cudaStream_t stream) {
  ZC_TRY(keep(own, step.k, step.v, first_at_, most_first_, false, stream));
  ZC_TRY(pick_queries(step, stream));
  DecodeArgs args = step_args(own, step.sinks, step.scale);
  args.q = queries_.at<void>();
  args.out = step.out, args.out_type = step.out_type;
  args.log_sums = prompt_log_sums_.at<float>();
  return decode_attention(args, stream);
}

// Of the new tokens over themselves.
PromptArgs Cache::prompt_args(const PromptStep& step) const {
  PromptArgs args;
  args.dim = shape_.dim, args.n_heads = shape_.n_heads, args.group = shape_.group;
  args.n_streams = shape_.n_streams, args.n_tokens = most_new_;
  args.q = step.q, args.k = step.k, args.v = step.v;
  args.lengths = parcel_.at<int32_t>(n_new_at_);
  args.scale = step.scale;
  args.sinks = step.sinks;
  args.out = step.out, args.out_type = step.out_type;
  args.log_sums = prompt_log_sums_.at<float>();
  return args;
}

// Most new tokens of a stream that held some before.
int Cache::most_going_on() const {
  int most = 0;
  for (int s = 0; s < shape_.n_streams; ++s) {
    if (schedule_.first_rows()[size_t(s)].place > 0) most = std::max(most, n_new_[size_t(s)]);
  }
  return most;
}

UnpackArgs Cache::unpack_args(const Layer& own) const {
  const PackForm& form = schedule_.form();
  UnpackArgs args;
  args.form = form.record;
  args.k_hadamard = form.k_hadamard, args.v_hadamard = form.v_hadamard;
  args.n_heads = shape_.n_heads;
  args.pool = own.pool.at<uint8_t>();
  args.records = table_.at<Record>();
  args.record_stride = sizes().record_stride;
  args.k = past_k_.at<uint16_t>(), args.v = past_v_.at<uint16_t>();
  args.n_rows = piece_rows();
  return args;
}

// Adds attention over the tokens from before, a piece of them after the other.
Status Cache::attend_past(const Layer& own, const PromptStep& step, cudaStream_t stream) {
  if (past_.ends.empty()) return ok();
  const int64_t head = int64_t{piece_rows()} * shape_.dim;
  const size_t bytes = size_t(shape_.n_streams) * size_t(shape_.n_heads * head) * sizeof(half);
  if (turns_.bytes() == 0) {
    for (DeviceMemory* rows : {&past_k_, &past_v_}) ZC_TRY(rows->allocate(bytes, stream));
    ZC_TRY(turns_.allocate(kPromptTurns * sizeof(int), stream));
  }
  UnpackArgs unpack = unpack_args(own);
  PromptArgs args = prompt_args(step);
  args.k = {unpack.k, shape_.n_heads * head, shape_.dim, head};
  args.v = {unpack.v, shape_.n_heads * head, shape_.dim, head};
  args.turns = turns_.at<int>();
  args.sinks = nullptr;
  int first = 0;
  for (size_t piece = 0; piece < past_.ends.size(); ++piece) {
    unpack.tasks = parcel_.at<UnpackTask>(past_tasks_at_) + first;
    unpack.n_tasks = past_.ends[piece] - first;
    first = past_.ends[piece];
    ZC_TRY(unpack_records(unpack, stream));
    args.past = parcel_.at<int32_t>(past_rows_at_) + piece * size_t(shape_.n_streams);
    ZC_TRY(attend_prompt(args, stream));
  }
  return ok();
}

// Queries of each stream's tokens, without gaps.
Status Cache::pick_queries(const PromptStep& step, cudaStream_t stream) {
  const int n = most_new_;
  const size_t query_heads = size_t(shape_.n_heads * shape_.group);
  ZC_TRY(queries_.grow(
      size_t(shape_.n_streams) * size_t(n) * query_heads * size_t(shape_.dim) * sizeof(uint16_t),
      stream));
  PickArgs pick;
  pick.dim = shape_.dim, pick.n_heads = int(query_heads), pick.n_streams = shape_.n_streams;
  pick.n_picked = n;
  pick.from = step.q;
  pick.to = queries_.at<uint16_t>();
  return pick_rows(pick, stream);
}

// Sums of probes' attention to the prompt's own tokens, and to those from before that are not
// packed yet.
Status Cache::score_prompt(int index, const PromptStep& step, cudaStream_t stream) {
  Probes chosen = choose(index);
  for (int s = 0; s < shape_.n_streams; ++s) {
    const int n = n_new_[size_t(s)];
    if (schedule_.length(s) > n && n > 0 && !step.log_sums)
      return wrong("log_sums of a text that goes on", 0,
                   "the logarithms of the softmax sums of its attention");
  }
  const size_t streams = size_t(shape_.n_streams), tokens = size_t(most_new_);
  ZC_TRY(prompt_sums_.grow(streams * tokens * size_t(shape_.n_heads) * sizeof(float), stream));
  ZC_TRY(prompt_seen_.grow(streams * tokens * sizeof(uint32_t), stream));
  for (const DeviceMemory* memory : {&prompt_sums_, &prompt_seen_})
    ZC_TRY(from_cuda(cudaMemsetAsync(memory->at<void>(), 0, memory->bytes(), stream),
                     "clearing scores"));
  ProbeArgs args;
  args.n_tokens = most_new_;
  args.k = step.k;
  args.scale = step.scale;
  args.sums = {prompt_sums_.at<float>(), int64_t(tokens) * shape_.n_heads, int64_t(tokens)};
  args.seen = {prompt_seen_.at<uint32_t>(), int64_t(tokens), 0};
  ZC_TRY(sum_chosen(args, step.q, chosen, 0, step.log_sums, step.log_sums_stride, stream));
  if (most_going_on() == 0) return ok();
  // All of the ring: what its other rows are given counts for nothing once tokens come there.
  for (size_t s = 0; s < streams; ++s) {
    if (schedule_.first_rows()[s].place == 0) chosen[s].clear();
  }
  const Layer& own = layer(index);
  args.n_tokens = sizes().ring;
  args.k = ring_rows(own.k_ring);
  args.sums = ring_sums(own);
  args.seen = ring_seen(own);
  return sum_chosen(args, step.q, chosen, sizes().ring, step.log_sums, step.log_sums_stride,
                    stream);
}

// The pass with the chosen rows of q [stream, new token, query head, dim], each of which sees
// n_before keys and those of the new tokens up to its own. log_sums [stream, new token, query head]
// or null.
Status Cache::sum_chosen(ProbeArgs args, const InputRows& q, const Probes& chosen, int n_before,
                         const float* log_sums, int64_t log_sums_stride, cudaStream_t stream) {
  size_t n_probes = 1;
  for (const std::vector<int>& rows : chosen) n_probes = std::max(n_probes, rows.size());
  std::vector<int32_t> picked, limits;
  for (const std::vector<int>& rows : chosen) {
    for (size_t i = 0; i < n_probes; ++i) {
      picked.push_back(i < rows.size() ? rows[i] : 0);
      limits.push_back(i < rows.size() ? n_before + rows[i] + 1 : 0);
    }
  }
  probes_.clear();
  const size_t picked_at = probes_.add(std::span<const int32_t>(picked));
  const size_t limits_at = probes_.add(std::span<const int32_t>(limits));
  ZC_TRY(probes_.send(stream));
  args.dim = shape_.dim, args.n_heads = shape_.n_heads, args.group = shape_.group;
  args.n_streams = shape_.n_streams, args.n_probes = int(n_probes);
  args.limits = probes_.at<int32_t>(limits_at);
  args.q = q, args.log_sums = log_sums;
  // A step's only token needs no picking.
  if (most_new_ > 1 || log_sums_stride > 1)
    ZC_TRY(pick_probes(probes_.at<int32_t>(picked_at), log_sums_stride, args, stream));
  ZC_TRY(probe_space_.grow(probe_workspace(args), stream));
  args.workspace = probe_space_.at<float>();
  return sum_probes(args, stream);
}

// Puts the picked rows of args.q and args.log_sums side by side, in their place.
Status Cache::pick_probes(const int32_t* picked, int64_t log_sums_stride, ProbeArgs& args,
                          cudaStream_t stream) {
  const int query_heads = shape_.n_heads * shape_.group;
  const int64_t token = int64_t{query_heads} * shape_.dim;
  const size_t n = size_t(shape_.n_streams) * size_t(args.n_probes);
  ZC_TRY(picked_.grow(n * size_t(token) * sizeof(uint16_t), stream));
  ZC_TRY(picked_sums_.grow(n * size_t(query_heads) * sizeof(float), stream));
  PickArgs pick;
  pick.dim = shape_.dim, pick.n_heads = query_heads, pick.n_streams = shape_.n_streams;
  pick.n_picked = args.n_probes;
  pick.from = args.q;
  pick.index = picked;
  pick.to = picked_.at<uint16_t>();
  pick.from_sums = args.log_sums, pick.sums_stride = log_sums_stride;
  pick.to_sums = picked_sums_.at<float>();
  ZC_TRY(pick_rows(pick, stream));
  args.q = {pick.to, args.n_probes * token, token, shape_.dim};
  if (args.log_sums) args.log_sums = pick.to_sums;
  return ok();
}

Status Cache::clear(int stream) {
  if (stream < 0 || stream >= shape_.n_streams)
    return wrong("stream", stream, fmt::format("0 to {}", shape_.n_streams - 1));
  schedule_.clear(stream);
  forgets_[size_t(stream)] = true;
  return ok();
}

GpuCacheBytes Cache::bytes() const {
  GpuCacheBytes bytes;
  for (int s = 0; s < shape_.n_streams; ++s)
    bytes.records += size_t(schedule_.packed_blocks(s)) * size_t(sizes().block);
  bytes.records *= size_t(shape_.n_heads) * size_t(shape_.n_layers);
  for (const Layer& own : layers_)
    bytes.capacity += own.pool.bytes() + own.k_ring.bytes() + own.v_ring.bytes() +
                      own.sums.bytes() + own.seen.bytes() + own.moments.bytes();
  for (const DeviceMemory* memory : {&table_, &workspace_, &log_sums_, &prompt_sums_, &prompt_seen_,
                                     &picked_, &picked_sums_, &probe_space_, &feedback_, &learnt_,
                                     &prompt_log_sums_, &queries_, &past_k_, &past_v_, &turns_})
    bytes.shared += memory->bytes();
  return bytes;
}

Result<GpuCache::Image> Cache::image(int index, cudaStream_t stream) const {
  ZC_TRY(check_step(index, true));
  const Layer& own = layers_[size_t(index)];
  Image image;
  image.stride = sizes().record_stride;
  image.counts.assign(schedule_.counts().begin(), schedule_.counts().end());
  image.table.resize(table_.bytes() / sizeof(Record));
  image.pool.resize(own.pool.bytes());
  const auto copy = [&](void* to, const DeviceMemory& from) {
    return from_cuda(
        cudaMemcpyAsync(to, from.at<void>(), from.bytes(), cudaMemcpyDeviceToHost, stream),
        "copying records to the host");
  };
  ZC_TRY(copy(image.table.data(), table_));
  ZC_TRY(copy(image.pool.data(), own.pool));
  ZC_TRY(from_cuda(cudaStreamSynchronize(stream), "waiting for records"));
  return image;
}

}  // namespace

Result<std::unique_ptr<GpuCache>> GpuCache::create(const GpuCacheShape& shape, const Policy& policy,
                                                   cudaStream_t stream) {
  if (shape.n_layers < 1) return wrong("n_layers", shape.n_layers, "at least 1");
  if (shape.group < 1 || shape.group > 64)
    return wrong("group", shape.group, "1 to 64 query heads of a KV head");
  if (shape.piece_tokens < 0) return wrong("piece_tokens", shape.piece_tokens, "at least 0");
  ZC_TRY(check_scores(policy));
  if (needs_rotations(policy))
    return Status{Code::Incompatible,
                  "the GPU cache found rotate=file, expected rotate=hadamard or none"};
  ScheduleShape plan;
  plan.n_heads = shape.n_heads, plan.dim = shape.dim;
  plan.n_streams = shape.n_streams, plan.max_tokens = shape.max_tokens;
  plan.n_blocks =
      shape.n_blocks > 0 ? shape.n_blocks : shape.n_streams * (shape.max_tokens / kBlockTokens);
  Result<Schedule> schedule = Schedule::create(plan, policy);
  if (!schedule.ok()) return schedule.status();
  ZC_TRY(check_packing(schedule->form()));
  auto cache = std::make_unique<Cache>(shape, policy, std::move(*schedule));
  ZC_TRY(cache->allocate(stream));
  return std::unique_ptr<GpuCache>(std::move(cache));
}

}  // namespace zipcache::cuda
