// Rotation of a head's channels by a normalised Hadamard matrix, in place. The matrix is symmetric
// and orthogonal, so the same function turns back. A head size that is not a power of two is
// rotated in equal blocks of its largest power-of-two divisor. O(dim log dim) a row, no memory;
// thread-safe.
#pragma once

namespace zipcache {

// Size of the blocks that `dim` channels are rotated in.
constexpr int hadamard_block(int dim) { return dim & -dim; }

// rows [n, dim], `stride` floats apart.
void hadamard(float* rows, int n, int dim, int stride);

}  // namespace zipcache
