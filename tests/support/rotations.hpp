// Seeded orthogonal matrices, and a file of them that lives as long as its object.
#pragma once

#include <vector>

#include "support/files.hpp"
#include "zipcache/rotations.hpp"

namespace zipcache::test {

// Matrices for every head of `layers`, no two alike.
Rotations random_rotations(const std::vector<LayerShape>& layers, uint64_t seed = 1);

class RotationFile {
 public:
  explicit RotationFile(const Rotations& rotations);
  explicit RotationFile(const std::vector<LayerShape>& layers)
      : RotationFile(random_rotations(layers)) {}
  const std::string& path() const { return file_.path(); }

 private:
  TemporaryFile file_;
};

// x [n, dim] times the transposed matrix m [dim, dim], in double precision.
void turn_back(const float* m, int n, int dim, float* x);

}  // namespace zipcache::test
