#include "cuda/bandwidth.hpp"

#include <cuda_runtime_api.h>

namespace zipcache::cuda {
namespace {

constexpr int kThreads = 512, kEach = 4;

__global__ void __launch_bounds__(kThreads) copy_kernel(uint4* to, const uint4* from, size_t n) {
  const size_t first = size_t(blockIdx.x) * kThreads * kEach + threadIdx.x;
  uint4 held[kEach];
#pragma unroll
  for (int i = 0; i < kEach; ++i) {
    if (first + size_t(i) * kThreads < n) held[i] = __ldcs(from + first + size_t(i) * kThreads);
  }
#pragma unroll
  for (int i = 0; i < kEach; ++i) {
    if (first + size_t(i) * kThreads < n) __stcs(to + first + size_t(i) * kThreads, held[i]);
  }
}

}  // namespace

Status copy_memory(void* to, const void* from, size_t bytes, cudaStream_t stream) {
  const size_t n = bytes / sizeof(uint4), each = size_t(kThreads) * kEach;
  if (n > 0)
    copy_kernel<<<unsigned((n + each - 1) / each), kThreads, 0, stream>>>(
        static_cast<uint4*>(to), static_cast<const uint4*>(from), n);
  const cudaError_t error = cudaGetLastError();
  if (error == cudaSuccess) return ok();
  return {Code::Environment, cudaGetErrorString(error)};
}

}  // namespace zipcache::cuda
