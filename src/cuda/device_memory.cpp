#include "cuda/device_memory.hpp"

#include <fmt/format.h>

namespace zipcache::cuda {

Status from_cuda(cudaError_t error, std::string_view what) {
  if (error == cudaSuccess) return ok();
  return {Code::Environment, fmt::format("CUDA: {} failed: {} ({})", what,
                                         cudaGetErrorString(error), cudaGetErrorName(error))};
}

Status DeviceMemory::allocate(size_t bytes, cudaStream_t stream) {
  *this = DeviceMemory();
  if (bytes == 0) return ok();
  if (const cudaError_t error = cudaMalloc(&data_, bytes); error != cudaSuccess) {
    data_ = nullptr;
    cudaGetLastError();  // so that the next call does not report it again
    const Status status = from_cuda(error, fmt::format("taking {} MiB", bytes >> 20));
    const bool full = error == cudaErrorMemoryAllocation;
    return full ? Status(Code::OverLimit, status.message()) : status;
  }
  bytes_ = bytes;
  return from_cuda(cudaMemsetAsync(data_, 0, bytes, stream), "clearing memory");
}

Status DeviceMemory::grow(size_t bytes, cudaStream_t stream) {
  return bytes <= bytes_ ? ok() : allocate(bytes + bytes / 2, stream);
}

}  // namespace zipcache::cuda
