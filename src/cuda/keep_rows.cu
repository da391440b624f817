#include <cuda_runtime.h>

#include <string>

#include "cuda/device.cuh"
#include "cuda/device_memory.hpp"
#include "cuda/keep_rows.hpp"
#include "cuda/row_matrix.hpp"
#include "cuda/row_piece.cuh"

namespace zipcache::cuda {
namespace {

constexpr int kThreads = 128, kWarps = kThreads / kLanes;
constexpr int kMostSlices = 256;  // blocks of threads that share a head's rows
constexpr int kMostDim = 256;
constexpr int kTurnedRows = 2;  // that a warp turns by a matrix at once, kWarpOuts channels of them

// A record of 16-bit rows that has room for kRawRecordTokens.
struct RawRecord {
  uint8_t* bytes;
  int dim;

  __device__ TierHeader header(int count) const { return raw_header(dim, count, kRawRecordTokens); }
  // Neighbouring numbers of a token's row.
  template <int kCount>
  __device__ void put(bool is_k, int token, int channel, const uint16_t (&numbers)[kCount]) const {
    const TierHeader tier = header(0);
    const int unit = token / kUnitTokens;
    auto* to = reinterpret_cast<uint16_t*>(bytes + (is_k ? tier.k_codes : tier.v_codes) * 16 +
                                           unit * unit_bytes(dim, 16));
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      const Place at = code_place(is_k, dim, 16, token % kUnitTokens, channel + i);
      to[at.word * 2 + at.shift / 16] = numbers[i];
    }
  }
  __device__ void put_header(int count) const {
    *reinterpret_cast<TierHeader*>(bytes) = header(count);
  }
};

class Keeper {
 public:
  __device__ Keeper(const KeepRowsArgs& args, int stream, int head)
      : args_(args), rows_(args.rows[stream]), stream_(stream), head_(head) {}

  // A share of the rows.
  __device__ void run(int slice, int n_slices) const {
    const int pieces = args_.dim / kPieceNumbers;
    const int first = slice * kThreads + int(threadIdx.x), step = n_slices * kThreads;
    for (int i = first; i < (rows_.end - rows_.begin) * pieces; i += step)
      keep(rows_.begin + i / pieces, i % pieces * kPieceNumbers);
    for (int i = first; i < rows_.n_sinks * pieces; i += step)
      put(sink_record(rows_.place + i / pieces), i / pieces, i % pieces * kPieceNumbers);
    if (first == 0) put_headers();
  }

  // The same share of what matrices turn: each warp some rows of a side, some of their channels.
  __device__ void run_turned(int slice, int n_slices, float (&space)[kTurnedRows][kMostDim]) const {
    const int n_rows = rows_.end - rows_.begin + rows_.n_sinks, parts = args_.dim / kWarpOuts;
    const int n_pairs = (n_rows + kTurnedRows - 1) / kTurnedRows;
    for (int i = slice * kWarps + int(threadIdx.x) / kLanes; i < n_pairs * parts * 2;
         i += n_slices * kWarps) {
      const bool is_k = i % 2 == 0;
      if (is_k ? !args_.k_matrices : !args_.v_matrices) continue;
      turn(is_k, i / 2 / parts * kTurnedRows, i / 2 % parts * kWarpOuts, space);
    }
  }

 private:
  __device__ RawRecord record(size_t at, int index) const {
    const size_t number = size_t(index) * size_t(args_.n_heads) + size_t(head_);
    return {args_.pool + at + number * size_t(args_.raw), args_.dim};
  }
  __device__ RawRecord ring_record(int place) const {
    return record(args_.ring_at, (stream_ * args_.ring + place % args_.ring) / kRawRecordTokens);
  }
  __device__ RawRecord sink_record(int place) const {
    return record(args_.sinks_at, stream_ * args_.sink_records + place / kRawRecordTokens);
  }

  __device__ void put(const RawRecord& to, int token, int channel) const {
    const int place = (rows_.place + token) % kRawRecordTokens;
    const auto put_side = [&](bool is_k, const InputRows& rows, bool hadamard) {
      const Piece own = load_piece(rows.row(stream_, token, head_) + channel);
      to.put(is_k, place, channel, (hadamard ? rotated(own, args_.dim) : own).numbers);
    };
    if (!args_.k_matrices) put_side(true, args_.k, args_.k_hadamard);
    if (!args_.v_matrices) put_side(false, args_.v, args_.v_hadamard);
  }

