// Rows times the matrix of their head: rotations from files (transform/rotation.hpp). A matrix M
// [dim, dim] stands as kernels read it: number o of a product is the sum of x[k] * M[k][o]. So R
// turned over (turned_over) turns rows, and R itself turns them back.
#pragma once

#include <cmath>
#include <span>
#include <vector>

#include "cuda/grid.hpp"

namespace zipcache::cuda {

// [heads, dim, dim] with rows and columns of each matrix exchanged.
inline std::vector<float> turned_over(std::span<const float> matrices, int dim) {
  const size_t n = size_t(dim);
  std::vector<float> out(matrices.size());
  for (size_t first = 0; first < matrices.size(); first += n * n) {
    for (size_t i = 0; i < n * n; ++i) out[first + i % n * n + i / n] = matrices[first + i];
  }
  return out;
}

// Neighbours at a multiple of their size, or of 16 bytes.
template <int kCount>
ZC_BOTH void load_neighbours(const float* from, float (&to)[kCount]) {
  constexpr int kWide = kCount % 4 == 0 ? 4 : kCount;
  struct alignas(kWide * sizeof(float)) Wide {
    float x[kWide];
  };
  ZC_UNROLL
  for (int i = 0; i < kCount; i += kWide) {
    const Wide wide = *reinterpret_cast<const Wide*>(from + i);
    ZC_UNROLL
    for (int c = 0; c < kWide; ++c) to[i + c] = wide.x[c];
  }
}

// Turning gives the CPU's bits, so its products are rounded; turned back, they are fused.
template <bool kBack>
ZC_BOTH float plus_product(float sum, float a, float b) {
  if constexpr (kBack) return fmaf(a, b, sum);
#ifdef __CUDA_ARCH__
  return __fadd_rn(sum, __fmul_rn(a, b));
#else
  return sum + a * b;
#endif
}

// Adds what one number of each row gives: `rows` are `stride` numbers apart.
template <bool kBack, int kRows, int kOuts>
ZC_BOTH void add_products(const float* rows, int stride, const float* matrix_row,
                          float (&sums)[kRows][kOuts]) {
  float of[kOuts];
  load_neighbours(matrix_row, of);
  ZC_UNROLL
  for (int r = 0; r < kRows; ++r) {
    const float x = rows[r * stride];
    ZC_UNROLL
    for (int o = 0; o < kOuts; ++o) sums[r][o] = plus_product<kBack>(sums[r][o], x, of[o]);
  }
}

// Sums side by side, each of every 8th summand, which are then added up: transform/rotation.cpp.
inline constexpr int kSums = 8;

// kOuts neighbouring numbers of the products of rows [kRows, dim], `stride` numbers apart; `matrix`
// is at the first of these in M's first row.
template <bool kBack, int kRows, int kOuts>
ZC_BOTH void multiply_rows(const float* rows, int stride, int dim, const float* matrix,
                           float (&out)[kRows][kOuts]) {
  ZC_UNROLL
  for (int r = 0; r < kRows; ++r) {
    ZC_UNROLL
    for (int o = 0; o < kOuts; ++o) out[r][o] = 0;
  }
  ZC_KEEP_LOOP
  for (int first = 0; first < kSums; ++first) {
    float sums[kRows][kOuts] = {};
    ZC_UNROLL_4
    for (int k = 0; k < dim; k += kSums)
      add_products<kBack>(rows + first + k, stride, matrix + (first + k) * dim, sums);
    ZC_UNROLL
    for (int r = 0; r < kRows; ++r) {
      ZC_UNROLL
      for (int o = 0; o < kOuts; ++o) out[r][o] += sums[r][o];
    }
  }
}

#ifdef __CUDACC__
inline constexpr int kLaneOuts = 4, kWarpOuts = kLanes / kSums * kLaneOuts;

// The same of few rows, sooner: a warp makes kWarpOuts neighbouring numbers, each lane one of the
// sums of kLaneOuts of them. All lanes whose numbers are the same, l % 4, get what these are.
template <bool kBack, int kRows>
__device__ __forceinline__ void multiply_few_rows(const float* rows, int stride, int dim,
                                                  const float* matrix,
                                                  float (&out)[kRows][kLaneOuts]) {
  constexpr int kAcross = kWarpOuts / kLaneOuts;
  const int lane = int(threadIdx.x) % kLanes, first = lane / kAcross, across = lane % kAcross;
  float sums[kRows][kLaneOuts] = {};
#pragma unroll 8
  for (int k = 0; k < dim; k += kSums)
    add_products<kBack>(rows + first + k, stride, matrix + (first + k) * dim + across * kLaneOuts,
                        sums);
#pragma unroll
  for (int i = 0; i < kRows * kLaneOuts; ++i) {
    float& sum = out[i / kLaneOuts][i % kLaneOuts] = 0;
#pragma unroll
    for (int from = 0; from < kSums; ++from)
      sum += __shfl_sync(~0u, sums[i / kLaneOuts][i % kLaneOuts], from * kAcross + across);
  }
}
#endif

// Rows [kRows, kDim] of a warp's own, turned where they stand. On the host, where lanes come one
// after another, the first does all.
template <int kDim, int kRows>
ZC_BOTH void turn_in_place(float* rows, int stride, const float* matrix, int lane) {
#ifdef __CUDA_ARCH__
  constexpr int kOuts = kDim / kLanes;
#else
  constexpr int kOuts = kDim;
  if (lane > 0) return;
#endif
  float turned[kRows][kOuts];
  multiply_rows<false>(rows, stride, kDim, matrix + lane * kOuts, turned);
#ifdef __CUDA_ARCH__
  __syncwarp();  // all have read
#endif
  ZC_UNROLL
  for (int r = 0; r < kRows; ++r) {
    ZC_UNROLL
    for (int o = 0; o < kOuts; ++o) rows[r * stride + lane * kOuts + o] = turned[r][o];
  }
}

}  // namespace zipcache::cuda
