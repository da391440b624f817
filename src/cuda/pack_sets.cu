// The kernels of packing sets of any shape: the steps of pack_low_rank.hpp with barriers between
// them. Compiled without fusing of products and sums.
#include "cuda/pack_launch.hpp"
#include "cuda/pack_low_rank.hpp"

namespace zipcache::cuda {
namespace {

// One block of threads for one side of each head of each task.
template <int kDim, bool kIsK>
__global__ void __launch_bounds__(kPackThreads)
    pack_sets_kernel(const __grid_constant__ PackArgs args) {
  extern __shared__ __align__(16) uint8_t memory[];
  using Packer = LowRankPacker<kDim, kIsK>;
  auto& shared = *reinterpret_cast<typename Packer::Shared*>(memory);
  const int head = int(blockIdx.x) % args.n_heads, task = int(blockIdx.x) / args.n_heads;
  const Packer packer(args, task, head, int(threadIdx.x), shared);
#pragma unroll 1
  for (int step = 0; step < Packer::n_steps(args); ++step) {
    if (!packer.has_step(step)) continue;
    if (step > 0) __syncthreads();
    packer.step(step);
  }
}

template <int kDim, bool kIsK>
cudaError_t launch(const PackArgs& args, cudaStream_t stream) {
  auto* kernel = pack_sets_kernel<kDim, kIsK>;
  constexpr size_t kBytes = sizeof(SetShared<kDim>);
  static_assert(kBytes <= 163 * 1024, "what a block has on sm_80");
  const cudaError_t error =
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, int(kBytes));
  if (error != cudaSuccess) return error;
  kernel<<<unsigned(args.n_tasks) * unsigned(args.n_heads), kPackThreads, kBytes, stream>>>(args);
  return cudaGetLastError();
}

template <bool kIsK>
cudaError_t launch_side(const PackArgs& args, cudaStream_t stream) {
  switch (args.form.record.dim) {
    case 64:
      return launch<64, kIsK>(args, stream);
    case 128:
      return launch<128, kIsK>(args, stream);
    default:
      return launch<256, kIsK>(args, stream);
  }
}

}  // namespace

cudaError_t launch_pack_sets(const PackArgs& args, bool is_k, cudaStream_t stream) {
  return is_k ? launch_side<true>(args, stream) : launch_side<false>(args, stream);
}

}  // namespace zipcache::cuda
