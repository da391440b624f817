// Compiled without fusing of products and sums, so that the order and the rounding are the CPU's.
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <string>

#include "codec/query_rounding.hpp"
#include "cuda/device_memory.hpp"
#include "cuda/hadamard.hpp"
#include "cuda/query_moments.hpp"
#include "cuda/row_matrix.hpp"

namespace zipcache::cuda {
namespace {

constexpr int kThreads = 256, kSize = kFeedbackGroup;
constexpr int kMostDim = 256, kLeastDim = kSize;
constexpr int kPieceNumbers = 8;  // 16-bit numbers of 16 bytes
constexpr int kOwnPieces = 4;     // of query rows, that a thread reads at once
// Query rows in shared memory at once, where they are shortest.
constexpr int kRows = kThreads * kOwnPieces * kPieceNumbers / kLeastDim;
constexpr int kTile = 4;    // a thread's sums of products: of kTile by kTile pairs of channels
constexpr int kPanel = 8;   // channels that are known together
constexpr int kHalves = 2;  // channels of a group that a lane has
static_assert(kSize / kTile * (kSize / kTile) == kThreads && kSize == kHalves * kLanes);

struct Pair {
  int i, j;
};

// The k-th of the pairs i <= j < n of an even n: first those with i < j, then the others. Row i and
// row n - 2 - i have together n of the first.
__device__ Pair pair_at(int k, int n) {
  const int unequal = n * (n - 1) / 2;
  if (k >= unequal) return {k - unequal, k - unequal};
  const int row = k / n, column = k % n;
  return column < n - 1 - row ? Pair{row, row + 1 + column} : Pair{n - 2 - row, column};
}

__device__ int place_of(Pair pair) {
  return pair.i * (2 * kSize - pair.i - 1) / 2 + pair.j - pair.i - 1;
}

// A thread's correlations of a group: of the pairs threadIdx.x, threadIdx.x + kThreads and on.
struct OwnCorrelations {
  static constexpr int kCount = (kMomentPairs + kThreads - 1) / kThreads;
  int8_t correlation[kCount];

  __device__ explicit OwnCorrelations(const MomentGroup& group) {
    each([&](int own, Pair pair) { correlation[own] = group.correlation[place_of(pair)]; });
  }
  // Calls visit(own, pair).
  template <class Visit>
  __device__ __forceinline__ static void each(Visit&& visit) {
#pragma unroll
    for (int own = 0; own < kCount; ++own) {
      const int k = int(threadIdx.x) + own * kThreads;
      if (k < kMomentPairs) visit(own, pair_at(k, kSize));
    }
  }
  // The moment of two channels.
  __device__ double moment(int own, double deviation, double other) const {
    return deviation * other * double(correlation[own]) / 127.0;
  }
};

__device__ double deviation_of(const MomentGroup& group, int channel) {
  return double(__half2float(__ushort_as_half(group.deviation[channel])));
}

struct LearnSpace {
  union {
    float rows[kRows][kSize];  // the group's channels of some query rows
    float sums[kSize][kSize];  // of products, j >= i
  };
  double deviation[kSize], diagonal[kSize];  // before, and of the new moments
};

// Query rows of a KV head, of some tokens, as a group of channels sees them. kTurns: a matrix turns
// them.
template <bool kTurns>
class Learner {
 public:
  __device__ Learner(const LearnArgs& args, LearnSpace& space)
      : args_(args),
        space_(space),
        first_(int(blockIdx.x) * kSize),
        head_(int(blockIdx.y)),
        stream_(int(blockIdx.z)),
        i_(int(threadIdx.x) / (kSize / kTile) * kTile),
        j_(int(threadIdx.x) % (kSize / kTile) * kTile),
        row_pieces_(args.dim / kPieceNumbers),
        at_once_(kThreads * kOwnPieces / row_pieces_) {
    const int n_tokens = args.counts[stream_];
    stride_ = max(1, n_tokens * args.group / args.most_rows);
    n_rows_ = (n_tokens + stride_ - 1) / stride_ * args.group;
  }

  __device__ bool any() const { return n_rows_ > 0; }

  __device__ MomentGroup& group() const {
    return args_.moments[(size_t(stream_) * size_t(args_.n_heads) + size_t(head_)) * gridDim.x +
                         blockIdx.x];
  }

