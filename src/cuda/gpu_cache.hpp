// The packed cache of all layers of a model on one GPU, for many streams of different lengths:
// tokens come, are attended to, are scored by probes (paper, section 4.2) and packed when the
// window has left them, layer by layer, without the host waiting for the device.
//
//   auto cache = *GpuCache::create(shape, policy, stream);
//   cache->begin(n_new, stream);                   // tokens that come to each stream
//   for (int layer = 0; layer < n_layers; ++layer)
//     cache->decode(layer, step, stream);          // a few tokens: attention over all of them
//                                                  // or prefill(): many, whose attention may
//                                                  // also be the caller's
//
// All calls of a cache have to be given the same CUDA stream, or streams that the caller orders.
// One thread at a time. Pointers are of the device unless said.
#pragma once

#include <memory>
#include <span>
#include <vector>

#include "cuda/decode.hpp"
#include "cuda/rows.hpp"
#include "cuda/schedule.hpp"

namespace zipcache::cuda {

struct GpuCacheShape {
  int n_layers = 0;
  int n_heads = 0, group = 0, dim = 0;  // KV heads, query heads of each, channels of both sides
  int n_streams = 0;
  int max_tokens = 0;  // of a stream
  // Of 128 packed tokens, of all streams together, in each layer; 0 for all they may have. A layer
  // that packs nothing has room for max_tokens of every stream whatever this says.
  int n_blocks = 0;
  // Tokens of each stream that are unpacked at once where a long prompt goes on, in whole blocks of
  // 128. Their rows of one layer take memory from the first such part on, 4 * dim bytes a token and
  // KV head. 0 for up to 8,192, as 128 MiB hold of all streams, but no less than 1,024.
  int piece_tokens = 0;
};

// One layer of a step of at most kMostStepTokens tokens.
struct DecodeStep {
  InputRows k, v;           // [stream, new token, KV head, dim] 16-bit floating point numbers
  const void* q = nullptr;  // [stream, new token, query head, dim]
  void* out = nullptr;      // the same shape; rows of streams without new tokens mean nothing
  Number q_type = Number::F16, out_type = Number::F16;
  float scale = 0;  // above 0
  MaskArgs mask;
  const float* sinks = nullptr;  // as in DecodeArgs
  float* log_sums = nullptr;     // [stream, new token, query head] or null, as in DecodeArgs
};

// One layer of a prompt, or of a part of it. Rows behind a stream's own new tokens, as far as other
// streams have some, are read and must be finite.
struct PromptStep {
  InputRows k, v;   // [stream, new token, KV head, dim]
  InputRows q;      // [stream, new token, query head, dim]
  float scale = 0;  // above 0
  // [stream, new token, query head, dim] takes the attention of the new tokens over all tokens of
  // their streams; rows behind a stream's own mean nothing. Null: attention is the caller's.
  void* out = nullptr;
  Number out_type = Number::F16;
  const float* sinks = nullptr;  // as in DecodeArgs
  // Of the caller's attention, [stream, new token, query head] natural logarithms of the sums of
  // its softmax. Null where the streams were empty: then probes make them anew.
  const float* log_sums = nullptr;
  int64_t log_sums_stride = 0;  // tokens from stream to stream
};

struct GpuCacheBytes {
  size_t records = 0;   // of packed tokens in use
  size_t capacity = 0;  // of all records, rows and rotations, used or not
  size_t shared = 0;    // of the block table, partial results and the like
};

class GpuCache {
 public:
  // On the current device. Layers may have policies of their own (policy_for_layer), and some or
  // all of them 16 bits. Incompatible for policies that a GPU does not pack, by name; OverLimit
  // when the device has no room.
  static Result<std::unique_ptr<GpuCache>> create(const GpuCacheShape& shape, const Policy& policy,
                                                  cudaStream_t stream);
  virtual ~GpuCache() = default;

  // n_new [n_streams] on the host. OverLimit when a stream or the cache is full; then nothing has
  // changed. Environment when the plan did not get to the device: from then on always.
  virtual Status begin(std::span<const int> n_new, cudaStream_t stream) = 0;
  // Each stream has as many new tokens as the others, or none. BadArgument else.
  virtual Status decode(int layer, const DecodeStep& step, cudaStream_t stream) = 0;
  // OverLimit where the first long part that goes on finds no memory; the call may be made again.
  virtual Status prefill(int layer, const PromptStep& step, cudaStream_t stream) = 0;

  // A number for what decode() of all layers would enqueue in the step at hand. A CUDA graph that
  // was captured of these calls may be launched instead in each later step that has the same
  // number, after its begin(), which is never captured, as long as all that the caller gives
  // decode() would be the same: pointers, types, strides, scale, mask. 0 where the calls have to be
  // made: some layer packs or looks at queries, or the step is none for decode(). One n_new has
  // some dozens of numbers, between which a text goes back and forth.
  virtual uint64_t step_shape() const = 0;

  virtual int length(int stream) const = 0;
  virtual Status truncate(int stream, int length) = 0;  // Schedule::truncate
  virtual Status clear(int stream) = 0;
  virtual GpuCacheBytes bytes() const = 0;

  // Records of a layer as the device has them, for tests and for the way to the host: the block
  // table [n_streams, n_heads, stride] of the step at hand and the pool. Waits for the stream.
  struct Image {
    std::vector<Record> table;
    int stride = 0;
    std::vector<StreamRecords> counts;  // [n_streams]
    std::vector<uint8_t> pool;
  };
  virtual Result<Image> image(int layer, cudaStream_t stream) const = 0;
};

}  // namespace zipcache::cuda
