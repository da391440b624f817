// Attention over records whose rows the matrices of a file turned: queries are turned before it,
// outputs back after it. Not thread-safe.
#pragma once

#include "cuda/device_memory.hpp"
#include "cuda/rotate_rows.hpp"
#include "zipcache/rotations.hpp"

namespace zipcache::cuda {

// Matrices of one side of a layer [n_heads, dim, dim], as RotateArgs takes them to turn rows and to
// turn them back; null where no file rotates the side.
struct SideMatrices {
  const float *turn = nullptr, *back = nullptr;

  explicit operator bool() const { return turn != nullptr; }
};

// A layer's matrices on the device, each of them twice: as it is and turned over.
class LayerMatrices {
 public:
  // Of heads of `dim` channels; of a side that has no matrices, none.
  Status upload(const LayerRotations& rotations, int dim, cudaStream_t stream);

  SideMatrices k() const { return of(k_); }
  SideMatrices v() const { return of(v_); }
  size_t bytes() const { return k_.bytes() + v_.bytes(); }

 private:
  static SideMatrices of(const DeviceMemory& memory);

  DeviceMemory k_, v_;  // [turning, turning back][n_heads, dim, dim]
};

class RotatedAttention {
 public:
  // Room for so many numbers of queries, and of outputs.
  Status allocate(size_t n_numbers, cudaStream_t stream);
  // decode_attention() of n_tokens tokens of all streams together, turned where a side has
  // matrices.
  Status attend(DecodeArgs args, int n_tokens, SideMatrices k, SideMatrices v, cudaStream_t stream);

  const void* space() const { return space_.at<void>(); }
  size_t bytes() const { return space_.bytes(); }

 private:
  DeviceMemory space_;  // [queries, outputs][token, query head, dim] 32-bit numbers
};

}  // namespace zipcache::cuda
