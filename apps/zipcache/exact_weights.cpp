// A copy of a model with its weights expanded to 32 bits.
#include "exact_weights.hpp"

#include <fmt/format.h>
#include <gguf.h>
#include <llama.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <fstream>
#include <string>

#include "llama_log.hpp"
#include "terminal.hpp"

namespace zipcache::cli {

namespace {

// Bytes that all weights of `model` take at 32 bits each.
uint64_t expanded_bytes(const std::filesystem::path& model) {
  gguf_context* file = gguf_init_from_file(model.c_str(), {.no_alloc = true, .ctx = nullptr});
  if (file == nullptr) return 0;
  uint64_t bytes = 0;
  for (int64_t i = 0; i < gguf_get_n_tensors(file); ++i) {
    const int64_t* size = gguf_get_tensor_ne(file, i);
    bytes += sizeof(float) * static_cast<uint64_t>(size[0] * size[1] * size[2] * size[3]);
  }
  gguf_free(file);
  return bytes;
}

uint64_t free_memory() {
  std::ifstream file("/proc/meminfo");
  for (std::string name; file >> name;) {
    uint64_t kib = 0;
    if (name == "MemAvailable:" && file >> kib) return kib * 1024;
    file.ignore(256, '\n');
  }
  return UINT64_MAX;
}

}  // namespace

MemoryFile::~MemoryFile() {
  if (descriptor_ >= 0) close(descriptor_);
}

std::filesystem::path MemoryFile::path() const {
  return fmt::format("/proc/self/fd/{}", descriptor_);
}

Result<MemoryFile> expand_weights(const std::filesystem::path& model, int n_threads) {
  const uint64_t needed = expanded_bytes(model), free = free_memory();
  // Contexts need memory too; a fifth more leaves room for them.
  if (needed + needed / 5 > free) {
    return Status{Code::OverLimit, fmt::format("--f32-weights: the expanded weights take {}, and "
                                               "{} of memory is free; leave the option "
                                               "out or use a smaller model",
                                               bytes_text(static_cast<double>(needed)),
                                               bytes_text(static_cast<double>(free)))};
  }
  MemoryFile file(memfd_create("zipcache-weights", MFD_CLOEXEC));
  llama_model_quantize_params params = llama_model_quantize_default_params();
  params.ftype = LLAMA_FTYPE_ALL_F32;
  params.allow_requantize = true;
  params.nthread = n_threads;
  if (llama_model_quantize(model.c_str(), file.path().c_str(), &params) == 0) return file;
  const std::string reason = take_llama_errors();
  return Status{Code::Incompatible,
                fmt::format("--f32-weights: llama.cpp cannot expand '{}': {}", model.string(),
                            reason.empty() ? std::strerror(errno) : reason)};
}

}  // namespace zipcache::cli
