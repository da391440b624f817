#include "cuda/decode_kernel.cuh"

namespace zipcache::cuda {

cudaError_t launch_decode_64(const Launch& launch, dim3 grid, cudaStream_t stream) {
  return launch_dim<64>(launch, grid, stream);
}

}  // namespace zipcache::cuda
