#include "transform/hadamard.hpp"

#include <cmath>

namespace zipcache {
namespace {

// Sums and differences of values `width` apart, for width 1, 2, 4 .. size/2 (fast Walsh-Hadamard).
void rotate_block(float* x, int size) {
  for (int width = 1; width < size; width *= 2) {
    for (int start = 0; start < size; start += 2 * width) {
      for (int i = start; i < start + width; ++i) {
        const float a = x[i], b = x[i + width];
        x[i] = a + b;
        x[i + width] = a - b;
      }
    }
  }
  const float norm = 1.0f / std::sqrt(static_cast<float>(size));
  for (int i = 0; i < size; ++i) x[i] *= norm;
}

}  // namespace

void hadamard(float* rows, int n, int dim, int stride) {
  const int size = hadamard_block(dim);
  for (int r = 0; r < n; ++r) {
    for (int block = 0; block < dim; block += size) rotate_block(rows + r * stride + block, size);
  }
}

}  // namespace zipcache
