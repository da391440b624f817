// Memory of the current CUDA device that goes with its owner, for host code.
#pragma once

#include <cuda_runtime_api.h>

#include <string_view>
#include <utility>

#include "zipcache/status.hpp"

namespace zipcache::cuda {

// Environment, with CUDA's own words, unless it succeeded.
Status from_cuda(cudaError_t error, std::string_view what);

class DeviceMemory {
 public:
  DeviceMemory() = default;
  DeviceMemory(DeviceMemory&& other) noexcept { swap(other); }
  DeviceMemory& operator=(DeviceMemory&& other) noexcept {
    swap(other);
    return *this;
  }
  ~DeviceMemory() { cudaFree(data_); }

  size_t bytes() const { return bytes_; }
  template <class T>
  T* at(size_t byte = 0) const {
    return reinterpret_cast<T*>(static_cast<uint8_t*>(data_) + byte);
  }

  // Room for `bytes`, all of them 0 in the order of the stream. OverLimit when there is none.
  Status allocate(size_t bytes, cudaStream_t stream);
  // Room for as many, with nothing of what was there; waits for the device where it grows.
  Status grow(size_t bytes, cudaStream_t stream);

 private:
  void swap(DeviceMemory& other) {
    std::swap(data_, other.data_);
    std::swap(bytes_, other.bytes_);
  }

  void* data_ = nullptr;
  size_t bytes_ = 0;
};

}  // namespace zipcache::cuda
