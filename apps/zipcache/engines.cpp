// A model on both engines.
#include "engines.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cstdlib>
#include <utility>

#include "exact_weights.hpp"
#include "places.hpp"
#include "zipcache/policy.hpp"
#include "zipcache/rotations.hpp"
#include "zipcache/token_scores.hpp"

namespace zipcache::cli {

namespace {

Result<CacheFigures> read_our_cache(const Engines& engines, int64_t id) {
  const Result<Json> cache = engines.backend.cache(id);
  if (!cache.ok()) return cache.status();
  const Json seconds = cache->value("seconds", Json::object());
  return CacheFigures{
      .bytes = {cache->value("bytes_allocated", uint64_t{0}),
                cache->value("bytes_peak", uint64_t{0}), cache->value("bytes_planned", uint64_t{0}),
                cache->value("bytes", Json::object())},
      .kv_bytes_f16 = cache->value("elements", uint64_t{0}) * 2,
      .bits_per_element = cache->value("bits_per_element", 0.0),
      .ratio_params = cache->value("ratio_params", 0.0),
      .ratio_resident = cache->value("ratio_resident", 0.0),
      .kernel = cache->value("kernel", ""),
      .seconds = {seconds.value("attention", 0.0), seconds.value("scoring", 0.0),
                  seconds.value("packing", 0.0)}};
}

// Bytes of `n_tokens` in llama.cpp's own cache of the type called `type`.
uint64_t llama_cache_bytes(const ModelFile& about, const std::string& type, int n_tokens) {
  const ggml_type cache = cache_type(type);
  uint64_t bytes = 0;
  for (const LayerShape& layer : about.layers) {
    bytes += ggml_row_size(cache, int64_t{layer.n_heads} * layer.k_dim);
    bytes += ggml_row_size(cache, int64_t{layer.n_heads} * layer.v_dim);
  }
  return bytes * static_cast<uint64_t>(n_tokens);
}

}  // namespace

Result<EngineFiles> find_engine_files(const std::string& model) {
  const auto path = find_model(model);
  if (!path.ok()) return path.status();
  Result<ModelFile> about = read_model_file(*path);
  if (!about.ok()) return about.status();
  const auto backend = find_backend();
  if (!backend.ok()) return backend.status();
  return EngineFiles{*path, *backend, std::move(*about)};
}

Status check_policies(std::span<const PolicyChoice> choices, ScoreFiles files) {
  for (const PolicyChoice& choice : choices) {
    if (!choice.ours()) continue;
    const Result<Policy> policy = parse_policy(choice.text);
    if (!policy.ok()) return policy.status();
    ZC_TRY(check_rotations(*policy));
    ZC_TRY(check_scores_named(*policy));
    if (files == ScoreFiles::Checked || policy->saliency.statistic != Statistic::File) continue;
    return {Code::BadPolicy,
            fmt::format("policy '{}': found score=file, which knows one text from its beginning, "
                        "expected another score; zipcache eval kld and compare read that text",
                        choice.text)};
  }
  return ok();
}

Result<Engines> open_engines(const EngineFiles& files, std::span<const PolicyChoice> choices,
                             const EngineOptions& options) {
  // Read by the backend when it is loaded: what it plans its buffers for. The user's own value
  // stands.
  setenv("ZIPCACHE_UBATCH", fmt::format("{}", options.ubatch).c_str(), 0);
  // These commands measure what the backend's own check can only guess.
  setenv("ZIPCACHE_CHECK", "0", 0);
  if (!options.verbose) setenv("ZIPCACHE_LOG", "quiet", 0);
  Result<Backend> backend = Backend::load(files.backend);
  if (!backend.ok()) return backend.status();
  std::filesystem::path path = files.model;
  MemoryFile expanded;
  if (options.f32_weights) {
    Result<MemoryFile> file = expand_weights(files.model, options.threads);
    if (!file.ok()) return file.status();
    expanded = std::move(*file);
    path = expanded.path();
  }
  Result<Model> served = load_model(path, backend->device());
  if (!served.ok()) return served.status();
  Engines engines{*backend, std::move(*served), nullptr};
  const bool needs_plain =
      std::any_of(choices.begin(), choices.end(), [](const PolicyChoice& c) { return !c.ours(); });
  if (needs_plain) {
    Result<Model> plain = load_model(path, nullptr);
    if (!plain.ok()) return plain.status();
    engines.plain = std::move(*plain);
  }
  return engines;
}

Result<PolicyContext> open_policy_context(const Engines& engines, const PolicyChoice& choice,
                                          ContextOptions options) {
  if (choice.ours()) {
    ZC_TRY(engines.backend.set_policy(choice.text));
  } else {
    options.cache_type = cache_type(choice.llama_type);
  }
  llama_model* model = choice.ours() ? engines.served.get() : engines.plain.get();
  Result<Context> context = open_context(model, options, choice.text);
  if (!context.ok()) return context.status();
  PolicyContext opened{choice, std::move(*context)};
  if (choice.ours()) {
    const Result<Json> cache = engines.backend.newest_cache();
    if (!cache.ok()) return cache.status();
    opened.cache_id = cache->value("id", int64_t{-1});
  }
  return opened;
}

void warn_about_length(int n_tokens, const ModelFile& about) {
  if (about.trained_ctx == 0 || n_tokens <= about.trained_ctx) return;
  fmt::print(stderr,
             "zipcache: warning: {} tokens are more than the {} that {} was trained for; expect "
             "poor text\n",
             n_tokens, about.trained_ctx, about.name);
}

std::string weights_text(llama_ftype weights, bool expanded) {
  return expanded ? "expanded to 32 bits" : llama_ftype_name(weights);
}

Result<CacheFigures> read_cache(const Engines& engines, const PolicyContext& opened,
                                const ModelFile& about, int n_tokens) {
  if (opened.choice.ours()) return read_our_cache(engines, opened.cache_id);
  const std::string& type = opened.choice.llama_type;
  const uint64_t now = llama_cache_bytes(about, type, n_tokens);
  // llama.cpp allocates all cells when the context is made.
  const uint64_t all =
      llama_cache_bytes(about, type, static_cast<int>(llama_n_ctx(opened.context.get())));
  const uint64_t f16 = about.elements_per_token() * n_tokens * 2;
  const double ratio = static_cast<double>(f16) / static_cast<double>(now);
  return CacheFigures{.bytes = {now, all, all, Json{{"llama_cpp", now}}},
                      .kv_bytes_f16 = f16,
                      .bits_per_element = 16 / ratio,
                      .ratio_params = ratio,
                      .ratio_resident = ratio,
                      .kernel = "ggml"};
}

}  // namespace zipcache::cli
