// The kernels of attention of prompts. A block of threads keeps some query rows of a head; keys and
// values stream through shared memory, 64 tokens at a time, while softmax keeps a running maximum
// (online softmax, as FlashAttention-2 has it: Dao, 2023).
#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include "cuda/device.cuh"
#include "cuda/prompt_launch.hpp"

namespace zipcache::cuda {
namespace {

constexpr int kWarps = 4, kThreads = kWarps * kLanes;
constexpr float kLog2E = 1.44269504f, kLn2 = 0.693147181f;
constexpr float kLowest = -1e30f;  // below every score, and a number
// Powers of two that a score may exceed the running maximum by before that is raised: weights
// stay 16-bit numbers, and sums are seldom multiplied.
constexpr float kSlack = 8;

constexpr int kKeys = 64;       // tokens in shared memory at once
constexpr int kLeastTiles = 4;  // times as many tokens are worth a block of their own

// Tiles of 16 query rows that a warp keeps: two share every operand that is read.
template <int kDim>
constexpr int kTiles = kDim <= 128 ? 2 : 1;
template <int kDim>
constexpr int kRows = kWarps* kTiles<kDim> * 16;

template <int kDim>
struct Shared {
  static constexpr int kStride = kDim + 8;  // 16 bytes more, so that rows do not meet in a bank
  uint16_t q[kRows<kDim>][kStride];
  uint16_t k[kKeys][kStride], v[kKeys][kStride];
};

// Bytes from a row of shared memory and a channel to others.
template <int kDim>
__device__ constexpr uint32_t bytes_to(int row, int channel) {
  return uint32_t(row * Shared<kDim>::kStride + channel) * 2;
}

// Asks for rows `first` and on of one head of a stream, which begin at `rows`; the last of all
// n_rows stands in for those behind it. By all threads of the block.
template <int kDim, int kCount>
__device__ __forceinline__ void ask_rows(uint16_t (&to)[kCount][Shared<kDim>::kStride],
                                         const uint16_t* rows, uint32_t stride, int first,
                                         int n_rows) {
  constexpr int kPieces = kDim / 8, kAtOnce = kThreads / kPieces;
  const int row = int(threadIdx.x) / kPieces, channel = int(threadIdx.x) % kPieces * 8;
#pragma unroll
  for (int i = 0; i < kCount; i += kAtOnce) {
    const auto from = uint32_t(min(first + row + i, n_rows - 1));
    copy_16(&to[row + i][channel], rows + uint64_t{from} * stride + channel);
  }
}

__device__ __forceinline__ void store_pair(__half* to, float x, float y) {
  *reinterpret_cast<__half2*>(to) = __floats2half2_rn(x, y);
}
__device__ __forceinline__ void store_pair(__nv_bfloat16* to, float x, float y) {
  *reinterpret_cast<__nv_bfloat162*>(to) = __floats2bfloat162_rn(x, y);
}
__device__ __forceinline__ void store_pair(float* to, float x, float y) {
  *reinterpret_cast<float2*>(to) = float2{x, y};
}
__device__ __forceinline__ float2 load_pair(const __half* from) {
  return __half22float2(*reinterpret_cast<const __half2*>(from));
}
__device__ __forceinline__ float2 load_pair(const __nv_bfloat16* from) {
  return __bfloat1622float2(*reinterpret_cast<const __nv_bfloat162*>(from));
}
__device__ __forceinline__ float2 load_pair(const float* from) {
  return *reinterpret_cast<const float2*>(from);
}

// use(numbers) with `numbers` as a pointer to their type.
template <class Use>
__device__ __forceinline__ void with_type(void* numbers, Number type, Use&& use) {
  switch (type) {
    case Number::F16:
      return use(static_cast<__half*>(numbers));
    case Number::BF16:
      return use(static_cast<__nv_bfloat16*>(numbers));
    default:
      return use(static_cast<float*>(numbers));
  }
}

// The query rows of a warp. Of a tile of 16, a lane l has numbers of rows l / 4 and l / 4 + 8, here
// halves 0 and 1, in the order of mma's results: of columns 2 (l % 4) and the next one, first of
// half 0, then of half 1. Keys are those of the rows' own tokens, or `end` ones of earlier tokens
// (kPast).
template <int kDim, bool kPast>
class Warp {
 public:
  static constexpr int kT = kTiles<kDim>;
  using Scores = float[kT][kKeys / 8][4];

