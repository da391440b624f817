// The kernel that makes rows of records. A block of threads takes one side, K or V, of one record
// of a head, a warp 16 tokens at a time: their fragments go to shared memory, from there whole rows
// to the device's.
#include <cuda_runtime.h>

#include "cuda/decoder.cuh"
#include "cuda/row_piece.cuh"
#include "cuda/unpack_launch.hpp"

namespace zipcache::cuda {
namespace {

constexpr int kWarps = 4, kThreads = kWarps * kLanes;

// Rows of a unit, 16 bytes more apart than they are long, so that they do not meet in a bank.
template <int kDim>
struct UnitRows {
  alignas(16) uint16_t at[kUnitTokens][kDim + kPieceNumbers];
};

// One warp's share of one side of a record.
template <int kDim, bool kIsK>
class Unpacker {
 public:
  __device__ __forceinline__ Unpacker(const UnpackLaunch& launch, const UnpackTask& task, int head,
                                      UnitRows<kDim>& rows)
      : launch_(launch),
        entry_(
            launch.args.records[(size_t(task.stream) * size_t(launch.args.n_heads) + size_t(head)) *
                                    size_t(launch.args.record_stride) +
                                size_t(task.record)]),
        record_(launch.args.pool + size_t(entry_.at) * 16),
        rows_(rows),
        warp_(int(threadIdx.x) / kLanes),
        lane_(int(threadIdx.x) % kLanes) {
    const size_t first = (size_t(task.stream) * size_t(launch.args.n_heads) + size_t(head)) *
                             size_t(launch.args.n_rows) +
                         size_t(task.row);
    out_ = (kIsK ? launch.args.k : launch.args.v) + first * kDim;
  }

  // Units are dealt to the warps in their order.
  __device__ __forceinline__ void run() const {
    const auto* headers = reinterpret_cast<const TierHeader*>(record_);
    const int n_tiers = headers[0].tiers_and_form & kTierMask;
    int first_token = 0, number = 0;  // of a unit
#pragma unroll 1
    for (int t = 0; t < n_tiers; ++t) {
      const TierHeader header = headers[t];
      // A stream that was cut has fewer tokens in its last record than the record's header says.
      const int end = min(first_token + header.count, int(entry_.tokens));
#pragma unroll 1
      for (int unit = 0; unit < units_of(header.count); ++unit, ++number) {
        if (number % kWarps != warp_) continue;
        put_unit(t, header, unit);
        __syncwarp();
        const int first = first_token + unit * kUnitTokens;
        write_rows(first, end - first);
        __syncwarp();
      }
      first_token += header.count;
    }
  }

 private:
  __device__ __forceinline__ void put_unit(int tier, const TierHeader& header, int unit) const {
    const int bits = kIsK ? header.k_bits : header.v_bits;
    if (bits == 16) {
      const uint8_t* rows =
          record_ + (kIsK ? header.k_codes : header.v_codes) * 16 + unit * unit_bytes(kDim, 16);
      return put_fragments([&](int f, uint32_t(&words)[4]) {
        load_words<4>(rows + (f * kLanes + lane_) * 16, words);
      });
    }
    const SideForm& side = kIsK ? launch_.args.form.k : launch_.args.form.v;
    const SideValues& values = kIsK ? launch_.k_values : launch_.v_values;
    with_decoder<kDim, kIsK, DecoderOf::All>(side, bits, [&](auto type) {
      const typename decltype(type)::type decoder(side, values, tier, record_, lane_);
      put_fragments([&](int f, uint32_t(&words)[4]) { decoder.fragment(unit, f, words); });
    });
  }

  // fragment(f, words) gives the lane's words.
  template <class Fragment>
  __device__ __forceinline__ void put_fragments(Fragment&& fragment) const {
#pragma unroll 2
    for (int f = 0; f < kDim / 16; ++f) {
      uint32_t words[4];
      fragment(f, words);
      put(f, words);
    }
  }

  // A lane's pairs of a fragment, [column half * 2 + row half]; of V rows are channels.
  __device__ __forceinline__ void put(int f, const uint32_t (&words)[4]) const {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int token_half = kIsK ? i % 2 : i / 2, channel_half = kIsK ? i / 2 : i % 2;
      const uint32_t pair = kIsK ? words[i] : transposed(words[i]);
      uint16_t* to =
          &rows_.at[lane_ / 4 + 8 * token_half][f * 16 + 8 * channel_half + lane_ % 4 * 2];
      *reinterpret_cast<uint32_t*>(to) = pair;
    }
  }

  // The first n rows of the unit, as rows `first` and on of the record.
  __device__ __forceinline__ void write_rows(int first, int n) const {
    constexpr int kPieces = kDim / kPieceNumbers, kAtOnce = kLanes / kPieces;
    const bool turn = kIsK ? launch_.args.k_hadamard : launch_.args.v_hadamard;
    const int row = lane_ / kPieces, channel = lane_ % kPieces * kPieceNumbers;
#pragma unroll
    for (int i = 0; i < kUnitTokens; i += kAtOnce) {
      Piece piece = load_piece(&rows_.at[row + i][channel]);
      if (turn) piece = rotated(piece, kDim);
      if (row + i < n) store_piece(out_ + size_t(first + row + i) * kDim + channel, piece);
    }
  }

  const UnpackLaunch& launch_;
  const Record entry_;
  const uint8_t* record_;
  UnitRows<kDim>& rows_;
  const int warp_, lane_;
  uint16_t* out_;  // the record's first row
};

template <int kDim>
__global__ void __launch_bounds__(kThreads, 5)
    unpack_kernel(const __grid_constant__ UnpackLaunch launch) {
  __shared__ UnitRows<kDim> rows[kWarps];
  const UnpackTask task = launch.args.tasks[blockIdx.x];
  UnitRows<kDim>& own = rows[int(threadIdx.x) / kLanes];
  if (blockIdx.z == 0)
    Unpacker<kDim, true>(launch, task, int(blockIdx.y), own).run();
  else
    Unpacker<kDim, false>(launch, task, int(blockIdx.y), own).run();
}

template <int kDim>
cudaError_t launch_dim(const UnpackLaunch& launch, cudaStream_t stream) {
  const dim3 grid(unsigned(launch.args.n_tasks), unsigned(launch.args.n_heads), 2);
  unpack_kernel<kDim><<<grid, kThreads, 0, stream>>>(launch);
  return cudaGetLastError();
}

}  // namespace

cudaError_t launch_unpack(const UnpackLaunch& launch, cudaStream_t stream) {
  switch (launch.args.form.dim) {
    case 64:
      return launch_dim<64>(launch, stream);
    case 128:
      return launch_dim<128>(launch, stream);
    default:
      return launch_dim<256>(launch, stream);
  }
}

}  // namespace zipcache::cuda
