// What a GGUF file says about a model's cache.
#include "model_file.hpp"

#include <fmt/format.h>
#include <gguf.h>

#include <algorithm>
#include <memory>
#include <optional>

#include "llama_log.hpp"

namespace zipcache::cli {

namespace {

struct GgufFree {
  void operator()(gguf_context* file) const { gguf_free(file); }
};
using Gguf = std::unique_ptr<gguf_context, GgufFree>;

// The getters of gguf.h abort on another type than the one stored, so the type is looked up first.
std::optional<int64_t> integer(const gguf_context* file, int64_t key) {
  switch (gguf_get_kv_type(file, key)) {
    case GGUF_TYPE_UINT8:
      return gguf_get_val_u8(file, key);
    case GGUF_TYPE_INT8:
      return gguf_get_val_i8(file, key);
    case GGUF_TYPE_UINT16:
      return gguf_get_val_u16(file, key);
    case GGUF_TYPE_INT16:
      return gguf_get_val_i16(file, key);
    case GGUF_TYPE_UINT32:
      return gguf_get_val_u32(file, key);
    case GGUF_TYPE_INT32:
      return gguf_get_val_i32(file, key);
    case GGUF_TYPE_UINT64:
      return static_cast<int64_t>(gguf_get_val_u64(file, key));
    case GGUF_TYPE_INT64:
      return gguf_get_val_i64(file, key);
    default:
      return std::nullopt;
  }
}

// Element `index` of an array of 32-bit numbers.
std::optional<int64_t> array_integer(const gguf_context* file, int64_t key, size_t index) {
  const gguf_type type = gguf_get_arr_type(file, key);
  if (index >= gguf_get_arr_n(file, key) || (type != GGUF_TYPE_UINT32 && type != GGUF_TYPE_INT32)) {
    return std::nullopt;
  }
  return static_cast<const int32_t*>(gguf_get_arr_data(file, key))[index];
}

std::string text(const gguf_context* file, const char* name) {
  const int64_t key = gguf_find_key(file, name);
  if (key < 0 || gguf_get_kv_type(file, key) != GGUF_TYPE_STRING) return "";
  return gguf_get_val_str(file, key);
}

// Reads the fields of one architecture.
struct Fields {
  const gguf_context* file;
  std::string architecture;

  // A number that may be given once, or once a layer.
  std::optional<int64_t> get(const char* name, size_t layer = 0) const {
    const int64_t key = gguf_find_key(file, fmt::format("{}.{}", architecture, name).c_str());
    if (key < 0) return std::nullopt;
    return gguf_get_kv_type(file, key) == GGUF_TYPE_ARRAY ? array_integer(file, key, layer)
                                                          : integer(file, key);
  }
};

// Weights lie behind the metadata; a download that broke off has fewer bytes than they need.
Status check_length(const gguf_context* file, const std::filesystem::path& path) {
  uint64_t needed = gguf_get_data_offset(file);
  for (int64_t i = 0; i < gguf_get_n_tensors(file); ++i) {
    needed = std::max(needed, uint64_t{gguf_get_data_offset(file)} +
                                  gguf_get_tensor_offset(file, i) + gguf_get_tensor_size(file, i));
  }
  std::error_code error;
  const uint64_t found = std::filesystem::file_size(path, error);
  if (error || found >= needed) return ok();
  return {Code::BadData,
          fmt::format("--model: '{}' is cut short: found {} bytes, expected {}; fetch it again",
                      path.string(), found, needed)};
}

Status missing(const std::filesystem::path& path, const std::string& field) {
  return {Code::Incompatible,
          fmt::format("--model: '{}' has no field {}, which a model with a key-value cache has",
                      path.string(), field)};
}

Result<std::vector<LayerShape>> layer_shapes(const Fields& fields,
                                             const std::filesystem::path& path) {
  const auto blocks = fields.get("block_count");
  if (!blocks || *blocks < 1 || *blocks > 100000)
    return missing(path, fields.architecture + ".block_count");
  if (fields.get("attention.kv_lora_rank")) {
    return Status{
        Code::Incompatible,
        fmt::format(
            "--model: '{}' ({}) keeps one latent row for all heads; only caches of keys and "
            "values per head can be compressed",
            path.string(), fields.architecture)};
  }
  std::vector<LayerShape> layers;
  for (int64_t layer = 0; layer < *blocks; ++layer) {
    const auto heads = fields.get("attention.head_count", layer);
    const auto kv_heads = fields.get("attention.head_count_kv", layer);
    const auto width = fields.get("embedding_length");
    const int64_t n_heads = kv_heads.value_or(heads.value_or(0));
    const int64_t dim = heads && *heads > 0 && width ? *width / *heads : 0;
    const int64_t k_dim = fields.get("attention.key_length").value_or(dim);
    const int64_t v_dim = fields.get("attention.value_length").value_or(dim);
    if (n_heads == 0) continue;  // a recurrent layer of a hybrid model
    if (n_heads < 0 || k_dim <= 0 || v_dim <= 0)
      return missing(path, fields.architecture + ".attention.head_count");
    layers.push_back({static_cast<int>(n_heads), static_cast<int>(k_dim), static_cast<int>(v_dim)});
  }
  if (layers.empty()) return missing(path, fields.architecture + ".attention.head_count");
  return layers;
}

}  // namespace

uint64_t ModelFile::elements_per_token() const {
  uint64_t elements = 0;
  for (const LayerShape& layer : layers)
    elements += uint64_t(layer.n_heads) * (layer.k_dim + layer.v_dim);
  return elements;
}

Result<ModelFile> read_model_file(const std::filesystem::path& path) {
  const Gguf file(gguf_init_from_file(path.c_str(), {.no_alloc = true, .ctx = nullptr}));
  if (!file) {
    const std::string reason = take_llama_errors();
    return Status{Code::BadData,
                  fmt::format("--model: '{}' is a damaged GGUF file: {}; fetch it again",
                              path.string(), reason.empty() ? "unreadable metadata" : reason)};
  }
  ZC_TRY(check_length(file.get(), path));
  const Fields fields{file.get(), text(file.get(), "general.architecture")};
  if (fields.architecture.empty()) return missing(path, "general.architecture");
  Result<std::vector<LayerShape>> layers = layer_shapes(fields, path);
  if (!layers.ok()) return layers.status();
  const std::string name = text(file.get(), "general.name");
  return ModelFile{name.empty() ? path.stem().string() : name, fields.architecture,
                   static_cast<int>(fields.get("context_length").value_or(0)), *layers};
}

}  // namespace zipcache::cli
