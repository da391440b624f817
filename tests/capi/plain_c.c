/* The header in C: what a C program would write, compiled as C and called by capi_test.cpp. */
#include <string.h>

#include "zipcache/zipcache.h"

/* Stores `n` tokens of one layer and head with 16 channels and attends to them once; 0 when all went well. */
int run_from_c(const char *policy_text, int n, const float *rows, float *out, zipcache_stats *stats) {
  zipcache_error error;
  const zipcache_layer layer = {1, 16, 16};
  zipcache_shape shape;
  zipcache_attention step;
  int64_t cells[512];
  int result = 1;
  zipcache_policy *policy = zipcache_policy_parse(policy_text, &error);
  zipcache_cache *cache = NULL;
  shape.n_streams = 1;
  shape.n_cells = n;
  shape.n_layers = 1;
  shape.layers = &layer;
  cache = zipcache_cache_create(&shape, policy, &error);
  for (int i = 0; i < n; ++i) cells[i] = i;
  if (cache && zipcache_cache_write(cache, 0, 0, ZC_SIDE_K, cells, (size_t)n, rows, 16, &error) == ZC_OK &&
      zipcache_cache_write(cache, 0, 0, ZC_SIDE_V, cells, (size_t)n, rows, 16, &error) == ZC_OK) {
    memset(&step, 0, sizeof step);
    step.n_queries = 1;
    step.n_heads = 1;
    step.q = rows;
    step.q_row_stride = step.q_head_stride = 16;
    step.n_cells = n;
    step.scale = 0.25f;
    step.out = out;
    step.out_row_stride = step.out_head_stride = 16;
    result = zipcache_cache_attend(cache, &step, &error) != ZC_OK ||
             zipcache_cache_stats(cache, stats, NULL) != ZC_OK;
  }
  zipcache_cache_free(cache);
  zipcache_policy_free(policy);
  return result;
}
