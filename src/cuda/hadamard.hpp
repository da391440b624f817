// Hadamard's rotation of rows (transform/hadamard.hpp) by threads that hold neighbouring channels.
#pragma once

#include "cuda/record.hpp"

namespace zipcache::cuda {

// Sums and differences of numbers 1, 2, 4 .. kCount / 2 apart.
template <int kCount>
ZC_BOTH void add_and_subtract(float (&x)[kCount]) {
  ZC_UNROLL
  for (int width = 1; width < kCount; width *= 2) {
    ZC_UNROLL
    for (int i = 0; i < kCount; ++i) {
      if (i & width) continue;
      const float a = x[i], b = x[i + width];
      x[i] = a + b;
      x[i + width] = a - b;
    }
  }
}

#ifdef __CUDACC__
// Sums and differences of a row of `dim` numbers of which each of dim / kOwn neighbouring lanes
// holds kOwn neighbours; all of these lanes come here, and `lanes` has a bit for each. In the order
// of transform/hadamard.cpp, which divides by the root of `dim` after it.
template <int kOwn>
__device__ __forceinline__ void add_and_subtract_row(float (&x)[kOwn], int dim, unsigned lanes) {
  const int lane = int(threadIdx.x) % kLanes;
  add_and_subtract(x);
#pragma unroll 1
  for (int step = 1; step < dim / kOwn; step *= 2) {
#pragma unroll
    for (int i = 0; i < kOwn; ++i) {
      const float other = __shfl_xor_sync(lanes, x[i], step);
      x[i] = lane & step ? other - x[i] : x[i] + other;
    }
  }
}

// The same row rotated.
template <int kOwn>
__device__ __forceinline__ void rotate_row(float (&x)[kOwn], int dim, unsigned lanes) {
  add_and_subtract_row(x, dim, lanes);
  const float norm = rsqrtf(float(dim));
#pragma unroll
  for (int i = 0; i < kOwn; ++i) x[i] *= norm;
}
#endif

}  // namespace zipcache::cuda
