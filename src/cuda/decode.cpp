#include "cuda/decode.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "cuda/decode_launch.hpp"
#include "cuda/device_memory.hpp"

namespace zipcache::cuda {
namespace {

Status wrong(std::string_view what, long long found, std::string_view expected) {
  return {Code::BadArgument,
          fmt::format("decode_attention: found {} = {}, expected {}", what, found, expected)};
}

bool masks(const MaskArgs& mask) {
  return mask.window > 0 || mask.bits || mask.soft_cap > 0 || mask.alibi_slopes;
}

// What the current device can do.
struct Device {
  int number = 0;
  int processors = 0;
  int block_bytes = 0, processor_bytes = 0;  // shared memory, at most
  bool bulk_copies = false;
};

Status ask(int device, cudaDeviceAttr attribute, int& value) {
  return from_cuda(cudaDeviceGetAttribute(&value, attribute, device), "cudaDeviceGetAttribute");
}

Result<Device> current_device() {
  Device found;
  int major = 0;
  ZC_TRY(from_cuda(cudaGetDevice(&found.number), "cudaGetDevice"));
  ZC_TRY(ask(found.number, cudaDevAttrMultiProcessorCount, found.processors));
  ZC_TRY(ask(found.number, cudaDevAttrMaxSharedMemoryPerBlockOptin, found.block_bytes));
  ZC_TRY(ask(found.number, cudaDevAttrMaxSharedMemoryPerMultiprocessor, found.processor_bytes));
  ZC_TRY(ask(found.number, cudaDevAttrComputeCapabilityMajor, major));
  found.bulk_copies = major >= 9;
  return found;
}

// Whether eight warps of a processor do not keep up with memory (docs/decisions.md, 106): it moves
// 12.8 bytes in a processor's cycle on an H100, 18.8 on an H200.
Result<bool> has_fast_memory(const Device& device) {
  int clock = 0, memory_clock = 0, width = 0;  // kHz, kHz, bits
  ZC_TRY(ask(device.number, cudaDevAttrClockRate, clock));
  ZC_TRY(ask(device.number, cudaDevAttrMemoryClockRate, memory_clock));
  ZC_TRY(ask(device.number, cudaDevAttrGlobalMemoryBusWidth, width));
  const float bytes = 2.0f * float(memory_clock) * float(width) / 8;
  return bytes > 16 * float(clock) * float(device.processors);
}

bool needs_any(const DecodeArgs& args) {
  return masks(args.mask) || args.form.k.as_tile || args.form.v.as_tile;
}

int tiles_of(const DecodeArgs& args) {
  const bool two = args.group * args.n_queries > kColumns && args.dim <= 128 && !needs_any(args) &&
                   !args.copy_by_threads;
  return two ? 2 : 1;
}

// Warps of a block that the kernel's registers suffice for.
int most_warps(const DecodeArgs& args) {
  return tiles_of(args) == 1 && args.dim <= 128 ? kMostWarps : kLargeWarps;
}

// What a kernel has beside slots: scores of all warps, and at most this of queries, barriers and
// the device's own.
int all_score_bytes(const DecodeArgs& args) { return args.n_warps * score_bytes(tiles_of(args)); }
int fixed_bytes(const DecodeArgs& args) {
  return tiles_of(args) * 2 * kColumns * args.dim * int(sizeof(float)) + 2560;
}

// Slots for records: one for each warp and some for those on their way. More of these made it
// slower by a few hundredths (H100: docs/gpu.md), although they fit.
int slots_of(const DecodeArgs& args, const Device& device) {
  constexpr int kOnTheirWay = 12 * 1024;
  const int wanted =
      args.n_warps + (kOnTheirWay + args.max_record_bytes - 1) / args.max_record_bytes;
  const auto fitting = [&](int bytes) {
    return (bytes - all_score_bytes(args) - fixed_bytes(args)) / args.max_record_bytes;
  };
  const int n = args.n_warps == kSmallWarps ? fitting(device.processor_bytes / 2) : 0;
  return std::min({n >= args.n_warps ? n : fitting(device.block_bytes), wanted, kMostSlots});
}

// Scores and slots, which later hold what warps merge.
int dynamic_bytes(const DecodeArgs& args, int n_slots) {
  const int sums =
      args.n_warps * tiles_of(args) * kColumns * (kRowFloats + args.dim) * int(sizeof(float));
  return std::max(all_score_bytes(args) + n_slots * args.max_record_bytes, sums);
}

Status check(const DecodeArgs& args) {
  if (args.dim != 64 && args.dim != 128 && args.dim != 256)
    return wrong("dim", args.dim, "64, 128 or 256");
  if (args.form.dim != args.dim)
    return wrong("form.dim", args.form.dim, "dim; the form is RecordLayout::form()");
  if (args.n_heads < 1 || args.n_heads > 65535) return wrong("n_heads", args.n_heads, "1 to 65535");
  if (args.group < 1 || args.group > 64)
    return wrong("group", args.group, "1 to 64 query heads of a KV head");
  if (args.n_queries < 1 || args.n_queries > 64)
    return wrong("n_queries", args.n_queries, "1 to 64");
  if (args.n_warps != kSmallWarps && args.n_warps != kLargeWarps &&
      args.n_warps != most_warps(args))
    return wrong("n_warps", args.n_warps, "that of the plan");
  if (args.n_items < 1) return wrong("n_items", args.n_items, "at least 1 (plan_decode)");
  constexpr int kMostBytes = 0xFFFF * 16;  // Record::size
  if (args.max_record_bytes < 16 || args.max_record_bytes % 16 ||
      args.max_record_bytes > kMostBytes)
    return wrong("max_record_bytes", args.max_record_bytes,
                 fmt::format("a multiple of 16 up to {}", kMostBytes));
  return ok();
}

// Checks the arguments and prepares a launch; cards before sm_90 copy by threads.
Result<Launch> launch_of(DecodeArgs args, const Device& device) {
  ZC_TRY(check(args));
  args.copy_by_threads = args.copy_by_threads || !device.bulk_copies;
  const int n_slots = slots_of(args, device);
  if (n_slots < 2)
    return wrong("max_record_bytes", args.max_record_bytes,
                 fmt::format("at most {} on this GPU",
                             (device.block_bytes - all_score_bytes(args) - fixed_bytes(args)) / 2));
  Launch launch = {};
  launch.args = args;
  launch.n_slots = n_slots;
  launch.slot_bytes = args.max_record_bytes;
  launch.dynamic_bytes = dynamic_bytes(args, n_slots);
  launch.n_columns = args.group * args.n_queries;
  launch.tiles = tiles_of(args);
  launch.masked = masks(args.mask);
  launch.any = needs_any(args);
  launch.k_values = side_values(args.form.k);
  launch.v_values = side_values(args.form.v);
  launch.tickets = static_cast<int*>(args.workspace);
  launch.parts = reinterpret_cast<float*>(static_cast<uint8_t*>(args.workspace) +
                                          decode_workspace(args) - decode_part_bytes(args));
  return launch;
}

Status run(const Launch& launch, cudaStream_t stream, std::string_view what) {
  const DecodeArgs& args = launch.args;
  const int wide = launch.tiles * kColumns;
  const dim3 grid(unsigned(args.n_items), unsigned(args.n_heads),
                  unsigned((launch.n_columns + wide - 1) / wide));
  auto* launch_decode = args.dim == 64    ? launch_decode_64
                        : args.dim == 128 ? launch_decode_128
                                          : launch_decode_256;
  return from_cuda(launch_decode(launch, grid, stream), what);
}

}  // namespace

Result<DecodeBlocks> decode_blocks(const DecodeArgs& args) {
  const Result<Device> device = current_device();
  if (!device.ok()) return device.status();
  const Result<bool> fast_memory = has_fast_memory(*device);
  if (!fast_memory.ok()) return fast_memory.status();
  const auto at_once = [&](int n_warps, int& blocks) -> Status {
    DecodeArgs own = args;
    own.n_warps = n_warps;
    Result<Launch> launch = launch_of(own, *device);
    blocks = 0;
    // Large blocks need a slot for each warp.
    if (n_warps != kSmallWarps && (!launch.ok() || launch->n_slots < n_warps)) return ok();
    if (!launch.ok()) return launch.status();
    launch->blocks = &blocks;
    ZC_TRY(run(*launch, nullptr, "asking for the occupancy of decode attention"));
    blocks *= device->processors;
    return ok();
  };
  DecodeBlocks blocks;
  if (args.form.n_tiers == 1) blocks.half_cost = 11;
  ZC_TRY(at_once(kSmallWarps, blocks.small));
  if (*fast_memory) {
    blocks.large_warps = most_warps(args);
    ZC_TRY(at_once(blocks.large_warps, blocks.large));
  }
  if (blocks.large == 0) {
    blocks.large_warps = kLargeWarps;
    ZC_TRY(at_once(kLargeWarps, blocks.large));
  }
  return blocks;
}

Status decode_attention(const DecodeArgs& args, cudaStream_t stream) {
  if (!args.pool || !args.records || !args.items || !args.q || !args.out || !args.workspace)
    return {
        Code::BadArgument,
        "decode_attention: found a null pointer among pool, records, items, q, out and workspace"};
  if (!(args.scale > 0) || std::isinf(args.scale))
    return {
        Code::BadArgument,
        fmt::format("decode_attention: found scale = {}, expected a number above 0", args.scale)};
  const Result<Device> device = current_device();
  if (!device.ok()) return device.status();
  const Result<Launch> launch = launch_of(args, *device);
  if (!launch.ok()) return launch.status();
  return run(*launch, stream, "launching decode attention");
}

}  // namespace zipcache::cuda
