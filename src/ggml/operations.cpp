#include "ggml/operations.hpp"

#include <fmt/format.h>

#include <cstring>
#include <string_view>
#include <vector>

#include "ggml/cache_buffer.hpp"
#include "ggml/host.hpp"
#include "ggml/rope.hpp"

namespace zipcache {
namespace {

// First stream and cell that a view of a cache tensor begins with.
size_t first_row(const ggml_tensor* view, const CacheTensor& tensor) {
  return view->view_src ? view->view_offs / tensor.row_bytes() : 0;
}

void refuse(CacheBuffer& buffer, const std::string& reason) {
  if (buffer.poisoned().empty()) refuse_next_allocation();
  buffer.poison(reason);
}

bool serves_set_rows(const ggml_tensor* node) {
  const Located at = locate(node);
  if (!at.tensor) return false;
  if (node->ne[0] != at.tensor->width) {
    refuse(*at.buffer,
           "flash attention is off, so V is stored transposed, which cannot be compressed; start "
           "with -fa on (flash_attn=True in Python), or use --device none");
  } else if (node->src[0]->type != GGML_TYPE_F32 ||
             (node->src[1]->type != GGML_TYPE_I64 && node->src[1]->type != GGML_TYPE_I32)) {
    refuse(*at.buffer,
           fmt::format("rows of type {} with indices of type {}: expected f32 and i64",
                       ggml_type_name(node->src[0]->type), ggml_type_name(node->src[1]->type)));
  }
  return true;
}

bool serves_attention(const ggml_tensor* node) {
  const ggml_tensor *q = node->src[0], *k = node->src[1], *v = node->src[2], *mask = node->src[3];
  const Located at_k = locate(k), at_v = locate(v);
  if (!at_k.tensor || !at_v.tensor || at_k.buffer != at_v.buffer) return false;
  at_k.buffer->learn(*at_k.tensor, *at_v.tensor, k->ne[0], v->ne[0], k->ne[2]);
  if (q->type != GGML_TYPE_F32 || node->type != GGML_TYPE_F32 ||
      (mask && mask->type != GGML_TYPE_F16) ||
      (node->src[4] && node->src[4]->type != GGML_TYPE_F32)) {
    refuse(*at_k.buffer,
           "attention with a query or mask of an unknown type; use a tested llama.cpp");
  }
  return true;
}

// With --split-mode tensor llama.cpp makes one device of all, which asks each whether it serves an
// operation, of weights first, and gives them pieces of tensors. It ends in an assertion of its own
// when weights stay with the CPU, and there is no way to refuse before that.
void tell_of_pieces(const ggml_tensor* node) {
  static bool told = false;
  const ggml_tensor* weight = node->src[0];
  if (told || !weight || !weight->buffer) return;
  told = std::string_view(ggml_backend_buffer_name(weight->buffer)).starts_with("Meta(");
  if (told) {
    host::log(true,
              "--split-mode tensor cuts every layer into pieces, which are not served; start "
              "with --split-mode layer, or use --device none");
  }
}

// Someone else's operation on a cache tensor, as of attention that is not flash attention even
// where that is asked for. The host would copy the whole cache at 16 bits for each token.
void refuse_reader(const ggml_tensor* node) {
  for (const ggml_tensor* source : node->src) {
    if (!source) continue;
    const Located at = locate(source);
    if (!at.tensor) continue;
    refuse(*at.buffer,
           fmt::format("layer {}: {} reads the cache, which only flash attention can; this "
                       "model's attention (T5's position bias or an indexer, for example) is not "
                       "served: use --device none",
                       at.tensor->layer, ggml_op_name(node->op)));
    return;
  }
}

Status set_rows(const ggml_tensor* node) {
  const Located at = locate(node);
  Result<Cache*> cache = at.buffer->cache();
  if (!cache.ok()) return cache.status();
  const ggml_tensor *values = node->src[0], *index = node->src[1];
  const bool wide = index->type == GGML_TYPE_I64;
  const size_t offset = first_row(node, *at.tensor);
  const int64_t n = values->ne[1], n_cells = at.tensor->n_cells;
  std::vector<int64_t> cells;
  int64_t stream = -1, begin = 0;
  const auto flush = [&](int64_t end) -> Status {
    if (cells.empty()) return ok();
    const auto* rows = reinterpret_cast<const float*>(static_cast<const char*>(values->data) +
                                                      size_t(begin) * values->nb[1]);
    const Status status =
        (*cache)->write(at.buffer->index_of(at.tensor->layer), int(stream), at.tensor->side, cells,
                        rows, ptrdiff_t(values->nb[1] / sizeof(float)));
    if (status.ok()) {
      at.buffer->wrote(at.buffer->index_of(at.tensor->layer), int(stream), at.tensor->side, cells,
                       rows, ptrdiff_t(values->nb[1] / sizeof(float)));
    }
    cells.clear();
    begin = end;
    return status;
  };
  for (int64_t i = 0; i < n; ++i) {
    const char* entry = static_cast<const char*>(index->data) + size_t(i) * index->nb[0];
    int64_t row = 0;
    if (wide)
      std::memcpy(&row, entry, sizeof row);
    else
      row = *reinterpret_cast<const int32_t*>(entry);
    row += int64_t(offset);
    if (row < 0 || row / n_cells >= at.tensor->n_streams) {
      return {Code::BadArgument, fmt::format("row {} written to a cache of {} rows", row,
                                             n_cells * at.tensor->n_streams)};
    }
    if (row / n_cells != stream) ZC_TRY(flush(i));
    stream = row / n_cells;
    cells.push_back(row % n_cells);
  }
  return flush(n);
}

Status attention(const ggml_tensor* node, const RunSettings& run) {
  const ggml_tensor *q = node->src[0], *k = node->src[1], *mask = node->src[3],
                    *sinks = node->src[4];
  const Located at = locate(k);
  Result<Cache*> cache = at.buffer->cache();
  if (!cache.ok()) return cache.status();
  float numbers[3];  // scale, ALiBi base, soft cap
  std::memcpy(numbers, node->op_params, sizeof numbers);
  const int first_stream = int(first_row(k, *at.tensor) / size_t(at.tensor->n_cells));
  for (int64_t s = 0; s < q->ne[3]; ++s) {
    Attention step;
    step.layer = at.buffer->index_of(at.tensor->layer);
    step.stream = first_stream + int(s);
    step.n_queries = int(q->ne[1]);
    step.n_heads = int(q->ne[2]);
    step.q =
        reinterpret_cast<const float*>(static_cast<const char*>(q->data) + size_t(s) * q->nb[3]);
    step.q_row_stride = ptrdiff_t(q->nb[1] / sizeof(float));
    step.q_head_stride = ptrdiff_t(q->nb[2] / sizeof(float));
    step.n_cells = int(k->ne[1]);
    if (mask) {
      const int64_t plane = mask->ne[3] > 1 ? s : 0;
      step.mask = reinterpret_cast<const uint16_t*>(static_cast<const char*>(mask->data) +
                                                    size_t(plane) * mask->nb[3]);
      step.mask_stride = ptrdiff_t(mask->nb[1] / sizeof(uint16_t));
    }
    step.scale = numbers[0];
    step.max_bias = numbers[1];
    step.soft_cap = numbers[2];
    step.sinks = sinks ? static_cast<const float*>(sinks->data) : nullptr;
    step.out = reinterpret_cast<float*>(static_cast<char*>(node->data) + size_t(s) * node->nb[3]);
    step.out_head_stride = ptrdiff_t(node->nb[1] / sizeof(float));
    step.out_row_stride = ptrdiff_t(node->nb[2] / sizeof(float));
    step.n_threads = run.n_threads;
    step.aborted = run.aborted;
    step.aborted_data = run.aborted_data;
    ZC_TRY((*cache)->attend(step));
    at.buffer->attended(step);
  }
  return ok();
}

Status shift_keys(const ggml_tensor* node) {
  const Located at = locate(node);
  Result<Cache*> cache = at.buffer->cache();
  if (!cache.ok()) return cache.status();
  const ggml_tensor *keys = node->src[0], *shift = node->src[1];
  const int first_channel =
      int(keys->view_offs % at.tensor->row_bytes() % keys->nb[1] / sizeof(uint16_t));
  const Result<KeyTurn> turn = key_turn(node, first_channel);
  if (!turn.ok()) return turn.status();
  at.buffer->stop_check();
  const size_t n_cells = size_t(at.tensor->n_cells), n_streams = size_t(at.tensor->n_streams);
  const std::span all(static_cast<const int32_t*>(shift->data), n_streams * n_cells);
  const auto own = [&](size_t stream) { return all.subspan(stream * n_cells, n_cells); };
  const int layer = at.buffer->index_of(at.tensor->layer);
  // All or nothing: the first layer's node asks for all streams and layers.
  for (size_t s = 0; s < n_streams; ++s) ZC_TRY((*cache)->check_rotation(layer, int(s), own(s)));
  for (size_t s = 0; s < n_streams; ++s)
    ZC_TRY((*cache)->rotate_keys(layer, int(s), own(s), *turn));
  return ok();
}

}  // namespace

bool serves(const ggml_tensor* node) {
  const host::Operations& ops = host::operations();
  const int op = int(node->op);
  if (op == ops.set_rows) return serves_set_rows(node);
  if (op == ops.flash_attn_ext) return serves_attention(node);
  if (op == ops.rope || ops.is_view(op)) return locate(node).tensor != nullptr;
  refuse_reader(node);
  tell_of_pieces(node);
  return false;
}

Status compute(const ggml_tensor* node, const RunSettings& run) {
  const host::Operations& ops = host::operations();
  const int op = int(node->op);
  if (ops.is_view(op)) return ok();
  if (op == ops.set_rows || op == ops.flash_attn_ext || op == ops.rope) {
    const ggml_tensor* cached = op == ops.flash_attn_ext ? node->src[1] : node;
    const Located at = locate(cached);
    if (!at.tensor)
      return {Code::Internal, fmt::format("{} on a tensor that is not ours", node->name)};
    at.buffer->set_threads(run.n_threads);
    const Status status = op == ops.set_rows ? set_rows(node)
                          : op == ops.rope   ? shift_keys(node)
                                             : attention(node, run);
    // Rows half written or keys half moved must not be read as if nothing had happened.
    if (!status.ok() && status.code() != Code::Aborted) at.buffer->poison(status.message());
    return status;
  }
  return {Code::Internal, fmt::format("operation {} was given to ZipCache, which does not serve it",
                                      ggml_op_name(node->op))};
}

}  // namespace zipcache
