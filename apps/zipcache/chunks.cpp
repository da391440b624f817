// Cutting a text into chunks and micro-batches.
#include "chunks.hpp"

#include <fmt/format.h>

#include <algorithm>

namespace zipcache::cli {

Result<ChunkPlan> plan_chunks(size_t n_tokens, int ctx, int wanted, int ubatch) {
  if (ctx < kShortestCtx) {
    return Status{
        Code::BadArgument,
        fmt::format("--ctx-size: found {}, expected at least {} tokens", ctx, kShortestCtx)};
  }
  if (ubatch < 1 || wanted < 0) {
    return Status{
        Code::BadArgument,
        fmt::format("found micro-batch {} and {} chunks, expected at least 1 token and not "
                    "fewer than 0 chunks",
                    ubatch, wanted)};
  }
  const size_t available = n_tokens / static_cast<size_t>(ctx);
  if (available == 0) {
    return Status{
        Code::BadData,
        fmt::format("the text is too short: found {} tokens, expected at least {} (--ctx-size); "
                    "use a longer text or a smaller -c",
                    n_tokens, ctx)};
  }
  const size_t chunks = wanted == 0 ? available : std::min<size_t>(available, wanted);
  return ChunkPlan{ctx, static_cast<int>(chunks), ctx / 2, ubatch, ctx / 2};
}

std::vector<MicroBatch> micro_batches(const ChunkPlan& plan) {
  std::vector<MicroBatch> out;
  for (int begin = 0; begin < plan.ctx; begin += plan.ubatch) {
    const int end = std::min(begin + plan.ubatch, plan.ctx);
    out.push_back({begin, end, std::clamp(plan.first, begin, end)});
  }
  return out;
}

}  // namespace zipcache::cli
