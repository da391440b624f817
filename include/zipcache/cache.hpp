// The compressed key-value cache of one model: streams of cells, a log of 128-token blocks per
// stream, 16-bit rows for what is new, packed tiles for what is old, and attention over both.
//
//   CacheShape shape{.n_streams = 1, .n_cells = 2048, .layers = {30, {3, 64, 64}}};
//   auto cache = Cache::create(shape, *parse_policy("zipcache"));
//   (*cache)->write(layer, stream, SideId::K, cells, rows);
//   (*cache)->write(layer, stream, SideId::V, cells, rows);
//   (*cache)->attend({...});
//
// Thread safety: one thread at a time per Cache; different caches are independent. `attend` runs on
// `n_threads` threads of its own inside the call.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "zipcache/policy.hpp"
#include "zipcache/status.hpp"

namespace zipcache {

enum class SideId : uint8_t { K, V };

struct LayerShape {
  int n_heads = 0;  // KV heads
  int k_dim = 0;    // channels of a key head
  int v_dim = 0;    // channels of a value head
  bool operator==(const LayerShape&) const = default;
};

struct CacheShape {
  int n_streams = 1;
  int n_cells = 0;                 // per stream
  std::vector<LayerShape> layers;  // [n_layers]
  // The model's number of each layer, which policies and rotations go by; empty: 0, 1, 2 ...
  std::vector<int> numbers = {};
  int number(size_t layer) const { return numbers.empty() ? int(layer) : numbers[layer]; }
};

// Head sizes that codecs and kernels serve: multiples of 8 from 16 to 256.
Status check(const CacheShape& shape);

// Every byte, by kind. `allocated()` is their sum and what the cache holds now.
struct Bytes {
  size_t codes = 0;   // packed codes
  size_t params = 0;  // steps, floors, channel factors
  size_t tags = 0;    // tier tags and block headers
  size_t raw = 0;     // 16-bit rows: window, sinks, the block being filled
  size_t scores = 0;  // sums and counts of raw rows; with eviction, which of them are there
  size_t map = 0;     // tables beside the blocks: cell <-> row; with k_round=query what queries are
                      // like; with rotate=file the matrices
  size_t padding = 0;  // alignment, unused rows of raw blocks, freed storage kept for reuse
  size_t allocated() const { return codes + params + tags + raw + scores + map + padding; }
  Bytes& operator+=(const Bytes& other);
};

// Where time went, summed over all layers: wall-clock seconds of the calling thread.
struct Seconds {
  double attention = 0;  // of Cache::attend, the two below left out
  double scoring = 0;    // the probe pass
  double packing = 0;
};

// Blocks of 128 rows of all streams by what they hold, in one layer.
struct BlockStates {
  uint64_t raw = 0;     // 16-bit rows: the window, and the block being filled
  uint64_t packed = 0;  // codes
  uint64_t free = 0;    // nothing: places for blocks to come, and for the copies of compaction
};

struct CacheStats {
  std::string policy;     // short text form
  std::string kernel;     // instruction set of the tile kernels in use
  std::string precision;  // in use: exact, k2 or fast
  int n_layers = 0;
  int n_streams = 0;
  int n_cells = 0;                // per stream
  uint64_t rows_live = 0;         // per layer: rows that a cell refers to
  uint64_t rows_dead = 0;         // per layer: rows whose cell was written again elsewhere
  uint64_t rows_packed = 0;       // per layer: live rows held as codes (layer 0)
  BlockStates blocks;             // as layer 0 has them
  uint64_t elements = 0;          // K and V numbers of live rows over all layers
  uint64_t coded_elements = 0;    // of these, in packed blocks and no sinks
  uint64_t evicted_elements = 0;  // of these, kept nowhere (tiers of 0 bits)
  uint64_t compactions = 0;
  uint64_t unscored_blocks = 0;  // packed at the best tier because their rows carried no scores
  Seconds seconds;               // since creation or clear
  Bytes bytes;                   // now
  size_t bytes_peak = 0;         // most ever allocated since creation or clear
  size_t bytes_planned = 0;      // what planned_bytes() said at creation

