// What packing knows of queries in a GPU's cache, for keys that are rounded by them
// (k_round=query): each layer learns from the queries of long enough steps, coefficients are made
// anew for the blocks that a step packs. Nothing happens for other layers.
#pragma once

#include "cuda/layer_group.hpp"

namespace zipcache::cuda {

class KeyFeedback {
 public:
  explicit KeyFeedback(const GpuCacheShape& shape)
      : shape_(shape), forgets_(size_t(shape.n_streams)) {}

  Status allocate(cudaStream_t stream);
  // Its part of a step's parcel.
  void plan(CacheStep& step);
  bool learns(const LayerGroup& group) const { return group.by_queries() && teaches_; }

  Status learn(const LayerGroup& group, const LayerMemory& own, const CacheStep& step,
               const InputRows& q, float scale, cudaStream_t stream) const;
  Status make(const LayerGroup& group, const LayerMemory& own, cudaStream_t stream) const;
  // What make() left, for blocks to be packed.
  void give(const LayerGroup& group, PackArgs& args) const;

  // A stream was cleared: what was learnt of it goes with the next step, in all layers.
  void forget(int stream) { forgets_[size_t(stream)] = true; }
  Status carry_out(std::span<const LayerMemory> layers, cudaStream_t stream);

  size_t bytes() const { return coefficients_.bytes() + learnt_.bytes(); }

 private:
  GpuCacheShape shape_;
  DeviceMemory coefficients_, learnt_;  // PackArgs::feedback, of the layer at hand
  std::vector<bool> forgets_;           // [n_streams]
  size_t counts_at_ = 0;                // [n_streams] tokens of the step to learn from
  bool teaches_ = false;                // some of them do
};

}  // namespace zipcache::cuda
