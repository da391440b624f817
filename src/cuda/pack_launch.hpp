// What the host part of packing asks of the part with kernels.
#pragma once

#include <cuda_runtime_api.h>

#include "cuda/pack.hpp"

namespace zipcache::cuda {

cudaError_t launch_pack(const PackArgs& args, cudaStream_t stream);

}  // namespace zipcache::cuda
