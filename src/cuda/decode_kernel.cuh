// The kernel of decode attention, for one head size a file that includes this one.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "cuda/decode_keys.cuh"
#include "cuda/decode_values.cuh"
#include "cuda/hadamard.hpp"

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

// ---- queries

// A number's bits, which turn into it later: so nothing waits for them here.
__device__ __forceinline__ uint32_t bits_at(const void* numbers, Number type, size_t i) {
  return type == Number::F32 ? static_cast<const uint32_t*>(numbers)[i]
                             : static_cast<const uint16_t*>(numbers)[i];
}
__device__ __forceinline__ float number_of(uint32_t bits, Number type) {
  switch (type) {
    case Number::F16:
      return __half2float(__ushort_as_half(uint16_t(bits)));
    case Number::BF16:
      return __uint_as_float(bits << 16);
    default:
      return __uint_as_float(bits);
  }
}

__device__ __forceinline__ void store_number(void* numbers, Number type, size_t i, float x) {
  switch (type) {
    case Number::F16:
      static_cast<__half*>(numbers)[i] = __float2half_rn(x);
      break;
    case Number::BF16:
      static_cast<__nv_bfloat16*>(numbers)[i] = __float2bfloat16_rn(x);
      break;
    default:
      static_cast<float*>(numbers)[i] = x;
  }
}

// First number of a query row of the task's KV head in q and out.
__device__ __forceinline__ size_t row_start(const Launch& launch, const Task& task, int column) {
  const DecodeArgs& args = launch.args;
  const size_t query =
      size_t(task.item.stream) * size_t(args.n_queries) + size_t(column / args.group);
  const size_t head = size_t(task.head * args.group + column % args.group);
  return (query * size_t(args.n_heads * args.group) + head) * size_t(args.dim);
}

// Shared memory of a block of threads beside the ring of records.
template <int kDim, int kTiles>
struct Shared {
  static constexpr int kRows = kTiles * kColumns;
  SharedQueries<kDim, kTiles> queries;
  uint64_t full[kMostSlots];
  alignas(16) Record entries[kMostSlots];
  int readers[kMostSlots], asked[kMostSlots];  // asked: number of the record that is to stand there
  int last;
};

// Query rows of which a warp has each n_warps-th one, and a lane kDim / 32 neighbours of it.
template <int kDim, int kTiles>
struct Queries {
  static constexpr int kOwn = kDim / kLanes, kRows = kTiles * kColumns,
                       kOwnRows = kRows / kSmallWarps;
  uint32_t bits[kOwnRows][kOwn] = {};

  __device__ __forceinline__ Queries(const Launch& launch, const Task& task) {
    const int warp = int(threadIdx.x) / kLanes, lane = int(threadIdx.x) % kLanes;
#pragma unroll
    for (int i = 0; i < kOwnRows; ++i) {
      const int row = warp + i * launch.args.n_warps;
      if (row >= task.n_columns) continue;
      const size_t start = row_start(launch, task, task.first_column + row) + size_t(lane * kOwn);
#pragma unroll
      for (int c = 0; c < kOwn; ++c)
        bits[i][c] = bits_at(launch.args.q, launch.args.q_type, start + size_t(c));
    }
  }
};

// A query row's operands of 16-bit products; `x` are its numbers that the lane holds.
template <int kDim, int kOwn>
__device__ __forceinline__ void store_operands(int row, const float (&x)[kOwn], uint4* operands) {
  const int lane = int(threadIdx.x) % kLanes;
  auto* words = reinterpret_cast<uint32_t*>(operands);
#pragma unroll
  for (int c = 0; c < kOwn; c += 2) {
    const int channel = lane * kOwn + c, s = channel / 16;
    const int to = row % kColumns * 8 + channel % 8 / 2;  // the lane that multiplies with it
    uint32_t* word = words + ((row / kColumns * kFragments<kDim> / 2 + s / 2) * kLanes + to) * 4 +
                     s % 2 * 2 + channel % 16 / 8;
    const uint32_t rounded = half_pair(x[c], x[c + 1]);
    const float2 taken = pair_of(rounded);
    word[0] = rounded;
    word[4 * 4] = half_pair(x[c] - taken.x, x[c + 1] - taken.y);  // of the next column
  }
}

