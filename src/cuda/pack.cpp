#include "cuda/pack.hpp"

#include <fmt/format.h>

#include "cuda/device_memory.hpp"
#include "cuda/pack_launch.hpp"

namespace zipcache::cuda {
namespace {

constexpr int64_t kMostBlocks = (int64_t{1} << 31) - 1;  // of threads, in a launch

Status wrong(std::string_view what, long long found, std::string_view expected) {
  return {Code::BadArgument,
          fmt::format("pack_records: found {} = {}, expected {}", what, found, expected)};
}

Status check_rows(const InputRows& rows, std::string_view name) {
  const char* fault = fault_of(rows);
  if (!fault) return ok();
  return {Code::BadArgument, fmt::format("pack_records: found {} rows with {}", name, fault)};
}

Status check(const PackArgs& args) {
  const RecordForm& form = args.form.record;
  if (form.dim != 64 && form.dim != 128 && form.dim != 256)
    return wrong("dim", form.dim, "64, 128 or 256 (pack_form)");
  if (form.n_tiers < 1 || form.n_tiers > kRecordTiers)
    return wrong("n_tiers", form.n_tiers, "1 to 4 (pack_form)");
  if (args.n_heads < 1) return wrong("n_heads", args.n_heads, "at least 1");
  if (args.n_tasks < 1 || int64_t{args.n_tasks} * args.n_heads * 2 > kMostBlocks)
    return wrong("n_tasks", args.n_tasks,
                 "at least 1, and below 2^31 with both sides of all heads");
  ZC_TRY(check_rows(args.k, "k"));
  ZC_TRY(check_rows(args.v, "v"));
  if ((args.form.k_by_matrix && !args.k_matrices) || (args.form.v_by_matrix && !args.v_matrices))
    return {Code::BadArgument, "pack_records: found no matrices, expected some where rotate=file"};
  for (const float* numbers : {args.feedback, args.k_matrices, args.v_matrices}) {
    if (reinterpret_cast<uintptr_t>(numbers) % 16)
      return {Code::BadArgument,
              "pack_records: found feedback or matrices at an address that is no multiple of 16"};
  }
  if (args.form.k_by_queries && (!args.feedback || !args.learnt))
    return {Code::BadArgument,
            "pack_records: found no feedback or no counts of what was learnt, expected both where "
            "k_round=query"};
  if (!args.tasks || !args.pool || !args.records)
    return {Code::BadArgument, "pack_records: found a null pointer among tasks, pool and records"};
  if (form.n_tiers > 1 && !args.tiers.data == !args.scores.data)
    return wrong("tiers and scores given", args.tiers.data ? 2 : 0,
                 "one of them where a policy has more than one tier");
  return ok();
}

cudaError_t launch_sides(const PackArgs& args, cudaStream_t stream) {
  const PackForm& form = args.form;
  cudaError_t error = cudaSuccess;
  if (!form.k_sets.used || !form.v_sets.used) error = launch_pack(args, stream);
  if (error == cudaSuccess && form.k_sets.used) error = launch_pack_sets(args, true, stream);
  if (error == cudaSuccess && form.v_sets.used) error = launch_pack_sets(args, false, stream);
  return error;
}

}  // namespace

Status check_packing(const PackForm& form) {
  PackArgs args;
  args.form = form;
  args.n_heads = 1;
  const cudaError_t error = launch_sides(args, nullptr);
  if (error != cudaErrorInvalidValue) return from_cuda(error, "asking for what packing needs");
  cudaGetLastError();  // told here
  return {Code::Incompatible,
          fmt::format("packing found too little shared memory on this GPU for heads of {} channels "
                      "under this policy; take one without rotations and k_round=query "
                      "(zipcache, uniform4), or smaller heads",
                      form.record.dim)};
}

Status pack_records(const PackArgs& args, cudaStream_t stream) {
  ZC_TRY(check(args));
  return from_cuda(launch_sides(args, stream), "launching the packing of records");
}

}  // namespace zipcache::cuda
