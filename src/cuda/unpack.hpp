// Records as rows of 16-bit floating point numbers again, for attention of many queries over what
// is packed (attend_prompt). The past of streams is unpacked in pieces of bounded size, whose rows
// overwrite each other. Ordered by its stream, capturable in CUDA graphs, waits for nothing on the
// host.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "cuda/record.hpp"
#include "zipcache/status.hpp"

// CUDA's name for a stream, so that this header needs no other of CUDA's.
typedef struct CUstream_st* cudaStream_t;

namespace zipcache::cuda {

// A record, the same of all heads, whose tokens become rows `row` and on of their stream.
struct UnpackTask {
  int32_t stream = 0;
  int32_t record = 0;  // of the stream's
  int32_t row = 0;
  int32_t unused = 0;
};
static_assert(sizeof(UnpackTask) == 16);

// The past of streams, cut into pieces.
struct PastPieces {
  std::vector<UnpackTask> tasks;  // of all pieces, one after another
  std::vector<int> ends;          // of each piece, in tasks
  std::vector<int32_t> rows;      // [pieces, n_streams] that a stream has in each
};

// Cuts records [n_streams] of the block table's entries, those of a stream in their order, into
// pieces of at most n_rows rows of each stream, n_rows >= kRecordTokens. Attention asks for no
// order of tokens, so that evicted ones leave no gaps. Pure.
PastPieces plan_past(std::span<const std::span<const Record>> records, int n_rows);

struct UnpackArgs {
  RecordForm form;                              // of the packed records
  bool k_hadamard = false, v_hadamard = false;  // records hold rotated rows; these are turned back
  int n_heads = 0;
  const uint8_t* pool = nullptr;
  const Record* records = nullptr;  // [n_streams, n_heads, record_stride]
  int record_stride = 0;
  const UnpackTask* tasks = nullptr;  // [n_tasks]
  int n_tasks = 0;
  // [n_streams, n_heads, n_rows, dim] rows, of which those of the tasks are written.
  uint16_t *k = nullptr, *v = nullptr;
  int n_rows = 0;
};

// Enqueues the work. A number is off by the rounding of its 16 bits once or twice, of rotated rows
// once more; numbers of 16 bits stay as they are unless they are rotated. Errors: BadArgument for
// what no kernel takes, Environment for what CUDA reports.
Status unpack_records(const UnpackArgs& args, cudaStream_t stream);

}  // namespace zipcache::cuda
