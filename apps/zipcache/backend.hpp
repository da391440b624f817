// The backend library libggml-zipcache.so, loaded into llama.cpp's registry, and the functions that
// it offers by name.
//
// Thread safety: one thread at a time.
#pragma once

#include <ggml-backend.h>

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "table.hpp"
#include "zipcache/status.hpp"
#include "zipcache/token_scores.hpp"

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

  // What each of `layers` has kept of the attention that its first `n_tokens` cells received.
  Result<std::vector<TokenScores::Layer>> scores(int64_t id, const std::vector<LayerShape>& layers,
                                                 int n_tokens) const;

  // Every ZIPCACHE_* variable: name, value, default, help.
  Result<Json> settings() const;

  ggml_backend_dev_t device() const { return device_; }

 private:
  using SetPolicy = int (*)(const char* text, char* error, size_t error_size);
  using WriteJson = size_t (*)(char* out, size_t size);
  using ReadScores = int (*)(int id, int layer, int n_cells, float* sums, uint32_t* seen,
                             char* error, size_t error_size);

  static Result<Json> read(WriteJson write, const char* what);

  ggml_backend_dev_t device_ = nullptr;
  SetPolicy set_policy_ = nullptr;
  ReadScores read_scores_ = nullptr;
  WriteJson stats_ = nullptr;
  WriteJson settings_ = nullptr;
};

}  // namespace zipcache::cli