  // The warp's first row is `block_row` of the block and `first_row` of the stream. `scale` takes
  // products to powers of two.
  __device__ Warp(const Shared<kDim>& shared, int block_row, int first_row, int end, float scale)
      : lane_(int(threadIdx.x) % kLanes), first_row_(first_row), end_(end), scale_(scale) {
    // Each lane gives load_matrices() the address of 8 channels of a row: of q and v those of 16
    // rows and then their next 8 channels, of k those of 8 rows, their next ones, then of 8 rows
    // more.
    q_at_ = shared_address(&shared.q[block_row + lane_ % 16][lane_ / 16 * 8]);
    k_at_ = shared_address(&shared.k[lane_ / 16 * 8 + lane_ % 8][lane_ / 8 % 2 * 8]);
    v_at_ = shared_address(&shared.v[lane_ % 16][lane_ / 16 * 8]);
#pragma unroll
    for (int tile = 0; tile < kT; ++tile) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        peaks_[tile][half] = kLowest;
        masses_[tile][half] = 0;
      }
    }
  }

  // Whether any row sees a key.
  __device__ bool sees(int key) const { return kPast || key < first_row_ + kT * 16; }

  // Products of the queries with the keys in shared memory, `first_key` and on; -infinity for those
  // behind a query, or behind the last one.
  __device__ __forceinline__ void score(int first_key, Scores& scores) const {
#pragma unroll
    for (int tile = 0; tile < kT; ++tile) {
#pragma unroll
      for (int n = 0; n < kKeys / 8; ++n)
        scores[tile][n][0] = scores[tile][n][1] = scores[tile][n][2] = scores[tile][n][3] = 0;
    }
#pragma unroll
    for (int channel = 0; channel < kDim; channel += 16) {
      uint32_t a[kT][4];
#pragma unroll
      for (int tile = 0; tile < kT; ++tile)
        load_matrices(q_at_ + bytes_to<kDim>(tile * 16, channel), a[tile]);
#pragma unroll
      for (int n = 0; n < kKeys / 8; n += 2) {
        uint32_t b[4];
        load_matrices(k_at_ + bytes_to<kDim>(n * 8, channel), b);
        add_products(scores, n, a, b);
      }
    }
    if (first_key + kKeys > visible(first_row_)) hide(first_key, scores);
  }

  // Adds the values in shared memory, weighed by what the scores of their tokens are to the
  // softmax.
  __device__ __forceinline__ void add(Scores& scores) {
    raise_peaks(scores);
    weigh(scores);
#pragma unroll
    for (int n = 0; n < kKeys / 8; n += 2) {
      uint32_t a[kT][4];
#pragma unroll
      for (int tile = 0; tile < kT; ++tile) {
        const auto& low = scores[tile][n];
        const auto& high = scores[tile][n + 1];
        a[tile][0] = half_pair(low[0], low[1]);
        a[tile][1] = half_pair(low[2], low[3]);
        a[tile][2] = half_pair(high[0], high[1]);
        a[tile][3] = half_pair(high[2], high[3]);
      }
#pragma unroll
      for (int channel = 0; channel < kDim; channel += 16) {
        uint32_t b[4];
        load_turned_matrices(v_at_ + bytes_to<kDim>(n * 8, channel), b);
        add_products(sums_, channel / 8, a, b);
      }
    }
  }

