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

Status check_shape(const PromptArgs& args) {
  if (args.n_heads < 1 || args.n_heads > 65535) return wrong("n_heads", args.n_heads, "1 to 65535");
  if (args.group < 1 || args.group > 65535 / args.n_heads)
    return wrong("group", args.group, "1 to 65535 / n_heads query heads of a KV head");
  if (args.dim != 64 && args.dim != 128 && args.dim != 256)
    return wrong("dim", args.dim, "64, 128 or 256");
  if (args.n_streams < 1 || args.n_streams > 32767)
    return wrong("n_streams", args.n_streams, "1 to 32767");
  if (args.n_tokens < 1 || args.n_tokens > kMostTokens)
    return wrong("n_tokens", args.n_tokens, fmt::format("1 to {}", kMostTokens));
  return ok();
}

Status check(const PromptArgs& args) {
  ZC_TRY(check_shape(args));
  ZC_TRY(check_rows(args.q, "q"));
  ZC_TRY(check_rows(args.k, "k"));
  ZC_TRY(check_rows(args.v, "v"));
  if (!args.out) return {Code::BadArgument, "attend_prompt: found a null pointer for out"};
  if (args.past && (!args.log_sums || args.sinks))
    return {Code::BadArgument,
            "attend_prompt: found a past without log_sums or with sinks, expected the log_sums of "
            "other tokens, whose attention took the sinks"};
  if (args.scale > 0 && std::isfinite(args.scale)) return ok();
  return {Code::BadArgument,
          fmt::format("attend_prompt: found scale = {}, expected a number above 0", args.scale)};
}

}  // namespace

Status attend_prompt(const PromptArgs& args, cudaStream_t stream) {
  ZC_TRY(check(args));
  return from_cuda(launch_prompt(args, stream), "launching attention of prompts");
}

}  // namespace zipcache::cuda
