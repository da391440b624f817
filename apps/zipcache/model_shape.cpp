// The shape of a model's cache.
#include "model_shape.hpp"

#include <fmt/format.h>

#include "model_file.hpp"
#include "places.hpp"

namespace zipcache::cli {

void add_shape_options(CLI::App& command, ShapeOptions& options) {
  CLI::Option* model = command.add_option("-m,--model", options.model, "GGUF file, or smollm2");
  const auto number = [&](const char* name, int& value, const char* help) {
    command.add_option(name, value, help)
        ->check(CLI::Range(1, 1 << 16))
        ->capture_default_str()
        ->excludes(model);
  };
  number("--layers", options.n_layers, "layers, without -m");
  number("--heads", options.n_heads, "KV heads of a layer, without -m");
  number("--head-dim", options.head_dim, "channels of a head, without -m");
}

Result<ModelShape> find_shape(const ShapeOptions& options) {
  if (options.model.empty()) {
    const LayerShape layer{options.n_heads, options.head_dim, options.head_dim};
    return ModelShape{fmt::format("{} layers of {} KV heads of {} channels", options.n_layers,
                                  options.n_heads, options.head_dim),
                      std::vector<LayerShape>(static_cast<size_t>(options.n_layers), layer)};
  }
  const auto path = find_model(options.model);
  if (!path.ok()) return path.status();
  const Result<ModelFile> file = read_model_file(*path);
  if (!file.ok()) return file.status();
  return ModelShape{
      fmt::format("{} ({}), {} layers", file->name, file->architecture, file->layers.size()),
      file->layers};
}

}  // namespace zipcache::cli
