// Packing on a GPU: blocks of 128 rows of 16-bit floating point numbers become records
// (record.hpp), bit for bit those of the CPU's packing (cache/pack.hpp, fragments.hpp) of the same
// rows. Each row is read once, twice where low rank is fitted. Capturable in CUDA graphs, ordered
// by its stream, waits for nothing on the host.
#pragma once

#include <cstdint>

#include "cuda/record.hpp"
#include "cuda/rows.hpp"
#include "zipcache/policy.hpp"
#include "zipcache/status.hpp"

// CUDA's name for a stream, so that this header needs no other of CUDA's.
typedef struct CUstream_st* cudaStream_t;

namespace zipcache::cuda {

inline constexpr int kPackRows = 128;  // of a block
static_assert(kPackRows == kBlockTokens);

// A side that no fast kernel makes (pack_sets.hpp).
struct SetPackForm {
  bool used = false;
  Clip clip;
  int dual = 0;  // rounds of dual scaling
};
inline constexpr int kMostDual = 8;   // of them
inline constexpr int kMostRank = 16;  // of low rank

// How rows become records under a policy; made by pack_form() (pack_form.hpp).
struct PackForm {
  RecordForm record;
  Fit k_fit = Fit::Endpoint, v_fit = Fit::Endpoint;
  bool k_hadamard = false, v_hadamard = false;
  bool k_by_matrix = false, v_by_matrix = false;  // rotate=file: PackArgs::k_matrices, v_matrices
  bool k_by_queries = false;  // k_round=query: PackArgs::feedback decides keys' codes
  SetPackForm k_sets, v_sets;
};

// Of keys that are rounded by what queries see (codec/query_rounding.hpp): coefficients of a KV
// head's groups of 64 channels, [group][before][channel] of errors of the channels before.
inline constexpr int kFeedbackGroup = 64;
ZC_BOTH constexpr int feedback_floats(int dim) { return dim * kFeedbackGroup; }

// One block of a stream: rows `row` to `row` + 127 of the input, in each head alike.
struct PackTask {
  int32_t stream = 0;
  int32_t record = 0;  // of the stream's
  int32_t row = 0;
  int32_t unused = 0;
  uint32_t left_out[kPackRows / 32] = {};  // bit r % 32 of word r / 32: row r stands elsewhere
  int32_t counts[kRecordTiers] = {};  // of the others, tokens of each tier, evicted ones among them
};
static_assert(sizeof(PackTask) == 48);

struct PackArgs {
  PackForm form;
  int n_heads = 0;
  InputRows k, v;
  // [n_heads, dim, dim] matrices that turn rows (row_matrix.hpp) at a multiple of 16 bytes. Null
  // unless form.k_by_matrix or v_by_matrix.
  const float *k_matrices = nullptr, *v_matrices = nullptr;
  // What decides the tiers, where there is more than one: tiers themselves, or scores, of which the
  // highest get the first tier's count and so on (zipcache::allocate: of equal ones the later token
  // is the more salient). Scores are divided by `seen` where that is given; 0 means no score, which
  // ranks before all others (normalized_score).
  PerToken<const uint8_t> tiers;
  PerToken<const float> scores;
  PerToken<const uint32_t> seen;
  // [n_streams, n_heads, feedback_floats(dim)] at a multiple of 16 bytes, and [n_streams, n_heads]
  // whether anything was learnt that they are made of: 0 for the nearest codes. Null unless
  // form.k_by_queries.
  const float* feedback = nullptr;
  const uint32_t* learnt = nullptr;
  const PackTask* tasks = nullptr;  // [n_tasks]
  int n_tasks = 0;
  // Where records go: behind each its row map [units of all tiers * 16], which gives the block's
  // row of each token, kNoRow where tokens fill up.
  uint8_t* pool = nullptr;
  const Record* records = nullptr;  // [n_streams, n_heads, record_stride]
  int record_stride = 0;
  // Counts records that were not written, because what the tiers hold does not add up or makes a
  // record of another size than its entry says.
  uint32_t* n_wrong = nullptr;
};

// Incompatible where the current device has too little shared memory to pack records of a form.
Status check_packing(const PackForm& form);

// Enqueues the packing. Errors: BadArgument for what no kernel takes, Environment for what CUDA
// reports.
Status pack_records(const PackArgs& args, cudaStream_t stream);

}  // namespace zipcache::cuda
