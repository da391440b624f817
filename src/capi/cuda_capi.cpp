// The C interface on GPUs; see zipcache/zipcache_cuda.h.
#include <dlpack/dlpack.h>
#include <fmt/format.h>

#include "capi/report.hpp"
#include "cuda/gpu_cache.hpp"
#include "zipcache/policy.hpp"
#include "zipcache/zipcache_cuda.h"

struct zipcache_gpu_cache {
  int n_streams;
  std::unique_ptr<zipcache::cuda::GpuCache> cache;
};

namespace {

using zipcache::Code;
using zipcache::guarded;
using zipcache::null_argument;
using zipcache::Status;
using zipcache::cuda::InputRows;
using zipcache::cuda::Number;

static_assert(ZC_GPU_F32 == static_cast<int>(Number::F32));

cudaStream_t stream_of(void* stream) { return static_cast<cudaStream_t>(stream); }

InputRows rows_of(const zipcache_gpu_rows& in) {
  return {static_cast<const uint16_t*>(in.data), in.stream_stride, in.token_stride, in.head_stride};
}

zipcache::cuda::GpuCacheShape shape_of(const zipcache_gpu_shape& in) {
  zipcache::cuda::GpuCacheShape shape;
  shape.n_layers = in.n_layers;
  shape.n_heads = in.n_heads;
  shape.group = in.group;
  shape.dim = in.dim;
  shape.n_streams = in.n_streams;
  shape.max_tokens = in.max_tokens;
  shape.n_blocks = in.n_blocks;
  shape.piece_tokens = in.piece_tokens;
  return shape;
}

zipcache::cuda::DecodeStep step_of(const zipcache_gpu_step& in) {
  zipcache::cuda::DecodeStep step;
  step.k = rows_of(in.k);
  step.v = rows_of(in.v);
  step.q = in.q;
  step.out = in.out;
  step.q_type = static_cast<Number>(in.q_type);
  step.out_type = static_cast<Number>(in.out_type);
  step.scale = in.scale;
  step.mask.window = in.window;
  step.mask.soft_cap = in.soft_cap;
  step.mask.alibi_slopes = in.alibi_slopes;
  step.sinks = in.sinks;
  step.log_sums = in.log_sums;
  return step;
}

zipcache::cuda::PromptStep prompt_of(const zipcache_gpu_prompt& in) {
  zipcache::cuda::PromptStep prompt;
  prompt.k = rows_of(in.k);
  prompt.v = rows_of(in.v);
  prompt.q = rows_of(in.q);
  prompt.scale = in.scale;
  prompt.out = in.out;
  prompt.out_type = static_cast<Number>(in.out_type);
  prompt.sinks = in.sinks;
  prompt.log_sums = in.log_sums;
  prompt.log_sums_stride = in.log_sums_stride;
  return prompt;
}

Status check_type(zipcache_gpu_type type, const char* call, const char* name) {
  if (type >= ZC_GPU_F16 && type <= ZC_GPU_F32) return {};
  return {Code::BadArgument,
          fmt::format("{}: found {} = {}, expected 0 to 2", call, name, int(type))};
}

Status check_stream(const zipcache_gpu_cache* cache, int stream, const char* call) {
  if (!cache) return null_argument(call);
  if (stream >= 0 && stream < cache->n_streams) return {};
  return {Code::BadArgument,
          fmt::format("{}: found stream {}, expected 0 to {}", call, stream, cache->n_streams - 1)};
}

Status from_dlpack(const DLTensor& tensor, zipcache_gpu_rows& rows) {
  const auto wrong = [](std::string_view found) {
    return Status(Code::BadArgument,
                  fmt::format("zipcache_gpu_rows_of: found {}, expected a tensor [stream, token, "
                              "head, dim] of 16-bit floating point numbers on a CUDA device, whose "
                              "channels lie side by side",
                              found));
  };
  if (tensor.ndim != 4) return wrong(fmt::format("{} dimensions", tensor.ndim));
  if (tensor.device.device_type != kDLCUDA)
    return wrong(fmt::format("a tensor on a device of type {}", int(tensor.device.device_type)));
  const DLDataType type = tensor.dtype;
  if (type.code != kDLFloat || type.bits != 16 || type.lanes != 1)
    return wrong(fmt::format("numbers of type {} and {} bits", int(type.code), int(type.bits)));
  if (!tensor.data || !tensor.shape) return wrong("a tensor without data");
  const int64_t* shape = tensor.shape;
  // No strides: rows without gaps.
  int64_t strides[4] = {shape[1] * shape[2] * shape[3], shape[2] * shape[3], shape[3], 1};
  if (tensor.strides) std::copy_n(tensor.strides, 4, strides);
  if (strides[3] != 1) return wrong(fmt::format("channels {} numbers apart", strides[3]));
  rows = {static_cast<const char*>(tensor.data) + tensor.byte_offset, strides[0], strides[1],
          strides[2]};
  const char* fault = zipcache::cuda::fault_of(rows_of(rows));
  return fault ? wrong(fault) : Status{};
}

}  // namespace

