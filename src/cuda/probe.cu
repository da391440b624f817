// The kernels of the saliency pass: products of rows that a warp keeps in registers with rows that
// all warps of a block stream through shared memory. The first kernel keeps query rows and streams
// keys, the second the other way round.
#include <type_traits>

#include "cuda/device.cuh"
#include "cuda/probe_launch.hpp"

namespace zipcache::cuda {
namespace {

constexpr float kLog2E = 1.44269504f, kLn2 = 0.693147181f;
constexpr float kLowest = -1e30f;  // below every product, and a number

// How a block of threads shares its work: kSharing warps keep the same rows, and each takes its
// part of the streamed rows of a stage.
template <int kChannels, int kSharingWarps>
struct Form {
  static constexpr int kDim = kChannels, kSharing = kSharingWarps;
  static constexpr int kTiles = kDim <= 128 ? 2 : 1;  // of 16 rows, that a warp keeps
  static constexpr int kSets = 4;                     // of warps that keep the same rows
  static constexpr int kThreads = kSets * kSharing * kLanes;
  static constexpr int kOwn = kTiles * 16, kKept = kSets * kOwn;  // rows of a warp, of a block
  static constexpr int kStages = 3, kStreamed = kDim <= 128 ? 64 : 32;  // streamed rows of a stage
  static constexpr int kGroups = 2, kAtOnce = kGroups * 8;  // streamed rows that a warp multiplies
  static constexpr int kStride = kDim + 8;  // 16 bytes more, so that rows do not meet in a bank
  static_assert(kStreamed % (kSharing * kAtOnce) == 0 && kKept <= kThreads);
  static_assert(kKept <= kStages * kStreamed);

  // What stands in shared memory: streamed rows, before these the kept ones.
  using Row = uint16_t[kStride];
  static constexpr int kRowBytes = kStages * kStreamed * kStride * int(sizeof(uint16_t));
  // products[group][tile][i] of a lane is of kept row l / 4 + 8 (i / 2) of the tile and of streamed
  // row 2 (l % 4) + i % 2 of the group.
  using Products = float[kGroups][kTiles][4];
};

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

// Begins to copy kRows rows from `first` on; row `last` stands in for those behind it.
template <class F, int kRows, class Rows>
__device__ __forceinline__ void copy_rows(const Rows& rows, int first, int last,
                                          typename F::Row* to) {
  // Threads of a row, 64 bytes of it at a time at least.
  constexpr int kOfRow = F::kThreads / kRows > 4 ? F::kThreads / kRows : 4;
  constexpr int kAtOnce = F::kThreads / kOfRow;
  static_assert(F::kDim / 8 % kOfRow == 0 && kRows % kAtOnce == 0);
#pragma unroll
  for (int done = 0; done < kRows; done += kAtOnce) {
    const int row = done + int(threadIdx.x) / kOfRow;
    const uint16_t* from = rows[min(first + row, last)];
#pragma unroll
    for (int piece = 0; piece < F::kDim / 8; piece += kOfRow) {
      const int channel = (piece + int(threadIdx.x) % kOfRow) * 8;
      copy_16(&to[row][channel], from + channel);
    }
  }
}

// What a warp does of its block's work.
template <class F>
struct OwnPart {
  int first;  // of its kept rows among the block's
  int part;   // of the streamed rows

  __device__ OwnPart()
      : first(int(threadIdx.x) / kLanes % F::kSets * F::kOwn),
        part(int(threadIdx.x) / kLanes / F::kSets) {}
  // Calls visit(tile, half, row) for the rows of the block that the lane holds results of.
  template <class Visit>
  __device__ __forceinline__ void each(Visit&& visit) const {
#pragma unroll
    for (int tile = 0; tile < F::kTiles; ++tile) {
#pragma unroll
      for (int half = 0; half < 2; ++half)
        visit(tile, half, first + tile * 16 + int(threadIdx.x) % kLanes / 4 + 8 * half);
    }
  }
};

// The first operand of products: a warp's kept rows.
template <class F>
struct Kept {
  uint32_t words[F::kTiles][F::kDim / 16][4];

  // By all threads of the block: its rows, through shared memory.
  template <class Rows>
  __device__ Kept(const Rows& rows, int block_first, int n_rows, int first,
                  typename F::Row* space) {
    copy_rows<F, F::kKept>(rows, block_first, n_rows - 1, space);
    commit_copies();
    wait_copies<0>();
    __syncthreads();
    const int lane = int(threadIdx.x) % kLanes;
#pragma unroll
    for (int tile = 0; tile < F::kTiles; ++tile) {
      const uint32_t address = shared_address(&space[first + tile * 16 + lane % 16][lane / 16 * 8]);
#pragma unroll
      for (int s = 0; s < F::kDim / 16; ++s)
        load_matrices(address + uint32_t(s) * 32, words[tile][s]);
    }
    __syncthreads();
  }

