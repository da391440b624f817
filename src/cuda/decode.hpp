// Attention of few query tokens over the records of many streams (paper, section 4; folding
// identities of docs/method.md): one launch for packed and 16-bit records, split over records, with
// the merge of the splits in the same launch. Capturable in CUDA graphs, ordered by its stream,
// waits for nothing on the host.
//
// Shapes: a query token j of stream s has n_heads * group query heads of dim channels; query head
// h * group + i reads KV head h.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "cuda/record.hpp"
#include "zipcache/status.hpp"

// CUDA's name for a stream, so that this header needs no other of CUDA's.
typedef struct CUstream_st* cudaStream_t;

namespace zipcache::cuda {

// Query rows that one matrix instruction takes, two columns each.
inline constexpr int kColumns = 4;
// Of a block of threads: two small blocks share a processor, or it has a large one, which has the
// most warps where memory is fast.
inline constexpr int kSmallWarps = 4, kLargeWarps = 8, kMostWarps = 12;
// Numbers before the sums of a partial result: maximum, mass, padding.
inline constexpr int kRowFloats = 4;

enum class Number : uint8_t { F16, BF16, F32 };

// A share of the records of a stream, the same for all its heads: what one block of threads reads.
struct WorkItem {
  int32_t stream = -1;                     // -1 for an item that is left out
  int32_t first = 0, count = 0;            // of the stream's records
  int32_t part_first = 0, part_count = 0;  // items of the stream, whose results are merged
  int32_t sharing = 1;                     // warps that share a record: 1, 2, 4 or 8
};
static_assert(sizeof(WorkItem) == 24);

// Everything that may hide a token from a query, or change its score; all of it optional. What is
// not null or 0 here takes a slower kernel that looks at the place of every token; records with a
// side in the order of tiles take that kernel too.
struct MaskArgs {
  int window = 0;                       // tokens that a query sees, itself included; 0 for all
  const uint32_t* bits = nullptr;       // [n_streams, n_queries, bits_stride] 1 for a visible place
  int bits_stride = 0;                  // in words
  float soft_cap = 0;                   // score = cap * tanh(score / cap)
  const float* alibi_slopes = nullptr;  // [query heads]; slope * (place - place of the query)
};

struct DecodeArgs {
  int dim = 0, n_heads = 0, group = 0;
  int n_queries = 1;  // of each stream; 8 query rows of a KV head share a read
  const uint8_t* pool = nullptr;
  const Record* records = nullptr;  // [n_streams, n_heads, record_stride]
  int record_stride = 0;
  RecordForm form;                  // of the packed ones; RecordLayout::form()
  const WorkItem* items = nullptr;  // [n_items], of a DecodePlan
  int n_items = 0;
  int n_warps = 0;                              // of the same plan
  int max_record_bytes = 0;                     // of all records
  bool k_hadamard = false, v_hadamard = false;  // records hold rotated rows, those of 16 bits too
  // Places below visible[s] are seen by the first query of stream s, one more by each further one;
  // null: all.
  const int32_t* visible = nullptr;
  MaskArgs mask;
  const float* sinks = nullptr;  // [query heads] logits that take part in the softmax, or null
  float scale = 0;               // of the scores, above 0
  const void* q = nullptr;       // [n_streams, n_queries, n_heads * group, dim]
  void* out = nullptr;           // the same shape
  Number q_type = Number::F16, out_type = Number::F16;
  // [n_streams, n_queries, n_heads * group] natural logarithm of the sum that the softmax divides
  // by, -infinity where nothing is seen; or null.
  float* log_sums = nullptr;
  void* workspace = nullptr;     // decode_workspace() bytes, zeroed once; left zeroed where needed
  bool copy_by_threads = false;  // as cards before sm_90 do
  // `items` and `records` are there before the launch right before this one begins: then this one
  // may begin while that one ends (from sm_90).
  bool early = false;
};

// Blocks of threads that a device runs at once: small ones, and large ones or 0 where these are not
// to be had.
struct DecodeBlocks {
  int small = 1, large = 0;
  int large_warps = kLargeWarps;
  // Work of a warp that shares a record with another, of 16 parts for one on its own: halves are
  // tiers, as a rule, where there are two, else both warps fold the parameters of all of it.
  int half_cost = 9;
};

struct StreamRecords {
  int packed = 0, raw = 0;

  int all() const { return packed + raw; }
};

struct DecodePlan {
  std::vector<WorkItem> items;
  int n_warps = kSmallWarps;
};

// Cuts the records of each stream (packed ones first, then those of 16-bit rows) into items for
// blocks of threads that run at once; at least one item for each stream. Pure.
DecodePlan plan_decode(std::span<const StreamRecords> streams, int n_heads,
                       const DecodeBlocks& blocks);

// Bytes of the workspace, and of the partial results at its end. Pure. Items have to come from
// plan_decode(), whose streams are no more than its items.
size_t decode_workspace(const DecodeArgs& args);
size_t decode_part_bytes(const DecodeArgs& args);

// Blocks of threads that the current device runs at once for this shape; needs no pointers.
Result<DecodeBlocks> decode_blocks(const DecodeArgs& args);

// Enqueues the attention. Errors: BadArgument for shapes that no kernel has, Environment for what
// CUDA reports. Thread-safe; a workspace belongs to one launch at a time.
Status decode_attention(const DecodeArgs& args, cudaStream_t stream);

}  // namespace zipcache::cuda
