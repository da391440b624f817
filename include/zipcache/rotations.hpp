// Rotations of keys and values that are fitted to a model and kept in a file: an orthogonal matrix
// for each KV head and side (policy fields k_rotate=file, v_rotate=file, rotations=FILE).
//
//   Rotations rotations{"how they were made", {{{3, 64, 64}, k, v}, ...}};
//   save_rotations("model.rot", rotations);
//   auto policy = parse_policy("zip2,rotate=file,rotations=model.rot");
//
// The file's bytes: docs/formats.md. Thread safety: plain values and pure functions.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "zipcache/cache.hpp"

namespace zipcache {

struct LayerRotations {
  LayerShape shape;      // zeros: a layer of the model that keeps no cache
  std::vector<float> k;  // [n_heads, k_dim, k_dim]: R, row by row; R k is coded and R q meets it
  std::vector<float> v;  // [n_heads, v_dim, v_dim]: R v is coded, sums are multiplied with R'
};

struct Rotations {
  std::string about;                   // where they come from, for people
  std::vector<LayerRotations> layers;  // by the model's own numbers
};

// R R' may differ from 1 by so much in any place. Matrices of floats that were orthogonal before
// they were rounded differ by some 1e-6.
inline constexpr float kRotationTolerance = 1e-4f;

// Shapes that a cache has, as many numbers as they say, orthogonal matrices.
Status check(const Rotations& rotations);

// Writes and reads a file. Whatever is not check()ed, damaged or of another version is refused.
Status save_rotations(const std::string& path, const Rotations& rotations);
Result<Rotations> load_rotations(const std::string& path);

// That they have the heads and head sizes of all layers of a cache.
Status check_fit(const Rotations& rotations, const CacheShape& shape);

// The matrices that the policy asks for. The error of a policy that names no file says how to make
// one.
Result<Rotations> rotations_of(const Policy& policy);
// These of each layer of a cache, for all its streams, or null where the policy needs none; of
// sides that no file rotates there are none.
Result<std::vector<std::shared_ptr<const LayerRotations>>> rotations_of_layers(
    const Policy& policy, const CacheShape& shape);
// That they are there and sound, if the policy needs any.
Status check_rotations(const Policy& policy);

}  // namespace zipcache