  double ratio_resident() const;    // 16-bit bytes of live rows / allocated
  double ratio_params() const;      // 16 / bits of coded elements with codes, params and tags
  double bits_per_element() const;  // allocated bits / elements
};

// Bytes of a cache holding `n_tokens` tokens of one sequence written in order, in micro-batches of
// `ubatch`, right after the last one was attended to. Pure arithmetic, exact for Cadence::Stream.
Result<Bytes> footprint(const Policy& policy, const std::vector<LayerShape>& layers, int n_tokens,
                        int ubatch);

// Bits per element of what one more token takes, in the mean of many, once the window is full:
// codes, parameters, tags and scores. Pure arithmetic.
Result<double> long_run_bits(const Policy& policy, const std::vector<LayerShape>& layers);

// Bytes to plan for: all cells packed, plus raw blocks for window, sinks, the blocks being filled
// and one micro-batch in one layer.
Result<size_t> planned_bytes(const Policy& policy, const CacheShape& shape, int ubatch);

// The published compression formula (paper, appendix A): 16 / (average bits + parameter bits), with
// `n_params` 16-bit parameters in all, for batch b, C channels and l tokens.
double paper_ratio(double average_bits, double n_params, double b, double C, double l);
// The same with this policy's own parameter counts, batch 1.
double paper_ratio(const Policy& policy, double C, double l, double b = 1);

// One attention operation of one layer and stream.
struct Attention {
  int layer = 0;
  int stream = 0;
  int n_queries = 0;            // query rows
  int n_heads = 0;              // query heads, a multiple of the layer's KV heads
  const float* q = nullptr;     // [n_queries, n_heads, k_dim] at the strides below
  ptrdiff_t q_row_stride = 0;   // floats from one query row to the next
  ptrdiff_t q_head_stride = 0;  // floats from one head to the next
  // [n_queries, n_cells] 16-bit floats: -inf hides a cell, any other value times the ALiBi slope is
  // added to the score. Null: every written cell is visible.
  const uint16_t* mask = nullptr;
  ptrdiff_t mask_stride = 0;     // 16-bit numbers from one row to the next
  int n_cells = 0;               // cells that the mask covers; later cells are hidden
  float scale = 1;               // of q . k
  float max_bias = 0;            // ALiBi base, 0 for none
  float soft_cap = 0;            // 0 for none
  const float* sinks = nullptr;  // [n_heads] extra logit of each head, or null
  float* out = nullptr;          // [n_queries, n_heads, v_dim] at the strides below
  ptrdiff_t out_row_stride = 0;
  ptrdiff_t out_head_stride = 0;
  int n_threads = 1;
  // Polled between tiles, on the caller's thread; true stops with Code::Aborted.
  bool (*aborted)(void*) = nullptr;
  void* aborted_data = nullptr;
};

// How keys follow their positions (Su et al. 2021): pairs of a head's channels, each turned by an
// angle for every position. Lengths stay.
struct KeyTurn {
  struct Pair {
    int32_t a = 0, b = 0;  // channels
    float angle = 0;       // radians a position, from a to b
    bool operator==(const Pair&) const = default;
  };
  std::vector<Pair> pairs;
  // Turns rows [n] of a head, `stride` floats apart, by `positions`, in place.
  void apply(float* rows, int n, ptrdiff_t stride, int32_t positions) const;
  bool operator==(const KeyTurn&) const = default;
};

// Channels of a head of `dim`, none twice in a pair, and angles of at most 1,000 radians.
Status check(const KeyTurn& turn, int dim);

// Rows of one side of one layer as a cache stores them: packed blocks as they are. A copy, which
// outlives what is done to the cache. Made by Cache::keep. Not thread-safe.
class KeptRows {
 public:
  virtual ~KeptRows() = default;
  virtual int n_rows() const = 0;
  // Memory that it takes. A block that K and V share counts by half for each.
  virtual size_t bytes() const = 0;
  // Rows first .. + n, as Cache::read_half gave them: [n, n_heads * dim].
  virtual void read(int first, int n, uint16_t* rows) const = 0;
};

class Cache {
 public:
  // Reserves address space for the worst case and allocates nothing after; memory is used as rows
  // come. Fails with BadPolicy, BadArgument or OverLimit.
  static Result<std::unique_ptr<Cache>> create(const CacheShape& shape, const Policy& policy);
  virtual ~Cache() = default;

  // Stores one row per cell: `rows` is [cells.size(), n_heads * dim] floats, `row_stride` floats
  // apart. Values outside the 16-bit range and NaN are refused with BadData before anything
  // changes.
  virtual Status write(int layer, int stream, SideId side, std::span<const int64_t> cells,
                       const float* rows, ptrdiff_t row_stride) = 0;

