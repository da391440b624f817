// Files of rotations (docs/formats.md): checked as a whole before a number of them is used.
#include <fmt/format.h>

#include <cerrno>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <fstream>

#define XXH_INLINE_ALL
#include <xxhash.h>

#include "base/number_reader.hpp"
#include "zipcache/rotations.hpp"

namespace zipcache {
namespace {

constexpr std::string_view kMagic = "ZCROTATE";
constexpr uint32_t kVersion = 1;
constexpr uint32_t kMostLayers = 4096;
constexpr uint32_t kMostAbout = 64 * 1024;
constexpr size_t kSumBytes = sizeof(uint64_t);
constexpr const char* kRemake = "make it again with zipcache fit-rotations";

size_t matrix_numbers(int n_heads, int dim) { return size_t(n_heads) * size_t(dim) * size_t(dim); }
size_t k_numbers(const LayerShape& shape) { return matrix_numbers(shape.n_heads, shape.k_dim); }
size_t v_numbers(const LayerShape& shape) { return matrix_numbers(shape.n_heads, shape.v_dim); }

uint64_t sum_of(std::string_view bytes) { return XXH3_64bits(bytes.data(), bytes.size()); }

// Largest place of |m m' - 1|, infinite for numbers that are none.
float distance_from_orthogonal(const float* m, int dim) {
  float worst = 0;
  for (int i = 0; i < dim; ++i) {
    for (int j = 0; j <= i; ++j) {
      double dot = 0;
      for (int c = 0; c < dim; ++c) dot += double(m[i * dim + c]) * m[j * dim + c];
      const float off = float(std::fabs(dot - (i == j ? 1.0 : 0.0)));
      if (!(off <= worst)) worst = std::isfinite(off) ? off : INFINITY;
    }
  }
  return worst;
}

Status check_side(const std::vector<float>& matrices, int n_heads, int dim,
                  const std::string& where) {
  if (matrices.size() != matrix_numbers(n_heads, dim)) {
    return {Code::BadData, fmt::format("{}: {} numbers, expected {} matrices of {} x {}", where,
                                       matrices.size(), n_heads, dim, dim)};
  }
  for (int head = 0; head < n_heads; ++head) {
    const float off = distance_from_orthogonal(matrices.data() + matrix_numbers(head, dim), dim);
    if (off <= kRotationTolerance) continue;
    return {Code::BadData,
            fmt::format("{}, head {}: the matrix is not orthogonal: its rows' products differ from "
                        "those of unit vectors by {:.2g}, expected at most {:g}",
                        where, head, off, kRotationTolerance)};
  }
  return ok();
}

bool no_cache(const LayerShape& shape) { return shape == LayerShape{}; }

// The description, and each layer's shape.
bool read_head(NumberReader& reader, Rotations& rotations) {
  uint32_t sizes[2];  // layers, bytes of the description
  if (!reader.take(sizes, 2) || sizes[0] > kMostLayers || sizes[1] > kMostAbout) return false;
  if (!reader.take(rotations.about, sizes[1])) return false;
  for (uint32_t i = 0; i < sizes[0]; ++i) {
    uint32_t shape[3];
    if (!reader.take(shape, 3) || shape[0] > 1024 || shape[1] > 256 || shape[2] > 256) return false;
    rotations.layers.push_back({{int(shape[0]), int(shape[1]), int(shape[2])}, {}, {}});
  }
  return true;
}

bool read_matrices(NumberReader& reader, Rotations& rotations) {
  size_t n = 0;
  for (const LayerRotations& layer : rotations.layers)
    n += k_numbers(layer.shape) + v_numbers(layer.shape);
  if (reader.left() != n * sizeof(float)) return false;
  for (LayerRotations& layer : rotations.layers) {
    if (!reader.take(layer.k, k_numbers(layer.shape)) ||
        !reader.take(layer.v, v_numbers(layer.shape)))
      return false;
  }
  return true;
}

Result<Rotations> parse(std::string_view bytes) {
  const auto damaged = [](const std::string& what) {
    return Status{Code::BadData, fmt::format("{}; {}", what, kRemake)};
  };
  if (!bytes.starts_with(kMagic))
    return damaged("not a file of rotations: it does not begin with ZCROTATE");
  NumberReader reader(bytes.substr(kMagic.size()));
  uint32_t version = 0;
  if (!reader.take(&version, 1)) return damaged("the file ends in its head");
  if (version != kVersion)
    return damaged(fmt::format("version {}, this program reads {}", version, kVersion));
  if (bytes.size() < kMagic.size() + sizeof version + kSumBytes)
    return damaged("the file ends in its head");
  uint64_t sum = 0;
  std::memcpy(&sum, bytes.data() + bytes.size() - kSumBytes, kSumBytes);
  if (sum != sum_of(bytes.substr(0, bytes.size() - kSumBytes))) {
    return damaged("the check sum is not that of the content: the file is damaged or cut off");
  }
  Rotations rotations;
  reader = NumberReader(bytes.substr(kMagic.size() + sizeof version,
                                     bytes.size() - kMagic.size() - sizeof version - kSumBytes));
  if (!read_head(reader, rotations) || !read_matrices(reader, rotations))
    return damaged("the content does not have the size that its head says");
  const Status status = check(rotations);
  if (!status.ok()) return damaged(status.message());
  return rotations;
}

Result<std::string> content_of(const std::string& path) {
  std::error_code error;
  const bool regular = std::filesystem::is_regular_file(path, error);
  std::ifstream file(path, std::ios::binary);
  if (!regular || !file) {
    return Status{
        Code::Environment,
        fmt::format("cannot be read: {}; give the path of a file that zipcache fit-rotations wrote",
                    regular ? std::strerror(errno) : "no such file")};
  }
  return std::string(std::istreambuf_iterator<char>(file), {});
}

// Models with two kinds of attention have a cache for each, with gaps between its layers' numbers.
bool has_all_layers(const CacheShape& shape) {
  return shape.number(shape.layers.size() - 1) == int(shape.layers.size()) - 1;
}

}  // namespace

Status check(const Rotations& rotations) {
  if (rotations.layers.empty() || rotations.layers.size() > kMostLayers) {
    return {Code::BadData,
            fmt::format("{} layers, expected 1 to {}", rotations.layers.size(), kMostLayers)};
  }
  if (rotations.about.size() > kMostAbout)
    return {Code::BadData, fmt::format("a description of {} bytes, expected at most {}",
                                       rotations.about.size(), kMostAbout)};
  for (size_t i = 0; i < rotations.layers.size(); ++i) {
    const auto& [shape, k, v] = rotations.layers[i];
    const std::string where = fmt::format("layer {}", i);
    if (!no_cache(shape)) {
      const Status status = check(CacheShape{1, 1, {shape}});
      if (!status.ok()) return {Code::BadData, fmt::format("{}: {}", where, status.message())};
    }
    ZC_TRY(check_side(k, shape.n_heads, shape.k_dim, where + ", K"));
    ZC_TRY(check_side(v, shape.n_heads, shape.v_dim, where + ", V"));
  }
  return ok();
}

Status save_rotations(const std::string& path, const Rotations& rotations) {
  ZC_TRY(check(rotations));
  std::string bytes(kMagic);
  const uint32_t head[] = {kVersion, uint32_t(rotations.layers.size()),
                           uint32_t(rotations.about.size())};
  append_numbers(bytes, head, 3);
  bytes += rotations.about;
  for (const LayerRotations& layer : rotations.layers) {
    const uint32_t shape[] = {uint32_t(layer.shape.n_heads), uint32_t(layer.shape.k_dim),
                              uint32_t(layer.shape.v_dim)};
    append_numbers(bytes, shape, 3);
  }
  for (const LayerRotations& layer : rotations.layers) {
    append_numbers(bytes, layer.k.data(), layer.k.size());
    append_numbers(bytes, layer.v.data(), layer.v.size());
  }
  const uint64_t sum = sum_of(bytes);
  append_numbers(bytes, &sum, 1);
  std::ofstream file(path, std::ios::binary);
  file.write(bytes.data(), std::streamsize(bytes.size()));
  file.close();
  if (file) return ok();
  return {Code::Environment, fmt::format("cannot write '{}': {}", path, std::strerror(errno))};
}

Result<Rotations> load_rotations(const std::string& path) {
  const Result<std::string> content = content_of(path);
  Result<Rotations> rotations =
      content.ok() ? parse(*content) : Result<Rotations>(content.status());
  if (rotations.ok()) return rotations;
  return Status{rotations.status().code(),
                fmt::format("rotations '{}': {}", path, rotations.status().message())};
}

Result<Rotations> rotations_of(const Policy& policy) {
  if (!policy.rotations.empty()) return load_rotations(policy.rotations);
  return Status{
      Code::BadPolicy,
      fmt::format(
          "policy {0}: found rotate=file without rotations=FILE, the matrices fitted to "
          "your model; make them once with zipcache fit-rotations -m MODEL -f TEXT --method "
          "{1} -o FILE, then use {0},rotations=FILE",
          to_text(policy), policy.name == "skvq" ? "permute" : "oscar")};
}

Status check_fit(const Rotations& rotations, const CacheShape& shape) {
  const size_t n_layers = rotations.layers.size();
  const auto wrong = [](const std::string& what) {
    return Status{Code::Incompatible,
                  fmt::format("{}; they were fitted to another model: {}", what, kRemake)};
  };
  if (has_all_layers(shape) && shape.layers.size() != n_layers)
    return wrong(
        fmt::format("found matrices for {} layers, expected {}", n_layers, shape.layers.size()));
  for (size_t i = 0; i < shape.layers.size(); ++i) {
    const LayerShape& own = shape.layers[i];
    const size_t number = size_t(shape.number(i));
    if (number >= n_layers)
      return wrong(fmt::format("found matrices for {} layers, but the model has a layer {}",
                               n_layers, number));
    const LayerShape& found = rotations.layers[number].shape;
    if (found == own) continue;
    return wrong(fmt::format(
        "layer {}: found matrices for {} KV heads of {} (K) and {} (V) channels, expected {} of {} "
        "and {}",
        number, found.n_heads, found.k_dim, found.v_dim, own.n_heads, own.k_dim, own.v_dim));
  }
  return ok();
}

Result<std::vector<std::shared_ptr<const LayerRotations>>> rotations_of_layers(
    const Policy& policy, const CacheShape& shape) {
  std::vector<std::shared_ptr<const LayerRotations>> out(shape.layers.size());
  if (!needs_rotations(policy)) return out;
  Result<Rotations> found = rotations_of(policy);
  if (!found.ok()) return found.status();
  const Status fits = check_fit(*found, shape);
  if (!fits.ok()) {
    return Status{fits.code(), fmt::format("rotations '{}': {}", policy.rotations, fits.message())};
  }
  for (size_t layer = 0; layer < out.size(); ++layer) {
    const Result<Policy> own = policy_for_layer(policy, shape.number(layer));
    if (!own.ok()) return own.status();
    LayerRotations matrices = std::move(found->layers[size_t(shape.number(layer))]);
    if (own->k.rotation != Rotation::File) matrices.k = {};
    if (own->v.rotation != Rotation::File) matrices.v = {};
    out[layer] = std::make_shared<const LayerRotations>(std::move(matrices));
  }
  return out;
}

Status check_rotations(const Policy& policy) {
  if (!needs_rotations(policy)) return ok();
  const Result<Rotations> rotations = rotations_of(policy);
  return rotations.ok() ? ok() : rotations.status();
}

}  // namespace zipcache
