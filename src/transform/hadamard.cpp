#include "transform/hadamard.hpp"

#include <cmath>

namespace zipcache {
namespace {

// Sums and differences of values `width` apart.
void stage(float* x, int size, int width) {
  for (int start = 0; start < size; start += 2 * width) {
    float* __restrict low = x + start;
    float* __restrict high = low + width;
    for (int i = 0; i < width; ++i) {
      const float a = low[i], b = high[i];
      low[i] = a + b;
      high[i] = a - b;
    }
  }
}

// Widths 1 and 2 in one go.
void first_stages(float* x, int size) {
  for (int i = 0; i < size; i += 4) {
    const float a = x[i] + x[i + 1], b = x[i] - x[i + 1];
    const float c = x[i + 2] + x[i + 3], d = x[i + 2] - x[i + 3];
    x[i] = a + c;
    x[i + 1] = b + d;
    x[i + 2] = a - c;
    x[i + 3] = b - d;
  }
}

// The fast Walsh-Hadamard transform: stages of width 1, 2, 4 .. size / 2.
void rotate_block(float* x, int size) {
  int width = 1;
  if (size >= 4) {
    first_stages(x, size);
    width = 4;
  }
  for (; width < size; width *= 2) stage(x, size, width);
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
