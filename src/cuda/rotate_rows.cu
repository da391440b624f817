#include "cuda/rotate_rows.hpp"

#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <string>

#include "cuda/device_memory.hpp"
#include "cuda/row_matrix.hpp"

namespace zipcache::cuda {
namespace {

// Up to so many rows the kernel for few of them, whose threads have less each, is done earlier.
constexpr int64_t kFewRows = 8192;

__device__ float load_number(const TypedRows<const void>& rows, int64_t at) {
  if (rows.type == Number::F32) return static_cast<const float*>(rows.data)[at];
  const uint16_t bits = static_cast<const uint16_t*>(rows.data)[at];
  return rows.type == Number::F16 ? float_of(bits) : __uint_as_float(uint32_t(bits) << 16);
}

__device__ void store_number(const TypedRows<void>& rows, int64_t at, float x) {
  if (rows.type == Number::F32)
    static_cast<float*>(rows.data)[at] = x;
  else if (rows.type == Number::F16)
    static_cast<uint16_t*>(rows.data)[at] = finite_half_of(x);
  else
    static_cast<__nv_bfloat16*>(rows.data)[at] = __float2bfloat16_rn(x);
}

// Rows of a KV head: one behind the other the heads of its group, of each token of each stream.
struct HeadRows {
  const RotateArgs& args;
  int head;

  __device__ const float* matrix() const {
    return args.matrices + size_t(head) * args.dim * args.dim;
  }
  __device__ int count() const { return args.n_streams * args.n_tokens * args.group; }
  __device__ bool present(int row) const {
    if (row >= count()) return false;
    const int token = row / args.group % args.n_tokens;
    return !args.counts || token < args.counts[row / args.group / args.n_tokens];
  }
  // Where a row begins.
  template <class T>
  __device__ int64_t at(const TypedRows<T>& rows, int row) const {
    const int token = row / args.group % args.n_tokens, stream = row / args.group / args.n_tokens;
    return stream * rows.stream_stride + token * rows.token_stride +
           (head * args.group + row % args.group) * rows.head_stride;
  }
};

// Rows of a block of threads as 32-bit numbers. Returns whether there are any.
template <int kRows, int kDim, int kThreads>
__device__ bool load_rows(const HeadRows& own, int first, float (&rows)[kRows][kDim]) {
  bool any = false;
  for (int r = int(threadIdx.x) / kLanes; r < kRows; r += kThreads / kLanes) {
    const bool present = own.present(first + r);
    const int64_t at = own.at(own.args.from, first + r);
#pragma unroll
    for (int c = int(threadIdx.x) % kLanes; c < kDim; c += kLanes)
      rows[r][c] = present ? load_number(own.args.from, at + c) : 0;
    any = any || present;
  }
  return __syncthreads_or(any);
}

template <int kOuts>
__device__ void store_part(const HeadRows& own, int row, int channel, const float (&x)[kOuts]) {
  if (!own.present(row)) return;
  const int64_t at = own.at(own.args.to, row) + channel;
#pragma unroll
  for (int o = 0; o < kOuts; ++o) store_number(own.args.to, at + o, x[o]);
}

constexpr int kThreads = 128, kWarps = kThreads / kLanes;

// Many rows: 8 a warp, kOuts neighbouring channels a lane.
template <int kDim, bool kBack>
__global__ void __launch_bounds__(kThreads) rotate_kernel(const __grid_constant__ RotateArgs args) {
  constexpr int kRows = 8, kOuts = kDim == 64 ? 2 : 4, kAcross = kDim / (kLanes * kOuts);
  constexpr int kBlockRows = kRows * kWarps / kAcross;
  __shared__ float rows[kBlockRows][kDim];
  let_next_launch_begin();
  const HeadRows own{args, int(blockIdx.y)};
  const int first = int(blockIdx.x) * kBlockRows;
  if (!load_rows<kBlockRows, kDim, kThreads>(own, first, rows)) return;
  const int warp = int(threadIdx.x) / kLanes, lane = int(threadIdx.x) % kLanes;
  const int begin = warp / kAcross * kRows, channel = (warp % kAcross * kLanes + lane) * kOuts;
  float out[kRows][kOuts];
  multiply_rows<kBack>(rows[begin], kDim, kDim, own.matrix() + channel, out);
#pragma unroll
  for (int r = 0; r < kRows; ++r) store_part(own, first + begin + r, channel, out[r]);
}

// Few rows: 4 a warp, 16 channels of them.
template <int kDim, bool kBack>
__global__ void __launch_bounds__(kDim / kWarpOuts * kLanes)
    rotate_few_kernel(const __grid_constant__ RotateArgs args) {
  constexpr int kRows = 4;
  __shared__ float rows[kRows][kDim];
  let_next_launch_begin();
  const HeadRows own{args, int(blockIdx.y)};
  const int first = int(blockIdx.x) * kRows;
  if (!load_rows<kRows, kDim, kDim / kWarpOuts * kLanes>(own, first, rows)) return;
  const int warp = int(threadIdx.x) / kLanes, lane = int(threadIdx.x) % kLanes;
  float out[kRows][kLaneOuts];
  multiply_few_rows<kBack>(rows[0], kDim, kDim, own.matrix() + warp * kWarpOuts, out);
  const int channel = warp * kWarpOuts + lane % 4 * kLaneOuts;
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    if (lane / 4 == r) store_part(own, first + r, channel, out[r]);
  }
}

template <int kDim, bool kBack>
void launch(const RotateArgs& args, cudaStream_t stream) {
  const int n_rows = args.n_streams * args.n_tokens * args.group;
  const auto grid = [&](int block_rows) {
    return dim3(unsigned((n_rows + block_rows - 1) / block_rows), unsigned(args.n_heads));
  };
  if (int64_t{n_rows} * args.n_heads <= kFewRows)
    rotate_few_kernel<kDim, kBack><<<grid(4), kDim / kWarpOuts * kLanes, 0, stream>>>(args);
  else
    rotate_kernel<kDim, kBack><<<grid(kDim == 256 ? 16 : 32), kThreads, 0, stream>>>(args);
}

template <int kDim>
void launch_dim(const RotateArgs& args, cudaStream_t stream) {
  if (args.back)
    launch<kDim, true>(args, stream);
  else
    launch<kDim, false>(args, stream);
}

Status wrong(const char* found) {
  return {Code::BadArgument, std::string("rotate_rows: found ") + found};
}

Status check(const RotateArgs& args) {
  if (args.dim != 64 && args.dim != 128 && args.dim != 256)
    return wrong("a head size that no kernel has, expected 64, 128 or 256 channels");
  if (args.n_heads < 1 || args.n_heads > 65535 || args.group < 1 || args.n_streams < 1 ||
      args.n_tokens < 0 || int64_t{args.n_streams} * args.n_tokens * args.group > INT32_MAX / 2)
    return wrong("a shape that no kernel has");
  if (!args.matrices || !args.from.data || !args.to.data)
    return wrong("a null pointer among matrices, from and to");
  if (reinterpret_cast<uintptr_t>(args.matrices) % 16)
    return wrong("matrices at an address that is no multiple of 16");
  return ok();
}

}  // namespace

Status rotate_rows(const RotateArgs& args, cudaStream_t stream) {
  ZC_TRY(check(args));
  if (args.n_tokens == 0) return ok();
  if (args.dim == 64)
    launch_dim<64>(args, stream);
  else if (args.dim == 128)
    launch_dim<128>(args, stream);
  else
    launch_dim<256>(args, stream);
  return from_cuda(cudaGetLastError(), "launching rotations by matrices");
}

}  // namespace zipcache::cuda
