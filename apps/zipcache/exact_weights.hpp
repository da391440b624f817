// A copy of a model with its weights expanded to 32 bits, in memory.
//
// With quantized weights llama.cpp rounds activations to 8 bits before every multiplication; the
// tiniest change in the cache then flips roundings, and that noise hides what the cache itself
// does.
#pragma once

#include <filesystem>
#include <utility>

#include "zipcache/status.hpp"

namespace zipcache::cli {

// A file without a name, which is gone when its last user is.
class MemoryFile {
 public:
  explicit MemoryFile(int descriptor = -1) : descriptor_(descriptor) {}
  ~MemoryFile();
  MemoryFile(MemoryFile&& other) noexcept : descriptor_(std::exchange(other.descriptor_, -1)) {}
  MemoryFile& operator=(MemoryFile&& other) noexcept {
    std::swap(descriptor_, other.descriptor_);
    return *this;
  }

  // Opens like any path, in this process only.
  std::filesystem::path path() const;

 private:
  int descriptor_;
};

// Expands `model`. Fails with OverLimit when the memory that is free does not hold it.
Result<MemoryFile> expand_weights(const std::filesystem::path& model, int n_threads);

}  // namespace zipcache::cli