  // The same from 16-bit rows, and back. Rows that decode to what is stored already stay as they
  // are, packed ones included. Cells never written read as zeros, and so do a head's rows that a
  // tier of 0 bits dropped. In a cache whose policy has such a tier a head's key row of zeros is
  // taken for a dropped one, so that a saved state comes back with the tokens that it kept.
  virtual Status write_half(int layer, int stream, SideId side, int first_cell, int n_cells,
                            const uint16_t* rows) = 0;
  virtual Status read_half(int layer, int stream, SideId side, int first_cell, int n_cells,
                           uint16_t* rows) const = 0;

  // The same for saved states, which come back as they were: rows of whole packed blocks carry
  // their block in their low bits, and a cache with the same policy and shape takes it as it is,
  // with the scores of the 16-bit rows behind it. The rows move by less than 1/8 of themselves,
  // 1/30 with most policies, and remain what any other cache can read. A block is whole in the
  // cells of one call when it holds 128 of them in order. Policies whose blocks are too large to be
  // carried (6 bits and more) and those with shared key parameters save plain rows.
  virtual Status save(int layer, int stream, SideId side, int first_cell, int n_cells,
                      uint16_t* rows) const = 0;
  virtual Status restore(int layer, int stream, SideId side, int first_cell, int n_cells,
                         const uint16_t* rows) = 0;

  // The same for states that stay in this process: nothing is put into 16-bit rows that is not in
  // them already, so that it takes about what the cache does, and every policy's whole blocks come
  // back as they were. `other` is what was kept of the layer's other side, or null: blocks that are
  // in both are held once.
  virtual Result<std::unique_ptr<KeptRows>> keep(int layer, int stream, SideId side, int first_cell,
                                                 int n_cells, const KeptRows* other) const = 0;
  // Puts kept rows from .. + n_cells into cells of the layer and side that they come from, in this
  // cache or one of the same shape and policy. A block of which a part is asked for, or for which
  // there is no place of its own, comes back as rows.
  virtual Status restore(int layer, int stream, SideId side, int first_cell, int n_cells,
                         const KeptRows& kept, int from) = 0;

  // Makes one layer of stream `to` hold what stream `from` holds, byte for byte. Once it has been
  // called for every layer the streams are equal and go on alike.
  virtual Status copy(int layer, int from, int to) = 0;

  // The same rows as attention sees them, not rounded to 16 bits: [n_cells, n_heads * dim].
  virtual Status read(int layer, int stream, SideId side, int first_cell, int n_cells,
                      float* rows) const = 0;

  // Attention that cells have received from probe rows since they were written: `sums`
  // [n_heads, n_cells] over the query heads of each KV head, and `seen` [n_cells] probe rows that
  // could see them. Only raw rows have it, under a policy that ranks by attention; others are
  // refused with BadArgument.
  virtual Status read_scores(int layer, int stream, int first_cell, int n_cells, float* sums,
                             uint32_t* seen) const = 0;

  // Turns the keys of all cells whose `shift` [n_cells] is not 0 by so many positions. Packed keys
  // keep their codes: attention turns its queries the other way instead. A block whose keys moved
  // to more than kMostTurns distances is decoded, turned and coded again with the same tiers;
  // where key parameters are shared (Cadence::Prompt) it cannot be, and the call is refused with
  // Incompatible, the layer's keys as they were.
  virtual Status rotate_keys(int layer, int stream, std::span<const int32_t> shift,
                             const KeyTurn& turn) = 0;
  // Whether that would be refused in `first_layer` or a later one: asked before the first layer, it
  // makes the change of all layers one that happens or does not.
  virtual Status check_rotation(int first_layer, int stream,
                                std::span<const int32_t> shift) const = 0;

  // Attention of a step's queries over everything the mask shows, then scoring and packing of
  // blocks that are due (paper, Algorithms 2 and 3).
  virtual Status attend(const Attention& attention) = 0;

  virtual void clear() = 0;
  virtual CacheStats stats() const = 0;
  virtual const CacheShape& shape() const = 0;
  virtual const Policy& policy() const = 0;
};

// Instruction set of the kernels in use ("avx512", "avx2", "plain"), narrowed by ZIPCACHE_ISA.
// An unknown or impossible ZIPCACHE_ISA is an error.
Result<std::string> kernel_name();
const char* version();

}  // namespace zipcache
