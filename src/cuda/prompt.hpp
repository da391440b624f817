// Attention of prompts on a GPU from 16-bit rows: new tokens over themselves, causally, and over
// tokens before them, which may come in pieces. Ordered by its stream, capturable in CUDA graphs,
// waits for nothing on the host.
#pragma once

#include "cuda/decode.hpp"
#include "cuda/rows.hpp"

namespace zipcache::cuda {

// Numbers with which blocks of threads that share a past take turns.
inline constexpr int kPromptTurns = 1024;

// softmax(scale * q . k) v of each token's query heads over the tokens of its stream up to itself,
// or over a past.
struct PromptArgs {
  int dim = 0, n_heads = 0, group = 0;  // KV heads, and query heads of each
  int n_streams = 0, n_tokens = 0;      // rows of each stream
  InputRows q;     // [stream, token, query head, dim]; query head h * group + i reads KV head h
  InputRows k, v;  // [stream, token, head, dim]
  const int32_t* lengths = nullptr;  // [n_streams] tokens of each, at most n_tokens; null for all
  // [n_streams] rows of k and v, or none, which belong to earlier tokens, in any order: every query
  // sees all of them, and what `out` and `log_sums` hold of other tokens becomes the attention over
  // both. There sinks took part already. Null: k and v are the tokens' own.
  const int32_t* past = nullptr;
  // [kPromptTurns] zeros, left as zeros: where the new tokens alone are too few for all processors,
  // several blocks of threads share their past. Null: none do.
  int* turns = nullptr;
  float scale = 0;               // of the scores, above 0
  const float* sinks = nullptr;  // [query head] logits that take part in the softmax, or null
  // [n_streams, n_tokens, query head, dim]; rows behind a stream's length are left as they are.
  void* out = nullptr;
  Number out_type = Number::F16;
  // [n_streams, n_tokens, query head] natural logarithm of the sum that the softmax divides by, as
  // in DecodeArgs; or null, unless there is a past.
  float* log_sums = nullptr;
};

// Enqueues the work. Errors: BadArgument for shapes that no kernel has, Environment for what CUDA
// reports.
Status attend_prompt(const PromptArgs& args, cudaStream_t stream);

}  // namespace zipcache::cuda
