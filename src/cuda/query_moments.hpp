// What query rows of each KV head were like, learnt on the device from prompts, and made into the
// coefficients that packing rounds keys with: the numbers of codec/query_rounding.hpp bit for bit,
// for the same scale (the CPU divides it by a soft cap where there is one).
// Capturable in CUDA graphs, ordered by their stream, wait for nothing on the host.
#pragma once

#include "cuda/pack.hpp"
#include "cuda/rows.hpp"
#include "zipcache/status.hpp"

namespace zipcache::cuda {

inline constexpr int kMomentPairs = kFeedbackGroup * (kFeedbackGroup - 1) / 2;

// A group of channels of one head: QueryMoment's numbers. All zeros: nothing was learnt.
struct alignas(16) MomentGroup {
  uint16_t deviation[kFeedbackGroup];
  int8_t correlation[kMomentPairs];  // pairs i < j, in 1/127
  uint32_t n_learnt;
};
// Bytes of a head's groups.
constexpr size_t moment_bytes(int dim) {
  return size_t(dim / kFeedbackGroup) * sizeof(MomentGroup);
}

struct LearnArgs {
  int dim = 0, n_heads = 0, group = 0, n_streams = 0;
  InputRows q;                      // [stream, token, query head, dim]
  const int32_t* counts = nullptr;  // [n_streams] tokens to learn from; 0 for none
  int most_rows = 0;  // of a head, about: of more, every so many tokens teach (kMomentMostRows)
  float scale = 0;
  bool hadamard = false;  // keys are rotated
  // [n_heads, dim, dim] that turn keys (row_matrix.hpp), at a multiple of 16 bytes, or null.
  const float* matrices = nullptr;
  MomentGroup* moments = nullptr;  // [n_streams, n_heads, dim / kFeedbackGroup]
};

// QueryMoment::learn. Errors: BadArgument for what no kernel takes, Environment for what CUDA
// reports.
Status learn_queries(const LearnArgs& args, cudaStream_t stream);

// PackArgs::feedback and learnt of the moments [n_streams, n_heads, dim / kFeedbackGroup].
Status make_feedback(const MomentGroup* moments, int dim, int n_heads, int n_streams,
                     float* feedback, uint32_t* learnt, cudaStream_t stream);

}  // namespace zipcache::cuda
