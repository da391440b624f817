// Compiled without fusing of products and sums, so that the order and the rounding are the CPU's.
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <string>

#include "codec/query_rounding.hpp"
#include "cuda/device_memory.hpp"
#include "cuda/query_moments.hpp"

namespace zipcache::cuda {
namespace {

constexpr int kThreads = 256, kSize = kFeedbackGroup;
constexpr int kOwn =
    kSize * kSize / kThreads;              // pairs of channels of a thread: (i, j) to (i, j + 15)
constexpr int kRows = 16, kMostDim = 256;  // query rows in shared memory at once

__device__ int pair_place(int i, int j) { return i * (2 * kSize - i - 1) / 2 + j - i - 1; }

__device__ double moment(const MomentGroup& group, int i, int j) {
  const auto deviation = [&](int channel) {
    return double(__half2float(__ushort_as_half(group.deviation[channel])));
  };
  if (i == j) return deviation(i) * deviation(i);
  return deviation(i) * deviation(j) * double(group.correlation[pair_place(i, j)]) / 127.0;
}

// Query rows of a KV head, of some tokens, as a group of channels sees them.
class Learner {
 public:
  __device__ Learner(const LearnArgs& args, float (&rows)[kRows][kMostDim])
      : args_(args),
        rows_(rows),
        first_(int(blockIdx.x) * kSize),
        head_(int(blockIdx.y)),
        stream_(int(blockIdx.z)),
        i_(int(threadIdx.x) / (kSize / kOwn)),
        j_(int(threadIdx.x) % (kSize / kOwn) * kOwn) {
    const int n_tokens = args.counts[stream_];
    stride_ = max(1, n_tokens * args.group / args.most_rows);
    n_rows_ = (n_tokens + stride_ - 1) / stride_ * args.group;
  }

  __device__ bool any() const { return n_rows_ > 0; }

  // Sums of products of this thread's pairs; whether all rows are numbers that a sum can hold.
  __device__ bool sum(float (&sums)[kOwn]) const {
    bool finite = true;
    for (int first = 0; first < n_rows_; first += kRows) {
      const int n = min(kRows, n_rows_ - first);
      load(first, n);
      if (args_.hadamard) rotate(n);
      for (int k = int(threadIdx.x); k < n * args_.dim; k += kThreads)
        finite = finite && fabsf(rows_[k / args_.dim][k % args_.dim]) <= kHalfMax;
      for (int r = 0; r < n; ++r) {
        const float* row = rows_[r] + first_;
#pragma unroll
        for (int k = 0; k < kOwn; ++k) sums[k] += row[i_] * row[j_ + k];
      }
      __syncthreads();
    }
    return __syncthreads_and(finite);
  }

  // The mean with what was learnt before.
  __device__ void learn(const float (&sums)[kOwn], double (&diagonal)[kSize]) const {
    MomentGroup& group =
        args_.moments[(size_t(stream_) * size_t(args_.n_heads) + size_t(head_)) * gridDim.x +
                      blockIdx.x];
    const uint32_t n_learnt = group.n_learnt;
    const double share = 1.0 / double(min(int(n_learnt) + 1, kMomentMemory));
    double h[kOwn];
#pragma unroll
    for (int k = 0; k < kOwn; ++k) {
      const int j = j_ + k;
      if (j < i_) continue;
      h[k] = moment(group, i_, j);
      h[k] += share * (double(sums[k]) / n_rows_ - h[k]);
      if (j == i_) diagonal[i_] = h[k];
    }
    __syncthreads();
#pragma unroll
    for (int k = 0; k < kOwn; ++k) {
      const int j = j_ + k;
      if (j == i_)
        group.deviation[i_] = __half_as_ushort(__float2half_rn(float(sqrt(fmax(h[k], 0.0)))));
      if (j <= i_) continue;
      const double both = sqrt(diagonal[i_] * diagonal[j]);
      const double correlation = both > 0 ? h[k] / both : 0.0;
      group.correlation[pair_place(i_, j)] =
          int8_t(lround(127 * fmin(fmax(correlation, -1.0), 1.0)));
    }
    if (threadIdx.x == 0) group.n_learnt = n_learnt + 1;
  }

 private:
  __device__ void load(int first, int n) const {
    for (int k = int(threadIdx.x); k < n * args_.dim; k += kThreads) {
      const int row = first + k / args_.dim, channel = k % args_.dim;
      const int token = row / args_.group * stride_, head = head_ * args_.group + row % args_.group;
      const uint16_t bits = args_.q.row(stream_, token, head)[channel];
      rows_[k / args_.dim][channel] = __half2float(__ushort_as_half(bits)) * args_.scale;
    }
    __syncthreads();
  }