  // Divides the sums by those of the softmax and stores both; where keys are of earlier tokens,
  // joined with what is there of other tokens.
  __device__ void store(const PromptArgs& args, int stream, int head, int length) const {
    const int n_query_heads = args.n_heads * args.group;
    const float sink = args.sinks ? args.sinks[head] * kLog2E : kLowest;
#pragma unroll
    for (int tile = 0; tile < kT; ++tile) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const float peak = fmaxf(peaks_[tile][half], sink);
        const float rescaled = fast_exp2(peaks_[tile][half] - peak);
        const float mass =
            sum_of_row(masses_[tile][half]) * rescaled + (args.sinks ? fast_exp2(sink - peak) : 0);
        float factor = rescaled / mass, log_sum = peak + log2f(mass), share = 0;
        const int row = first_row_ + tile * 16 + lane_ / 4 + 8 * half;
        const size_t number =
            (size_t(stream) * size_t(args.n_tokens) + size_t(row)) * size_t(n_query_heads) +
            size_t(head);
        if constexpr (kPast) {
          const float other = row < length ? args.log_sums[number] * kLog2E : kLowest;
          __syncwarp();  // all lanes have read it
          factor *= join(log_sum, other, share);
        }
        if (row >= length) continue;
        if (args.log_sums && lane_ % 4 == 0) args.log_sums[number] = log_sum * kLn2;
        with_type(args.out, args.out_type, [&](auto* out) {
          auto* to = out + number * kDim + lane_ % 4 * 2;
#pragma unroll
          for (int n = 0; n < kDim / 8; ++n) {
            float x = sums_[tile][n][2 * half] * factor;
            float y = sums_[tile][n][2 * half + 1] * factor;
            if constexpr (kPast) {
              const float2 other = load_pair(to + n * 8);
              x = fmaf(other.x, share, x);
              y = fmaf(other.y, share, y);
            }
            store_pair(to + n * 8, x, y);
          }
        });
      }
    }
  }

 private:
  // Keys that a row sees.
  __device__ __forceinline__ int visible(int row) const { return kPast ? end_ : row + 1; }

  // The logarithm of a sum becomes that of it and `other`'s; both shares.
  __device__ __forceinline__ static float join(float& log_sum, float other, float& other_share) {
    const float own = log_sum, top = fmaxf(own, other);
    log_sum = top + log2f(fast_exp2(own - top) + fast_exp2(other - top));
    other_share = fast_exp2(other - log_sum);
    return fast_exp2(own - log_sum);
  }

  // Columns 8 n to 8 n + 15 of results.
  template <int kColumnTiles>
  __device__ __forceinline__ static void add_products(float (&to)[kT][kColumnTiles][4], int n,
                                                      const uint32_t (&a)[kT][4],
                                                      const uint32_t (&b)[4]) {
#pragma unroll
    for (int tile = 0; tile < kT; ++tile) {
      const auto& rows = a[tile];
      multiply_add(to[tile][n], rows[0], rows[1], rows[2], rows[3], b[0], b[1]);
      multiply_add(to[tile][n + 1], rows[0], rows[1], rows[2], rows[3], b[2], b[3]);
    }
  }

  __device__ __forceinline__ void hide(int first_key, Scores& scores) const {
#pragma unroll
    for (int tile = 0; tile < kT; ++tile) {
#pragma unroll
      for (int n = 0; n < kKeys / 8; ++n) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const int row = first_row_ + tile * 16 + lane_ / 4 + i / 2 * 8;
          if (first_key + n * 8 + lane_ % 4 * 2 + i % 2 >= visible(row))
            scores[tile][n][i] = -INFINITY;
        }
      }
    }
  }

  // Where a score of any row is too far above its peak.
  __device__ __forceinline__ void raise_peaks(const Scores& scores) {
    float largest[kT][2];
    bool too_low = false;
#pragma unroll
    for (int tile = 0; tile < kT; ++tile) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        float x = -INFINITY;
#pragma unroll
        for (int n = 0; n < kKeys / 8; ++n)
          x = fmaxf(x, fmaxf(scores[tile][n][2 * half], scores[tile][n][2 * half + 1]));
        largest[tile][half] = x * scale_;
        too_low = too_low || largest[tile][half] > peaks_[tile][half] + kSlack;
      }
    }
    if (!__any_sync(~0u, too_low)) return;
#pragma unroll
    for (int tile = 0; tile < kT; ++tile) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const float raised = fmaxf(peaks_[tile][half], largest_of_row(largest[tile][half]));
        const float factor = fast_exp2(peaks_[tile][half] - raised);
        peaks_[tile][half] = raised;
        masses_[tile][half] *= factor;
