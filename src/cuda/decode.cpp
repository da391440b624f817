#include "cuda/decode.hpp"

#include <fmt/format.h>

#include <algorithm>

#include "cuda/decode_launch.hpp"

namespace zipcache::cuda {
namespace {

constexpr int kMaxShared = 227 * 1024;
constexpr int kFixedShared = 8 * 1024;  // at most, beside the ring

Status wrong(std::string_view what, long long found, std::string_view expected) {
  return {Code::BadArgument,
          fmt::format("decode_attention: found {} = {}, expected {}", what, found, expected)};
}

Status from_cuda(cudaError_t error, std::string_view what) {
  if (error == cudaSuccess) return ok();
  return {Code::Environment, fmt::format("CUDA: {} failed: {} ({})", what,
                                         cudaGetErrorString(error), cudaGetErrorName(error))};
}

bool masks(const MaskArgs& mask) {
  return mask.window > 0 || mask.bits || mask.soft_cap > 0 || mask.alibi_slopes;
}

int columns_of(const DecodeArgs& args) { return args.group * args.n_queries; }

int tiles_of(const DecodeArgs& args) {
  const bool two =
      columns_of(args) > kColumns && args.dim <= 128 && !masks(args.mask) && !args.copy_by_threads;
  return two ? 2 : 1;
}

int column_tiles(const DecodeArgs& args) {
  const int wide = tiles_of(args) * kColumns;
  return (columns_of(args) + wide - 1) / wide;
}

size_t part_bytes(const DecodeArgs& args) {
  return size_t(args.n_items) * size_t(args.n_heads) * size_t(columns_of(args)) *
         size_t(kRowFloats + args.dim) * sizeof(float);
}

// The ring, which later holds what warps merge, and then the weights of parts beside sums.
int dynamic_bytes(const DecodeArgs& args) {
  const int rows = tiles_of(args) * kColumns;
  const int ring = kStages * kWarps / kSharing * args.max_record_bytes;
  const int warps = (kWarps + 1) * rows * args.dim * int(sizeof(float));
  const int merge = rows * ((kWarps + 1) * args.dim + args.n_items) * int(sizeof(float));
  return std::max({ring, warps, merge});
}

Status check(const DecodeArgs& args) {
  if (args.dim != 64 && args.dim != 128 && args.dim != 256)
    return wrong("dim", args.dim, "64, 128 or 256");
  if (args.n_heads < 1 || args.n_heads > 65535) return wrong("n_heads", args.n_heads, "1 to 65535");
  if (args.group < 1 || args.group > 64)
    return wrong("group", args.group, "1 to 64 query heads of a KV head");
  if (args.n_queries < 1 || args.n_queries > 64)
    return wrong("n_queries", args.n_queries, "1 to 64");
  if (args.n_items < 1) return wrong("n_items", args.n_items, "at least 1 (plan_decode)");
  if (args.max_record_bytes < 16 || args.max_record_bytes % 16)
    return wrong("max_record_bytes", args.max_record_bytes, "a multiple of 16");
  if (dynamic_bytes(args) + kFixedShared > kMaxShared)
    return wrong(
        "shared memory", dynamic_bytes(args),
        fmt::format("at most {}: smaller records or fewer items", kMaxShared - kFixedShared));
  return ok();
}

Launch launch_of(const DecodeArgs& args) {
  Launch launch = {};
  launch.args = args;
  launch.stage_bytes = args.max_record_bytes;
  launch.dynamic_bytes = dynamic_bytes(args);
  launch.n_columns = columns_of(args);
  launch.tiles = tiles_of(args);
  launch.masked = masks(args.mask);
  launch.tickets = static_cast<int*>(args.workspace);
  launch.parts = reinterpret_cast<float*>(static_cast<uint8_t*>(args.workspace) +
                                          decode_workspace(args) - part_bytes(args));
  return launch;
}

Status run(const Launch& launch, cudaStream_t stream, std::string_view what) {
  const DecodeArgs& args = launch.args;
  const dim3 grid(unsigned(args.n_items), unsigned(args.n_heads), unsigned(column_tiles(args)));
  auto* launch_decode = args.dim == 64    ? launch_decode_64
                        : args.dim == 128 ? launch_decode_128
                                          : launch_decode_256;
  return from_cuda(launch_decode(launch, grid, stream), what);
}

}  // namespace

size_t decode_workspace(const DecodeArgs& args) {
  int most_streams = args.n_items;  // an item has a stream, so there are no more of these
  return size_t(most_streams) * size_t(args.n_heads) * size_t(column_tiles(args)) * sizeof(int) /
             16 * 16 +
         16 + part_bytes(args);
}

Result<int> decode_blocks(const DecodeArgs& args) {
  ZC_TRY(check(args));
  int device = 0, processors = 0, blocks = 0;
  ZC_TRY(from_cuda(cudaGetDevice(&device), "cudaGetDevice"));
  ZC_TRY(from_cuda(cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device),
                   "cudaDeviceGetAttribute"));
  Launch launch = launch_of(args);
  launch.blocks = &blocks;
  ZC_TRY(run(launch, nullptr, "asking for the occupancy of decode attention"));
  return blocks * processors;
}

Status decode_attention(const DecodeArgs& args, cudaStream_t stream) {
  ZC_TRY(check(args));
  if (!args.pool || !args.records || !args.items || !args.q || !args.out || !args.workspace)
    return {
        Code::BadArgument,
        "decode_attention: found a null pointer among pool, records, items, q, out and workspace"};
  return run(launch_of(args), stream, "launching decode attention");
}

}  // namespace zipcache::cuda