  // With the streamed rows in shared memory from `rows` on. As many sums side by side as there
  // are groups and tiles, since each product waits for the one before it.
  __device__ __forceinline__ void multiply(const typename F::Row* rows,
                                           typename F::Products& products) const {
    const int lane = int(threadIdx.x) % kLanes;
    const uint32_t address = shared_address(&rows[lane % 8][lane / 8 * 8]);
#pragma unroll
    for (int s = 0; s < F::kDim / 16; s += 2) {
      uint32_t b[F::kGroups][4];
#pragma unroll
      for (int group = 0; group < F::kGroups; ++group)
        load_matrices(address + uint32_t(group * 8 * sizeof(typename F::Row) + s * 32), b[group]);
#pragma unroll
      for (int odd = 0; odd < 2; ++odd) {
#pragma unroll
        for (int group = 0; group < F::kGroups; ++group) {
#pragma unroll
          for (int tile = 0; tile < F::kTiles; ++tile) {
            const auto& a = words[tile][s + odd];
            multiply_add(products[group][tile], a[0], a[1], a[2], a[3], b[group][2 * odd],
                         b[group][2 * odd + 1]);
          }
        }
      }
    }
  }
};

// Streams rows `begin` to `end` - 1 through shared memory and calls use(slot, row, first) for each
// kAtOnce of them that the warp takes: rows `first` and on, which are in `space` from `row` of the
// stage in `slot` on and may lie behind the end. By all threads of the block, which call
// prepare(slot, first) when they begin to fill a slot; what it copies is there when it is used.
template <class F, class Rows, class Prepare, class Use>
__device__ __forceinline__ void stream_rows(const Rows& rows, int begin, int end, int part,
                                            typename F::Row* space, Prepare&& prepare, Use&& use) {
  constexpr int kOfWarp = F::kStreamed / F::kSharing;
  const auto fill = [&](int stage) {
    const int first = begin + stage * F::kStreamed, slot = stage % F::kStages;
    if (first < end) {
      prepare(slot, first);
      copy_rows<F, F::kStreamed>(rows, first, end - 1, space + slot * F::kStreamed);
    }
    commit_copies();
  };
  for (int stage = 0; stage < F::kStages - 1; ++stage) fill(stage);
  for (int stage = 0; begin + stage * F::kStreamed < end; ++stage) {
    wait_copies<F::kStages - 2>();
    __syncthreads();  // and all have left the slot that is filled now
    fill(stage + F::kStages - 1);
    const int slot = stage % F::kStages;
#pragma unroll 1
    for (int row = part * kOfWarp; row < (part + 1) * kOfWarp; row += F::kAtOnce) {
      const int first = begin + stage * F::kStreamed + row;
      if (first < end) use(slot, row, first);
    }
  }
}

__device__ __forceinline__ const int32_t* limits_of(const ProbeArgs& args, int stream) {
  return args.limits + size_t(stream) * size_t(args.n_probes);
}
// Place of a query row of a KV head among the logarithms.
__device__ __forceinline__ size_t log_place(const ProbeArgs& args, int stream, int head, int row) {
  const size_t probe = size_t(stream) * size_t(args.n_probes) + size_t(row / args.group);
  return probe * size_t(args.n_heads * args.group) + size_t(head * args.group + row % args.group);
}

template <class F>
__device__ __forceinline__ typename F::Row* row_space() {
  extern __shared__ __align__(16) uint8_t shared[];
  return reinterpret_cast<typename F::Row*>(shared);
}

// ---- logarithms of the sums: a block of threads for some query rows of a KV head

// Of some keys: largest product, sum of exp2(scale * (product - peak)).
struct Softmax {
  float peak = kLowest, mass = 0;

