#include "cuda/gpu_cache.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <climits>
#include <cmath>

#include "base/random.hpp"
#include "cuda/key_feedback.hpp"
#include "cuda/layer_group.hpp"
#include "cuda/model_schedule.hpp"
#include "cuda/probe_pass.hpp"
#include "cuda/prompt_attention.hpp"

namespace zipcache::cuda {
namespace {

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

Status check_shape(const GpuCacheShape& shape) {
  if (shape.n_layers < 1) return wrong("n_layers", shape.n_layers, "at least 1");
  if (shape.group < 1 || shape.group > 64)
    return wrong("group", shape.group, "1 to 64 query heads of a KV head");
  if (shape.n_blocks < 0) return wrong("n_blocks", shape.n_blocks, "at least 0");
  if (shape.piece_tokens < 0) return wrong("piece_tokens", shape.piece_tokens, "at least 0");
  if (int64_t{shape.n_streams} * shape.max_tokens > INT_MAX)
    return wrong(
        "n_streams", shape.n_streams,
        fmt::format("at most {} of {} tokens", INT_MAX / shape.max_tokens, shape.max_tokens));
  return ok();
}

ScheduleShape schedule_shape(const GpuCacheShape& shape) {
  ScheduleShape plan;
  plan.n_heads = shape.n_heads, plan.dim = shape.dim;
  plan.n_streams = shape.n_streams, plan.max_tokens = shape.max_tokens;
  plan.n_blocks =
      shape.n_blocks > 0 ? shape.n_blocks : shape.n_streams * (shape.max_tokens / kBlockTokens);
  return plan;
}

class Cache final : public GpuCache {
 public:
  Cache(const GpuCacheShape& shape, const Policy& policy, ModelSchedule schedule)
      : shape_(shape),
        schedule_(std::move(schedule)),
        layers_(size_t(shape.n_layers)),
        feedback_(shape),
        probes_(shape, policy),
        prompts_(shape) {
    for (int g = 0; g < schedule_.n_groups(); ++g) groups_.emplace_back(shape, schedule_.group(g));
  }

  using AllRotations = std::vector<std::shared_ptr<const LayerRotations>>;  // [n_layers]

  Status allocate(const AllRotations& rotations, cudaStream_t stream);
  Status begin(std::span<const int> n_new, cudaStream_t stream) override;
  Status decode(int layer, const DecodeStep& step, cudaStream_t stream) override;
  Status prefill(int layer, const PromptStep& prompt, cudaStream_t stream) override;

  uint64_t step_shape() const override;
  int length(int stream) const override { return schedule_.length(stream); }
  Status truncate(int stream, int length) override { return schedule_.truncate(stream, length); }
  Status clear(int stream) override;
  GpuCacheBytes bytes() const override;
  Result<Image> image(int layer, cudaStream_t stream) const override;

 private:
  using Part = LayerGroup::Part;

  bool any_group(bool (LayerGroup::*asks)() const) const {
    return std::any_of(groups_.begin(), groups_.end(),
                       [&](const LayerGroup& group) { return (group.*asks)(); });
  }
  const LayerGroup& group(int layer) const { return groups_[size_t(schedule_.group_of(layer))]; }
  const LayerMemory& memory(int layer) const { return layers_[size_t(layer)]; }
  size_t table_entries() const;  // of a group
  Status allocate_table(cudaStream_t stream);
  Status plan(cudaStream_t stream);
  Status prepare_decode(cudaStream_t stream);
  bool only_attends(int layer) const;
  std::vector<int32_t> visible() const;
  Status check_index(int layer) const;
  Status check_step(int layer) const;
  Status check_prompt(const LayerGroup& group, const PromptStep& prompt) const;
  InputRows query_rows(const DecodeStep& step) const;
  Status pack(const LayerGroup& group, PackArgs args, cudaStream_t stream) const;

