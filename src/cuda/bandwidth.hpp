// What the GPU's memory gives: the measure that kernels are held against.
#pragma once

#include <cstddef>

#include "cuda/decode.hpp"

namespace zipcache::cuda {

// Enqueues a copy of `bytes`, a multiple of 16, from one 16-byte aligned buffer to another, with
// plain loads and stores (which moved more than cudaMemcpy did).
Status copy_memory(void* to, const void* from, size_t bytes, cudaStream_t stream);

}  // namespace zipcache::cuda