  // Leaves the sums of products; whether all rows are numbers that a sum can hold.
  __device__ bool sum() const {
    bool finite = true;
    float sums[kTile][kTile] = {};
    uint4 pieces[kOwnPieces];
    load(0, pieces);
    for (int first = 0; first < n_rows_; first += at_once_) {
      finite = put(pieces) && finite;
      __syncthreads();
      load(first + at_once_, pieces);
      add(min(at_once_, n_rows_ - first), sums);
      __syncthreads();
    }
#pragma unroll
    for (int i = 0; i < kTile; ++i) {
#pragma unroll
      for (int j = 0; j < kTile; ++j) space_.sums[i_ + i][j_ + j] = sums[i][j];
    }
    return __syncthreads_and(finite);
  }

  // The mean with what was learnt before.
  __device__ void learn(const OwnCorrelations& before) const {
    MomentGroup& group = this->group();
    const uint32_t n_learnt = group.n_learnt;
    const double share = 1.0 / double(min(int(n_learnt) + 1, kMomentMemory));
    const auto blended = [&](double moment, int i, int j) {
      return moment + share * (double(space_.sums[i][j]) / n_rows_ - moment);
    };
    if (const int i = int(threadIdx.x); i < kSize) {
      const double deviation = deviation_of(group, i), h = blended(deviation * deviation, i, i);
      space_.deviation[i] = deviation, space_.diagonal[i] = h;
      group.deviation[i] = __half_as_ushort(__float2half_rn(float(sqrt(fmax(h, 0.0)))));
    }
    __syncthreads();
    OwnCorrelations::each([&](int own, Pair pair) {
      const auto [i, j] = pair;
      const double h = blended(before.moment(own, space_.deviation[i], space_.deviation[j]), i, j);
      const double both = sqrt(space_.diagonal[i] * space_.diagonal[j]);
      const double correlation = both > 0 ? h / both : 0.0;
      group.correlation[place_of(pair)] = int8_t(lround(127 * fmin(fmax(correlation, -1.0), 1.0)));
    });
    if (threadIdx.x == 0) group.n_learnt = n_learnt + 1;
  }

 private:
  // This thread's pieces of the rows `first` and on; zeros behind the last row.
  __device__ void load(int first, uint4 (&pieces)[kOwnPieces]) const {
#pragma unroll
    for (int p = 0; p < kOwnPieces; ++p) {
      const int k = int(threadIdx.x) + p * kThreads, row = first + k / row_pieces_;
      pieces[p] = {};
      if (row >= n_rows_) continue;
      const int token = row / args_.group * stride_, head = head_ * args_.group + row % args_.group;
      pieces[p] = *reinterpret_cast<const uint4*>(args_.q.row(stream_, token, head) +
                                                  k % row_pieces_ * kPieceNumbers);
    }
  }

  // The rows as keys see them, the group's channels in shared memory; whether all that this thread
  // has are numbers to add.
  __device__ bool put(const uint4 (&pieces)[kOwnPieces]) const {
    if constexpr (kTurns) return put_turned(pieces);
    bool finite = true;
    each_piece(pieces, [&](int row, int first_channel, float(&x)[kPieceNumbers]) {
      if (args_.hadamard) rotate(x);
#pragma unroll
      for (int c = 0; c < kPieceNumbers; ++c) finite = finite && fabsf(x[c]) <= kHalfMax;
      const int channel = first_channel - first_;
      if (channel >= 0 && channel < kSize) store_piece(x, &space_.rows[row][channel]);
    });
    return finite;
  }

  // The same by a matrix: whole rows first, of which each warp turns some.
  __device__ bool put_turned(const uint4 (&pieces)[kOwnPieces]) const {
    extern __shared__ __align__(16) float whole_rows[];  // [at_once_, dim]
    const int dim = args_.dim, lane = int(threadIdx.x) % kLanes;
    each_piece(pieces, [&](int row, int channel, float(&x)[kPieceNumbers]) {
      store_piece(x, whole_rows + row * dim + channel);
    });
    __syncthreads();
    constexpr int kTogether = 4, kWarps = kThreads / kLanes;
    const float* matrix = args_.matrices + size_t(head_) * dim * dim;
    bool finite = true;
    for (int row = int(threadIdx.x) / kLanes * kTogether; row < at_once_;
         row += kWarps * kTogether) {
      for (int channel = lane * kHalves; channel < dim; channel += kSize) {
        float turned[kTogether][kHalves];
        multiply_rows<false>(whole_rows + row * dim, dim, dim, matrix + channel, turned);
        const bool own = channel >= first_ && channel < first_ + kSize;
#pragma unroll
        for (int i = 0; i < kTogether * kHalves; ++i) {
          const float x = turned[i / kHalves][i % kHalves];
          finite = finite && fabsf(x) <= kHalfMax;
          if (own) space_.rows[row + i / kHalves][channel - first_ + i % kHalves] = x;
        }
      }
    }
    return finite;
  }

