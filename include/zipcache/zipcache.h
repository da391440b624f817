/* C interface of ZipCache: a compressed key-value cache behind opaque handles.
 *
 *   zipcache_error error;
 *   zipcache_policy *policy = zipcache_policy_parse("zipcache,ratio=0.7", &error);
 *   zipcache_cache *cache = zipcache_cache_create(&shape, policy, &error);
 *   zipcache_cache_write(cache, layer, stream, ZC_SIDE_K, cells, n, rows, row_stride, &error);
 *   zipcache_cache_write(cache, layer, stream, ZC_SIDE_V, cells, n, rows, row_stride, &error);
 *   zipcache_cache_attend(cache, &attention, &error);
 *
 * Functions that can fail return a zipcache_code (ZC_OK is 0) or a null handle, and fill `error`, which may
 * be null. Nothing is thrown. Handles must not be used after they were freed; freeing null does nothing.
 * Thread safety: one thread at a time per handle; different handles are independent.
 * Layouts and meaning are those of zipcache/cache.hpp.
 */
#ifndef ZIPCACHE_H
#define ZIPCACHE_H

#include <stddef.h>
#include <stdint.h>

#if defined(__GNUC__)
#define ZC_API __attribute__((visibility("default")))
#else
#define ZC_API
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* The same order as zipcache::Code. */
typedef enum zipcache_code {
  ZC_OK = 0,
  ZC_BAD_POLICY,
  ZC_BAD_ARGUMENT,
  ZC_BAD_DATA,
  ZC_INCOMPATIBLE,
  ZC_OVER_LIMIT,
  ZC_ENVIRONMENT,
  ZC_ABORTED,
  ZC_INTERNAL
} zipcache_code;

typedef enum zipcache_side { ZC_SIDE_K = 0, ZC_SIDE_V = 1 } zipcache_side;

/* What went wrong: one line that says what was found, what was expected and what to do. */
typedef struct zipcache_error {
  zipcache_code code;
  char message[1024];
} zipcache_error;

typedef struct zipcache_policy zipcache_policy;
typedef struct zipcache_cache zipcache_cache;

typedef struct zipcache_layer {
  int n_heads; /* KV heads */
  int k_dim;   /* channels of a key head, a multiple of 8 from 16 to 256 */
  int v_dim;   /* channels of a value head, likewise */
} zipcache_layer;

typedef struct zipcache_shape {
  int n_streams;
  int n_cells; /* per stream */
  int n_layers;
  const zipcache_layer *layers; /* [n_layers] */
} zipcache_shape;

/* One attention operation. Fields as in zipcache::Attention; set unused ones to 0. */
typedef struct zipcache_attention {
  int layer;
  int stream;
  int n_queries;
  int n_heads; /* query heads */
  const float *q; /* [n_queries, n_heads, k_dim] */
  ptrdiff_t q_row_stride, q_head_stride; /* in floats */
  const uint16_t *mask; /* [n_queries, n_cells] 16-bit floats, or null */
  ptrdiff_t mask_stride;
  int n_cells;
  float scale, max_bias, soft_cap;
  const float *sinks; /* [n_heads] or null */
  float *out; /* [n_queries, n_heads, v_dim] */
  ptrdiff_t out_row_stride, out_head_stride;
  int n_threads;
} zipcache_attention;

typedef struct zipcache_stats {
  uint64_t rows_live, rows_dead, rows_packed;
  uint64_t elements, coded_elements, compactions, unscored_blocks;
  size_t codes, params, tags, raw, scores, map, padding; /* bytes; their sum is what is allocated */
  size_t peak, planned;
  double ratio_params, ratio_resident, bits_per_element;
} zipcache_stats;

ZC_API const char *zipcache_version(void);
/* Short name of a code, such as "bad_policy". */
ZC_API const char *zipcache_code_name(zipcache_code code);
/* Instruction set of the kernels in use; null when ZIPCACHE_ISA names one that cannot run here. */
ZC_API const char *zipcache_kernel_name(void);

/* A row's name with changed fields, or the path of a .json file. */
ZC_API zipcache_policy *zipcache_policy_parse(const char *text, zipcache_error *error);
/* The short text form or the JSON form, copied as snprintf does; returns the length needed, 0 when memory
 * ran out. */
ZC_API size_t zipcache_policy_text(const zipcache_policy *policy, char *out, size_t size);
ZC_API size_t zipcache_policy_json(const zipcache_policy *policy, char *out, size_t size);
ZC_API void zipcache_policy_free(zipcache_policy *policy);

ZC_API zipcache_cache *zipcache_cache_create(const zipcache_shape *shape, const zipcache_policy *policy,
                                             zipcache_error *error);
ZC_API void zipcache_cache_free(zipcache_cache *cache);

/* Stores rows [n, n_heads * dim], `row_stride` floats apart, into `cells` [n]. */
ZC_API zipcache_code zipcache_cache_write(zipcache_cache *cache, int layer, int stream, zipcache_side side,
                                          const int64_t *cells, size_t n, const float *rows,
                                          ptrdiff_t row_stride, zipcache_error *error);
/* Reads and writes whole 16-bit rows of neighbouring cells. */
ZC_API zipcache_code zipcache_cache_read_half(const zipcache_cache *cache, int layer, int stream,
                                              zipcache_side side, int first_cell, int n_cells, uint16_t *rows,
                                              zipcache_error *error);
ZC_API zipcache_code zipcache_cache_write_half(zipcache_cache *cache, int layer, int stream,
                                               zipcache_side side, int first_cell, int n_cells,
                                               const uint16_t *rows, zipcache_error *error);
ZC_API zipcache_code zipcache_cache_attend(zipcache_cache *cache, const zipcache_attention *attention,
                                           zipcache_error *error);
ZC_API void zipcache_cache_clear(zipcache_cache *cache);
ZC_API zipcache_code zipcache_cache_stats(const zipcache_cache *cache, zipcache_stats *stats,
                                          zipcache_error *error);

#ifdef __cplusplus
}
#endif

#endif
