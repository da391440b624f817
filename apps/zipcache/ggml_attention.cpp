#include "ggml_attention.hpp"

#include <fmt/format.h>
#include <ggml-alloc.h>

namespace zipcache::cli {

namespace {

constexpr int kTensorsPerCopy = 12, kGraphNodes = 16;

// [d_head, depth, n_head_kv] as a view of rows of all heads.
ggml_tensor* head_view(ggml_context* context, ggml_tensor* rows) {
  return ggml_permute(context, rows, 0, 2, 1, 3);
}

void set_rows(ggml_tensor* tensor, const std::vector<float>& values) {
  std::vector<uint8_t> bytes(ggml_nbytes(tensor));
  const int64_t width = tensor->ne[0];
  ggml_quantize_chunk(tensor->type, values.data(), bytes.data(), 0,
                      static_cast<int64_t>(values.size()) / width, width, nullptr);
  ggml_backend_tensor_set(tensor, bytes.data(), 0, bytes.size());
}

void set_threads(ggml_backend_t backend, int n_threads) {
  ggml_backend_reg_t registry = ggml_backend_dev_backend_reg(ggml_backend_get_device(backend));
  auto set = reinterpret_cast<ggml_backend_set_n_threads_t>(
      ggml_backend_reg_get_proc_address(registry, "ggml_backend_set_n_threads"));
  if (set) set(backend, n_threads);
}

}  // namespace

Result<std::unique_ptr<GgmlAttention>> GgmlAttention::create(const AttentionShape& shape,
                                                             const AttentionData& data,
                                                             ggml_type type, int n_copies,
                                                             int n_threads) {
  std::unique_ptr<GgmlAttention> made(new GgmlAttention);
  made->backend_ = ggml_backend_init_by_type(GGML_BACKEND_DEVICE_TYPE_CPU, nullptr);
  if (!made->backend_) {
    return Status{Code::Environment,
                  "bench: llama.cpp offers no CPU backend; run scripts/setup again"};
  }
  set_threads(made->backend_, n_threads);
  const size_t per_copy =
      kTensorsPerCopy * ggml_tensor_overhead() + ggml_graph_overhead_custom(kGraphNodes, false);
  made->context_ = ggml_init({per_copy * size_t(n_copies) + 4096, nullptr, true});
  ggml_context* context = made->context_;
  std::vector<ggml_tensor*> keys, values;
  // One query and one mask serve all copies; the mask shows everything.
  ggml_tensor* q = ggml_new_tensor_3d(context, GGML_TYPE_F32, shape.d_head, 1, shape.n_head);
  ggml_tensor* mask = ggml_new_tensor_2d(context, GGML_TYPE_F16, shape.depth, 64);
  for (int copy = 0; copy < n_copies; ++copy) {
    keys.push_back(ggml_new_tensor_3d(context, type, shape.d_head, shape.n_head_kv, shape.depth));
    values.push_back(ggml_new_tensor_3d(context, type, shape.d_head, shape.n_head_kv, shape.depth));
    ggml_tensor* out =
        ggml_flash_attn_ext(context, q, head_view(context, keys.back()),
                            head_view(context, values.back()), mask, data.scale, 0.0f, 0.0f);
    ggml_prec_set_acc(out, GGML_PREC_F32);
    ggml_cgraph* graph = ggml_new_graph_custom(context, kGraphNodes, false);
    ggml_build_forward_expand(graph, out);
    made->outputs_.push_back(out);
    made->graphs_.push_back(graph);
  }
  made->buffer_ = ggml_backend_alloc_ctx_tensors(context, made->backend_);
  if (!made->buffer_) {
    return Status{Code::OverLimit,
                  fmt::format("bench: no memory for {} caches of {} tokens; choose a smaller depth",
                              n_copies, shape.depth)};
  }
  ggml_backend_tensor_set(q, data.q.data(), 0, ggml_nbytes(q));
  ggml_backend_tensor_memset(mask, 0, 0, ggml_nbytes(mask));
  set_rows(keys[0], data.k);
  set_rows(values[0], data.v);
  for (int copy = 1; copy < n_copies; ++copy) {
    ggml_backend_tensor_copy(keys[0], keys[size_t(copy)]);
    ggml_backend_tensor_copy(values[0], values[size_t(copy)]);
  }
  made->bytes_ = ggml_nbytes(keys[0]) + ggml_nbytes(values[0]);
  return made;
}

GgmlAttention::~GgmlAttention() {
  ggml_backend_buffer_free(buffer_);
  ggml_free(context_);
  ggml_backend_free(backend_);
}

Status GgmlAttention::attend(int copy) {
  const ggml_status status = ggml_backend_graph_compute(backend_, graphs_[size_t(copy)]);
  if (status == GGML_STATUS_SUCCESS) return ok();
  return {Code::Internal,
          fmt::format("bench: ggml's flash attention failed: {}", ggml_status_to_string(status))};
}

std::vector<float> GgmlAttention::output(int copy) const {
  const ggml_tensor* out = outputs_[size_t(copy)];
  std::vector<float> values(size_t(ggml_nelements(out)));
  ggml_backend_tensor_get(out, values.data(), 0, ggml_nbytes(out));
  return values;
}

}  // namespace zipcache::cli
