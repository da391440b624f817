#include "gpu_attention.hpp"

namespace zipcache::cli {

Result<std::unique_ptr<GpuBench>> GpuBench::create() {
  return Status{Code::Environment,
                "found a build without CUDA, expected one with it; build again where nvcc is on "
                "the path (CUDA 12 or "
                "newer)"};
}

}  // namespace zipcache::cli