  // n products, of which those of keys < n_seen count, if kMasked; keys are first, first + 1,
  // first + 8, first + 9 and on.
  template <bool kMasked, int n>
  __device__ __forceinline__ void add(const float (&products)[n], float scale, int first,
                                      int n_seen) {
    const auto seen = [&](int i) { return !kMasked || first + i / 2 * 8 + i % 2 < n_seen; };
    float raised = peak;
#pragma unroll
    for (int i = 0; i < n; ++i) raised = fmaxf(raised, seen(i) ? products[i] : kLowest);
    const float top = raised * scale;
    mass *= fast_exp2((peak - raised) * scale);  // 1 exactly where both are kLowest
#pragma unroll
    for (int i = 0; i < n; ++i) mass += seen(i) ? fast_exp2(products[i] * scale - top) : 0.0f;
    peak = raised;
  }
  __device__ __forceinline__ void merge(const Softmax& other, float scale) {
    const float raised = fmaxf(peak, other.peak);
    mass = mass * fast_exp2((peak - raised) * scale) +
           other.mass * fast_exp2((other.peak - raised) * scale);
    peak = raised;
  }
};

template <class F>
__global__ void __launch_bounds__(F::kThreads)
    log_sums_kernel(const __grid_constant__ ProbeArgs args, float* log_sums) {
  __shared__ Softmax parts[F::kSharing][F::kKept];
  __shared__ int most;  // keys that any row of the block sees
  const int head = int(blockIdx.x) % args.n_heads, stream = int(blockIdx.y);
  const int block_first = int(blockIdx.x) / args.n_heads * F::kKept;
  const int lane = int(threadIdx.x) % kLanes, n_rows = args.n_probes * args.group;
  const OwnPart<F> own;
  if (threadIdx.x == 0) most = 0;
  const Kept<F> kept(QueryRows{args.q, stream, head, args.group}, block_first, n_rows, own.first,
                     row_space<F>());

  int limits[F::kTiles][2], own_most = 0, own_least = args.n_tokens;
  own.each([&](int tile, int half, int i) {
    const int row = block_first + i;
    int& limit = limits[tile][half];
    limit = row < n_rows ? min(limits_of(args, stream)[row / args.group], args.n_tokens) : 0;
    own_most = max(own_most, limit);
    own_least = min(own_least, limit);
  });
  own_most = __reduce_max_sync(~0u, own_most);
  own_least = __reduce_min_sync(~0u, own_least);
  if (lane == 0) atomicMax(&most, own_most);
  __syncthreads();

  Softmax softmax[F::kTiles][2];
  const float scale = args.scale * kLog2E;
  stream_rows<F>(
      KeyRows(args, stream, head), 0, most, own.part, row_space<F>(), [](int, int) {},
      [&](int slot, int row, int key) {
        if (key >= own_most) return;
        typename F::Products products = {};
        kept.multiply(row_space<F>() + slot * F::kStreamed + row, products);
        const auto add = [&](auto masked) {
          own.each([&](int tile, int half, int) {
            float of_row[2 * F::kGroups];
#pragma unroll
            for (int i = 0; i < 2 * F::kGroups; ++i)
              of_row[i] = products[i / 2][tile][2 * half + i % 2];
            softmax[tile][half].template add<decltype(masked)::value>(
                of_row, scale, key + lane % 4 * 2, limits[tile][half]);
          });
        };
        if (key + F::kAtOnce <= own_least)
          add(std::false_type());
        else
          add(std::true_type());
      });

  own.each([&](int tile, int half, int i) {
    Softmax& all = softmax[tile][half];
    for (int by = 1; by < 4; by *= 2) {
      const Softmax other = {__shfl_xor_sync(~0u, all.peak, by),
                             __shfl_xor_sync(~0u, all.mass, by)};
      all.merge(other, scale);
    }
    if (lane % 4 == 0) parts[own.part][i] = all;
  });
  __syncthreads();
  const int i = int(threadIdx.x), row = block_first + i;
  if (i >= F::kKept || row >= n_rows) return;
  Softmax all = parts[0][i];
  for (int part = 1; part < F::kSharing; ++part) all.merge(parts[part][i], scale);
  log_sums[log_place(args, stream, head, row)] = (all.peak * scale + log2f(all.mass)) * kLn2;
}

// ---- sums over probes: a block of threads for some tokens of a KV head

// A query row, as what keeps tokens needs it.
struct alignas(8) Column {
  int limit;
  float log_sum;
};

// The first and the one behind the last of the probes that see any token from `first_token` on.
template <class F>
__device__ void find_rows(const ProbeArgs& args, int stream, int first_token, int (&range)[2]) {
  if (threadIdx.x == 0) range[0] = args.n_probes, range[1] = 0;
  __syncthreads();
  for (int probe = int(threadIdx.x); probe < args.n_probes; probe += F::kThreads) {
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
  const int32_t* limits = limits_of(args, keys.stream);
  uint32_t n = 0;
#pragma unroll 8
  for (int probe = 0; probe < args.n_probes; ++probe) n += token < limits[probe];
  args.seen.tokens(keys.stream, 0)[keys.row(token)] += n;
}

// Of n blocks in the order of tokens the one that begins as the i-th. Those of the first tokens are
// seen by most probes; the first and the last, in the middle and so on come to the same processors.
__device__ int block_at(int i, int n) { return i < n / 2 ? i : n + n / 2 - 1 - i; }

template <class F>
__global__ void __launch_bounds__(F::kThreads, 2)
    probe_sums_kernel(const __grid_constant__ ProbeArgs args) {
  __shared__ alignas(16) Column columns[F::kStages][F::kStreamed];
  __shared__ float parts[F::kSharing][F::kKept];
  __shared__ int probes[2];
  const int head = int(blockIdx.x) % args.n_heads, stream = int(blockIdx.y);
  const int n_blocks = int(gridDim.x) / args.n_heads, lane = int(threadIdx.x) % kLanes;
  const int block_first = block_at(int(blockIdx.x) / args.n_heads, n_blocks) * F::kKept;
  const KeyRows keys(args, stream, head);
  const OwnPart<F> own;
  const Kept<F> kept(keys, block_first, args.n_tokens, own.first, row_space<F>());
  find_rows<F>(args, stream, block_first, probes);
  if (head == 0 && args.seen.data) count_views(args, keys, block_first, F::kKept);

  float sums[F::kTiles][2] = {};
  const float scale = args.scale * kLog2E;
  const int end = probes[1] * args.group, own_first = block_first + own.first;
  stream_rows<F>(
      QueryRows{args.q, stream, head, args.group}, probes[0] * args.group, end, own.part,
      row_space<F>(),
      [&](int slot, int first) {
        const int i = int(threadIdx.x), row = first + i;
        if (i >= F::kStreamed) return;
        Column& column = columns[slot][i];
        if (row >= end) {
          column = {0, 0};
          return;
        }
        copy_4(&column.limit, limits_of(args, stream) + row / args.group);
        copy_4(&column.log_sum, args.log_sums + log_place(args, stream, head, row));
      },
      [&](int slot, int row, int) {
        const Column* of_rows = &columns[slot][row];
        const int limit = of_rows[lane % F::kAtOnce].limit;
        if (!__any_sync(~0u, limit > own_first)) return;
        typename F::Products products = {};
        kept.multiply(row_space<F>() + slot * F::kStreamed + row, products);
        const auto add = [&](auto masked) {
#pragma unroll
          for (int i = 0; i < 2 * F::kGroups; ++i) {
            const Column column = of_rows[i / 2 * 8 + lane % 4 * 2 + i % 2];
            const float log2_sum = column.log_sum * kLog2E;
            own.each([&](int tile, int half, int token) {
              const float given =
                  fast_exp2(products[i / 2][tile][2 * half + i % 2] * scale - log2_sum);
              const bool seen = !decltype(masked)::value || block_first + token < column.limit;
              sums[tile][half] += seen ? given : 0.0f;
            });
          }
        };
        if (__all_sync(~0u, limit >= own_first + F::kOwn))
          add(std::false_type());
        else
          add(std::true_type());
      });

  own.each([&](int tile, int half, int i) {
    const float sum = sum_of_row(sums[tile][half]);
    if (lane % 4 == 0) parts[own.part][i] = sum;
  });
  __syncthreads();
  const int i = int(threadIdx.x), token = block_first + i;
  if (i >= F::kKept || token >= args.n_tokens) return;
  float sum = 0;
  for (int part = 0; part < F::kSharing; ++part) sum += parts[part][i];
  args.sums.tokens(stream, head)[keys.row(token)] += sum;
}

// A block for some of n_rows rows of each head of each stream.
template <class F, class Kernel, class... More>
cudaError_t launch(Kernel kernel, const ProbeArgs& args, int n_rows, cudaStream_t stream,
                   More... more) {
  const cudaError_t error =
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, F::kRowBytes);
  if (error != cudaSuccess) return error;
  const int blocks = (n_rows + F::kKept - 1) / F::kKept;
  const dim3 grid(unsigned(blocks) * unsigned(args.n_heads), unsigned(args.n_streams));
  kernel<<<grid, F::kThreads, F::kRowBytes, stream>>>(args, more...);
  return cudaGetLastError();
}

template <int kDim>
cudaError_t launch_log_sums_of(const ProbeArgs& args, float* log_sums, cudaStream_t stream) {
  // Few blocks: more warps in each.
  using F = Form<kDim, kDim <= 128 ? 4 : 2>;
  return launch<F>(log_sums_kernel<F>, args, args.n_probes * args.group, stream, log_sums);
}

template <int kDim>
cudaError_t launch_probe_sums_of(const ProbeArgs& args, cudaStream_t stream) {
  using F = Form<kDim, 2>;
  return launch<F>(probe_sums_kernel<F>, args, args.n_tokens, stream);
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
