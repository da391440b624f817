#include "cuda/probe.hpp"

#include <fmt/format.h>

#include <cmath>

#include "cuda/device_memory.hpp"
#include "cuda/probe_launch.hpp"

namespace zipcache::cuda {
namespace {

Status wrong(std::string_view what, long long found, std::string_view expected) {
  return {Code::BadArgument,
          fmt::format("sum_probes: found {} = {}, expected {}", what, found, expected)};
}

Status check_rows(const InputRows& rows, std::string_view name) {
  const char* fault = fault_of(rows);
  if (!fault) return ok();
  return {Code::BadArgument, fmt::format("sum_probes: found {} with {}", name, fault)};
}

Status check(const ProbeArgs& args) {
  if (args.dim != 64 && args.dim != 128 && args.dim != 256)
    return wrong("dim", args.dim, "64, 128 or 256");
  if (args.n_heads < 1 || args.n_heads > 65535) return wrong("n_heads", args.n_heads, "1 to 65535");
  if (args.group < 1) return wrong("group", args.group, "at least 1 query head of a KV head");
  if (args.n_streams < 1 || args.n_streams > 65535)
    return wrong("n_streams", args.n_streams, "1 to 65535");
  if (args.n_probes < 1 || args.n_probes > (1 << 30) / args.group)
    return wrong("n_probes", args.n_probes, "1 to 2^30 / group");
  if (args.n_tokens < 1) return wrong("n_tokens", args.n_tokens, "at least 1");
  ZC_TRY(check_rows(args.q, "q"));
  ZC_TRY(check_rows(args.k, "k"));
  if (!args.limits || !args.sums.data)
    return {Code::BadArgument, "sum_probes: found a null pointer among limits and sums"};
  if (!args.log_sums && !args.workspace)
    return {Code::BadArgument,
            "sum_probes: found neither log_sums nor a workspace, expected one of them"};
  if (!(args.scale > 0) || !std::isfinite(args.scale))
    return {Code::BadArgument,
            fmt::format("sum_probes: found scale = {}, expected a number above 0", args.scale)};
  return ok();
}

Status launched(cudaError_t error) { return from_cuda(error, "launching the saliency pass"); }

}  // namespace

size_t probe_workspace(const ProbeArgs& args) {
  if (args.log_sums) return 0;
  return size_t(args.n_streams) * size_t(args.n_probes) * size_t(args.n_heads * args.group) *
         sizeof(float);
}

Status sum_probes(const ProbeArgs& args, cudaStream_t stream) {
  ZC_TRY(check(args));
  ProbeArgs complete = args;
  if (!args.log_sums) {
    ZC_TRY(launched(launch_log_sums(args, args.workspace, stream)));
    complete.log_sums = args.workspace;
  }
  return launched(launch_probe_sums(complete, stream));
}

}  // namespace zipcache::cuda