#pragma unroll
        for (int n = 0; n < kDim / 8; ++n) {
          sums_[tile][n][2 * half] *= factor;
          sums_[tile][n][2 * half + 1] *= factor;
        }
      }
    }
  }

  // Scores become weights.
  __device__ __forceinline__ void weigh(Scores& scores) {
#pragma unroll
    for (int tile = 0; tile < kT; ++tile) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const float peak = peaks_[tile][half];
        // Two sums side by side, since each addition waits for the one before it.
        float even = 0, odd = 0;
#pragma unroll
        for (int n = 0; n < kKeys / 8; ++n) {
          float& x = scores[tile][n][2 * half];
          float& y = scores[tile][n][2 * half + 1];
          even += x = fast_exp2(fmaf(x, scale_, -peak));
          odd += y = fast_exp2(fmaf(y, scale_, -peak));
        }
        masses_[tile][half] += even + odd;
      }
    }
  }

  const int lane_, first_row_, end_;
  const float scale_;
  uint32_t q_at_, k_at_, v_at_;       // in shared memory
  float sums_[kT][kDim / 8][4] = {};  // of weights times values, for columns of 8 channels
  float peaks_[kT][2];                // powers of two, the same in the 4 lanes of a row
  float masses_[kT][2];               // sums of the lane's own weights
};

// Blocks of threads that share the past of the same queries. They add to the results one after
// another, in the order of their shares, so that these are the same every time. A block takes the
// next share when it begins: those before it have begun then, so that none waits for a block that
// waits for its processor.
class Turns {
 public:
  __device__ Turns(int* turns, int n_shares)
      : n_shares_(n_shares),
        begun_(turns + 2 * (int(blockIdx.y) * int(gridDim.x) + int(blockIdx.x))),
        done_(begun_ + 1) {}

  // The block's share.
  __device__ int take() const {
    __shared__ int share;
    if (n_shares_ == 1) return 0;
    if (threadIdx.x == 0) share = add_in_order_of_device(begun_, 1);
    __syncthreads();
    return share;
  }
  // Until the results of the shares before are there.
  __device__ void wait_for(int share) const {
    if (n_shares_ == 1) return;
    if (threadIdx.x == 0) {
      while (add_in_order_of_device(done_, 0) != share) __nanosleep(100);
    }
    __syncthreads();
  }
  // After all threads have stored theirs.
  __device__ void pass_on(int share) const {
    if (n_shares_ == 1) return;
    __syncthreads();
    if (threadIdx.x != 0) return;
    if (share + 1 < n_shares_)
      add_in_order_of_device(done_, 1);
    else
      *begun_ = *done_ = 0;  // for the next launch
  }

 private:
  const int n_shares_;
  int *begun_, *done_;
};

