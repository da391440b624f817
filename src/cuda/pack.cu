// The kernels of packing: the steps of pack_block.hpp with barriers between them. Compiled without
// fusing of products and sums.
#include <algorithm>

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

// ---- a side of a record each

template <int kDim, bool kRotated>
struct SideMemory {
  PackTile<kDim, kRotated> tile;
  PackShared<kDim, kRotated, kSideThreads> shared;
};

template <int kDim, bool kIsK, bool kRotated>
__device__ __forceinline__ void pack_side(const PackArgs& args, int task, int head,
                                          uint8_t* memory) {
  auto& own = *reinterpret_cast<SideMemory<kDim, kRotated>*>(memory);
  using Packer = SidePacker<kDim, kIsK, kRotated, kSideThreads>;
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

// ---- records after another, of 16-bit rows

template <int kDim>
struct RecordMemory {
  PackTile<kDim, false> k, v;
  PackShared<kDim, false, kRecordThreads<kDim>> shared;
};

template <int kDim, bool kIsK>
using RecordPacker = SidePacker<kDim, kIsK, false, kRecordThreads<kDim>>;

// A record to make: the first of a block of threads, and every so many from there.
struct RecordPlace {
  int task, head;

  __device__ explicit RecordPlace(const PackArgs& args, int record)
      : task(record / args.n_heads), head(record % args.n_heads) {}
  __device__ void advance(const PackArgs& args, const RecordPlace& by) {
    task += by.task;
    head += by.head;
    if (head < args.n_heads) return;
    head -= args.n_heads;
    ++task;
  }
};

template <class Packer>
__device__ __forceinline__ Packer packer_of(const PackArgs& args, const RecordPlace& place,
                                            typename Packer::Tile& tile,
                                            typename Packer::Shared& shared) {
  return Packer(args, place.task, place.head, int(threadIdx.x), tile, shared);
}

// Rows of a record that may be behind the last, before them what ranks the tokens where these are
// keys. Each call makes a group of copies, or two.
template <class Packer>
__device__ __forceinline__ void ask_for_rows(const PackArgs& args, const RecordPlace& place,
                                             typename Packer::Tile& tile,
                                             typename Packer::Shared& shared) {
  const bool there = place.task < args.n_tasks;
  if constexpr (Packer::kKeys) {
    if (there) packer_of<Packer>(args, place, tile, shared).load_scores();
    commit_copies();
  }
  if (there) packer_of<Packer>(args, place, tile, shared).load_rows();
  commit_copies();
}

// Blocks that a multiprocessor holds.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900
template <int kDim>
constexpr int kRecordsResident = kDim == 64 ? 2 : 1;
#else
template <int kDim>
constexpr int kRecordsResident = kDim == 64 ? 4 : 2;
#endif

// A block of threads makes every so many records, both sides after another: while it works on one
// side rows of the next one arrive.
template <int kDim>
__global__ void __launch_bounds__(kRecordThreads<kDim>, kRecordsResident<kDim>)
    pack_records_of_rows(const __grid_constant__ PackArgs args) {
  using KPacker = RecordPacker<kDim, true>;
  using VPacker = RecordPacker<kDim, false>;
  extern __shared__ __align__(16) uint8_t memory[];
  auto& own = *reinterpret_cast<RecordMemory<kDim>*>(memory);
  const RecordPlace stride(args, int(gridDim.x));
  RecordPlace place(args, int(blockIdx.x));
  ask_for_rows<KPacker>(args, place, own.k, own.shared);
  ask_for_rows<VPacker>(args, place, own.v, own.shared);
  for (bool again = false; place.task < args.n_tasks; again = true) {
    const auto k = packer_of<KPacker>(args, place, own.k, own.shared);
    wait_copies<2>();  // on their way are at most: keys and values
    k.order_tokens(again);
    wait_copies<1>();
    __syncthreads();
    make_side(k);
    wait_copies<0>();
    __syncthreads();
    const auto v = packer_of<VPacker>(args, place, own.v, own.shared);
    place.advance(args, stride);
    ask_for_rows<KPacker>(args, place, own.k, own.shared);
    make_side(v);
    __syncthreads();
    ask_for_rows<VPacker>(args, place, own.v, own.shared);
  }
}

// ---- launches

template <class Kernel>
cudaError_t launch(Kernel* kernel, int n_blocks, int n_threads, size_t bytes, const PackArgs& args,
                   cudaStream_t stream) {
  const cudaError_t error =
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, int(bytes));
  if (error != cudaSuccess || args.n_tasks == 0) return error;
  kernel<<<unsigned(n_blocks), unsigned(n_threads), bytes, stream>>>(args);
  return cudaGetLastError();
}

template <int kDim, bool kKRotated, bool kVRotated>
cudaError_t launch_sides(const PackArgs& args, cudaStream_t stream) {
  constexpr size_t kBytes = sizeof(SideMemory < kDim, kKRotated || kVRotated >);
  static_assert(kBytes <= 163 * 1024, "what a block has on sm_80");
  const int n_sides = int(!args.form.k_sets.used) + int(!args.form.v_sets.used);
  return launch(pack_sides<kDim, kKRotated, kVRotated>, args.n_tasks * args.n_heads * n_sides,
                kSideThreads, kBytes, args, stream);
}

// As many blocks as run at once; sides apart where there are few records, or little shared memory.
template <int kDim>
cudaError_t launch_rows(const PackArgs& args, cudaStream_t stream) {
  auto* kernel = pack_records_of_rows<kDim>;
  constexpr size_t kBytes = sizeof(RecordMemory<kDim>);
  static_assert(kBytes <= 163 * 1024, "what a block has on sm_80");
  int device = 0, n_processors = 0, most_bytes = 0, n_resident = 0;
  cudaError_t error = cudaGetDevice(&device);
  if (error == cudaSuccess)
    error = cudaDeviceGetAttribute(&n_processors, cudaDevAttrMultiProcessorCount, device);
  if (error == cudaSuccess)
    error = cudaDeviceGetAttribute(&most_bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  const int n_records = args.n_tasks * args.n_heads;
  if (error == cudaSuccess && (n_records <= n_processors || int(kBytes) > most_bytes))
    return launch_sides<kDim, false, false>(args, stream);
  if (error == cudaSuccess)
    error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, int(kBytes));
  if (error == cudaSuccess)
    error = cudaOccupancyMaxActiveBlocksPerMultiprocessor(&n_resident, kernel, kRecordThreads<kDim>,
                                                          kBytes);
  if (error != cudaSuccess) return error;
  return launch(kernel, std::min(n_records, n_resident * n_processors), kRecordThreads<kDim>,
                kBytes, args, stream);
}

template <int kDim>
cudaError_t launch_dim(const PackArgs& args, cudaStream_t stream) {
  const PackForm& form = args.form;
  const bool both = !form.k_sets.used && !form.v_sets.used;
  const bool k_wide = !form.k_sets.used && (form.k_hadamard || form.k_by_queries);
  const bool v_wide = !form.v_sets.used && form.v_hadamard;
  if (k_wide && v_wide) return launch_sides<kDim, true, true>(args, stream);
  if (k_wide) return launch_sides<kDim, true, false>(args, stream);
  if (v_wide) return launch_sides<kDim, false, true>(args, stream);
  if constexpr (kDim < 256) {
    if (both) return launch_rows<kDim>(args, stream);
  }
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
