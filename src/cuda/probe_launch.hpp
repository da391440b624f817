// What the host part of the saliency pass asks of the part with kernels.
#pragma once

#include <cuda_runtime_api.h>

#include "cuda/probe.hpp"

namespace zipcache::cuda {

// args.log_sums from the keys alone.
cudaError_t launch_log_sums(const ProbeArgs& args, float* log_sums, cudaStream_t stream);
cudaError_t launch_probe_sums(const ProbeArgs& args, cudaStream_t stream);

}  // namespace zipcache::cuda