// Query heads of all streams stand side by side in the grid, those of a KV head next to each other.
// Blocks of the last rows, which see most, begin first.
template <int kDim, bool kPast>
__global__ void __launch_bounds__(kThreads, 2)
    prompt_kernel(const __grid_constant__ PromptArgs args) {
  extern __shared__ __align__(16) uint8_t dynamic[];
  auto& shared = *reinterpret_cast<Shared<kDim>*>(dynamic);
  const int n_query_heads = args.n_heads * args.group;
  const int stream = int(blockIdx.x) / n_query_heads, head = int(blockIdx.x) % n_query_heads;
  const int length = args.lengths ? min(args.lengths[stream], args.n_tokens) : args.n_tokens;
  const int first_row = (int(gridDim.y) - 1 - int(blockIdx.y)) * kRows<kDim>;
  if (first_row >= length) return;
  const int last = min(first_row + kRows<kDim>, length);
  int begin = 0, end = last;  // of the tokens that any row sees
  const int n_tiles = kPast ? (args.past[stream] + kKeys - 1) / kKeys : 0;
  const int n_shares = kPast ? max(1, min(int(gridDim.z), n_tiles / kLeastTiles)) : 1;
  if (kPast && (n_tiles == 0 || int(blockIdx.z) >= n_shares)) return;
  const Turns turns(args.turns, n_shares);
  const int share = kPast ? turns.take() : 0;
  if constexpr (kPast) {
    begin = n_tiles * share / n_shares * kKeys;
    end = min(args.past[stream], n_tiles * (share + 1) / n_shares * kKeys);
  }
  const uint16_t* k = args.k.row(stream, 0, head / args.group);
  const uint16_t* v = args.v.row(stream, 0, head / args.group);
  const auto k_stride = uint32_t(args.k.token_stride), v_stride = uint32_t(args.v.token_stride);

  ask_rows<kDim>(shared.q, args.q.row(stream, 0, head), uint32_t(args.q.token_stride), first_row,
                 last);
  ask_rows<kDim>(shared.k, k, k_stride, begin, end);
  commit_copies();
  const int block_row = int(threadIdx.x) / kLanes * kTiles<kDim> * 16;
  Warp<kDim, kPast> warp(shared, block_row, first_row + block_row, end, args.scale * kLog2E);
#pragma unroll 1
  for (int first = begin; first < end; first += kKeys) {
    const bool sees = warp.sees(first);
    typename Warp<kDim, kPast>::Scores scores;
    wait_copies<0>();
    __syncthreads();  // the keys are there, and the values before are no longer needed
    ask_rows<kDim>(shared.v, v, v_stride, first, end);
    commit_copies();
    if (sees) warp.score(first, scores);
    wait_copies<0>();
    __syncthreads();  // the values are there, and the keys are no longer needed
    if (first + kKeys < end) ask_rows<kDim>(shared.k, k, k_stride, first + kKeys, end);
    commit_copies();
    if (sees) warp.add(scores);
  }
  if constexpr (kPast) turns.wait_for(share);
  warp.store(args, stream, head, length);
  if constexpr (kPast) turns.pass_on(share);
}

// Blocks of threads for each of n_tiles, the rows of a head that one block keeps; 1 unless they are
// few.
cudaError_t shares_of(const PromptArgs& args, unsigned n_tiles, unsigned& n_shares) {
  constexpr unsigned kMostShares = 8, kOnProcessor = 2;
  n_shares = 1;
  if (!args.past || !args.turns || n_tiles > kPromptTurns / 2) return cudaSuccess;
  int device = 0, n_processors = 0;
  cudaError_t error = cudaGetDevice(&device);
  if (error == cudaSuccess)
    error = cudaDeviceGetAttribute(&n_processors, cudaDevAttrMultiProcessorCount, device);
  const unsigned n_blocks = kOnProcessor * unsigned(n_processors);
  while (n_shares < kMostShares && n_tiles * n_shares * 3 / 2 < n_blocks) n_shares *= 2;
  return error;
}

template <int kDim, bool kPast>
cudaError_t launch_one(const PromptArgs& args, cudaStream_t stream) {
  constexpr int kBytes = int(sizeof(Shared<kDim>));
  auto* kernel = prompt_kernel<kDim, kPast>;
  // Set once a device would do; it costs less than a lookup whether it was.
  cudaError_t error =
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes);
  if (error != cudaSuccess) return error;
  dim3 grid(unsigned(args.n_streams) * unsigned(args.n_heads * args.group),
            unsigned((args.n_tokens + kRows<kDim> - 1) / kRows<kDim>));
  error = shares_of(args, grid.x * grid.y, grid.z);
  if (error != cudaSuccess) return error;
  kernel<<<grid, kThreads, kBytes, stream>>>(args);
  return cudaGetLastError();
}

template <int kDim>
cudaError_t launch_dim(const PromptArgs& args, cudaStream_t stream) {
  return args.past ? launch_one<kDim, true>(args, stream) : launch_one<kDim, false>(args, stream);
}

}  // namespace

cudaError_t launch_prompt(const PromptArgs& args, cudaStream_t stream) {
  switch (args.dim) {
    case 64:
      return launch_dim<64>(args, stream);
    case 128:
      return launch_dim<128>(args, stream);
    default:
      return launch_dim<256>(args, stream);
  }
}

}  // namespace zipcache::cuda
