// ggml's flash attention on its CPU backend over caches of synthetic rows: what `zipcache bench`
// holds our attention against. Laid out as llama.cpp does: rows of all heads, one token after
// another.
//
// Thread safety: one thread at a time per object.
#pragma once

#include <ggml-backend.h>
#include <ggml.h>

#include <memory>
#include <vector>

#include "zipcache/status.hpp"

namespace zipcache::cli {

struct AttentionShape {
  int d_head = 128;
  int n_head = 32;
  int n_head_kv = 8;
  int depth = 4096;
  int batch = 1;
};

// Rows that all contenders hold: k, v [depth, n_head_kv, d_head] and q [n_head, d_head].
struct AttentionData {
  std::vector<float> k, v, q;
  float scale = 1;
};

class GgmlAttention {
 public:
  // `n_copies` caches of one type, each with the rows of `data`.
  static Result<std::unique_ptr<GgmlAttention>> create(const AttentionShape& shape,
                                                       const AttentionData& data, ggml_type type,
                                                       int n_copies, int n_threads);
  ~GgmlAttention();

  // Attention of one query token over copy number `copy`.
  Status attend(int copy);
  std::vector<float> output(int copy) const;  // [n_head, d_head]
  // Bytes of K and V in one copy.
  size_t bytes() const { return bytes_; }

 private:
  GgmlAttention() = default;

  ggml_context* context_ = nullptr;
  ggml_backend_t backend_ = nullptr;
  ggml_backend_buffer_t buffer_ = nullptr;
  std::vector<ggml_tensor*> outputs_;
  std::vector<ggml_cgraph*> graphs_;
  size_t bytes_ = 0;
};

}  // namespace zipcache::cli
