// The step at hand of a GPU's cache: which tokens come, and its plan on the way to the device.
#pragma once

#include <algorithm>
#include <cstring>
#include <span>
#include <vector>

#include "cuda/device_memory.hpp"
#include "cuda/schedule.hpp"

namespace zipcache::cuda {

// Data of a step on its way to the device: one copy for all of it.
class Parcel {
 public:
  void clear() { host_.clear(); }
  // Where these will be, in bytes from the parcel's begin.
  template <class T>
  size_t add(std::span<const T> items) {
    const size_t at = (host_.size() + 15) / 16 * 16;
    host_.resize(at + items.size_bytes());
    if (!items.empty()) std::memcpy(host_.data() + at, items.data(), items.size_bytes());
    return at;
  }
  template <class T>
  size_t add(const std::vector<T>& items) {
    return add(std::span<const T>(items));
  }
  // What is on the device before is read by then, in the order of the stream.
  Status send(cudaStream_t stream) {
    ZC_TRY(device_.grow(std::max<size_t>(host_.size(), 1), stream));
    return from_cuda(cudaMemcpyAsync(device_.at<void>(), host_.data(), host_.size(),
                                     cudaMemcpyHostToDevice, stream),
                     "sending a step's plan");
  }
  template <class T>
  const T* at(size_t byte) const {
    return device_.at<const T>(byte);
  }

 private:
  std::vector<uint8_t> host_;
  DeviceMemory device_;
};

struct CacheStep {
  std::vector<int> n_new;  // [n_streams]; none where no step was begun
  int most_new = 0;        // of a stream
  Parcel parcel;
  size_t n_new_at = 0, visible_at = 0;  // [n_streams] n_new, and what the first query sees

  // Attended to as a prompt.
  bool is_long() const { return most_new > kMostStepTokens; }
};

}  // namespace zipcache::cuda
