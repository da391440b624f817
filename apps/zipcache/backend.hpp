// The backend library libggml-zipcache.so, loaded into llama.cpp's registry, and the functions that
// it offers by name.
//
// Thread safety: one thread at a time.
#pragma once

#include <ggml-backend.h>

#include <cstdint>
#include <filesystem>
#include <string>

#include "table.hpp"
#include "zipcache/status.hpp"

namespace zipcache::cli {

class Backend {
 public:
  // Loads `path`. Fails with Incompatible and llama.cpp's own reason when it refuses.
  static Result<Backend> load(const std::filesystem::path& path);

  // Caches created from now on follow `text`.
  Status set_policy(const std::string& text) const;

  // Statistics of the cache created last, and of the one with this `id`.
  Result<Json> newest_cache() const;
  Result<Json> cache(int64_t id) const;

  // Every ZIPCACHE_* variable: name, value, default, help.
  Result<Json> settings() const;

  ggml_backend_dev_t device() const { return device_; }

 private:
  using SetPolicy = int (*)(const char* text, char* error, size_t error_size);
  using WriteJson = size_t (*)(char* out, size_t size);

  static Result<Json> read(WriteJson write, const char* what);

  ggml_backend_dev_t device_ = nullptr;
  SetPolicy set_policy_ = nullptr;
  WriteJson stats_ = nullptr;
  WriteJson settings_ = nullptr;
};

}  // namespace zipcache::cli
