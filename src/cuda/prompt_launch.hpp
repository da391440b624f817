// What the host part of attention of prompts asks of the part with kernels.
#pragma once

#include <cuda_runtime_api.h>

#include "cuda/prompt.hpp"

namespace zipcache::cuda {

cudaError_t launch_prompt(const PromptArgs& args, cudaStream_t stream);

}  // namespace zipcache::cuda