  // Calls visit(row, channel, numbers) for this thread's pieces: which of the rows at once, the
  // first channel, what the scale makes of them.
  template <class Visit>
  __device__ __forceinline__ void each_piece(const uint4 (&pieces)[kOwnPieces],
                                             Visit&& visit) const {
#pragma unroll
    for (int p = 0; p < kOwnPieces; ++p) {
      const int k = int(threadIdx.x) + p * kThreads;
      const auto* bits = reinterpret_cast<const __half*>(&pieces[p]);
      float x[kPieceNumbers];
#pragma unroll
      for (int c = 0; c < kPieceNumbers; ++c) x[c] = __half2float(bits[c]) * args_.scale;
      visit(k / row_pieces_, k % row_pieces_ * kPieceNumbers, x);
    }
  }

  __device__ static void store_piece(const float (&x)[kPieceNumbers], float* at) {
    auto* to = reinterpret_cast<float4*>(at);
    to[0] = {x[0], x[1], x[2], x[3]};
    to[1] = {x[4], x[5], x[6], x[7]};
  }

  // A row's pieces are neighbouring lanes'.
  __device__ void rotate(float (&x)[kPieceNumbers]) const {
    add_and_subtract_row(x, args_.dim, ~0u);
    const float norm = 1.0f / sqrtf(float(args_.dim));
#pragma unroll
    for (int c = 0; c < kPieceNumbers; ++c) x[c] *= norm;
  }

  __device__ void add(int n, float (&sums)[kTile][kTile]) const {
#pragma unroll 4
    for (int r = 0; r < n; ++r) {
      const float4 a = *reinterpret_cast<const float4*>(&space_.rows[r][i_]);
      const float4 b = *reinterpret_cast<const float4*>(&space_.rows[r][j_]);
      const float of_i[kTile] = {a.x, a.y, a.z, a.w}, of_j[kTile] = {b.x, b.y, b.z, b.w};
#pragma unroll
      for (int i = 0; i < kTile; ++i) {
#pragma unroll
        for (int j = 0; j < kTile; ++j) sums[i][j] += of_i[i] * of_j[j];
      }
    }
  }

  const LearnArgs& args_;
  LearnSpace& space_;
  const int first_, head_, stream_, i_, j_;
  const int row_pieces_, at_once_;  // pieces of a row, rows in shared memory at once
  int stride_, n_rows_;
};

template <bool kTurns>
__global__ void __launch_bounds__(kThreads) learn_kernel(const __grid_constant__ LearnArgs args) {
  __shared__ LearnSpace space;
  const Learner<kTurns> learner(args, space);
  if (!learner.any()) return;
  const OwnCorrelations before(learner.group());  // come while sums are made
  if (learner.sum()) learner.learn(before);
}

// Taking apart H = (U + I) D (U + I)' from the last channel to the first: what is left of H once a
// channel is known is without row[i] * column[j] of it. kPanel channels at once: one warp goes
// through them one after another, in their own columns alone; then all threads take what they know
// from the columns before, each element in the same order.
class Factor {
 public:
  struct Space {
    double h[kSize][kSize + 1], scale[kSize];  // j >= i
    double rows[kPanel][kSize], columns[kPanel][kSize];
  };

  __device__ Factor(Space& space, float* out) : space_(space), out_(out) {}

  // U' [kSize, kSize] of the group's moments.
  __device__ void run() const {
    for (int first = kSize - kPanel; first >= 0; first -= kPanel) {
      if (int(threadIdx.x) < kLanes) learn_panel(first);
      __syncthreads();
      take_from(first);
      __syncthreads();
    }
  }

