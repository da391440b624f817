// Rows of a step that stay at 16 bits: into a ring in the order of tokens, which packing and the
// saliency pass read, and into records, which attention reads (schedule.hpp). And what changes of a
// block table. Ordered by their stream, capturable in CUDA graphs, wait for nothing on the host.
#pragma once

#include "cuda/rows.hpp"
#include "cuda/schedule.hpp"
#include "zipcache/status.hpp"

namespace zipcache::cuda {

struct KeepRowsArgs {
  int dim = 0, n_heads = 0, n_streams = 0;
  InputRows k, v;                    // [stream, token of the step, head, dim]
  const StreamRows* rows = nullptr;  // [n_streams]
  int most_rows = 0;                 // no stream keeps more of the step's
  int ring = 0;                      // ScheduleSizes
  // [n_streams, ring, n_heads, dim]; null where rows stand in records alone, without scores.
  uint16_t *k_ring = nullptr, *v_ring = nullptr;
  bool k_hadamard = false, v_hadamard = false;  // rows are rotated in records
  // [n_heads, dim, dim] that turn rows in records (row_matrix.hpp), at a multiple of 16 bytes; null
  // where no file rotates them.
  const float *k_matrices = nullptr, *v_matrices = nullptr;
  uint8_t* pool = nullptr;
  size_t sinks_at = 0, ring_at = 0;
  int raw = 0, sink_records = 0;
  // Scores of the ring's tokens and how many probes saw them, of head 0; they begin with those of
  // the step's tokens where these are given, else with 0. Null where a policy has no scores.
  PerToken<float> sums;
  PerToken<uint32_t> seen;
  PerToken<const float> from_sums;
  PerToken<const uint32_t> from_seen;
};

// Errors: BadArgument for what no kernel takes, Environment for what CUDA reports.
Status keep_rows(const KeepRowsArgs& args, cudaStream_t stream);

// Enters changes [n] into a table [n_streams, n_heads, stride].
Status change_table(const TableChange* changes, int n, Record* table, int n_heads, int stride,
                    cudaStream_t stream);

// Rows [stream, row, head, dim] of `from`, picked by `index` [n_streams, n_picked], or without that
// the first ones, one behind the other into `to` [n_streams, n_picked, n_heads, dim]; and of
// `from_sums` [n_streams, sums_stride, n_heads], where that is not null, into `to_sums` [n_streams,
// n_picked, n_heads].
struct PickArgs {
  int dim = 0, n_heads = 0, n_streams = 0, n_picked = 0;
  InputRows from;
  const int32_t* index = nullptr;
  uint16_t* to = nullptr;
  const float* from_sums = nullptr;
  int64_t sums_stride = 0;
  float* to_sums = nullptr;
};
Status pick_rows(const PickArgs& args, cudaStream_t stream);

}  // namespace zipcache::cuda
