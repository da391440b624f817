#include "cuda/probe_pass.hpp"

#include <fmt/format.h>

#include "codec/query_rounding.hpp"
#include "saliency/probes.hpp"

namespace zipcache::cuda {
namespace {

// Most new tokens of a stream that held some before.
int most_going_on(const Schedule& schedule, const CacheStep& step) {
  int most = 0;
  for (size_t s = 0; s < step.n_new.size(); ++s) {
    if (schedule.first_rows()[s].place > 0) most = std::max(most, step.n_new[s]);
  }
  return most;
}

}  // namespace

// Drawn from the step, or where that is short token by token (Engine::probes_of).
ProbePass::Probes ProbePass::choose(int layer, const Schedule& schedule,
                                    const CacheStep& step) const {
  const auto key = [&](int round) { return Random(seed_, 0, uint64_t(layer), uint64_t(round)); };
  Probes chosen(step.n_new.size());
  for (int s = 0; s < shape_.n_streams; ++s) {
    const int n = step.n_new[size_t(s)], length = schedule.length(s);
    if (n >= kShortStep) {
      chosen[size_t(s)] = choose_probes(n, saliency_, key(length));
      continue;
    }
    for (int token = 0; token < n; ++token) {
      const int place = length - n + token, first = place / kBlockTokens * kBlockTokens;
      if (choose_decode_probes(saliency_, key(first)).test(size_t(place - first)))
        chosen[size_t(s)].push_back(token);
    }
  }
  return chosen;
}

bool ProbePass::any(const Probes& chosen) {
  return std::any_of(chosen.begin(), chosen.end(), [](const auto& rows) { return !rows.empty(); });
}

Result<float*> ProbePass::log_sums(const CacheStep& step, cudaStream_t stream) {
  const size_t rows = size_t(shape_.n_streams) * size_t(step.most_new);
  ZC_TRY(log_sums_.grow(rows * size_t(shape_.n_heads * shape_.group) * sizeof(float), stream));
  return log_sums_.at<float>();
}

// The ring's rows are in the order of tokens from the oldest on; a probe sees all but those of the
// step's tokens behind it.
Status ProbePass::score_step(const LayerGroup& group, const LayerMemory& own, const CacheStep& step,
                             const InputRows& q, float scale, const Probes& chosen,
                             const float* log_sums, cudaStream_t stream) {
  const ScoreRows ring = group.ring_scores(own);
  ProbeArgs args;
  args.n_tokens = group.sizes().ring;
  args.q = q, args.k = group.ring_rows(own.k_ring);
  args.oldest = group.oldest(step);
  args.log_sums = log_sums;
  args.scale = scale;
  args.sums = ring.sums, args.seen = ring.seen;
  return sum_chosen(args, step, chosen, group.sizes().ring - step.most_new, step.most_new, stream);
}

ScoreRows ProbePass::prompt_scores(const CacheStep& step) const {
  const int64_t tokens = step.most_new;
  return {{prompt_sums_.at<float>(), tokens * shape_.n_heads, tokens},
          {prompt_seen_.at<uint32_t>(), tokens, 0}};
}

Status ProbePass::clear_prompt_scores(const CacheStep& step, cudaStream_t stream) {
  const size_t rows = size_t(shape_.n_streams) * size_t(step.most_new);
  ZC_TRY(prompt_sums_.grow(rows * size_t(shape_.n_heads) * sizeof(float), stream));
  ZC_TRY(prompt_seen_.grow(rows * sizeof(uint32_t), stream));
  for (const DeviceMemory* memory : {&prompt_sums_, &prompt_seen_})
    ZC_TRY(from_cuda(cudaMemsetAsync(memory->at<void>(), 0, memory->bytes(), stream),
                     "clearing scores"));
  return ok();
}

Status ProbePass::score_prompt(int layer, const LayerGroup& group, const LayerMemory& own,
                               const CacheStep& step, const PromptStep& prompt,
                               cudaStream_t stream) {
  const Schedule& schedule = group.schedule();
  const int n_going_on = most_going_on(schedule, step);
  if (n_going_on > 0 && !prompt.log_sums)
    return {Code::BadArgument,
            "the GPU cache found no log_sums of a text that goes on, expected the logarithms of "
            "the softmax sums of its attention"};
  Probes chosen = choose(layer, schedule, step);
  ZC_TRY(clear_prompt_scores(step, stream));
  const ScoreRows prompts = prompt_scores(step);
  ProbeArgs args;
  args.n_tokens = step.most_new;
  args.q = prompt.q, args.k = prompt.k;
  args.log_sums = prompt.log_sums;
  args.scale = prompt.scale;
  args.sums = prompts.sums, args.seen = prompts.seen;
  ZC_TRY(sum_chosen(args, step, chosen, 0, prompt.log_sums_stride, stream));
  if (n_going_on == 0) return ok();
  // All of the ring: what its other rows are given counts for nothing once tokens come there.
  for (size_t s = 0; s < chosen.size(); ++s) {
    if (schedule.first_rows()[s].place == 0) chosen[s].clear();
  }
  const ScoreRows ring = group.ring_scores(own);
  args.n_tokens = group.sizes().ring;
  args.k = group.ring_rows(own.k_ring);
  args.sums = ring.sums, args.seen = ring.seen;
  return sum_chosen(args, step, chosen, group.sizes().ring, prompt.log_sums_stride, stream);
}

// The pass with the chosen rows of args.q [stream, new token, query head, dim], each of which sees
// n_before keys and those of the new tokens up to its own. args.log_sums [stream, new token, query
// head] or null.
Status ProbePass::sum_chosen(ProbeArgs args, const CacheStep& step, const Probes& chosen,
                             int n_before, int64_t log_sums_stride, cudaStream_t stream) {
  size_t n_probes = 1;
  for (const std::vector<int>& rows : chosen) n_probes = std::max(n_probes, rows.size());
  std::vector<int32_t> picked, limits;
  for (const std::vector<int>& rows : chosen) {
    for (size_t i = 0; i < n_probes; ++i) {
      picked.push_back(i < rows.size() ? rows[i] : 0);
      limits.push_back(i < rows.size() ? n_before + rows[i] + 1 : 0);
    }
  }
  parcel_.clear();
  const size_t picked_at = parcel_.add(picked);
  const size_t limits_at = parcel_.add(limits);
  ZC_TRY(parcel_.send(stream));
  args.dim = shape_.dim, args.n_heads = shape_.n_heads, args.group = shape_.group;
  args.n_streams = shape_.n_streams, args.n_probes = int(n_probes);
  args.limits = parcel_.at<int32_t>(limits_at);
  // A step's only token needs no picking.
  if (step.most_new > 1 || log_sums_stride > 1)
    ZC_TRY(pick_probes(parcel_.at<int32_t>(picked_at), log_sums_stride, args, stream));
  ZC_TRY(space_.grow(probe_workspace(args), stream));
  args.workspace = space_.at<float>();
  return sum_probes(args, stream);
}

// Puts the picked rows of args.q and args.log_sums side by side, in their place.
Status ProbePass::pick_probes(const int32_t* picked, int64_t log_sums_stride, ProbeArgs& args,
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

size_t ProbePass::bytes() const {
  size_t bytes = 0;
  for (const DeviceMemory* memory :
       {&log_sums_, &prompt_sums_, &prompt_seen_, &picked_, &picked_sums_, &space_})
    bytes += memory->bytes();
  return bytes;
}

}  // namespace zipcache::cuda
