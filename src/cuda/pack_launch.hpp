// What the host part of packing asks of the part with kernels.
#pragma once

#include <cuda_runtime_api.h>

#include "cuda/pack.hpp"

namespace zipcache::cuda {

// Both without tasks: whether the current device has the shared memory, cudaErrorInvalidValue if
// not.

// The sides with a fast kernel.
cudaError_t launch_pack(const PackArgs& args, cudaStream_t stream);
// One side by sets of any shape.
cudaError_t launch_pack_sets(const PackArgs& args, bool is_k, cudaStream_t stream);

}  // namespace zipcache::cuda
