// What a GGUF file says about a model's cache, read from its metadata without loading the model.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "zipcache/cache.hpp"
#include "zipcache/status.hpp"

namespace zipcache::cli {

struct ModelFile {
  std::string name;                // general.name, or the file's
  std::string architecture;        // llama, qwen3, ...
  int trained_ctx = 0;             // 0 when the file does not say
  std::vector<LayerShape> layers;  // those that keep keys and values

  // K and V numbers of one token over all layers.
  uint64_t elements_per_token() const;
};

// Fails with BadData when the file is damaged or cut short, and with Incompatible when its cache is
// not one of keys and values per head.
Result<ModelFile> read_model_file(const std::filesystem::path& path);

}  // namespace zipcache::cli
