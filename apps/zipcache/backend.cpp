// The backend library libggml-zipcache.so.
#include "backend.hpp"

#include <fmt/format.h>

#include <array>
#include <vector>

#include "llama_log.hpp"
#include "zipcache/cache.hpp"

namespace zipcache::cli {

namespace {

constexpr const char* kRegistry = "ZipCache";
constexpr const char* kDevice = "ZipCache0";

Code code_of(int exit_status) {
  for (const CodeInfo& row : kCodes) {
    if (row.exit_status == exit_status) return row.code;
  }
  return Code::Internal;
}

Status refused(const std::filesystem::path& path, const std::string& fallback) {
  const std::string reason = take_llama_errors();
  return {Code::Incompatible, fmt::format("backend '{}' was not loaded: {}; run zipcache doctor -v",
                                          path.string(), reason.empty() ? fallback : reason)};
}

// Functions come from the registry as untyped pointers.
template <class Function>
Function find(ggml_backend_reg_t registry, const char* name) {
  return reinterpret_cast<Function>(ggml_backend_reg_get_proc_address(registry, name));
}

}  // namespace

Result<Backend> Backend::load(const std::filesystem::path& path) {
  // A wrong ZIPCACHE_ISA makes the backend refuse to load; asked here, the reason is ours to tell.
  const Result<std::string> kernel = kernel_name();
  if (!kernel.ok()) return kernel.status();
  ggml_backend_reg_t registry = ggml_backend_reg_by_name(kRegistry);
  if (registry == nullptr) registry = ggml_backend_load(path.c_str());
  if (registry == nullptr) return refused(path, "llama.cpp gave no reason");

  Backend backend;
  backend.device_ = ggml_backend_dev_by_name(kDevice);
  if (backend.device_ == nullptr)
    return refused(path, fmt::format("it offers no device {}", kDevice));
  backend.set_policy_ = find<SetPolicy>(registry, "zipcache_set_policy");
  backend.read_scores_ = find<ReadScores>(registry, "zipcache_read_scores");
  backend.stats_ = find<WriteJson>(registry, "zipcache_stats_json");
  backend.settings_ = find<WriteJson>(registry, "zipcache_settings_json");
  if (backend.set_policy_ == nullptr || backend.read_scores_ == nullptr ||
      backend.stats_ == nullptr || backend.settings_ == nullptr) {
    return refused(path, "it is of another version than this program; build both together");
  }
  return backend;
}

Status Backend::set_policy(const std::string& text) const {
  std::array<char, 1024> error{};
  const int exit_status = set_policy_(text.c_str(), error.data(), error.size());
  if (exit_status == 0) return ok();
  return {code_of(exit_status), error.data()};
}

Result<Json> Backend::read(WriteJson write, const char* what) {
  std::vector<char> buffer(write(nullptr, 0) + 1);
  // Numbers may grow by a digit between the two calls.
  size_t needed = write(buffer.data(), buffer.size());
  while (needed >= buffer.size()) {
    buffer.resize(needed + 64);
    needed = write(buffer.data(), buffer.size());
  }
  Json value = Json::parse(buffer.data(), nullptr, false);
  if (!value.is_array()) {
    return Status{Code::Internal, fmt::format("the backend's {} are not a JSON array", what)};
  }
  return value;
}

Result<Json> Backend::newest_cache() const {
  Result<Json> caches = read(stats_, "statistics");
  if (!caches.ok()) return caches;
  if (caches->empty()) {
    return Status{
        Code::Incompatible,
        "the backend serves no cache: llama.cpp kept the cache of this model elsewhere; run again "
        "with -v and read its messages"};
  }
  return Json(caches->back());
}

Result<Json> Backend::cache(int64_t id) const {
  Result<Json> caches = read(stats_, "statistics");
  if (!caches.ok()) return caches;
  for (const Json& cache : *caches) {
    if (cache.value("id", int64_t{-1}) == id) return Json(cache);
  }
  return Status{Code::Internal, fmt::format("the backend lost cache {}", id)};
}

Result<std::vector<TokenScores::Layer>> Backend::scores(int64_t id,
                                                        const std::vector<LayerShape>& layers,
                                                        int n_tokens) const {
  std::vector<TokenScores::Layer> out;
  const auto n = static_cast<size_t>(n_tokens);
  for (const LayerShape& shape : layers) {
    TokenScores::Layer layer{shape.n_heads, std::vector<uint32_t>(n),
                             std::vector<float>(n * static_cast<size_t>(shape.n_heads))};
    std::array<char, 1024> error{};
    const int exit_status =
        read_scores_(static_cast<int>(id), static_cast<int>(out.size()), n_tokens,
                     layer.sums.data(), layer.seen.data(), error.data(), error.size());
    if (exit_status != 0) return Status{code_of(exit_status), error.data()};
    out.push_back(std::move(layer));
  }
  return out;
}

Result<Json> Backend::settings() const { return read(settings_, "settings"); }

}  // namespace zipcache::cli
