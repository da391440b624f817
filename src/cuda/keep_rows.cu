#include <cuda_runtime.h>

#include <string>

#include "cuda/device.cuh"
#include "cuda/device_memory.hpp"
#include "cuda/keep_rows.hpp"
#include "cuda/row_piece.cuh"

namespace zipcache::cuda {
namespace {

constexpr int kThreads = 128;
constexpr int kMostSlices = 256;  // blocks of threads that share a head's rows

// A record of 16-bit rows that has room for kRawRecordTokens.
struct RawRecord {
  uint8_t* bytes;
  int dim;

  __device__ TierHeader header(int count) const { return raw_header(dim, count, kRawRecordTokens); }
  __device__ void put(bool is_k, int token, int channel, const Piece& piece) const {
    const TierHeader tier = header(0);
    const int unit = token / kUnitTokens;
    auto* to = reinterpret_cast<uint16_t*>(bytes + (is_k ? tier.k_codes : tier.v_codes) * 16 +
                                           unit * unit_bytes(dim, 16));
#pragma unroll
    for (int i = 0; i < kPieceNumbers; ++i) {
      const Place at = code_place(is_k, dim, 16, token % kUnitTokens, channel + i);
      to[at.word * 2 + at.shift / 16] = piece.numbers[i];
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
    const auto piece = [&](const InputRows& rows, bool hadamard) {
      const Piece own = load_piece(rows.row(stream_, token, head_) + channel);
      return hadamard ? rotated(own, args_.dim) : own;
    };
    to.put(true, place, channel, piece(args_.k, args_.k_hadamard));
    to.put(false, place, channel, piece(args_.v, args_.v_hadamard));
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

__global__ void __launch_bounds__(kThreads) keep_kernel(const __grid_constant__ KeepRowsArgs args) {
  let_next_launch_begin();
  Keeper(args, int(blockIdx.z), int(blockIdx.y)).run(int(blockIdx.x), int(gridDim.x));
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
  const bool turns = args.k_hadamard || args.v_hadamard;
  if (turns && (args.dim & (args.dim - 1) || args.dim > kLanes * kPieceNumbers))
    return wrong("keep_rows", "a head size that no kernel rotates");
  if (args.dim % kPieceNumbers || args.n_heads < 1 || args.n_streams < 1 || args.n_heads > 65535 ||
      args.n_streams > 65535)
    return wrong("keep_rows", "a shape that no kernel has");
  if (args.most_rows == 0) return ok();
  const int pieces = args.most_rows * (args.dim / kPieceNumbers);
  const int slices = (pieces + kThreads - 1) / kThreads;
  const dim3 grid(unsigned(slices < kMostSlices ? slices : kMostSlices), unsigned(args.n_heads),
                  unsigned(args.n_streams));
  keep_kernel<<<grid, kThreads, 0, stream>>>(args);
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