  // Of the step's tokens; behind those for the ring come the sinks.
  __device__ int token_of(int row) const {
    const int n = rows_.end - rows_.begin;
    return row < n ? rows_.begin + row : row - n;
  }

  // kWarpOuts channels of rows `first` and on.
  __device__ void turn(bool is_k, int first, int begin,
                       float (&space)[kTurnedRows][kMostDim]) const {
    const InputRows& from = is_k ? args_.k : args_.v;
    const int n_ring = rows_.end - rows_.begin, dim = args_.dim, lane = int(threadIdx.x) % kLanes;
    const int n = min(kTurnedRows, n_ring + rows_.n_sinks - first);
    __syncwarp();  // all have read what stood here before
    for (int r = 0; r < n; ++r) {
      const uint16_t* row = from.row(stream_, token_of(first + r), head_);
      for (int c = lane; c < dim; c += kLanes) space[r][c] = float_of(row[c]);
    }
    __syncwarp();
    const float* matrix =
        (is_k ? args_.k_matrices : args_.v_matrices) + size_t(head_) * size_t(dim) * size_t(dim);
    float turned[kTurnedRows][kLaneOuts];
    multiply_few_rows<false>(space[0], kMostDim, dim, matrix + begin, turned);
    const int channel = begin + lane % 4 * kLaneOuts;
#pragma unroll
    for (int r = 0; r < kTurnedRows; ++r) {
      if (lane / 4 != r || r >= n) continue;
      const int place = rows_.place + token_of(first + r);
      const RawRecord to = first + r < n_ring ? ring_record(place) : sink_record(place);
      uint16_t numbers[kLaneOuts];
#pragma unroll
      for (int o = 0; o < kLaneOuts; ++o) numbers[o] = finite_half_of(turned[r][o]);
      to.put(is_k, place % kRawRecordTokens, channel, numbers);
    }
  }

  __device__ void keep(int token, int channel) const {
    const int place = rows_.place + token, slot = place % args_.ring;
    put(ring_record(place), token, channel);
    if (!args_.k_ring) return;
    const size_t row =
        (size_t(stream_) * size_t(args_.ring) + size_t(slot)) * size_t(args_.n_heads) +
        size_t(head_);
    const size_t at = row * size_t(args_.dim) + size_t(channel);
    store_piece(args_.k_ring + at, load_piece(args_.k.row(stream_, token, head_) + channel));
    store_piece(args_.v_ring + at, load_piece(args_.v.row(stream_, token, head_) + channel));
    if (channel != 0 || !args_.sums.data) return;
    args_.sums.tokens(stream_, head_)[slot] =
        args_.from_sums.data ? args_.from_sums.tokens(stream_, head_)[token] : 0.0f;
    if (head_ == 0)
      args_.seen.tokens(stream_, 0)[slot] =
          args_.from_seen.data ? args_.from_seen.tokens(stream_, 0)[token] : 0u;
  }

  __device__ void put_headers() const {
    const int begin = rows_.place + rows_.begin, end = rows_.place + rows_.end;
    for (int first = begin / kRawRecordTokens * kRawRecordTokens; first < end;
         first += kRawRecordTokens)
      ring_record(first).put_header(min(kRawRecordTokens, rows_.length - first));
    const int sinks = rows_.place + rows_.n_sinks;
    for (int first = rows_.place / kRawRecordTokens * kRawRecordTokens;
         rows_.n_sinks > 0 && first < sinks; first += kRawRecordTokens)
      sink_record(first).put_header(min(kRawRecordTokens, sinks - first));
  }

