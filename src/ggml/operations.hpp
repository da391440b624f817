// The three operations that the backend computes, all on cache tensors: rows written (SET_ROWS),
// attention (FLASH_ATTN_EXT) and keys moved to other positions (ROPE).
#pragma once

#include <ggml.h>

#include "zipcache/status.hpp"

namespace zipcache {

// What a graph is computed with.
struct RunSettings {
  int n_threads = 1;
  bool (*aborted)(void*) = nullptr;
  void* aborted_data = nullptr;
};

// Whether a node is ours. Learns head sizes from attention nodes, and refuses (see
// CacheBuffer::poison) what has the right place but the wrong shape.
bool serves(const ggml_tensor* node);

// Computes one node; views do nothing.
Status compute(const ggml_tensor* node, const RunSettings& run);

}  // namespace zipcache
