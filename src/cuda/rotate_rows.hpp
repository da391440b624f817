// Rows of heads turned by the matrices of rotations from files, or turned back (row_matrix.hpp).
// Ordered by its stream, capturable in CUDA graphs, waits for nothing on the host.
#pragma once

#include "cuda/decode.hpp"

namespace zipcache::cuda {

// Numbers [stream, token, head, dim] of a type; strides in numbers.
template <class T>
struct TypedRows {
  T* data = nullptr;
  Number type = Number::F32;
  int64_t stream_stride = 0, token_stride = 0, head_stride = 0;
};

struct RotateArgs {
  int dim = 0, n_heads = 0, group = 1;  // KV heads, and heads of rows that belong to each
  int n_streams = 0, n_tokens = 0;      // rows of each stream
  const int32_t* counts = nullptr;      // [n_streams] that are turned of these; null for all
  // [n_heads, dim, dim] at a multiple of 16 bytes: R turned over to turn rows, R to turn them back.
  const float* matrices = nullptr;
  bool back = false;
  TypedRows<const void> from;
  TypedRows<void> to;  // may be `from`
};

// Enqueues the work. Rows are turned to the CPU's numbers bit for bit (HeadRotation::turn), then
// rounded to their type; turned back within the rounding of 32-bit sums. 16-bit numbers are cut off
// at the largest one. Errors: BadArgument for shapes that no kernel has, Environment for what CUDA
// reports.
Status rotate_rows(const RotateArgs& args, cudaStream_t stream);

}  // namespace zipcache::cuda
