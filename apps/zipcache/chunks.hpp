// Cutting a text into chunks and micro-batches, the way llama-perplexity does: chunks of `ctx`
// tokens, of which the second half is scored.
#pragma once

#include <cstddef>
#include <vector>

#include "zipcache/status.hpp"

namespace zipcache::cli {

struct ChunkPlan {
  int ctx = 0;     // tokens of a chunk
  int chunks = 0;  // chunks that are run
  int first = 0;   // positions from here on predict the token after them
  int ubatch = 0;  // tokens of a micro-batch
  int total = 0;   // positions from here on count in the totals; not before `first`

  int scored_per_chunk() const { return ctx - 1 - first; }
};

// Positions [begin, end) of a chunk that are decoded together. Logits are wanted from position
// `logits_from` on, which is `end` when none are.
struct MicroBatch {
  int begin = 0;
  int end = 0;
  int logits_from = 0;
  int size() const { return end - begin; }
  int n_logits() const { return end - logits_from; }
};

// The shortest chunk that leaves something to score.
inline constexpr int kShortestCtx = 8;

// Plans `wanted` chunks (0: all that the text has) of a text of `n_tokens`. A text shorter than one
// chunk is an error; one with fewer chunks than wanted gives those it has.
Result<ChunkPlan> plan_chunks(size_t n_tokens, int ctx, int wanted, int ubatch);

// Micro-batches of every chunk. The last position's logits are wanted too: generation goes on
// there.
std::vector<MicroBatch> micro_batches(const ChunkPlan& plan);

}  // namespace zipcache::cli
