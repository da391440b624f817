// The saliency pass of a GPU's cache: which tokens of a step are probes in a layer, and the sums of
// their attention, those of the ring's tokens and of a prompt's own. Memory is that of the layer at
// hand, shared by all.
#pragma once

#include "cuda/layer_group.hpp"
#include "cuda/probe.hpp"

namespace zipcache::cuda {

class ProbePass {
 public:
  ProbePass(const GpuCacheShape& shape, const Policy& policy)
      : shape_(shape), saliency_(policy.saliency), seed_(policy.seed) {}

  using Probes = std::vector<std::vector<int>>;  // of each stream, counted from its first new token
  Probes choose(int layer, const Schedule& schedule, const CacheStep& step) const;
  static bool any(const Probes& chosen);

  // Memory for the logarithms of a short step's softmax sums, [stream, new token, query head].
  Result<float*> log_sums(const CacheStep& step, cudaStream_t stream);
  // Sums of the probes' attention to the ring's tokens, the step's own among them.
  Status score_step(const LayerGroup& group, const LayerMemory& own, const CacheStep& step,
                    const InputRows& q, float scale, const Probes& chosen, const float* log_sums,
                    cudaStream_t stream);

  // Sums of probes' attention to a prompt's own tokens, and to those from before that are not
  // packed yet. BadArgument where a text goes on without log_sums.
  Status score_prompt(int layer, const LayerGroup& group, const LayerMemory& own,
                      const CacheStep& step, const PromptStep& prompt, cudaStream_t stream);
  // These of the prompt's own, by its tokens.
  ScoreRows prompt_scores(const CacheStep& step) const;

  size_t bytes() const;

 private:
  Status clear_prompt_scores(const CacheStep& step, cudaStream_t stream);
  Status sum_chosen(ProbeArgs args, const CacheStep& step, const Probes& chosen, int n_before,
                    int64_t log_sums_stride, cudaStream_t stream);
  Status pick_probes(const int32_t* picked, int64_t log_sums_stride, ProbeArgs& args,
                     cudaStream_t stream);

  GpuCacheShape shape_;
  Saliency saliency_;
  uint64_t seed_;
  Parcel parcel_;
  DeviceMemory log_sums_;
  DeviceMemory prompt_sums_, prompt_seen_;
  DeviceMemory picked_, picked_sums_, space_;
};

}  // namespace zipcache::cuda
