// The shape of a model's cache, from its file or from numbers: what commands ask for that only do
// arithmetic.
#pragma once

#include <CLI/CLI.hpp>
#include <string>
#include <vector>

#include "zipcache/cache.hpp"
#include "zipcache/status.hpp"

namespace zipcache::cli {

struct ShapeOptions {
  std::string model;
  int n_layers = 32, n_heads = 8, head_dim = 128;
};

struct ModelShape {
  std::string subject;  // in words
  std::vector<LayerShape> layers;
};

// Adds -m, or --layers, --heads and --head-dim.
void add_shape_options(CLI::App& command, ShapeOptions& options);

Result<ModelShape> find_shape(const ShapeOptions& options);

}  // namespace zipcache::cli