  // transform/hadamard.cpp
  __device__ void rotate(int n) const {
    const int half = args_.dim / 2;
    for (int width = 1; width < args_.dim; width *= 2) {
      for (int k = int(threadIdx.x); k < n * half; k += kThreads) {
        const int at = k % half;
        float* low = &rows_[k / half][at / width * 2 * width + at % width];
        const float a = low[0], b = low[width];
        low[0] = a + b;
        low[width] = a - b;
      }
      __syncthreads();
    }
    const float norm = 1.0f / sqrtf(float(args_.dim));
    for (int k = int(threadIdx.x); k < n * args_.dim; k += kThreads)
      rows_[k / args_.dim][k % args_.dim] *= norm;
    __syncthreads();
  }

  const LearnArgs& args_;
  float (&rows_)[kRows][kMostDim];
  const int first_, head_, stream_, i_, j_;
  int stride_, n_rows_;
};

__global__ void __launch_bounds__(kThreads) learn_kernel(const __grid_constant__ LearnArgs args) {
  __shared__ float rows[kRows][kMostDim];
  __shared__ double diagonal[kSize];
  const Learner learner(args, rows);
  if (!learner.any()) return;
  float sums[kOwn] = {};
  if (learner.sum(sums)) learner.learn(sums, diagonal);
}

// U' of H = (U + I) D (U + I)', from the last channel to the first: what is left of H once a
// channel is known.
__global__ void __launch_bounds__(kThreads)
    feedback_kernel(const MomentGroup* moments, float* feedback, uint32_t* learnt) {
  __shared__ double h[kSize][kSize + 1], column[kSize], row[kSize], scale[kSize];
  const int thread = int(threadIdx.x);
  const size_t list = size_t(blockIdx.z) * gridDim.y + blockIdx.y;
  const MomentGroup& group = moments[list * gridDim.x + blockIdx.x];
  if (blockIdx.x == 0 && thread == 0) learnt[list] = group.n_learnt;
  if (group.n_learnt == 0) return;
  float* out = feedback + (list * gridDim.x + blockIdx.x) * (kSize * kSize);
  for (int k = thread; k < kSize * kSize; k += kThreads) {
    const int i = k / kSize, j = k % kSize;
    if (j >= i) h[i][j] = moment(group, i, j);
    out[k] = 0;
  }
  __syncthreads();
  double mean = 0;
  for (int i = 0; i < kSize; ++i) mean += h[i][i] / double(kSize);
  __syncthreads();
  if (thread < kSize) scale[thread] = h[thread][thread] += kMomentDamping * mean;
  __syncthreads();
  for (int k = kSize - 1; k > 0; --k) {
    const double d = h[k][k];
    if (!(d > 1e-6 * scale[k])) continue;  // the same for all threads
    if (thread < k) {
      column[thread] = h[thread][k];
      row[thread] = column[thread] / d;
      out[thread * kSize + k] = float(row[thread]);
    }
    __syncthreads();
    for (int i = thread / 16; i < k; i += kThreads / 16) {
      for (int j = i + thread % 16; j < k; j += 16) h[i][j] -= row[i] * column[j];
    }
    __syncthreads();
  }
}

Status wrong(const char* what, const char* found) {
  return {Code::BadArgument, std::string(what) + ": found " + found};
}

bool has_kernel(int dim, int n_heads, int n_streams) {
  return dim % kSize == 0 && dim <= kMostDim && (dim & (dim - 1)) == 0 && n_heads > 0 &&
         n_heads <= 65535 && n_streams > 0 && n_streams <= 65535;
}

}  // namespace

Status learn_queries(const LearnArgs& args, cudaStream_t stream) {
  if (const char* fault = fault_of(args.q)) return wrong("learn_queries", fault);
  if (!has_kernel(args.dim, args.n_heads, args.n_streams) || args.group < 1 || args.most_rows < 1)
    return wrong("learn_queries",
                 "a shape that no kernel has, expected heads of 64, 128 or 256 channels");
  if (!args.counts || !args.moments)
    return wrong("learn_queries", "a null pointer among counts and moments");
  const dim3 grid(unsigned(args.dim / kSize), unsigned(args.n_heads), unsigned(args.n_streams));
  learn_kernel<<<grid, kThreads, 0, stream>>>(args);
  return from_cuda(cudaGetLastError(), "launching what queries teach");
}

Status make_feedback(const MomentGroup* moments, int dim, int n_heads, int n_streams,
                     float* feedback, uint32_t* learnt, cudaStream_t stream) {
  if (!moments || !feedback || !learnt || !has_kernel(dim, n_heads, n_streams))
    return wrong("make_feedback", "a null pointer, or a shape that no kernel has");
  const dim3 grid(unsigned(dim / kSize), unsigned(n_heads), unsigned(n_streams));
  feedback_kernel<<<grid, kThreads, 0, stream>>>(moments, feedback, learnt);
  return from_cuda(cudaGetLastError(), "launching the coefficients of rounding");
}

}  // namespace zipcache::cuda
