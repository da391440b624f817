// The kernels of the saliency pass: products of rows that a warp keeps in registers with rows that
// all warps of a block stream through shared memory. The first kernel keeps query rows and streams
// keys, the second the other way round.
#include "cuda/device.cuh"
#include "cuda/probe_launch.hpp"

namespace zipcache::cuda {
namespace {

constexpr int kWarps = 4, kThreads = kWarps * kLanes;
constexpr float kLog2E = 1.44269504f, kLn2 = 0.693147181f;
constexpr float kLowest = -1e30f;  // below every score, and a number

// Tiles of 16 rows that a warp keeps.
template <int kDim>
constexpr int kTiles = kDim <= 128 ? 2 : 1;
// Rows that a block of threads keeps, and streamed rows in shared memory at once.
template <int kDim>
constexpr int kKept = kWarps* kTiles<kDim> * 16;
template <int kDim>
constexpr int kStreamed = kDim <= 128 ? 64 : 32;

// Rows of 16 bits, in the order in which products take them.
struct KeyRows {
  const InputRows& k;
  int stream, head, oldest, n_tokens;
  __device__ KeyRows(const ProbeArgs& args, int stream, int head)
      : k(args.k),
        stream(stream),
        head(head),
        oldest(args.oldest ? args.oldest[stream] : 0),
        n_tokens(args.n_tokens) {}
  // Of a token.
  __device__ int row(int token) const {
    const int row = oldest + token;
    return row < n_tokens ? row : row - n_tokens;
  }
  __device__ const uint16_t* operator[](int token) const { return k.row(stream, row(token), head); }
};
struct QueryRows {
  const InputRows& q;
  int stream, head, group;
  __device__ const uint16_t* operator[](int row) const {
    return q.row(stream, row / group, head * group + row % group);
  }
};

// The first operand of products: kept rows `first` and on, as far as there are any; the last one
// stands in for others.
template <int kDim, class Rows>
struct Kept {
  uint32_t words[kTiles<kDim>][kDim / 16][4];

  __device__ Kept(const Rows& rows, int first, int n_rows) {
    const int lane = int(threadIdx.x) % kLanes;
#pragma unroll
    for (int tile = 0; tile < kTiles<kDim>; ++tile) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int row = min(first + tile * 16 + lane / 4 + 8 * half, n_rows - 1);
        const auto* from = reinterpret_cast<const uint32_t*>(rows[row]) + lane % 4;
#pragma unroll
        for (int s = 0; s < kDim / 16; ++s) {
          words[tile][s][half] = __ldg(from + 8 * s);
          words[tile][s][2 + half] = __ldg(from + 8 * s + 4);
        }
      }
    }
  }
};

template <int kDim>
struct Stages {
  static constexpr int kStride = kDim + 8;  // 16 bytes more, so that rows do not meet in a bank
  alignas(16) uint16_t rows[2][kStreamed<kDim>][kStride];
};