// Queries become operands, each row multiplied with a power of two that brings its largest number
// to kQueryTop / 2 or above and below kQueryTop.
template <int kDim, int kTiles>
__device__ void share_queries(const Launch& launch, const Task& task,
                              const Queries<kDim, kTiles>& queries,
                              SharedQueries<kDim, kTiles>& shared) {
  using Rows = Queries<kDim, kTiles>;
  const int warp = int(threadIdx.x) / kLanes, lane = int(threadIdx.x) % kLanes;
#pragma unroll
  for (int i = 0; i < Rows::kOwnRows; ++i) {
    const int row = warp + i * launch.args.n_warps;
    if (row >= Rows::kRows) continue;
    float x[Rows::kOwn], largest = 0, sum = 0;
#pragma unroll
    for (int c = 0; c < Rows::kOwn; ++c) x[c] = number_of(queries.bits[i][c], launch.args.q_type);
    if (launch.args.k_hadamard && row < task.n_columns) rotate_row(x, kDim, ~0u);
#pragma unroll
    for (int c = 0; c < Rows::kOwn; ++c) largest = fmaxf(largest, fabsf(x[c]));
    largest = largest_of_warp(largest);
    const int exponent =
        largest > 0 && largest < INFINITY ? min(kQueryExponent - ilogbf(largest), 126) : 0;
    const float grow = ldexpf(1.0f, exponent);
#pragma unroll
    for (int c = 0; c < Rows::kOwn; ++c) {
      x[c] *= grow;
      sum += x[c];
      shared.numbers[row][k_param_place(lane * Rows::kOwn + c)] = x[c];
    }
    store_operands<kDim>(row, x, shared.operands);
#pragma unroll
    for (int step = 1; step < kLanes; step *= 2) sum += __shfl_xor_sync(~0u, sum, step);
    if (lane > 0) continue;
    shared.sums[row] = sum;
    shared.units[row] = launch.args.scale * kLog2E * ldexpf(1.0f, -exponent);
  }
  __syncthreads();
}

// ---- records on their way to shared memory

// Record i of the item stands in slot i modulo their number, and is asked for when the one before
// it in the slot was read. Groups of warps that share records take these in turn.
template <int kDim, int kTiles>
class Ring {
 public:
  __device__ Ring(const Launch& launch, const Task& task, const Record* records, uint8_t* memory,
                  Shared<kDim, kTiles>& shared)
      : launch_(launch),
        records_(reinterpret_cast<const uint4*>(records)),
        item_(task.item),
        memory_(memory),
        shared_(shared),
        warp_(int(threadIdx.x) / kLanes),
        lane_(int(threadIdx.x) % kLanes) {}

  // The Record of which begin() asks, of the asking warp's lanes.
  __device__ uint4 first_entry() const {
    return warp_ == 0 && lane_ < min(launch_.n_slots, item_.count) ? records_[lane_] : uint4{};
  }

  // Asks for the first records; others than the asking warp may wait for these after a barrier of
  // the block.
  __device__ void begin(uint4 entry) const {
    if (warp_ != 0 || lane_ >= launch_.n_slots) return;
    open_barrier(&shared_.full[lane_], 1);
    shared_.readers[lane_] = 0;
    shared_.asked[lane_] = -1;
    fence_barriers();
    if (lane_ < item_.count) ask(lane_, lane_, entry);
  }

  template <class Worker>
  __device__ __forceinline__ void run(Worker& work) const {
    const int sharing = item_.sharing, shift = __ffs(sharing) - 1;  // a power of two
    const int n_groups = launch_.args.n_warps >> shift;
    int slot = warp_ >> shift, parity = 0;
#pragma unroll 1
    for (int i = slot;; i += n_groups, slot += n_groups) {
      for (; slot >= launch_.n_slots; slot -= launch_.n_slots) parity ^= 1;
      if (i >= item_.count) return;
      uint4 next = {};  // a Record, on its way while this one is worked on
      const bool more = i + launch_.n_slots < item_.count;
      if (more && lane_ == 0) next = records_[i + launch_.n_slots];
      wait_for(i, slot, parity);
      work.add(memory_ + slot * launch_.slot_bytes, shared_.entries[slot], warp_ & (sharing - 1),
               sharing);
      __syncwarp();
      if (more && lane_ == 0 && last_reader(slot)) ask(i + launch_.n_slots, slot, next);
    }
  }

 private:
  // Record i, into a slot that nothing reads any more.
  __device__ void ask(int i, int slot, uint4 entry) const {
    const uint32_t bytes = (entry.y & 0xFFFF) * 16;
    *reinterpret_cast<uint4*>(&shared_.entries[slot]) = entry;
    publish(&shared_.asked[slot], i);
    arrive_expecting(&shared_.full[slot], bytes);
    copy_bulk(memory_ + slot * launch_.slot_bytes, launch_.args.pool + size_t(entry.x) * 16, bytes,
              &shared_.full[slot]);
  }

