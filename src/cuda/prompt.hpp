// Attention of prompts on a GPU: new tokens over themselves, causally, from 16-bit rows; and what
// joins it to attention over the tokens before, by the logarithms of both softmax sums. Ordered by
// its stream, capturable in CUDA graphs, waits for nothing on the host.
#pragma once

#include "cuda/decode.hpp"
#include "cuda/rows.hpp"

namespace zipcache::cuda {

// softmax(scale * q . k) v of each token's query heads over the tokens of its stream up to itself.
struct PromptArgs {
  int dim = 0, n_heads = 0, group = 0;  // KV heads, and query heads of each
  int n_streams = 0, n_tokens = 0;      // rows of each stream
  InputRows q;     // [stream, token, query head, dim]; query head h * group + i reads KV head h
  InputRows k, v;  // [stream, token, head, dim]
  const int32_t* lengths = nullptr;  // [n_streams] tokens of each, at most n_tokens; null for all
  float scale = 0;                   // of the scores, above 0
  const float* sinks = nullptr;      // [query head] logits that take part in the softmax, or null
  // [n_streams, n_tokens, query head, dim]; rows behind a stream's length are left as they are.
  void* out = nullptr;
  Number out_type = Number::F16;
  // [n_streams, n_tokens, query head] natural logarithm of the sum that the softmax divides by, as
  // in DecodeArgs; or null.
  float* log_sums = nullptr;
};

// Adds attention over earlier tokens, of some tokens of a prompt, to what attend_prompt() left of
// these tokens.
struct MergeArgs {
  int dim = 0, n_query_heads = 0;
  int n_streams = 0, n_tokens = 0;       // of `out` and `log_sums`
  int first = 0, n_rows = 0;             // tokens `first` to first + n_rows - 1
  const int32_t* lengths = nullptr;      // as in PromptArgs
  const float* past = nullptr;           // [n_streams, n_rows, query head, dim]
  const float* past_log_sums = nullptr;  // [n_streams, n_rows, query head]
  void* out = nullptr;                   // as in PromptArgs
  Number out_type = Number::F16;
  float* log_sums = nullptr;  // of all tokens, afterwards
};

// Enqueue the work. Errors: BadArgument for shapes that no kernel has, Environment for what CUDA
// reports.
Status attend_prompt(const PromptArgs& args, cudaStream_t stream);
Status merge_past(const MergeArgs& args, cudaStream_t stream);

}  // namespace zipcache::cuda
