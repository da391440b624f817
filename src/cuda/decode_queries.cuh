// Queries on their way to shared memory, where all warps of a block read them.
#pragma once

#include "cuda/decode_warp.cuh"
#include "cuda/hadamard.hpp"

namespace zipcache::cuda {
namespace {

// Operands of queries are below the second, of this exponent at most.
constexpr int kQueryExponent = 5;
constexpr float kQueryTop = 2 << kQueryExponent;

// The queries of a block of threads in shared memory.
template <int kDim, int kTiles>
struct SharedQueries {
  static constexpr int kRows = kTiles * kColumns;
  // Operands of 16-bit products: column 2 r of a tile has query row r rounded to 16 bits, column
  // 2 r + 1 what this leaves over.
  uint4 operands[kTiles * kFragments<kDim> / 2 * kLanes];
  alignas(16) float numbers[kRows][kDim];  // channels in the order of K parameters
  float sums[kRows];
  float units[kRows];  // what products are multiplied with to be scores, logarithms to the base 2
};

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

// First number of a query row of the task's KV head in q and out.
__device__ __forceinline__ size_t row_start(const Launch& launch, const Task& task, int column) {
  const DecodeArgs& args = launch.args;
  const size_t query =
      size_t(task.item.stream) * size_t(args.n_queries) + size_t(column / args.group);
  const size_t head = size_t(task.head * args.group + column % args.group);
  return (query * size_t(args.n_heads * args.group) + head) * size_t(args.dim);
}

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

}  // namespace
}  // namespace zipcache::cuda