  // A barrier tells two neighbouring phases apart, no more; so record i has to be asked for before
  // its phase is waited for, since whoever reads the one before it in the slot may be late.
  __device__ void wait_for(int i, int slot, int parity) const {
    while (published(&shared_.asked[slot]) != i) __nanosleep(20);
    wait_phase(&shared_.full[slot], parity);
  }

  __device__ bool last_reader(int slot) const {
    const int sharing = item_.sharing;
    return sharing == 1 || (add_in_order(&shared_.readers[slot], 1) & (sharing - 1)) == sharing - 1;
  }

  const Launch& launch_;
  const uint4* records_;
  const WorkItem& item_;
  uint8_t* memory_;
  Shared<kDim, kTiles>& shared_;
  const int warp_, lane_;
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

// ---- results

// A partial result of a query row is kRowFloats numbers, the first two its peak and mass, and the
// sums of kDim channels; in shared memory those of warps, in the device's those of blocks.
template <int kDim>
constexpr int kPartFloats = kRowFloats + kDim;

// Neighbours of either memory.
template <int kOwn>
__device__ __forceinline__ void load_floats(const float* from, float (&x)[kOwn]) {
#pragma unroll
  for (int i = 0; i < kOwn; i += kOwn < 4 ? 2 : 4) {
    if constexpr (kOwn < 4)
      load_of_device(from + i, x[i], x[i + 1]);
    else
      load_of_device(from + i, x[i], x[i + 1], x[i + 2], x[i + 3]);
  }
}

template <int kOwn>
__device__ __forceinline__ void store_floats(float* to, const float (&x)[kOwn]) {
  if constexpr (kOwn == 2) {
    __stcg(reinterpret_cast<float2*>(to), float2{x[0], x[1]});
  } else {
#pragma unroll
    for (int i = 0; i < kOwn; i += 4)
      __stcg(reinterpret_cast<float4*>(to + i), float4{x[i], x[i + 1], x[i + 2], x[i + 3]});
  }
}

// A merged query row: a lane has kDim / 32 neighbouring channels of the sums.
template <int kDim>
struct Row {
  static constexpr int kOwn = kDim / kLanes;
  float sums[kOwn] = {};
  float peak = kLowest, mass = 0;

  // Adds n partial results, `stride` numbers apart, kAtOnce loads of them on their way at once.
  template <int kAtOnce>
  __device__ __forceinline__ void add(const float* parts, int n, size_t stride) {
    const int lane = int(threadIdx.x) % kLanes;
#pragma unroll 1
    for (int first = 0; first < n; first += kAtOnce) {
      float peaks[kAtOnce], masses[kAtOnce], x[kAtOnce][kOwn] = {};
      float best = peak;
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) {
        peaks[i] = kLowest;
        masses[i] = 0;
        if (first + i >= n) continue;
        const float* part = parts + size_t(first + i) * stride;
        load_of_device(part, peaks[i], masses[i]);
        load_floats(part + kRowFloats + lane * kOwn, x[i]);
      }
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) best = fmaxf(best, peaks[i]);
      const float shrink = fast_exp2(peak - best);
      peak = best;
      mass *= shrink;
#pragma unroll
      for (int c = 0; c < kOwn; ++c) sums[c] *= shrink;
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) {
        const float weight = fast_exp2(peaks[i] - best);
        mass = fmaf(masses[i], weight, mass);
#pragma unroll
        for (int c = 0; c < kOwn; ++c) sums[c] = fmaf(x[i][c], weight, sums[c]);
      }
    }
  }
};

// Partial results of all warps into `space` [n_warps, rows, kPartFloats].
template <int kDim, int kTiles, bool kAny>
__device__ __forceinline__ void share_sums(const Values<kDim, kTiles, kAny>& values, int n_rows,
                                           float* space) {
  constexpr int kRows = kTiles * kColumns;
  const int warp = int(threadIdx.x) / kLanes, lane = int(threadIdx.x) % kLanes;
#pragma unroll
  for (int tile = 0; tile < kTiles; ++tile) {
    float mass = values.mass[tile], floors = values.floors[tile];
#pragma unroll
    for (int step = 4; step < kLanes; step *= 2) {
      mass += __shfl_xor_sync(~0u, mass, step);
      floors += __shfl_xor_sync(~0u, floors, step);
    }
    const int row = tile * kColumns + lane % 4;
    if (row >= n_rows) continue;
    float* part = space + (warp * kRows + row) * kPartFloats<kDim>;
    if (lane < 4) {
      part[0] = values.peak[tile];
      part[1] = mass;
    }
    float* out = part + kRowFloats + lane / 4;
#pragma unroll
    for (int m = 0; m < kFragments<kDim>; ++m) {
      out[m * 16] = values.total[tile][m][0] + floors;
      out[m * 16 + 8] = values.total[tile][m][1] + floors;
    }
  }
  __syncthreads();
}

