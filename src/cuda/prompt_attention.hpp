// Attention of a prompt's tokens in a GPU's cache: over themselves and, a piece after the other,
// over the tokens from before, which are unpacked; of short parts over records, as steps are.
// Memory is that of the layer at hand, shared by all.
#pragma once

#include "cuda/layer_group.hpp"
#include "cuda/prompt.hpp"

namespace zipcache::cuda {

class PromptAttention {
 public:
  explicit PromptAttention(const GpuCacheShape& shape) : shape_(shape) {}

  // Rows of a stream in a piece of the past.
  int piece_rows() const;

  // Fills prompt.out, and log_sums() [stream, new token, query head]. OverLimit where the past
  // finds no memory.
  Status attend(const LayerGroup& group, const LayerMemory& own, const CacheStep& step,
                const PromptStep& prompt, cudaStream_t stream);
  const float* log_sums() const { return log_sums_.at<float>(); }

  size_t bytes() const;

 private:
  Status attend_short(const LayerGroup& group, const LayerMemory& own, const CacheStep& step,
                      const PromptStep& prompt, cudaStream_t stream);
  Status attend_past(const LayerGroup& group, const LayerMemory& own, const CacheStep& step,
                     const PromptStep& prompt, cudaStream_t stream);
  Status allocate_past(cudaStream_t stream);
  Status turn_back(const DeviceMemory& rows, SideMatrices matrices, const int32_t* counts,
                   cudaStream_t stream) const;
  Status pick_queries(const CacheStep& step, const PromptStep& prompt, cudaStream_t stream);
  PromptArgs prompt_args(const CacheStep& step, const PromptStep& prompt) const;
  InputRows past_rows(const DeviceMemory& rows) const;

  GpuCacheShape shape_;
  RotatedAttention rotated_;  // of short parts
  DeviceMemory log_sums_, queries_;
  DeviceMemory past_k_, past_v_;  // [n_streams, n_heads, piece_rows(), dim]
  DeviceMemory turns_;            // [kPromptTurns]
};

}  // namespace zipcache::cuda
