// The kernel of decode attention, for one head size a file that includes this one.
#pragma once

#include "cuda/decode_keys.cuh"
#include "cuda/decode_results.cuh"
#include "cuda/decode_ring.cuh"

namespace zipcache::cuda {
namespace {

// ---- the tiers of a record

// Units of all tiers.
__device__ __noinline__ int units_in(const uint4* words, int n_tiers) {
  int n_units = 0;
#pragma unroll 1
  for (int t = 0; t < n_tiers; ++t) n_units += units_of(words[t].x & 0xFF);
  return n_units;
}

// Units of a record, counted over all tiers.
struct Share {
  int begin = 0, end = kRecordTokens;
};

// One of `sharing` shares.
__device__ __forceinline__ Share share_of(const uint8_t* record, int share, int sharing) {
  const auto* words = reinterpret_cast<const uint4*>(record);
  const int form = int(words[0].x >> 24), n_tiers = form & kTierMask;
  if (sharing == 1) return {};
  if (sharing == 2) {
    const int half = form >> kHalfShift & kHalfMask;
    return {share == 0 ? 0 : half, share == 0 ? half : kRecordTokens};
  }
  const int n_units = units_in(words, n_tiers);
  return {n_units * share / sharing, n_units * (share + 1) / sharing};
}

// Calls visit(tier, units) for every tier that has some of the share's units.
template <class Visit>
__device__ __forceinline__ void for_tiers(const uint8_t* record, const Share& share,
                                          Visit&& visit) {
  const auto* words = reinterpret_cast<const uint4*>(record);
  const int n_tiers = int(words[0].x >> 24) & kTierMask;
  int before = 0;  // units of the tiers before
#pragma unroll 1
  for (int t = 0; t < n_tiers; ++t) {
    const TierOf tier(t, words[t]);
    const int after = before + units_of(tier.count);
    const Units units = {max(share.begin, before) - before, min(share.end, after) - before, before};
    if (units.begin < units.end) visit(tier, units);
    before = after;
  }
}

// A warp that makes scores and sums values, of one tier after another.
template <int kDim, int kTiles, bool kAny>
class Work {
 public:
  Values<kDim, kTiles, kAny> values;

  __device__ Work(const Launch& launch, const Task& task,
                  const SharedQueries<kDim, kTiles>& queries, float2* scores)
      : values(launch), keys_(launch, task, queries), scores_{scores} {}

  // Adds one of `sharing` shares of a record's units.
  __device__ __forceinline__ void add(const uint8_t* record, const Record& entry, int share,
                                      int sharing) {
    for_tiers(
        record, share_of(record, share, sharing),
        [&](const TierOf& tier, const Units& units) __attribute__((always_inline)) {
          float top[kTiles];
          keys_.score(record, entry, tier, units, scores_, top);
          values.sum(record, tier, units, scores_, top);
        });
  }