  GpuCacheShape shape_;
  ModelSchedule schedule_;
  std::vector<LayerGroup> groups_;
  std::vector<LayerMemory> layers_;
  KeyFeedback feedback_;
  ProbePass probes_;
  PromptAttention prompts_;
  RotatedAttention rotated_;  // of steps
  DeviceMemory table_;        // [group, n_streams, n_heads, record_stride]
  DeviceMemory workspace_;    // [group, workspace]
  CacheStep step_;
  Status fault_;  // of a step whose plan did not get to the device
};

Status Cache::allocate(const AllRotations& rotations, cudaStream_t stream) {
  ZC_TRY(allocate_table(stream));
  for (int layer = 0; layer < shape_.n_layers; ++layer)
    ZC_TRY(group(layer).allocate(layers_[size_t(layer)], rotations[size_t(layer)].get(), stream));
  if (any_group(&LayerGroup::by_queries)) ZC_TRY(feedback_.allocate(stream));
  for (LayerGroup& group : groups_) ZC_TRY(group.ask_device());
  return ok();
}

size_t Cache::table_entries() const {
  return size_t(shape_.n_streams) * size_t(shape_.n_heads) * size_t(schedule_.record_stride());
}

Status Cache::allocate_table(cudaStream_t stream) {
  ZC_TRY(table_.allocate(groups_.size() * table_entries() * sizeof(Record), stream));
  for (size_t g = 0; g < groups_.size(); ++g)
    groups_[g].lend_table(table_.at<Record>() + g * table_entries(), schedule_.record_stride());
  return ok();
}

Status Cache::begin(std::span<const int> n_new, cudaStream_t stream) {
  ZC_TRY(fault_);
  ZC_TRY(schedule_.begin(n_new));
  step_.n_new.assign(n_new.begin(), n_new.end());
  step_.most_new = *std::max_element(n_new.begin(), n_new.end());
  const Status planned = plan(stream);
  if (planned.ok()) return ok();
  // Host and device no longer agree on what the cache holds.
  step_.n_new.clear();
  fault_ = {Code::Environment,
            fmt::format("the GPU cache cannot go on: a step's plan did not get to the device ({}); "
                        "make a new cache",
                        planned.message())};
  return fault_;
}

// Tokens that the first query of each stream sees.
std::vector<int32_t> Cache::visible() const {
  std::vector<int32_t> visible;
  for (int s = 0; s < shape_.n_streams; ++s)
    visible.push_back(length(s) - std::max(1, step_.n_new[size_t(s)]) + 1);
  return visible;
}

Status Cache::plan(cudaStream_t stream) {
  Parcel& parcel = step_.parcel;
  parcel.clear();
  step_.n_new_at = parcel.add(step_.n_new);
  step_.visible_at = parcel.add(visible());
  for (LayerGroup& group : groups_) group.plan(step_, prompts_.piece_rows());
  feedback_.plan(step_);
  // Last, since their number moves what comes behind them from step to step (step_shape).
  const std::vector<TableChange> changes = schedule_.changes();
  const size_t changes_at = parcel.add(changes);
  ZC_TRY(parcel.send(stream));
  ZC_TRY(feedback_.carry_out(layers_, stream));
  ZC_TRY(change_table(parcel.at<TableChange>(changes_at), int(changes.size()), table_.at<Record>(),
                      shape_.n_heads, schedule_.record_stride(), stream));
  return step_.is_long() ? ok() : prepare_decode(stream);
}

// Where this plan has its tickets another one may have left results.
Status Cache::prepare_decode(cudaStream_t stream) {
  size_t bytes = 0, tickets = 0;  // of a group, at most
  for (const LayerGroup& group : groups_) {
    bytes = std::max(bytes, group.workspace_bytes(step_.most_new));
    tickets = std::max(tickets, group.ticket_bytes(step_.most_new));
  }
  ZC_TRY(workspace_.grow(groups_.size() * bytes, stream));
  for (size_t g = 0; g < groups_.size(); ++g)
    groups_[g].lend_workspace(workspace_.at<void>(g * bytes));
  if (any_group(&LayerGroup::by_matrix))
    ZC_TRY(rotated_.allocate(size_t(shape_.n_streams) * size_t(step_.most_new) *
                                 size_t(shape_.n_heads * shape_.group * shape_.dim),
                             stream));
  return from_cuda(
      cudaMemset2DAsync(workspace_.at<void>(), bytes, 0, tickets, groups_.size(), stream),
      "clearing tickets");
}

Status Cache::check_index(int layer) const {
  if (layer < 0 || layer >= shape_.n_layers)
    return wrong("layer", layer, fmt::format("0 to {}", shape_.n_layers - 1));
  if (step_.n_new.empty())
    return wrong("steps that were begun", 0, "begin() before a layer's part");
  return ok();
}

Status Cache::check_step(int layer) const {
  ZC_TRY(check_index(layer));
  const int most = step_.most_new;
  if (step_.is_long())
    return wrong("new tokens", most,
                 fmt::format("at most {}; longer ones are for prefill()", kMostStepTokens));
  for (const int n : step_.n_new) {
    if (n != 0 && n != most)
      return wrong("new tokens of a stream", n, fmt::format("0 or {}, as others have", most));
  }
  return ok();
}

InputRows Cache::query_rows(const DecodeStep& step) const {
  const int64_t token = int64_t{shape_.n_heads} * shape_.group * shape_.dim;
  return {static_cast<const uint16_t*>(step.q), step_.most_new * token, token, shape_.dim};
}

Status Cache::pack(const LayerGroup& group, PackArgs args, cudaStream_t stream) const {
  if (args.n_tasks == 0) return ok();
  feedback_.give(group, args);
  return pack_records(args, stream);
}

Status Cache::decode(int layer, const DecodeStep& step, cudaStream_t stream) {
  ZC_TRY(check_step(layer));
  const LayerGroup& group = this->group(layer);
  const LayerMemory& own = memory(layer);
  if ((group.scored() || group.by_queries()) && step.q_type != Number::F16)
    return wrong("q_type of a policy that looks at queries", int(step.q_type),
                 "0 (16-bit numbers)");
  ZC_TRY(check_scale(step.scale));
  if (step_.most_new == 0) return ok();
  if (!step.q || !step.out)
    return {Code::BadArgument, "the GPU cache found a null pointer, expected q and out of a step"};
  ZC_TRY(group.keep(own, step_, Part::First, step.k, step.v, {}, stream));
  DecodeArgs args = group.decode_args(own, step_);
  args.mask = step.mask;
  args.sinks = step.sinks;
  args.scale = step.scale;
  args.q = step.q, args.out = step.out;
  args.q_type = step.q_type, args.out_type = step.out_type;
  args.log_sums = step.log_sums;
  args.early = true;  // begin() sent the plan before keep() and the turning of queries
  ProbePass::Probes chosen;
  if (group.scored()) chosen = probes_.choose(layer, group.schedule(), step_);
  const bool probed = ProbePass::any(chosen);
  if (probed && !args.log_sums) {
    const Result<float*> log_sums = probes_.log_sums(step_, stream);
    if (!log_sums.ok()) return log_sums.status();
    args.log_sums = *log_sums;
  }
  ZC_TRY(rotated_.attend(args, shape_.n_streams * step_.most_new, own.matrices.k(),
                         own.matrices.v(), stream));
  const InputRows q = query_rows(step);
  if (probed)
    ZC_TRY(probes_.score_step(group, own, step_, q, step.scale, chosen, args.log_sums, stream));
  ZC_TRY(feedback_.learn(group, own, step_, q, step.scale, stream));
  ZC_TRY(feedback_.make(group, own, stream));
  return pack(group, group.ring_pack_args(own, step_), stream);
}

// In the step at hand, beside keeping its rows.
bool Cache::only_attends(int layer) const {
  const LayerGroup& group = this->group(layer);
  if (group.packs() || feedback_.learns(group)) return false;
  return !group.scored() || !ProbePass::any(probes_.choose(layer, group.schedule(), step_));
}

uint64_t Cache::step_shape() const {
  if (!check_step(0).ok() || step_.most_new == 0) return 0;
  for (int layer = 0; layer < shape_.n_layers; ++layer) {
    if (!only_attends(layer)) return 0;
  }
  uint64_t shape = reinterpret_cast<uintptr_t>(rotated_.space());
  for (const LayerGroup& group : groups_) shape = mix(shape ^ group.step_shape(step_));
  return shape;
}

Status Cache::check_prompt(const LayerGroup& group, const PromptStep& prompt) const {
  if (!group.scored() && !group.by_queries() && !prompt.out) return ok();
  ZC_TRY(check_scale(prompt.scale));
  const char* fault = fault_of(prompt.q);
  return fault ? Status(Code::BadArgument, fmt::format("the GPU cache found for q {}", fault))
               : ok();
}

Status Cache::prefill(int layer, const PromptStep& prompt, cudaStream_t stream) {
  ZC_TRY(check_index(layer));
  if (step_.most_new == 0) return ok();
  const LayerGroup& group = this->group(layer);
  const LayerMemory& own = memory(layer);
  ZC_TRY(check_prompt(group, prompt));
  PromptStep attended = prompt;
  if (prompt.out) {
    ZC_TRY(prompts_.attend(group, own, step_, prompt, stream));
    attended.log_sums = prompts_.log_sums();
    attended.log_sums_stride = step_.most_new;
  }
  ScoreRows scores;
  if (group.scored()) {
    ZC_TRY(probes_.score_prompt(layer, group, own, step_, attended, stream));
    scores = probes_.prompt_scores(step_);
  }
  ZC_TRY(group.keep(own, step_, Part::First, prompt.k, prompt.v, scores, stream));
  ZC_TRY(feedback_.learn(group, own, step_, prompt.q, prompt.scale, stream));
  ZC_TRY(feedback_.make(group, own, stream));
  ZC_TRY(pack(group, group.ring_pack_args(own, step_), stream));
  ZC_TRY(pack(group, group.own_pack_args(own, step_, prompt.k, prompt.v, scores), stream));
  return group.keep(own, step_, Part::Last, prompt.k, prompt.v, scores, stream);
}

Status Cache::clear(int stream) {
  if (stream < 0 || stream >= shape_.n_streams)
    return wrong("stream", stream, fmt::format("0 to {}", shape_.n_streams - 1));
  schedule_.clear(stream);
  feedback_.forget(stream);
  return ok();
}

GpuCacheBytes Cache::bytes() const {
  GpuCacheBytes bytes;
  for (int layer = 0; layer < shape_.n_layers; ++layer) {
    for (int s = 0; s < shape_.n_streams; ++s)
      bytes.records += size_t(group(layer).schedule().packed_blocks(s)) * size_t(shape_.n_heads) *
                       size_t(group(layer).sizes().block);
    bytes.capacity += memory(layer).bytes();
  }
  bytes.shared = table_.bytes() + workspace_.bytes() + feedback_.bytes() + probes_.bytes() +
                 prompts_.bytes() + rotated_.bytes();
  return bytes;
}

Result<GpuCache::Image> Cache::image(int layer, cudaStream_t stream) const {
  ZC_TRY(check_index(layer));
  Image image;
  image.stride = schedule_.record_stride();
  const auto counts = group(layer).schedule().counts();
  image.counts.assign(counts.begin(), counts.end());
  image.table.resize(table_entries());
  image.pool.resize(memory(layer).pool.bytes());
  const auto copy = [&](void* to, const void* from, size_t bytes) {
    return from_cuda(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToHost, stream),
                     "copying records to the host");
  };
  const Record* table = table_.at<Record>() + size_t(schedule_.group_of(layer)) * table_entries();
  ZC_TRY(copy(image.table.data(), table, table_entries() * sizeof(Record)));
  ZC_TRY(copy(image.pool.data(), memory(layer).pool.at<void>(), image.pool.size()));
  ZC_TRY(from_cuda(cudaStreamSynchronize(stream), "waiting for records"));
  return image;
}

}  // namespace

Result<std::unique_ptr<GpuCache>> GpuCache::create(const GpuCacheShape& shape, const Policy& policy,
                                                   cudaStream_t stream) {
  ZC_TRY(check_shape(shape));
  auto schedule = ModelSchedule::create(schedule_shape(shape), policy, shape.n_layers);
  if (!schedule.ok()) return schedule.status();
  for (int g = 0; g < schedule->n_groups(); ++g) ZC_TRY(check_scores(schedule->group(g).policy()));
  const LayerShape layer{shape.n_heads, shape.dim, shape.dim};
  const auto rotations = rotations_of_layers(
      policy,
      {shape.n_streams, shape.max_tokens, std::vector<LayerShape>(size_t(shape.n_layers), layer)});
  if (!rotations.ok()) return rotations.status();
  for (int g = 0; g < schedule->n_groups(); ++g) ZC_TRY(check_packing(schedule->group(g).form()));
  auto cache = std::make_unique<Cache>(shape, policy, std::move(*schedule));
  ZC_TRY(cache->allocate(*rotations, stream));
  return std::unique_ptr<GpuCache>(std::move(cache));
}

}  // namespace zipcache::cuda
