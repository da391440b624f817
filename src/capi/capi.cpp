// The C interface; see zipcache/zipcache.h. Every function turns exceptions, which only the
// system's allocator can raise here, into a code.
#include <algorithm>
#include <string>

#include "capi/report.hpp"
#include "zipcache/cache.hpp"

struct zipcache_policy {
  zipcache::Policy policy;
};

struct zipcache_cache {
  std::unique_ptr<zipcache::Cache> cache;
};

namespace {

using zipcache::Code;
using zipcache::guarded;
using zipcache::null_argument;
using zipcache::Status;

// The length of a policy's text, 0 when there is no memory to write it.
template <class Write>
size_t policy_text(const zipcache_policy* policy, char* out, size_t size, Write&& write) {
  if (!policy) return 0;
  try {
    return zipcache::copy_text(write(policy->policy), out, size);
  } catch (const std::bad_alloc&) {
    return 0;
  }
}

zipcache::SideId side_of(zipcache_side side) {
  return side == ZC_SIDE_V ? zipcache::SideId::V : zipcache::SideId::K;
}

zipcache::CacheShape shape_of(const zipcache_shape& in) {
  zipcache::CacheShape shape{in.n_streams, in.n_cells, {}};
  for (int i = 0; i < in.n_layers; ++i) {
    shape.layers.push_back({in.layers[i].n_heads, in.layers[i].k_dim, in.layers[i].v_dim});
  }
  return shape;
}

zipcache::Attention attention_of(const zipcache_attention& in) {
  zipcache::Attention step;
  step.layer = in.layer;
  step.stream = in.stream;
  step.n_queries = in.n_queries;
  step.n_heads = in.n_heads;
  step.q = in.q;
  step.q_row_stride = in.q_row_stride;
  step.q_head_stride = in.q_head_stride;
  step.mask = in.mask;
  step.mask_stride = in.mask_stride;
  step.n_cells = in.n_cells;
  step.scale = in.scale;
  step.max_bias = in.max_bias;
  step.soft_cap = in.soft_cap;
  step.sinks = in.sinks;
  step.out = in.out;
  step.out_row_stride = in.out_row_stride;
  step.out_head_stride = in.out_head_stride;
  step.n_threads = std::max(1, in.n_threads);
  return step;
}

}  // namespace

const char* zipcache_version(void) { return zipcache::version(); }

const char* zipcache_code_name(zipcache_code code) {
  const bool known = code >= ZC_OK && code <= ZC_INTERNAL;
  return known ? zipcache::info(static_cast<Code>(code)).name : "unknown";
}

const char* zipcache_kernel_name(void) {
  thread_local std::string name;
  const zipcache_code code = guarded(nullptr, [] {
    const auto found = zipcache::kernel_name();
    if (found.ok()) name = *found;
    return found.status();
  });
  return code == ZC_OK ? name.c_str() : nullptr;
}

zipcache_policy* zipcache_policy_parse(const char* text, zipcache_error* error) {
  zipcache_policy* made = nullptr;
  guarded(error, [&]() -> Status {
    if (!text) return null_argument("zipcache_policy_parse");
    auto policy = zipcache::parse_policy(text);
    if (policy.ok()) made = new zipcache_policy{*policy};
    return policy.status();
  });
  return made;
}

size_t zipcache_policy_text(const zipcache_policy* policy, char* out, size_t size) {
  return policy_text(policy, out, size, zipcache::to_text);
}

size_t zipcache_policy_json(const zipcache_policy* policy, char* out, size_t size) {
  return policy_text(policy, out, size, zipcache::policy_to_json);
}

void zipcache_policy_free(zipcache_policy* policy) { delete policy; }

zipcache_cache* zipcache_cache_create(const zipcache_shape* shape, const zipcache_policy* policy,
                                      zipcache_error* error) {
  zipcache_cache* made = nullptr;
  guarded(error, [&]() -> Status {
    if (!shape || !policy || (shape->n_layers > 0 && !shape->layers)) {
      return null_argument("zipcache_cache_create");
    }
    auto cache = zipcache::Cache::create(shape_of(*shape), policy->policy);
    if (cache.ok()) made = new zipcache_cache{std::move(*cache)};
    return cache.status();
  });
  return made;
}

void zipcache_cache_free(zipcache_cache* cache) { delete cache; }

zipcache_code zipcache_cache_write(zipcache_cache* cache, int layer, int stream, zipcache_side side,
                                   const int64_t* cells, size_t n, const float* rows,
                                   ptrdiff_t row_stride, zipcache_error* error) {
  return guarded(error, [&]() -> Status {
    if (!cache || (n > 0 && (!cells || !rows))) return null_argument("zipcache_cache_write");
    return cache->cache->write(layer, stream, side_of(side), {cells, n}, rows, row_stride);
  });
}

zipcache_code zipcache_cache_read_half(const zipcache_cache* cache, int layer, int stream,
                                       zipcache_side side, int first_cell, int n_cells,
                                       uint16_t* rows, zipcache_error* error) {
  return guarded(error, [&]() -> Status {
    if (!cache || (n_cells > 0 && !rows)) return null_argument("zipcache_cache_read_half");
    return cache->cache->read_half(layer, stream, side_of(side), first_cell, n_cells, rows);
  });
}

zipcache_code zipcache_cache_write_half(zipcache_cache* cache, int layer, int stream,
                                        zipcache_side side, int first_cell, int n_cells,
                                        const uint16_t* rows, zipcache_error* error) {
  return guarded(error, [&]() -> Status {
    if (!cache || (n_cells > 0 && !rows)) return null_argument("zipcache_cache_write_half");
    return cache->cache->write_half(layer, stream, side_of(side), first_cell, n_cells, rows);
  });
}

zipcache_code zipcache_cache_attend(zipcache_cache* cache, const zipcache_attention* attention,
                                    zipcache_error* error) {
  return guarded(error, [&]() -> Status {
    if (!cache || !attention) return null_argument("zipcache_cache_attend");
    return cache->cache->attend(attention_of(*attention));
  });
}

void zipcache_cache_clear(zipcache_cache* cache) {
  if (cache) cache->cache->clear();
}

zipcache_code zipcache_cache_stats(const zipcache_cache* cache, zipcache_stats* out,
                                   zipcache_error* error) {
  return guarded(error, [&]() -> Status {
    if (!cache || !out) return null_argument("zipcache_cache_stats");
    const zipcache::CacheStats s = cache->cache->stats();
    *out = {s.rows_live,      s.rows_dead,        s.rows_packed,       s.elements,
            s.coded_elements, s.compactions,      s.unscored_blocks,   s.bytes.codes,
            s.bytes.params,   s.bytes.tags,       s.bytes.raw,         s.bytes.scores,
            s.bytes.map,      s.bytes.padding,    s.bytes_peak,        s.bytes_planned,
            s.ratio_params(), s.ratio_resident(), s.bits_per_element()};
    return zipcache::ok();
  });
}