// Hands the products of kept rows with streamed rows `begin` to `end` - 1, eight of these at a
// time, to use(slot, column, first, products): row `first` and on, the `column`-th and on of those
// in `slot` of shared memory. products[tile][i] of a lane is of kept row l / 4 + 8 (i / 2) of the
// tile and of streamed row first + 2 (l % 4) + i % 2, which may lie behind the end. By all threads
// of the block, which call prepare(slot, first) when a slot is filled; wanted(slot, column) says
// whether the warp needs these eight.
template <int kDim, class KeptRows, class Rows, class Prepare, class Wanted, class Use>
__device__ __forceinline__ void multiply(const Kept<kDim, KeptRows>& kept, const Rows& rows,
                                         int begin, int end, Stages<kDim>& stages,
                                         Prepare&& prepare, Wanted&& wanted, Use&& use) {
  constexpr int kRows = kStreamed<kDim>, kPieces = kDim / 8;
  const int lane = int(threadIdx.x) % kLanes;
  const auto fill = [&](int slot, int first) {
    prepare(slot, first);
    for (int i = int(threadIdx.x); i < kRows * kPieces; i += kThreads) {
      const int row = i / kPieces, piece = i % kPieces;
      copy_16(&stages.rows[slot][row][piece * 8], rows[min(first + row, end - 1)] + piece * 8);
    }
    commit_copies();
  };
  if (begin >= end) return;
  fill(0, begin);
  for (int first = begin, slot = 0; first < end; first += kRows, slot ^= 1) {
    if (first + kRows < end) {
      fill(slot ^ 1, first + kRows);
      wait_copies<1>();
    } else {
      wait_copies<0>();
    }
    __syncthreads();
    for (int column = 0; column < kRows && first + column < end; column += 8) {
      if (!wanted(slot, column)) continue;
      // Two sums side by side, since each product waits for the one before it.
      float products[kTiles<kDim>][4] = {}, odd[kTiles<kDim>][4] = {};
      const uint32_t address = shared_address(&stages.rows[slot][column + lane % 8][lane / 8 * 8]);
#pragma unroll
      for (int s = 0; s < kDim / 16; s += 2) {
        uint32_t b[4];
        load_matrices(address + uint32_t(s) * 32, b);
#pragma unroll
        for (int tile = 0; tile < kTiles<kDim>; ++tile) {
          const auto& a = kept.words[tile];
          multiply_add(products[tile], a[s][0], a[s][1], a[s][2], a[s][3], b[0], b[1]);
          multiply_add(odd[tile], a[s + 1][0], a[s + 1][1], a[s + 1][2], a[s + 1][3], b[2], b[3]);
        }
      }
#pragma unroll
      for (int tile = 0; tile < kTiles<kDim>; ++tile) {
#pragma unroll
        for (int i = 0; i < 4; ++i) products[tile][i] += odd[tile][i];
      }
      use(slot, column, first + column, products);
    }
    __syncthreads();
  }
}

// Over the 4 lanes that hold numbers of the same kept row.
__device__ __forceinline__ float sum_of_row(float x) {
  x += __shfl_xor_sync(~0u, x, 1);
  return x + __shfl_xor_sync(~0u, x, 2);
}
__device__ __forceinline__ float largest_of_row(float x) {
  x = fmaxf(x, __shfl_xor_sync(~0u, x, 1));
  return fmaxf(x, __shfl_xor_sync(~0u, x, 2));
}

__device__ __forceinline__ const int32_t* limits_of(const ProbeArgs& args, int stream) {
  return args.limits + size_t(stream) * size_t(args.n_probes);
}
// Place of a query row of a KV head among the logarithms.
__device__ __forceinline__ size_t log_place(const ProbeArgs& args, int stream, int head, int row) {
  const size_t probe = size_t(stream) * size_t(args.n_probes) + size_t(row / args.group);
  return probe * size_t(args.n_heads * args.group) + size_t(head * args.group + row % args.group);
}

// What a warp keeps: which of the block's rows, and which of these its lanes hold results of.
template <int kDim>
struct OwnRows {
  int first;

  __device__ OwnRows()
      : first((int(blockIdx.x) * kWarps + int(threadIdx.x) / kLanes) * kTiles<kDim> * 16) {}
  // Calls visit(tile, half, row).
  template <class Visit>
  __device__ __forceinline__ void each(Visit&& visit) const {
#pragma unroll
    for (int tile = 0; tile < kTiles<kDim>; ++tile) {
#pragma unroll
      for (int half = 0; half < 2; ++half)
        visit(tile, half, first + tile * 16 + int(threadIdx.x) % kLanes / 4 + 8 * half);
    }
  }
};

// ---- logarithms of the sums: a block of threads for some query rows of a KV head

