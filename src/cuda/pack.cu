// The kernels of packing: the steps of pack_block.hpp with barriers between them. Compiled without
// fusing of products and sums.
#include "cuda/pack_block.hpp"
#include "cuda/pack_launch.hpp"

namespace zipcache::cuda {
namespace {

template <int kDim, bool kIsK, bool kRotated>
__device__ __forceinline__ void pack_side(const PackArgs& args, int task, int head,
                                          uint8_t* memory) {
  using Packer = SidePacker<kDim, kIsK, kRotated>;
  auto& shared = *reinterpret_cast<typename Packer::Shared*>(memory);
  const Packer packer(args, task, head, int(threadIdx.x), shared);
#pragma unroll
  for (int step = 0; step < Packer::kSteps; ++step) {
    if (!packer.has_step(step)) continue;
    if (step > 0) __syncthreads();
    packer.step(step);
  }
}

// Blocks that a multiprocessor holds, as shared memory (227 KB) and registers allow.
template <int kDim, bool kRotated>
constexpr int kResident = kRotated&& kDim == 256    ? 1
                          : kRotated || kDim == 256 ? 2
                                                    : 4;

// One block of threads for each fast side of each head of each task: keys first, since blocks that
// run side by side then share instructions, neighbours in memory after another.
template <int kDim, bool kKRotated, bool kVRotated>
__global__ void __launch_bounds__(kPackThreads, kResident<kDim, kKRotated || kVRotated>)
    pack_kernel(const __grid_constant__ PackArgs args) {
  extern __shared__ __align__(16) uint8_t memory[];
  const int head = int(blockIdx.x) % args.n_heads;
  const int number = int(blockIdx.x) / args.n_heads + (args.form.k_sets.used ? args.n_tasks : 0);
  if (number < args.n_tasks)
    pack_side<kDim, true, kKRotated>(args, number, head, memory);
  else
    pack_side<kDim, false, kVRotated>(args, number - args.n_tasks, head, memory);
}

template <int kDim, bool kKRotated, bool kVRotated>
cudaError_t launch(const PackArgs& args, cudaStream_t stream) {
  auto* kernel = pack_kernel<kDim, kKRotated, kVRotated>;
  constexpr size_t kBytes = sizeof(PackShared < kDim, kKRotated || kVRotated >);
  static_assert(kBytes <= 163 * 1024, "what a block has on sm_80");
  const cudaError_t error =
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, int(kBytes));
  if (error != cudaSuccess) return error;
  const unsigned n_sides = unsigned(!args.form.k_sets.used) + unsigned(!args.form.v_sets.used);
  const unsigned n_blocks = unsigned(args.n_tasks) * unsigned(args.n_heads) * n_sides;
  kernel<<<n_blocks, kPackThreads, kBytes, stream>>>(args);
  return cudaGetLastError();
}

template <int kDim>
cudaError_t launch_dim(const PackArgs& args, cudaStream_t stream) {
  const bool k_wide = args.form.k_hadamard || args.form.k_by_queries;
  if (k_wide && args.form.v_hadamard) return launch<kDim, true, true>(args, stream);
  if (k_wide) return launch<kDim, true, false>(args, stream);
  if (args.form.v_hadamard) return launch<kDim, false, true>(args, stream);
  return launch<kDim, false, false>(args, stream);
}

}  // namespace

cudaError_t launch_pack(const PackArgs& args, cudaStream_t stream) {
  switch (args.form.record.dim) {
    case 64:
      return launch_dim<64>(args, stream);
    case 128:
      return launch_dim<128>(args, stream);
    default:
      return launch_dim<256>(args, stream);
  }
}

}  // namespace zipcache::cuda
