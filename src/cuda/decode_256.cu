#include "cuda/decode_kernel.cuh"

namespace zipcache::cuda {

cudaError_t launch_decode_256(const Launch& launch, dim3 grid, cudaStream_t stream) {
  return launch_dim<256>(launch, grid, stream);
}

}  // namespace zipcache::cuda