template <int kDim>
__global__ void __launch_bounds__(kThreads)
    log_sums_kernel(const __grid_constant__ ProbeArgs args, float* log_sums) {
  constexpr int kT = kTiles<kDim>;
  __shared__ Stages<kDim> stages;
  __shared__ int most;  // keys that any row of the block sees
  const int head = int(blockIdx.y), stream = int(blockIdx.z), lane = int(threadIdx.x) % kLanes;
  const int n_rows = args.n_probes * args.group;
  const OwnRows<kDim> own;
  const Kept<kDim, QueryRows> kept({args.q, stream, head, args.group}, own.first, n_rows);

  int limits[kT][2];
  float peaks[kT][2], masses[kT][2];
  if (threadIdx.x == 0) most = 0;
  __syncthreads();
  own.each([&](int tile, int half, int row) {
    limits[tile][half] =
        row < n_rows ? min(limits_of(args, stream)[row / args.group], args.n_tokens) : 0;
    atomicMax(&most, limits[tile][half]);
    peaks[tile][half] = kLowest;
    masses[tile][half] = 0;
  });
  __syncthreads();

  const float scale = args.scale * kLog2E;
  multiply<kDim>(
      kept, KeyRows(args, stream, head), 0, most, stages, [](int, int) {},
      [](int, int) { return true; },
      [&](int, int, int key, const float(&products)[kT][4]) {
        own.each([&](int tile, int half, int) {
          float scores[2];
#pragma unroll
          for (int e = 0; e < 2; ++e) {
            const bool seen = key + lane % 4 * 2 + e < limits[tile][half];
            scores[e] = seen ? products[tile][2 * half + e] * scale : -INFINITY;
          }
          float& peak = peaks[tile][half];
          const float raised = fmaxf(peak, fmaxf(scores[0], scores[1]));
          masses[tile][half] = masses[tile][half] * fast_exp2(peak - raised) +
                               fast_exp2(scores[0] - raised) + fast_exp2(scores[1] - raised);
          peak = raised;
        });
      });

  own.each([&](int tile, int half, int row) {
    const float peak = largest_of_row(peaks[tile][half]);
    const float mass = sum_of_row(masses[tile][half] * fast_exp2(peaks[tile][half] - peak));
    if (lane % 4 != 0 || row >= n_rows) return;
    log_sums[log_place(args, stream, head, row)] = (peak + log2f(mass)) * kLn2;
  });
}

// ---- sums over probes: a block of threads for some tokens of a KV head

// A query row, as what keeps tokens needs it.
struct alignas(8) Column {
  int limit;
  float log2_sum;
};

// The first and the one behind the last of the probes that see any token from `first_token` on.
__device__ void find_rows(const ProbeArgs& args, int stream, int first_token, int (&range)[2]) {
  if (threadIdx.x == 0) range[0] = args.n_probes, range[1] = 0;
  __syncthreads();
  for (int probe = int(threadIdx.x); probe < args.n_probes; probe += kThreads) {
    if (limits_of(args, stream)[probe] <= first_token) continue;
    atomicMin(&range[0], probe);
    atomicMax(&range[1], probe + 1);
  }
  __syncthreads();
}

// By as many threads as the block keeps tokens.
__device__ void count_views(const ProbeArgs& args, const KeyRows& keys, int first_token,
                            int n_tokens) {
  const int token = first_token + int(threadIdx.x);
  if (int(threadIdx.x) >= n_tokens || token >= args.n_tokens) return;
  uint32_t n = 0;
  for (int probe = 0; probe < args.n_probes; ++probe)
    n += token < limits_of(args, keys.stream)[probe];
  args.seen.tokens(keys.stream, 0)[keys.row(token)] += n;
}