zipcache_gpu_cache* zipcache_gpu_create(const zipcache_gpu_shape* shape, const char* policy,
                                        void* stream, zipcache_error* error) {
  zipcache_gpu_cache* made = nullptr;
  guarded(error, [&]() -> Status {
    if (!shape || !policy) return null_argument("zipcache_gpu_create");
    const auto parsed = zipcache::parse_policy(policy);
    if (!parsed.ok()) return parsed.status();
    auto cache = zipcache::cuda::GpuCache::create(shape_of(*shape), *parsed, stream_of(stream));
    if (cache.ok()) made = new zipcache_gpu_cache{shape->n_streams, std::move(*cache)};
    return cache.status();
  });
  return made;
}

void zipcache_gpu_free(zipcache_gpu_cache* cache) { delete cache; }

zipcache_code zipcache_gpu_begin(zipcache_gpu_cache* cache, const int* n_new, void* stream,
                                 zipcache_error* error) {
  return guarded(error, [&]() -> Status {
    if (!cache || !n_new) return null_argument("zipcache_gpu_begin");
    return cache->cache->begin({n_new, size_t(cache->n_streams)}, stream_of(stream));
  });
}

zipcache_code zipcache_gpu_decode(zipcache_gpu_cache* cache, int layer,
                                  const zipcache_gpu_step* step, void* stream,
                                  zipcache_error* error) {
  return guarded(error, [&]() -> Status {
    if (!cache || !step) return null_argument("zipcache_gpu_decode");
    ZC_TRY(check_type(step->q_type, "zipcache_gpu_decode", "q_type"));
    ZC_TRY(check_type(step->out_type, "zipcache_gpu_decode", "out_type"));
    return cache->cache->decode(layer, step_of(*step), stream_of(stream));
  });
}

zipcache_code zipcache_gpu_prefill(zipcache_gpu_cache* cache, int layer,
                                   const zipcache_gpu_prompt* prompt, void* stream,
                                   zipcache_error* error) {
  return guarded(error, [&]() -> Status {
    if (!cache || !prompt) return null_argument("zipcache_gpu_prefill");
    ZC_TRY(check_type(prompt->out_type, "zipcache_gpu_prefill", "out_type"));
    return cache->cache->prefill(layer, prompt_of(*prompt), stream_of(stream));
  });
}

uint64_t zipcache_gpu_step_shape(const zipcache_gpu_cache* cache) {
  uint64_t shape = 0;
  guarded(nullptr, [&]() -> Status {
    if (cache) shape = cache->cache->step_shape();
    return {};
  });
  return shape;
}

int zipcache_gpu_length(const zipcache_gpu_cache* cache, int stream_index) {
  const bool known = cache && stream_index >= 0 && stream_index < cache->n_streams;
  return known ? cache->cache->length(stream_index) : -1;
}

zipcache_code zipcache_gpu_truncate(zipcache_gpu_cache* cache, int stream_index, int length,
                                    zipcache_error* error) {
  return guarded(error, [&]() -> Status {
    ZC_TRY(check_stream(cache, stream_index, "zipcache_gpu_truncate"));
    return cache->cache->truncate(stream_index, length);
  });
}

zipcache_code zipcache_gpu_clear(zipcache_gpu_cache* cache, int stream_index,
                                 zipcache_error* error) {
  return guarded(error, [&]() -> Status {
    ZC_TRY(check_stream(cache, stream_index, "zipcache_gpu_clear"));
    return cache->cache->clear(stream_index);
  });
}

zipcache_code zipcache_gpu_memory(const zipcache_gpu_cache* cache, zipcache_gpu_bytes* bytes,
                                  zipcache_error* error) {
  return guarded(error, [&]() -> Status {
    if (!cache || !bytes) return null_argument("zipcache_gpu_memory");
    const zipcache::cuda::GpuCacheBytes found = cache->cache->bytes();
    *bytes = {found.records, found.capacity, found.shared};
    return {};
  });
}

zipcache_code zipcache_gpu_rows_of(const void* tensor, zipcache_gpu_rows* rows,
                                   zipcache_error* error) {
  return guarded(error, [&]() -> Status {
    if (!tensor || !rows) return null_argument("zipcache_gpu_rows_of");
    return from_dlpack(*static_cast<const DLTensor*>(tensor), *rows);
  });
}
