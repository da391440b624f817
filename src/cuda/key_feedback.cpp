#include "cuda/key_feedback.hpp"

#include "codec/query_rounding.hpp"
#include "cuda/query_moments.hpp"

namespace zipcache::cuda {

Status KeyFeedback::allocate(cudaStream_t stream) {
  const size_t lists = size_t(shape_.n_streams) * size_t(shape_.n_heads);
  const size_t floats = lists * size_t(feedback_floats(shape_.dim));
  ZC_TRY(coefficients_.allocate(floats * sizeof(float), stream));
  return learnt_.allocate(lists * sizeof(uint32_t), stream);
}

// Steps with too few tokens teach nothing.
void KeyFeedback::plan(CacheStep& step) {
  std::vector<int32_t> counts;
  for (const int n : step.n_new)
    counts.push_back(n >= kShortStep && n * shape_.group >= kMomentRows ? n : 0);
  teaches_ = std::any_of(counts.begin(), counts.end(), [](int n) { return n > 0; });
  counts_at_ = step.parcel.add(counts);
}

Status KeyFeedback::learn(const LayerGroup& group, const LayerMemory& own, const CacheStep& step,
                          const InputRows& q, float scale, cudaStream_t stream) const {
  if (!learns(group)) return ok();
  LearnArgs args;
  args.dim = shape_.dim, args.n_heads = shape_.n_heads, args.group = shape_.group;
  args.n_streams = shape_.n_streams;
  args.q = q;
  args.counts = step.parcel.at<int32_t>(counts_at_);
  args.most_rows = kMomentMostRows;
  args.scale = scale;
  args.hadamard = group.form().k_hadamard;
  args.matrices = own.matrices.k().turn;
  args.moments = own.moments.at<MomentGroup>();
  return learn_queries(args, stream);
}

Status KeyFeedback::make(const LayerGroup& group, const LayerMemory& own,
                         cudaStream_t stream) const {
  if (!group.by_queries() || !group.packs()) return ok();
  return make_feedback(own.moments.at<MomentGroup>(), shape_.dim, shape_.n_heads, shape_.n_streams,
                       coefficients_.at<float>(), learnt_.at<uint32_t>(), stream);
}

void KeyFeedback::give(const LayerGroup& group, PackArgs& args) const {
  if (!group.by_queries()) return;
  args.feedback = coefficients_.at<float>();
  args.learnt = learnt_.at<uint32_t>();
}

Status KeyFeedback::carry_out(std::span<const LayerMemory> layers, cudaStream_t stream) {
  const size_t bytes = size_t(shape_.n_heads) * moment_bytes(shape_.dim);
  for (size_t s = 0; s < forgets_.size(); ++s) {
    if (!forgets_[s]) continue;
    for (const LayerMemory& own : layers) {
      if (own.moments.bytes() == 0) continue;
      ZC_TRY(from_cuda(cudaMemsetAsync(own.moments.at<void>(s * bytes), 0, bytes, stream),
                       "forgetting a stream's queries"));
    }
    forgets_[s] = false;
  }
  return ok();
}

}  // namespace zipcache::cuda
