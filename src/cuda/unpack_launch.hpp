// What the host part of unpacking asks of the part with kernels.
#pragma once

#include <cuda_runtime_api.h>

#include "cuda/code_values.hpp"
#include "cuda/unpack.hpp"

namespace zipcache::cuda {

struct UnpackLaunch {
  UnpackArgs args;
  SideValues k_values, v_values;
};

cudaError_t launch_unpack(const UnpackLaunch& launch, cudaStream_t stream);

}  // namespace zipcache::cuda
