#include "cuda/unpack.hpp"

#include <fmt/format.h>

#include "cuda/device_memory.hpp"
#include "cuda/unpack_launch.hpp"

namespace zipcache::cuda {
namespace {

Status wrong(std::string_view what, long long found, std::string_view expected) {
  return {Code::BadArgument,
          fmt::format("unpack_records: found {} = {}, expected {}", what, found, expected)};
}

Status check(const UnpackArgs& args) {
  const int dim = args.form.dim;
  if (dim != 64 && dim != 128 && dim != 256) return wrong("dim", dim, "64, 128 or 256");
  if (args.n_heads < 1 || args.n_heads > 65535) return wrong("n_heads", args.n_heads, "1 to 65535");
  if (args.n_tasks < 1) return wrong("n_tasks", args.n_tasks, "at least 1");
  if (args.n_rows < kRecordTokens)
    return wrong("n_rows", args.n_rows, fmt::format("at least {}", kRecordTokens));
  if (args.pool && args.records && args.tasks && args.k && args.v) return ok();
  return {Code::BadArgument,
          "unpack_records: found a null pointer among pool, records, tasks, k and v"};
}

}  // namespace

Status unpack_records(const UnpackArgs& args, cudaStream_t stream) {
  ZC_TRY(check(args));
  const UnpackLaunch launch{args, side_values(args.form.k), side_values(args.form.v)};
  return from_cuda(launch_unpack(launch, stream), "launching the unpacking of records");
}

}  // namespace zipcache::cuda