  const KeepRowsArgs& args_;
  const StreamRows rows_;
  const int stream_, head_;
};

template <bool kTurns>
__global__ void __launch_bounds__(kThreads) keep_kernel(const __grid_constant__ KeepRowsArgs args) {
  let_next_launch_begin();
  const Keeper keeper(args, int(blockIdx.z), int(blockIdx.y));
  keeper.run(int(blockIdx.x), int(gridDim.x));
  if constexpr (kTurns) {
    __shared__ float space[kWarps][kTurnedRows][kMostDim];
    keeper.run_turned(int(blockIdx.x), int(gridDim.x), space[int(threadIdx.x) / kLanes]);
  }
}

__global__ void __launch_bounds__(kThreads)
    table_kernel(const TableChange* changes, int n, Record* table, int n_heads, int stride) {
  const int i = int(blockIdx.x) * kThreads + int(threadIdx.x);
  if (i >= n * n_heads) return;
  const TableChange change = changes[i / n_heads];
  const int head = i % n_heads;
  Record record = change.record;
  record.at += uint32_t(head) * uint32_t(change.head_step);
  table[(size_t(change.stream) * size_t(n_heads) + size_t(head)) * size_t(stride) +
        size_t(change.index)] = record;
}

__global__ void __launch_bounds__(kThreads) pick_kernel(const __grid_constant__ PickArgs args) {
  const int stream = int(blockIdx.z), row = int(blockIdx.y);
  const int from = args.index ? args.index[stream * args.n_picked + row] : row;
  const int pieces = args.dim / kPieceNumbers;
  const size_t to = (size_t(stream) * size_t(args.n_picked) + size_t(row)) * size_t(args.n_heads);
  for (int i = int(threadIdx.x); i < args.n_heads * pieces; i += kThreads) {
    const int head = i / pieces, channel = i % pieces * kPieceNumbers;
    store_piece(args.to + (to + size_t(head)) * size_t(args.dim) + channel,
                load_piece(args.from.row(stream, from, head) + channel));
  }
  if (!args.from_sums) return;
  for (int head = int(threadIdx.x); head < args.n_heads; head += kThreads)
    args.to_sums[to + size_t(head)] =
        args.from_sums[(stream * args.sums_stride + from) * args.n_heads + head];
}

Status wrong(const char* what, const char* found) {
  return {Code::BadArgument, std::string(what) + ": found " + found};
}

}  // namespace

Status keep_rows(const KeepRowsArgs& args, cudaStream_t stream) {
  for (const InputRows* rows : {&args.k, &args.v}) {
    if (const char* fault = fault_of(*rows)) return wrong("keep_rows", fault);
  }
  const bool by_matrix = args.k_matrices || args.v_matrices;
  const bool turns = args.k_hadamard || args.v_hadamard || by_matrix;
  const bool has_kernel = (args.dim & (args.dim - 1)) == 0 && args.dim <= kMostDim &&
                          (!by_matrix || args.dim % kWarpOuts == 0);
  if (turns && !has_kernel) return wrong("keep_rows", "a head size that no kernel rotates");
  if (args.dim % kPieceNumbers || args.n_heads < 1 || args.n_streams < 1 || args.n_heads > 65535 ||
      args.n_streams > 65535)
    return wrong("keep_rows", "a shape that no kernel has");
  if (args.most_rows == 0) return ok();
  const int pieces = args.most_rows * (args.dim / kPieceNumbers);
  // A warp's turn is as much work as some pieces: one for each, as long as they are few.
  const int turns_of_sides = (args.most_rows + 1) / 2 * (args.dim / kWarpOuts) * 2;
  const int slices =
      by_matrix ? (turns_of_sides + kWarps - 1) / kWarps : (pieces + kThreads - 1) / kThreads;
  const dim3 grid(unsigned(slices < kMostSlices ? slices : kMostSlices), unsigned(args.n_heads),
                  unsigned(args.n_streams));
  auto* kernel = by_matrix ? keep_kernel<true> : keep_kernel<false>;
  kernel<<<grid, kThreads, 0, stream>>>(args);
  return from_cuda(cudaGetLastError(), "launching the rows that stay");
}

Status change_table(const TableChange* changes, int n, Record* table, int n_heads, int stride,
                    cudaStream_t stream) {
  if (n == 0) return ok();
  const int64_t n_threads = int64_t{n} * n_heads;
  table_kernel<<<unsigned((n_threads + kThreads - 1) / kThreads), kThreads, 0, stream>>>(
      changes, n, table, n_heads, stride);
  return from_cuda(cudaGetLastError(), "launching changes of the block table");
}

Status pick_rows(const PickArgs& args, cudaStream_t stream) {
  if (const char* fault = fault_of(args.from)) return wrong("pick_rows", fault);
  const dim3 grid(1, unsigned(args.n_picked), unsigned(args.n_streams));
  pick_kernel<<<grid, kThreads, 0, stream>>>(args);
  return from_cuda(cudaGetLastError(), "launching the picking of rows");
}

}  // namespace zipcache::cuda