template <int kDim>
__device__ float* part_of(const Launch& launch, int item, int head, int column) {
  const size_t row =
      (size_t(item) * size_t(launch.args.n_heads) + size_t(head)) * size_t(launch.n_columns) +
      size_t(column);
  return launch.parts + row * kPartFloats<kDim>;
}

// Turns sums back, divides them and stores them.
template <int kDim>
__device__ __forceinline__ void store_row(const Launch& launch, const Task& task, int column,
                                          Row<kDim>& row) {
  constexpr int kOwn = Row<kDim>::kOwn;
  const DecodeArgs& args = launch.args;
  const int lane = int(threadIdx.x) % kLanes;
  if (args.v_hadamard) rotate_row(row.sums, kDim, ~0u);
  float peak = row.peak, mass = row.mass, scale = 1;
  if (args.sinks) {
    const float sink = args.sinks[task.head * args.group + column % args.group] * kLog2E;
    peak = fmaxf(row.peak, sink);
    scale = exp2f(row.peak - peak);
    mass = mass * scale + exp2f(sink - peak);
  }
  const size_t start = row_start(launch, task, column);
  if (args.log_sums && lane == 0)
    args.log_sums[start / size_t(args.dim)] = (peak + log2f(mass)) / kLog2E;
  scale = mass > 0 ? scale / mass : 0.0f;
#pragma unroll
  for (int i = 0; i < kOwn; ++i)
    store_number(args.out, args.out_type, start + size_t(lane * kOwn + i), row.sums[i] * scale);
}

template <int kDim>
__device__ __forceinline__ void store_part(float* part, const Row<kDim>& row) {
  const int lane = int(threadIdx.x) % kLanes;
  if (lane == 0) __stcg(reinterpret_cast<float2*>(part), float2{row.peak, row.mass});
  store_floats(part + kRowFloats + lane * Row<kDim>::kOwn, row.sums);
}

// Whether the block's results, which all of its threads have stored, are the last ones of the
// stream and head.
__device__ __forceinline__ bool last_part(const Launch& launch, const Task& task, int& shared) {
  __syncthreads();
  if (threadIdx.x == 0) {
    const int number = task.item.stream * launch.args.n_heads + task.head;
    int* ticket = launch.tickets + number * int(gridDim.z) + int(blockIdx.z);
    shared = add_in_order_of_device(ticket, 1) == task.item.part_count - 1;
    if (shared) *ticket = 0;  // for the next launch
  }
  __syncthreads();
  return shared;
}

// Merges the results of warps, then, in the last block, those of blocks.
template <int kDim, int kTiles>
__device__ void finish(const Launch& launch, const Task& task, const float* space, int& last) {
  constexpr int kRowsApart = kPartFloats<kDim>;
  const WorkItem& item = task.item;
  const auto part = [&](int index) {
    return part_of<kDim>(launch, index, task.head, task.first_column);
  };
  const auto each_row = [&](auto&& visit) {
#pragma unroll 1
    for (int r = int(threadIdx.x) / kLanes; r < task.n_columns; r += launch.args.n_warps) {
      Row<kDim> row;
      visit(r, row);
    }
  };
  const auto store = [&](int r, Row<kDim>& row) {
    store_row<kDim>(launch, task, task.first_column + r, row);
  };
  each_row([&](int r, Row<kDim>& row) {
    row.template add<kSmallWarps>(space + r * kRowsApart, launch.args.n_warps,
                                  kTiles * kColumns * kRowsApart);
    if (item.part_count <= 1) return store(r, row);
    store_part(part(int(blockIdx.x)) + r * kRowsApart, row);
  });
  if (item.part_count <= 1 || !last_part(launch, task, last)) return;
  each_row([&](int r, Row<kDim>& row) {
    row.template add<kDim <= 128 ? 16 : 8>(
        part(item.part_first) + r * kRowsApart, item.part_count,
        size_t(launch.args.n_heads * launch.n_columns) * kRowsApart);
    store(r, row);
  });
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