 private:
  // Channels `first` to first + kPanel - 1.
  __device__ void learn_panel(int first) const {
    double x[kHalves][kPanel];
    float found[kHalves][kPanel];
    each_half([&](int half, int i) {
#pragma unroll
      for (int c = 0; c < kPanel; ++c) x[half][c] = i <= first + c ? space_.h[i][first + c] : 0.0;
    });
#pragma unroll
    for (int c = kPanel - 1; c >= 0; --c) {
      const int k = first + c;
      // Of the lane's channel among those of the panel's half.
      const double own = first < kLanes ? x[0][c] : x[1][c];
      const double d = __shfl_sync(~0u, own, k % kLanes);
      // 8-bit correlations may leave a direction without weight; it then gives no feedback.
      const bool weighs = d > 1e-6 * space_.scale[k];
      double row[kHalves];
      each_half([&](int half, int i) {
        row[half] = weighs && i < k ? x[half][c] / d : 0.0;
        found[half][c] = float(row[half]);
        space_.rows[c][i] = row[half];
        space_.columns[c][i] = weighs ? x[half][c] : 0.0;
      });
#pragma unroll
      for (int b = c - 1; b >= 0; --b) {
        const double column = __shfl_sync(~0u, own, (first + b) % kLanes);
        each_half([&](int half, int) { x[half][b] -= row[half] * column; });
      }
    }
    each_half([&](int half, int i) {
      auto* to = reinterpret_cast<float4*>(out_ + i * kSize + first);
      const auto& u = found[half];
      to[0] = {u[0], u[1], u[2], u[3]};
      to[1] = {u[4], u[5], u[6], u[7]};
    });
  }

  // The panel's part of what is left of the columns before it.
  __device__ void take_from(int n) const {
    for (int k = int(threadIdx.x); k < n * (n + 1) / 2; k += kThreads) {
      const auto [i, j] = pair_at(k, n);
      double left = space_.h[i][j];
#pragma unroll
      for (int c = kPanel - 1; c >= 0; --c) left -= space_.rows[c][i] * space_.columns[c][j];
      space_.h[i][j] = left;
    }
  }

  // Calls visit(half, i) for the lane's channels.
  template <class Visit>
  __device__ __forceinline__ static void each_half(Visit&& visit) {
#pragma unroll
    for (int half = 0; half < kHalves; ++half) visit(half, int(threadIdx.x) + half * kLanes);
  }

  Space& space_;
  float* out_;
};

// The moments of a group, each channel's own with the damping.
__device__ void damp(const MomentGroup& group, Factor::Space& space) {
  __shared__ double deviation[kSize];
  const OwnCorrelations own_correlations(group);
  const int thread = int(threadIdx.x);
  if (thread < kSize) deviation[thread] = deviation_of(group, thread);
  __syncthreads();
  OwnCorrelations::each([&](int own, Pair pair) {
    const auto [i, j] = pair;
    space.h[i][j] = own_correlations.moment(own, deviation[i], deviation[j]);
  });
  if (thread >= kSize) return;
  double mean = 0;
#pragma unroll 16
  for (int i = 0; i < kSize; ++i) mean += deviation[i] * deviation[i] / double(kSize);
  space.h[thread][thread] = space.scale[thread] =
      deviation[thread] * deviation[thread] + kMomentDamping * mean;
}

__global__ void __launch_bounds__(kThreads)
    feedback_kernel(const MomentGroup* moments, float* feedback, uint32_t* learnt) {
  __shared__ Factor::Space space;
  const size_t list = size_t(blockIdx.z) * gridDim.y + blockIdx.y;
  const MomentGroup& group = moments[list * gridDim.x + blockIdx.x];
  if (blockIdx.x == 0 && threadIdx.x == 0) learnt[list] = group.n_learnt;
  if (group.n_learnt == 0) return;
  damp(group, space);
  __syncthreads();
  Factor(space, feedback + (list * gridDim.x + blockIdx.x) * (kSize * kSize)).run();
}

Status wrong(const char* what, const char* found) {
  return {Code::BadArgument, std::string(what) + ": found " + found};
}

bool has_kernel(int dim, int n_heads, int n_streams) {
  return dim % kLeastDim == 0 && dim <= kMostDim && (dim & (dim - 1)) == 0 && n_heads > 0 &&
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
  if (!args.matrices) {
    learn_kernel<false><<<grid, kThreads, 0, stream>>>(args);
  } else {
    constexpr int kBytes =
        kThreads * kOwnPieces * kPieceNumbers * int(sizeof(float));  // whole rows
    ZC_TRY(from_cuda(cudaFuncSetAttribute(learn_kernel<true>,
                                          cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes),
                     "asking for shared memory for what queries teach"));
    learn_kernel<true><<<grid, kThreads, kBytes, stream>>>(args);
  }
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
