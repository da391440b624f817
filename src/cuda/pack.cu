// The kernels of packing: the steps of pack_block.hpp with barriers between them. Compiled without
// fusing of products and sums.
#include "cuda/pack_block.hpp"
#include "cuda/pack_launch.hpp"

namespace zipcache::cuda {
namespace {

template <int kFirst, int kEnd, class Packer>
__device__ __forceinline__ void take_steps(const Packer& packer) {
#pragma unroll
  for (int step = kFirst; step < kEnd; ++step) {
    if (!packer.has_step(step)) continue;
    if (step > kFirst) __syncthreads();
    packer.step(step);
  }
}

// What follows when all threads know that the tokens are in order and the rows there.
template <class Packer>
__device__ __forceinline__ void make_side(const Packer& packer) {
  if (!packer.refused())
    take_steps<Packer::kOrdered, Packer::kSteps>(packer);
  else if (Packer::kKeys && threadIdx.x == 0)
    packer.count_refused();
}

template <int kDim, bool kRotated>
struct SideMemory {
  PackTile<kDim, kRotated> tile;
  PackShared<kDim, kRotated> shared;
};

template <int kDim, bool kIsK, bool kRotated>
__device__ __forceinline__ void pack_side(const PackArgs& args, int task, int head,
                                          uint8_t* memory) {
  auto& own = *reinterpret_cast<SideMemory<kDim, kRotated>*>(memory);
  using Packer = SidePacker<kDim, kIsK, kRotated>;
  const Packer packer(args, task, head, int(threadIdx.x), own.tile, own.shared);
  take_steps<0, Packer::kOrdered>(packer);
  __syncthreads();
  make_side(packer);
}

// Blocks that a multiprocessor holds, as shared memory (227 KB) and registers allow.
template <int kDim, bool kRotated>
constexpr int kResident = kRotated&& kDim == 256    ? 1
                          : kRotated || kDim == 256 ? 2
                                                    : 4;

// One block of threads for each fast side of each head of each task: keys first, since blocks that
// run side by side then share instructions, neighbours in memory after another.
template <int kDim, bool kKRotated, bool kVRotated>
__global__ void __launch_bounds__(kSideThreads, kResident<kDim, kKRotated || kVRotated>)
    pack_sides(const __grid_constant__ PackArgs args) {
  extern __shared__ __align__(16) uint8_t memory[];
  const int head = int(blockIdx.x) % args.n_heads;
  const int number = int(blockIdx.x) / args.n_heads + (args.form.k_sets.used ? args.n_tasks : 0);
  if (number < args.n_tasks)
    pack_side<kDim, true, kKRotated>(args, number, head, memory);
  else
    pack_side<kDim, false, kVRotated>(args, number - args.n_tasks, head, memory);
}

// ---- launches

template <int kDim, bool kKRotated, bool kVRotated>
cudaError_t launch_sides(const PackArgs& args, cudaStream_t stream) {
  constexpr size_t kBytes = sizeof(SideMemory < kDim, kKRotated || kVRotated >);
  static_assert(kBytes <= 163 * 1024, "what a block has on sm_80");
  auto* kernel = pack_sides<kDim, kKRotated, kVRotated>;
  const cudaError_t error =
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, int(kBytes));
  if (error != cudaSuccess || args.n_tasks == 0) return error;
  const int n_sides = int(!args.form.k_sets.used) + int(!args.form.v_sets.used);
  kernel<<<unsigned(args.n_tasks * args.n_heads * n_sides), kSideThreads, kBytes, stream>>>(args);
  return cudaGetLastError();
}

template <int kDim>
cudaError_t launch_dim(const PackArgs& args, cudaStream_t stream) {
  const PackForm& form = args.form;
  const bool k_rotated = form.k_hadamard || form.k_by_matrix;
  const bool k_wide = !form.k_sets.used && (k_rotated || form.k_by_queries);
  const bool v_wide = !form.v_sets.used && (form.v_hadamard || form.v_by_matrix);
  if (k_wide && v_wide) return launch_sides<kDim, true, true>(args, stream);
  if (k_wide) return launch_sides<kDim, true, false>(args, stream);
  if (v_wide) return launch_sides<kDim, false, true>(args, stream);
  return launch_sides<kDim, false, false>(args, stream);
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
