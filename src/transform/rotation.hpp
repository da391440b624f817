// The rotation of one side of one head: none, Hadamard's or an orthogonal matrix R. What is coded
// is turned; queries are turned alike, and sums over turned values are turned back. In place,
// thread-safe, the same bits on every instruction set.
#pragma once

#include "zipcache/policy.hpp"

namespace zipcache {

class HeadRotation {
 public:
  HeadRotation() = default;
  // `matrix` [dim, dim], row by row, outlives the object; it is read for Rotation::File only.
  HeadRotation(Rotation kind, const float* matrix) : kind_(kind), matrix_(matrix) {}

  bool turns() const { return kind_ != Rotation::None; }
  // Rows [n, dim], `stride` floats apart, become R row, and back. dim is a multiple of 8.
  void turn(float* rows, int n, int dim, int stride) const;
  void turn_back(float* rows, int n, int dim, int stride) const;

 private:
  Rotation kind_ = Rotation::None;
  const float* matrix_ = nullptr;
};

}  // namespace zipcache
