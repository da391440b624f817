// Results of warps and blocks: merged, turned back, divided and stored.
#pragma once

#include <cuda_bf16.h>

#include "cuda/decode_queries.cuh"
#include "cuda/decode_values.cuh"

namespace zipcache::cuda {
namespace {

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

}  // namespace
}  // namespace zipcache::cuda
