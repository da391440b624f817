// Buffers of the backend. Plain ones are ordinary memory. A buffer becomes a cache buffer when
// llama.cpp places a tensor named cache_k_l<n> or cache_v_l<n> in it: its bytes are then never
// touched; the tensors' addresses only identify layer and side, and the rows live in a
// zipcache::Cache. To the host, a cache tensor is always 16-bit rows.
#pragma once

#include <chrono>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "ggml/abi.hpp"
#include "ggml/self_check.hpp"
#include "ggml/state_buffer.hpp"
#include "zipcache/cache.hpp"

namespace zipcache {

// One cache tensor as llama.cpp shaped it: [width, n_cells, n_streams] f16.
struct CacheTensor {
  int layer = 0;  // llama.cpp's number
  SideId side = SideId::K;
  int64_t width = 0;
  int64_t n_cells = 0;
  int64_t n_streams = 0;
  size_t row_bytes() const { return size_t(width) * 2; }
};

// Cells of one stream of a cache tensor.
struct CellRange {
  int stream = 0, first = 0, n = 0;
};

// Cells and layers of a cache buffer: what the one after it needs to know whether it is a window.
struct CacheExtent {
  int64_t n_cells = 0;
  std::vector<int> layers;  // llama.cpp's numbers
};

// llama.cpp gives the layers that see a sliding window a cache of their own, right after that of
// the others: with fewer cells and no layer in common. Its rows are soon written over, and few.
bool is_window(const CacheExtent& cache, const CacheExtent& before);

class CacheBuffer {
 public:
  CacheBuffer();
  ~CacheBuffer();

  // Notes a cache tensor at `offset` of the buffer.
  Status add(size_t offset, const CacheTensor& tensor);
  // The tensor at exactly this offset, or null.
  const CacheTensor* find(size_t offset) const;

  // What attention tells about a layer: head sizes and KV heads. Conflicts and sizes that cannot be
  // served poison the buffer.
  void learn(const CacheTensor& k, const CacheTensor& v, int64_t k_dim, int64_t v_dim,
             int64_t n_heads);
  // Refuses all further work with `reason`, logged once.
  void poison(const std::string& reason);
  const std::string& poisoned() const { return poison_; }

  // The cache, made at first use, when every layer's shape is known. Errors are logged once.
  Result<Cache*> cache();
  // Index of a llama.cpp layer inside the cache.
  int index_of(int layer) const { return layers_.at(layer).index; }

  void clear();
  // Bytes [offset, offset + size) of the 16-bit image of a tensor, to and from the host.
  Status read(const CacheTensor& tensor, size_t offset, size_t size, void* data);
  Status write(const CacheTensor& tensor, size_t offset, size_t size, const void* data);

  // Cache::keep and its Cache::restore; `other` is what is kept of the layer's other side, or null.
  Result<std::unique_ptr<KeptRows>> keep(const CacheTensor& tensor, const CellRange& cells,
                                         const KeptRows* other);
  Status restore(const CacheTensor& tensor, const CellRange& cells, const KeptRows& kept, int from);

  // Copies one stream's layer over another's, both sides of it.
  Status copy(const CacheTensor& tensor, int from, int to);

  // Rows that were written and attention that was computed, for the check of the first tokens.
  void wrote(int layer, int stream, SideId side, std::span<const int64_t> cells, const float* rows,
             ptrdiff_t row_stride);
  void attended(const Attention& done);
  // Rows changed in another way.
  void stop_check() { check_.reset(); }

  CacheExtent extent() const;
  void set_threads(int n) { n_threads_ = n; }
  int id() const { return id_; }
  const Policy& policy() const { return policy_; }
  // Cache::read_scores() of the first `n_cells` cells of stream 0; `layer` counts inside the cache.
  Status read_scores(int layer, int n_cells, float* sums, uint32_t* seen);
  // Stats as a JSON object; empty until every layer's shape is known, which it is when a context is
  // ready.
  std::string stats_json();

 private:
  struct Layer {
    int index = -1;
    std::optional<CacheTensor> k, v;
    LayerShape shape;  // zeros until learned
  };
  Status make_cache();
  Status keep_window_at_16_bits();
  void log_counters_if_due();
  void announce(const CacheShape& shape) const;

  int id_;
  int n_threads_ = 0;
  Policy policy_;
  CacheExtent before_;  // of the buffer made before this one, zeros if there was none
  bool window_ = false;
  std::map<size_t, CacheTensor> tensors_;  // by offset
  std::map<int, Layer> layers_;            // by llama.cpp's number
  std::unique_ptr<Cache> cache_;
  std::unique_ptr<SelfCheck> check_;  // until it is done
  std::string poison_;
  std::chrono::steady_clock::time_point logged_ = std::chrono::steady_clock::now();
};

// A buffer's context: memory, and a cache when cache tensors live in it, or rows that were copied
// out of one.
struct BufferContext {
  uint8_t* base = nullptr;
  size_t size = 0;
  std::unique_ptr<CacheBuffer> cache;
  std::unique_ptr<StateBuffer> state;
};

// Buffer types: ordinary memory that the CPU may touch, and the cache's own, which it may not.
ggml_backend_buffer_type_t working_type();
ggml_backend_buffer_type_t cache_type();
void init_buffer_types(ggml_backend_dev_t device);

// The tensor whose memory `tensor` is, following views.
const ggml_tensor* root_of(const ggml_tensor* tensor);
// Cache buffer and cache tensor behind a tensor or view, or nulls when it is not ours.
struct Located {
  CacheBuffer* buffer = nullptr;
  const CacheTensor* tensor = nullptr;
};
Located locate(const ggml_tensor* tensor);

// JSON array of the stats of all live caches, oldest first.
std::string all_stats_json();

// CacheBuffer::read_scores() of the live cache with this id.
Status scores_of_cache(int id, int layer, int n_cells, float* sums, uint32_t* seen);

// Asks that the next allocation on this thread fail, so that context creation ends with an error
// where ggml offers no other way to refuse.
void refuse_next_allocation();

}  // namespace zipcache
