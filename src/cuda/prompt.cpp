#include "cuda/prompt.hpp"

#include <fmt/format.h>

#include <climits>
#include <cmath>

#include "cuda/device_memory.hpp"
#include "cuda/prompt_launch.hpp"

namespace zipcache::cuda {
namespace {

constexpr int kMostTokens = 65535 * 64;  // blocks of threads of a launch reach no further

Status wrong(std::string_view what, long long found, std::string_view expected) {
  return {Code::BadArgument,
          fmt::format("attend_prompt: found {} = {}, expected {}", what, found, expected)};
}

// Kernels multiply places with strides of tokens in 32 bits.
Status check_rows(const InputRows& rows, std::string_view name) {
  const char* fault = fault_of(rows);
  if (!fault && (rows.token_stride < 0 || rows.token_stride > INT_MAX))
    fault = "a token stride beyond 2^31 - 1 numbers";
  if (!fault) return ok();
  return {Code::BadArgument, fmt::format("attend_prompt: found {} with {}", name, fault)};
}

Status check_shape(int dim, int n_query_heads, int n_streams, int n_tokens) {
  if (dim != 64 && dim != 128 && dim != 256) return wrong("dim", dim, "64, 128 or 256");
  if (n_query_heads < 1 || n_query_heads > 65535)
    return wrong("query heads", n_query_heads, "1 to 65535");
  if (n_streams < 1 || n_streams > 32767) return wrong("n_streams", n_streams, "1 to 32767");
  if (n_tokens < 1 || n_tokens > kMostTokens)
    return wrong("n_tokens", n_tokens, fmt::format("1 to {}", kMostTokens));
  return ok();
}

Status check(const PromptArgs& args) {
  if (args.n_heads < 1 || args.n_heads > 65535) return wrong("n_heads", args.n_heads, "1 to 65535");
  if (args.group < 1 || args.group > 65535 / args.n_heads)
    return wrong("group", args.group, "1 to 65535 / n_heads query heads of a KV head");
  ZC_TRY(check_shape(args.dim, args.n_heads * args.group, args.n_streams, args.n_tokens));
  ZC_TRY(check_rows(args.q, "q"));
  ZC_TRY(check_rows(args.k, "k"));
  ZC_TRY(check_rows(args.v, "v"));
  if (!args.out) return {Code::BadArgument, "attend_prompt: found a null pointer for out"};
  if (args.scale > 0 && std::isfinite(args.scale)) return ok();
  return {Code::BadArgument,
          fmt::format("attend_prompt: found scale = {}, expected a number above 0", args.scale)};
}

}  // namespace

Status attend_prompt(const PromptArgs& args, cudaStream_t stream) {
  ZC_TRY(check(args));
  return from_cuda(launch_prompt(args, stream), "launching attention of prompts");
}

Status merge_past(const MergeArgs& args, cudaStream_t stream) {
  ZC_TRY(check_shape(args.dim, args.n_query_heads, args.n_streams, args.n_tokens));
  if (args.first < 0 || args.n_rows < 1)
    return wrong("tokens to merge", args.n_rows, "at least 1, from 0 on");
  if (!args.past || !args.past_log_sums || !args.out || !args.log_sums)
    return {Code::BadArgument,
            "merge_past: found a null pointer among past, past_log_sums, out and log_sums"};
  return from_cuda(launch_merge(args, stream), "launching the merge of attention");
}

}  // namespace zipcache::cuda