 private:
  Keys<kDim, kTiles, kAny> keys_;
  Scores<kTiles> scores_;
};

// The way of cards without bulk copies: the computing threads copy too, as many records at once as
// half of the slots hold.
template <int kDim, int kTiles, bool kAny>
__device__ __forceinline__ void copy_and_compute(Work<kDim, kTiles, kAny>& work,
                                                 const Launch& launch, const Task& task,
                                                 const Record* records, uint8_t* memory) {
  const int count = task.item.count;
  const int n_warps = launch.args.n_warps;
  const int at_once = launch.n_slots >= 2 * n_warps ? n_warps : launch.n_slots >= 4 ? 2 : 1;
  const int sharing = n_warps / at_once;
  const auto place = [&](int r) { return memory + r % (2 * at_once) * launch.slot_bytes; };
  const auto issue = [&](int r) {
    if (r < count) {
      const Record entry = records[r];
      const uint8_t* from = launch.args.pool + size_t(entry.at) * 16;
      for (int i = int(threadIdx.x); i < entry.size; i += int(blockDim.x))
        copy_16(place(r) + i * 16, from + i * 16);
    }
    commit_copies();
  };
  const int warp = int(threadIdx.x) / kLanes;
  for (int r = 0; r < at_once; ++r) issue(r);
  for (int r = 0; r < count; r += at_once) {
    wait_copies<0>();
    __syncthreads();
    for (int i = 0; i < at_once; ++i) issue(r + at_once + i);
    const int own = r + warp / sharing;
    if (own < count) work.add(place(own), records[own], warp % sharing, sharing);
  }
  wait_copies<0>();
}

template <int kDim, int kTiles, bool kAny, bool kBulk>
__global__ void __launch_bounds__((kTiles == 1 && kDim <= 128 ? kMostWarps : kLargeWarps) * kLanes,
                                  1) decode_kernel(const __grid_constant__ Launch launch) {
  extern __shared__ __align__(128) uint8_t dynamic[];
  __shared__ Shared<kDim, kTiles> shared;
  const DecodeArgs& args = launch.args;
  Task task;
  task.item = args.items[blockIdx.x];
  if (task.item.stream < 0) return wait_for_launch_before();
  task.head = int(blockIdx.y);
  task.first_column = int(blockIdx.z) * kTiles * kColumns;
  task.n_columns = min(launch.n_columns - task.first_column, kTiles * kColumns);
  const Record* records =
      args.records +
      size_t(task.item.stream * args.n_heads + task.head) * size_t(args.record_stride) +
      task.item.first;
  const int warp = int(threadIdx.x) / kLanes;
  uint8_t* slots = dynamic + args.n_warps * score_bytes(kTiles);
  const Ring<kDim, kTiles> ring(launch, task, records, slots, shared);
  uint4 entry = {};
  if constexpr (kBulk) entry = ring.first_entry();
  wait_for_launch_before();
  // Before records, which would be in their way.
  Queries<kDim, kTiles> queries(launch, task);
  if constexpr (kBulk) ring.begin(entry);
  share_queries<kDim, kTiles>(launch, task, queries, shared.queries);
  auto* scores = reinterpret_cast<float2*>(dynamic + warp * score_bytes(kTiles));
  Work<kDim, kTiles, kAny> work(launch, task, shared.queries, scores);
  if constexpr (kBulk)
    ring.run(work);
  else
    copy_and_compute(work, launch, task, records, slots);
  __syncthreads();
  auto* space = reinterpret_cast<float*>(dynamic);
  share_sums(work.values, task.n_columns, space);
  finish<kDim, kTiles>(launch, task, space, shared.last);
}

template <int kDim, int kTiles, bool kAny, bool kBulk>
cudaError_t launch_one(const Launch& launch, dim3 grid, cudaStream_t stream) {
  auto* kernel = decode_kernel<kDim, kTiles, kAny, kBulk>;
  const size_t bytes = size_t(launch.dynamic_bytes);
  const int n_threads = launch.args.n_warps * kLanes;
  // Set once a device would do; it costs less than a lookup whether it was.
  const cudaError_t error =
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, int(bytes));
  if (error != cudaSuccess) return error;
  if (launch.blocks)
    return cudaOccupancyMaxActiveBlocksPerMultiprocessor(launch.blocks, kernel, n_threads, bytes);
  cudaLaunchAttribute early = {};
  early.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  early.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config = {};
  config.gridDim = grid;
  config.blockDim = dim3(unsigned(n_threads));
  config.dynamicSmemBytes = bytes;
  config.stream = stream;
  config.attrs = &early;
  config.numAttrs = kBulk && launch.args.early ? 1 : 0;
  return cudaLaunchKernelEx(&config, kernel, launch);
}

template <int kDim>
cudaError_t launch_dim(const Launch& launch, dim3 grid, cudaStream_t stream) {
  if (launch.args.copy_by_threads) return launch_one<kDim, 1, true, false>(launch, grid, stream);
  if (launch.any) return launch_one<kDim, 1, true, true>(launch, grid, stream);
  if constexpr (kDim <= 128) {
    if (launch.tiles == 2) return launch_one<kDim, 2, false, true>(launch, grid, stream);
  }
  return launch_one<kDim, 1, false, true>(launch, grid, stream);
}

}  // namespace
}  // namespace zipcache::cuda
