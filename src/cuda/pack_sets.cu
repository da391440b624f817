// The kernels of packing sets of any shape: the steps of pack_low_rank.hpp with barriers between
// them. Compiled without fusing of products and sums.
#include "cuda/pack_launch.hpp"
#include "cuda/pack_low_rank.hpp"

namespace zipcache::cuda {
namespace {

template <class Packer>
__device__ __forceinline__ void take_steps(const Packer& packer, int first, int end) {
#pragma unroll 1
  for (int step = first; step < end; ++step) {
    if (!packer.has_step(step)) continue;
    packer.step(step);
    __syncthreads();
  }
}

template <int kDim>
struct SetMemory {
  PackTile<kDim, true> tile;
  SetShared<kDim> shared;
};

// One block of threads for one side of each head of each task.
template <int kDim, bool kIsK>
__global__ void __launch_bounds__(kSideThreads) pack_sets(const __grid_constant__ PackArgs args) {
  extern __shared__ __align__(16) uint8_t memory[];
  using Packer = LowRankPacker<kDim, kIsK>;
  auto& own = *reinterpret_cast<SetMemory<kDim>*>(memory);
  const int head = int(blockIdx.x) % args.n_heads, task = int(blockIdx.x) / args.n_heads;
  const Packer packer(args, task, head, int(threadIdx.x), own.tile, own.shared);
  take_steps(packer, 0, Packer::kOrdered);
  if (!packer.refused())
    take_steps(packer, Packer::kOrdered, Packer::n_steps(args));
  else if (kIsK && threadIdx.x == 0)
    packer.count_refused();
}

template <int kDim, bool kIsK>
cudaError_t launch(const PackArgs& args, cudaStream_t stream) {
  auto* kernel = pack_sets<kDim, kIsK>;
  constexpr size_t kBytes = sizeof(SetMemory<kDim>);
  static_assert(kBytes <= 163 * 1024, "what a block has on sm_80");
  const cudaError_t error =
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, int(kBytes));
  if (error != cudaSuccess || args.n_tasks == 0) return error;
  kernel<<<unsigned(args.n_tasks) * unsigned(args.n_heads), kSideThreads, kBytes, stream>>>(args);
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
