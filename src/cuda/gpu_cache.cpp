#include "cuda/gpu_cache.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "cuda/key_feedback.hpp"
#include "cuda/layer_group.hpp"
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

class Cache final : public GpuCache {
 public:
  Cache(const GpuCacheShape& shape, const Policy& policy, LayerGroup group)
      : shape_(shape),
        group_(std::move(group)),
        layers_(size_t(shape.n_layers)),
        feedback_(shape),
        probes_(shape, policy),
        prompts_(shape) {}

  Status allocate(cudaStream_t stream);
  Status begin(std::span<const int> n_new, cudaStream_t stream) override;
  Status decode(int layer, const DecodeStep& step, cudaStream_t stream) override;
  Status prefill(int layer, const PromptStep& prompt, cudaStream_t stream) override;

  int length(int stream) const override { return group_.schedule().length(stream); }
  Status truncate(int stream, int length) override {
    return group_.schedule().truncate(stream, length);
  }
  Status clear(int stream) override;
  GpuCacheBytes bytes() const override;
  Result<Image> image(int layer, cudaStream_t stream) const override;

 private:
  using Part = LayerGroup::Part;

  Status allocate_table(cudaStream_t stream);
  Status plan(cudaStream_t stream);
  Status change_tables(size_t changes_at, cudaStream_t stream);
  Status prepare_decode(cudaStream_t stream);
  std::vector<int32_t> visible() const;
  Status check_index(int layer) const;
  Status check_step(int layer) const;
  Status check_prompt(const LayerGroup& group, const PromptStep& prompt) const;
  InputRows query_rows(const DecodeStep& step) const;
  Status pack(const LayerGroup& group, PackArgs args, cudaStream_t stream) const;

  GpuCacheShape shape_;
  LayerGroup group_;
  std::vector<LayerMemory> layers_;
  KeyFeedback feedback_;
  ProbePass probes_;
  PromptAttention prompts_;
  DeviceMemory table_;  // [n_streams, n_heads, record_stride]
  DeviceMemory workspace_;
  CacheStep step_;
  Status fault_;  // of a step whose plan did not get to the device
};

Status Cache::allocate(cudaStream_t stream) {
  for (LayerMemory& own : layers_) ZC_TRY(group_.allocate(own, stream));
  if (group_.by_queries()) ZC_TRY(feedback_.allocate(stream));
  ZC_TRY(allocate_table(stream));
  return group_.ask_device(layers_[0]);
}

Status Cache::allocate_table(cudaStream_t stream) {
  const int stride = group_.sizes().record_stride;
  const size_t entries = size_t(shape_.n_streams) * size_t(shape_.n_heads) * size_t(stride);
  ZC_TRY(table_.allocate(entries * sizeof(Record), stream));
  group_.lend_table(table_.at<Record>(), stride);
  return ok();
}

Status Cache::begin(std::span<const int> n_new, cudaStream_t stream) {
  ZC_TRY(fault_);
  ZC_TRY(group_.schedule().begin(n_new));
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
  const size_t changes_at = parcel.add(group_.schedule().changes());
  group_.plan(step_, prompts_.piece_rows());
  feedback_.plan(step_);
  ZC_TRY(parcel.send(stream));
  ZC_TRY(feedback_.carry_out(layers_, stream));
  ZC_TRY(change_tables(changes_at, stream));
  return step_.is_long() ? ok() : prepare_decode(stream);
}

Status Cache::change_tables(size_t changes_at, cudaStream_t stream) {
  return change_table(step_.parcel.at<TableChange>(changes_at),
                      int(group_.schedule().changes().size()), table_.at<Record>(), shape_.n_heads,
                      group_.sizes().record_stride, stream);
}

// Where this plan has its tickets another one may have left results.
Status Cache::prepare_decode(cudaStream_t stream) {
  ZC_TRY(workspace_.grow(group_.workspace_bytes(step_.most_new), stream));
  group_.lend_workspace(workspace_.at<void>());
  return from_cuda(
      cudaMemsetAsync(workspace_.at<void>(), 0, group_.ticket_bytes(step_.most_new), stream),
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
  const LayerGroup& group = group_;
  const LayerMemory& own = layers_[size_t(layer)];
  if ((group.scored() || group.by_queries()) && step.q_type != Number::F16)
    return wrong("q_type of a policy that looks at queries", int(step.q_type),
                 "0 (16-bit numbers)");
  ZC_TRY(check_scale(step.scale));
  if (step_.most_new == 0) return ok();
  ZC_TRY(group.keep(own, step_, Part::First, step.k, step.v, {}, stream));
  DecodeArgs args = group.decode_args(own, step_);
  args.mask = step.mask;
  args.sinks = step.sinks;
  args.scale = step.scale;
  args.q = step.q, args.out = step.out;
  args.q_type = step.q_type, args.out_type = step.out_type;
  args.log_sums = step.log_sums;
  args.early = true;  // begin() sent the plan before keep()
  ProbePass::Probes chosen;
  if (group.scored()) chosen = probes_.choose(layer, group.schedule(), step_);
  const bool probed =
      std::any_of(chosen.begin(), chosen.end(), [](const auto& rows) { return !rows.empty(); });
  if (probed && !args.log_sums) {
    const Result<float*> log_sums = probes_.log_sums(step_, stream);
    if (!log_sums.ok()) return log_sums.status();
    args.log_sums = *log_sums;
  }
  ZC_TRY(decode_attention(args, stream));
  const InputRows q = query_rows(step);
  if (probed)
    ZC_TRY(probes_.score_step(group, own, step_, q, step.scale, chosen, args.log_sums, stream));
  ZC_TRY(feedback_.learn(group, own, step_, q, step.scale, stream));
  ZC_TRY(feedback_.make(group, own, stream));
  return pack(group, group.ring_pack_args(own, step_), stream);
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
  const LayerGroup& group = group_;
  const LayerMemory& own = layers_[size_t(layer)];
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
  group_.schedule().clear(stream);
  feedback_.forget(stream);
  return ok();
}

GpuCacheBytes Cache::bytes() const {
  GpuCacheBytes bytes;
  for (int s = 0; s < shape_.n_streams; ++s)
    bytes.records += size_t(group_.schedule().packed_blocks(s)) * size_t(group_.sizes().block);
  bytes.records *= size_t(shape_.n_heads) * size_t(shape_.n_layers);
  for (const LayerMemory& own : layers_) bytes.capacity += own.bytes();
  bytes.shared =
      table_.bytes() + workspace_.bytes() + feedback_.bytes() + probes_.bytes() + prompts_.bytes();
  return bytes;
}

Result<GpuCache::Image> Cache::image(int layer, cudaStream_t stream) const {
  ZC_TRY(check_index(layer));
  const LayerMemory& own = layers_[size_t(layer)];
  Image image;
  image.stride = group_.sizes().record_stride;
  const auto counts = group_.schedule().counts();
  image.counts.assign(counts.begin(), counts.end());
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
  Result<LayerGroup> group = LayerGroup::create(shape, policy);
  if (!group.ok()) return group.status();
  auto cache = std::make_unique<Cache>(shape, policy, std::move(*group));
  ZC_TRY(cache->allocate(stream));
  return std::unique_ptr<GpuCache>(std::move(cache));
}

}  // namespace zipcache::cuda