template <int kDim>
__global__ void __launch_bounds__(kThreads)
    probe_sums_kernel(const __grid_constant__ ProbeArgs args) {
  constexpr int kT = kTiles<kDim>;
  static_assert(kKept<kDim> <= kThreads);
  __shared__ Stages<kDim> stages;
  __shared__ Column columns[2][kStreamed<kDim>];
  __shared__ int probes[2];
  const int head = int(blockIdx.y), stream = int(blockIdx.z), lane = int(threadIdx.x) % kLanes;
  const int block_first = int(blockIdx.x) * kKept<kDim>;
  const KeyRows keys(args, stream, head);
  if (head == 0 && args.seen.data) count_views(args, keys, block_first, kKept<kDim>);
  find_rows(args, stream, block_first, probes);
  const OwnRows<kDim> own;
  const Kept<kDim, KeyRows> kept(keys, own.first, args.n_tokens);

  float sums[kT][2] = {};
  const float scale = args.scale * kLog2E;
  const int end = probes[1] * args.group;
  multiply<kDim>(
      kept, QueryRows{args.q, stream, head, args.group}, probes[0] * args.group, end, stages,
      [&](int slot, int first) {
        for (int i = int(threadIdx.x); i < kStreamed<kDim>; i += kThreads) {
          const int row = first + i;
          Column column = {0, 0};
          if (row < end) {
            column.limit = limits_of(args, stream)[row / args.group];
            column.log2_sum = args.log_sums[log_place(args, stream, head, row)] * kLog2E;
          }
          columns[slot][i] = column;
        }
      },
      [&](int slot, int column) {
        return __any_sync(~0u, columns[slot][column + lane % 8].limit > own.first);
      },
      [&](int slot, int column, int, const float(&products)[kT][4]) {
        const Column both[2] = {columns[slot][column + lane % 4 * 2],
                                columns[slot][column + lane % 4 * 2 + 1]};
        own.each([&](int tile, int half, int token) {
#pragma unroll
          for (int e = 0; e < 2; ++e) {
            const float given = fast_exp2(products[tile][2 * half + e] * scale - both[e].log2_sum);
            sums[tile][half] += token < both[e].limit ? given : 0.0f;
          }
        });
      });

  own.each([&](int tile, int half, int token) {
    const float sum = sum_of_row(sums[tile][half]);
    if (lane % 4 == 0 && token < args.n_tokens)
      args.sums.tokens(stream, head)[keys.row(token)] += sum;
  });
}

template <int kDim>
dim3 grid_for(const ProbeArgs& args, int n_rows) {
  return dim3(unsigned((n_rows + kKept<kDim> - 1) / kKept<kDim>), unsigned(args.n_heads),
              unsigned(args.n_streams));
}

template <int kDim>
cudaError_t launch_log_sums_of(const ProbeArgs& args, float* log_sums, cudaStream_t stream) {
  const dim3 grid = grid_for<kDim>(args, args.n_probes * args.group);
  log_sums_kernel<kDim><<<grid, kThreads, 0, stream>>>(args, log_sums);
  return cudaGetLastError();
}

template <int kDim>
cudaError_t launch_probe_sums_of(const ProbeArgs& args, cudaStream_t stream) {
  probe_sums_kernel<kDim><<<grid_for<kDim>(args, args.n_tokens), kThreads, 0, stream>>>(args);
  return cudaGetLastError();
}

}  // namespace

cudaError_t launch_log_sums(const ProbeArgs& args, float* log_sums, cudaStream_t stream) {
  switch (args.dim) {
    case 64:
      return launch_log_sums_of<64>(args, log_sums, stream);
    case 128:
      return launch_log_sums_of<128>(args, log_sums, stream);
    default:
      return launch_log_sums_of<256>(args, log_sums, stream);
  }
}

cudaError_t launch_probe_sums(const ProbeArgs& args, cudaStream_t stream) {
  switch (args.dim) {
    case 64:
      return launch_probe_sums_of<64>(args, stream);
    case 128:
      return launch_probe_sums_of<128>(args, stream);
    default:
      return launch_probe_sums_of<256>(args, stream);
  }
}

}  // namespace zipcache::cuda
