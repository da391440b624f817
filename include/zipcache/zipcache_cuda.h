/* C interface of ZipCache on NVIDIA GPUs: the packed cache of all layers of a model, for many streams.
 *
 *   zipcache_gpu_cache *cache = zipcache_gpu_create(&shape, "zipcache", stream, &error);
 *   zipcache_gpu_begin(cache, n_new, stream, &error);              tokens that come to each stream
 *   for (int layer = 0; layer < n_layers; ++layer)
 *     zipcache_gpu_decode(cache, layer, &step, stream, &error);    a few: attention over all tokens
 *                                                                  or zipcache_gpu_prefill(): many, whose
 *                                                                  attention may also be the caller's
 *
 * `stream` is a cudaStream_t. Work is ordered by it; the host does not wait for the device. All calls for a cache
 * have to be given the same stream, or streams that the caller orders. Pointers to rows are device pointers.
 * Errors, handles and thread safety are those of zipcache.h. Where the library was built without CUDA, or there is
 * no GPU, zipcache_gpu_create() says so.
 */
#ifndef ZIPCACHE_CUDA_H
#define ZIPCACHE_CUDA_H

#include <zipcache/zipcache.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct zipcache_gpu_cache zipcache_gpu_cache;

typedef struct zipcache_gpu_shape {
  int n_layers;
  int n_heads; /* KV heads */
  int group;   /* query heads of each */
  int dim;     /* channels of a head, K and V: 64, 128 or 256 */
  int n_streams;
  int max_tokens; /* of a stream */
  /* Of 128 packed tokens, of all streams together, in each layer; 0 for all that they may have. A layer that packs
   * nothing has room for max_tokens of every stream whatever this says. */
  int n_blocks;
  /* Tokens of each stream that are unpacked at once where a long prompt goes on, in whole blocks of 128: they take
   * 4 * dim bytes each of a KV head, from the first such part on. 0 for up to 8,192, as 128 MiB hold of all streams,
   * but no less than 1,024. */
  int piece_tokens;
} zipcache_gpu_shape;

/* 16-bit floating point numbers [stream, token, head, dim] on the device, finite. Strides in numbers, multiples of 8;
 * `data` at a multiple of 16 bytes. */
typedef struct zipcache_gpu_rows {
  const void *data;
  int64_t stream_stride, token_stride, head_stride;
} zipcache_gpu_rows;

typedef enum zipcache_gpu_type { ZC_GPU_F16 = 0, ZC_GPU_BF16 = 1, ZC_GPU_F32 = 2 } zipcache_gpu_type;

/* One layer of a step of at most 64 new tokens of each stream; every stream has as many as the others, or none.
 * Set unused fields to 0. */
typedef struct zipcache_gpu_step {
  zipcache_gpu_rows k, v; /* of the new tokens */
  const void *q;          /* [stream, new token, query head, dim], without gaps; 16-bit floating point where a policy
                             has scores or k_round=query */
  void *out;              /* the same shape */
  zipcache_gpu_type q_type, out_type;
  float scale;               /* of the scores, above 0 */
  int window;                /* tokens that a query sees, itself included; 0 for all */
  float soft_cap;            /* 0 for none */
  const float *alibi_slopes; /* [query head] or null */
  const float *sinks;        /* [query head] logits that take part in the softmax, or null */
  float *log_sums;           /* [stream, new token, query head] logarithms of the softmax's sums, or null */
} zipcache_gpu_step;

/* One layer of a prompt, or of a part of it. Rows behind a stream's own new tokens, as far as other streams have
 * some, are read and must be finite. Set unused fields to 0. */
typedef struct zipcache_gpu_prompt {
  zipcache_gpu_rows k, v; /* of the new tokens */
  zipcache_gpu_rows q;    /* [stream, new token, query head, dim] */
  float scale;            /* of the scores, above 0 */
  void *out;              /* [stream, new token, query head, dim], without gaps: takes the attention of the new tokens
                             over all tokens of their streams; rows behind a stream's own mean nothing. Null where the
                             attention is the caller's */
  zipcache_gpu_type out_type;
  const float *sinks;      /* with out: [query head] logits that take part in the softmax, or null */
  const float *log_sums;   /* without out: [stream, new token, query head] of the attention, natural logarithms; may be
                              null where the streams were empty */
  int64_t log_sums_stride; /* tokens from stream to stream */
} zipcache_gpu_prompt;

typedef struct zipcache_gpu_bytes {
  size_t records;  /* of packed tokens */
  size_t capacity; /* of all records, rows and rotations, used or not */
  size_t shared;   /* of what layers share */
} zipcache_gpu_bytes;

/* On the current device. `policy` as zipcache_policy_parse() takes it; layers may differ ("uniform4,0-3:k=8", or the
 * file that `zipcache tune` writes). */
ZC_API zipcache_gpu_cache *zipcache_gpu_create(const zipcache_gpu_shape *shape, const char *policy, void *stream,
                                               zipcache_error *error);
/* Waits for the device. */
ZC_API void zipcache_gpu_free(zipcache_gpu_cache *cache);

/* `n_new` [n_streams] on the host. ZC_OVER_LIMIT when a stream or the cache is full; then nothing has changed. */
ZC_API zipcache_code zipcache_gpu_begin(zipcache_gpu_cache *cache, const int *n_new, void *stream,
                                        zipcache_error *error);
ZC_API zipcache_code zipcache_gpu_decode(zipcache_gpu_cache *cache, int layer, const zipcache_gpu_step *step,
                                         void *stream, zipcache_error *error);
/* ZC_OVER_LIMIT where the first long part finds no memory; the call may be made again. */
ZC_API zipcache_code zipcache_gpu_prefill(zipcache_gpu_cache *cache, int layer, const zipcache_gpu_prompt *prompt,
                                          void *stream, zipcache_error *error);

/* A number for what zipcache_gpu_decode() of all layers would enqueue in the step at hand. A CUDA graph that was captured
 * of these calls may be launched instead in each later step that has the same number, after its zipcache_gpu_begin(),
 * which is never captured, as long as all that the caller gives zipcache_gpu_decode() would be the same: pointers, types,
 * strides, scale, mask. 0 where the calls have to be made: some layer packs or looks at queries, or the step is none
 * for zipcache_gpu_decode(). A number of new tokens has some dozens of them. */
ZC_API uint64_t zipcache_gpu_step_shape(const zipcache_gpu_cache *cache);

/* Tokens of a stream; -1 for none such. */
ZC_API int zipcache_gpu_length(const zipcache_gpu_cache *cache, int stream_index);
/* Takes a stream's last tokens back, those of a draft say; packed ones cannot be. */
ZC_API zipcache_code zipcache_gpu_truncate(zipcache_gpu_cache *cache, int stream_index, int length,
                                           zipcache_error *error);
ZC_API zipcache_code zipcache_gpu_clear(zipcache_gpu_cache *cache, int stream_index, zipcache_error *error);
ZC_API zipcache_code zipcache_gpu_memory(const zipcache_gpu_cache *cache, zipcache_gpu_bytes *bytes,
                                         zipcache_error *error);

/* A tensor [stream, token, head, dim] of 16-bit floating point numbers on a CUDA device as rows, which do not own it.
 * `tensor` is a DLTensor, or a DLManagedTensor, which begins with one. */
ZC_API zipcache_code zipcache_gpu_rows_of(const void *tensor, zipcache_gpu_rows *rows,
                                          zipcache_error *error);

#ifdef __cplusplus
}
#endif

#endif
