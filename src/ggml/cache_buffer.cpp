#include "ggml/cache_buffer.hpp"

#include <fmt/format.h>
#include <sys/mman.h>

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <nlohmann/json.hpp>
#include <vector>

#include "ggml/host.hpp"
#include "ggml/settings.hpp"

namespace zipcache {
namespace {

std::mutex g_lock;
std::vector<CacheBuffer*> g_live;  // in order of creation
int g_next_id = 1;
thread_local bool t_refuse = false;
// Cells of the cache whose tensors are being placed, and the buffer before it. The size of a tensor
// is asked several times until it is placed, and must not change when the buffer itself comes to
// be the newest.
thread_local int64_t t_placed_cells = 0;
thread_local CacheExtent t_before_placed;

// "cache_k_l12" -> layer 12, side K. Views and other caches carry other names.
std::optional<CacheTensor> parse_name(const ggml_tensor* tensor) {
  char side = 0;
  int layer = 0, used = 0;
  if (std::sscanf(tensor->name, "cache_%c_l%6d%n", &side, &layer, &used) != 2) return {};
  if (tensor->name[used] != '\0' || (side != 'k' && side != 'v') || layer < 0) return {};
  return CacheTensor{layer, side == 'k' ? SideId::K : SideId::V, tensor->ne[0], tensor->ne[1],
                     tensor->ne[2]};
}

// Head size to plan with before attention has shown the real one: 64, the size that costs most
// parameters among the common ones, or else any that fits.
int planning_dim(int64_t width) {
  for (const int dim : {64, 80, 96, 112, 128, 256, 72, 40, 32, 16}) {
    if (width % dim == 0) return dim;
  }
  return 0;
}

// Whether a tensor that is about to be placed belongs to a window's cache that stays at 16 bits.
bool opens_window(const CacheTensor& tensor) {
  if (settings().pack_windows) return false;
  const std::lock_guard<std::mutex> guard(g_lock);
  if (t_placed_cells != tensor.n_cells) {
    t_placed_cells = tensor.n_cells;
    t_before_placed = g_live.empty() ? CacheExtent{} : g_live.back()->extent();
  }
  return is_window({tensor.n_cells, {tensor.layer}}, t_before_placed);
}

// Announced bytes of one cache tensor: half of what a layer of its width is planned to cost,
// without what layers share.
size_t announced_bytes(const CacheTensor& tensor) {
  const int dim = planning_dim(tensor.width);
  const Result<Policy> policy = opens_window(tensor) ? parse_policy("f16") : current_policy();
  if (dim == 0 || !policy.ok()) return size_t(tensor.width * tensor.n_cells * tensor.n_streams) * 2;
  const LayerShape layer{int(tensor.width) / dim, dim, dim};
  const CacheShape one{int(tensor.n_streams), int(tensor.n_cells), {layer}};
  const CacheShape two{one.n_streams, one.n_cells, {layer, layer}};
  const Result<size_t> cost_one = planned_bytes(*policy, one, settings().ubatch);
  const Result<size_t> cost_two = planned_bytes(*policy, two, settings().ubatch);
  if (!cost_one.ok() || !cost_two.ok())
    return size_t(tensor.width * tensor.n_cells * tensor.n_streams) * 2;
  const size_t shared = 2 * *cost_one - *cost_two;
  const bool first = tensor.layer == 0 && tensor.side == SideId::K;
  return (*cost_two - *cost_one) / 2 + (first ? shared : 0);
}

const char* type_name(ggml_backend_buffer_type_t) { return "ZipCache"; }
size_t type_alignment(ggml_backend_buffer_type_t) { return 64; }
bool yes(ggml_backend_buffer_type_t) { return true; }
bool no(ggml_backend_buffer_type_t) { return false; }

size_t type_alloc_size(ggml_backend_buffer_type_t, const ggml_tensor* tensor) {
  const auto cache = tensor->view_src ? std::nullopt : parse_name(tensor);
  return cache ? announced_bytes(*cache) : ggml_nbytes(tensor);
}

BufferContext& context_of(ggml_backend_buffer_t buffer) {
  return *static_cast<BufferContext*>(abi::open(buffer).context);
}

// Infinities and NaN, which only a damaged state holds, become 0: there is no way to refuse rows,
// and other sequences of the cache must go on. How many there were.
size_t replace_broken(std::vector<uint16_t>& rows) {
  size_t n = 0;
  for (uint16_t& number : rows) {
    if (is_finite(number)) continue;
    number = 0;
    ++n;
  }
  return n;
}

void report(const Status& status) {
  if (!status.ok()) host::log(true, status.message());
}

void buffer_free(ggml_backend_buffer_t buffer) {
  BufferContext* context = &context_of(buffer);
  if (context->base) munmap(context->base, std::max<size_t>(context->size, 1));
  delete context;
}

void* buffer_base(ggml_backend_buffer_t buffer) { return context_of(buffer).base; }

// Byte offset of a tensor's first byte inside the 16-bit image of the cache tensor it views.
size_t image_offset(const ggml_tensor* tensor) { return tensor->view_src ? tensor->view_offs : 0; }

// Where a tensor, or a view of one, begins in its buffer.
size_t offset_in(const BufferContext& context, const ggml_tensor* tensor) {
  return size_t(static_cast<uint8_t*>(tensor->data) - context.base);
}

ggml_status buffer_init_tensor(ggml_backend_buffer_t buffer, ggml_tensor* tensor) {
  if (tensor->view_src) return GGML_STATUS_SUCCESS;
  BufferContext& context = context_of(buffer);
  if (context.state) {
    context.state->place(offset_in(context, tensor), ggml_nbytes(tensor));
    return GGML_STATUS_SUCCESS;
  }
  const auto cache = parse_name(tensor);
  if (!cache) return GGML_STATUS_SUCCESS;
  if (tensor->type != GGML_TYPE_F16) {
    const bool k = cache->side == SideId::K;
    host::log(true,
              fmt::format("cache type {} for {}: ZipCache compresses 16-bit caches only; remove {} "
                          "(or use --device none for llama.cpp's own {} cache)",
                          ggml_type_name(tensor->type), tensor->name, k ? "-ctk" : "-ctv",
                          ggml_type_name(tensor->type)));
    return GGML_STATUS_FAILED;
  }
  if (!context.cache) {
    const Status status = check_settings();
    if (!status.ok()) {
      report(status);
      return GGML_STATUS_FAILED;
    }
    context.cache = std::make_unique<CacheBuffer>();
    abi::open(buffer).type = cache_type();
  }
  const Status status = context.cache->add(offset_in(context, tensor), *cache);
  report(status);
  return status.ok() ? GGML_STATUS_SUCCESS : GGML_STATUS_FAILED;
}

// Where bytes of a tensor that is no cache tensor are to be written.
uint8_t* memory_of(ggml_backend_buffer_t buffer, const ggml_tensor* tensor, size_t offset,
                   size_t size) {
  BufferContext& context = context_of(buffer);
  const size_t begin = offset_in(context, tensor) + offset;
  return context.state ? context.state->to_write(begin, size) : context.base + begin;
}

void buffer_set(ggml_backend_buffer_t buffer, ggml_tensor* tensor, const void* data, size_t offset,
                size_t size) {
  const Located at = locate(tensor);
  if (!at.tensor) {
    std::memcpy(memory_of(buffer, tensor, offset, size), data, size);
    return;
  }
  const Status status = without_exceptions(
      [&] { return at.buffer->write(*at.tensor, image_offset(tensor) + offset, size, data); });
  // ggml has no way to return this; a cache that missed a write must not answer.
  if (!status.ok()) at.buffer->poison(status.message());
}

void buffer_get(ggml_backend_buffer_t buffer, const ggml_tensor* tensor, void* data, size_t offset,
                size_t size) {
  const Located at = locate(tensor);
  if (!at.tensor) {
    const BufferContext& context = context_of(buffer);
    const size_t begin = offset_in(context, tensor) + offset;
    if (context.state)
      context.state->read(begin, size, data);
    else
      std::memcpy(data, context.base + begin, size);
    return;
  }
  const Status status = without_exceptions(
      [&] { return at.buffer->read(*at.tensor, image_offset(tensor) + offset, size, data); });
  if (!status.ok()) {
    std::memset(data, 0, size);
    at.buffer->poison(status.message());
  }
}

void buffer_memset(ggml_backend_buffer_t buffer, ggml_tensor* tensor, uint8_t value, size_t offset,
                   size_t size) {
  if (!locate(tensor).tensor) {
    std::memset(memory_of(buffer, tensor, offset, size), value, size);
    return;
  }
  const std::vector<uint8_t> bytes(size, value);
  buffer_set(buffer, tensor, bytes.data(), offset, size);
}

// The stream that a tensor is the whole of, or -1.
int whole_stream(const ggml_tensor* tensor, const CacheTensor& cache) {
  const size_t bytes = cache.row_bytes() * size_t(cache.n_cells), offset = image_offset(tensor);
  return ggml_nbytes(tensor) == bytes && offset % bytes == 0 ? int(offset / bytes) : -1;
}

// The cells that a view of a cache tensor is, when it is whole rows of one stream.
std::optional<CellRange> cells_of(const ggml_tensor* view, const CacheTensor& cache) {
  const size_t row = cache.row_bytes(), offset = image_offset(view), size = ggml_nbytes(view);
  const size_t n_cells = size_t(cache.n_cells), first = offset / row % n_cells, n = size / row;
  if (offset % row != 0 || size % row != 0 || n == 0 || first + n > n_cells) return {};
  return CellRange{int(offset / row / n_cells), int(first), int(n)};
}

// The buffer of a tensor that may hold rows of a cache, or null.
BufferContext* state_of(const ggml_tensor* tensor) {
  const ggml_tensor* root = root_of(tensor);
  if (!root->buffer || abi::open(root->buffer).type != cache_type()) return nullptr;
  BufferContext& context = context_of(root->buffer);
  return context.state ? &context : nullptr;
}

// Rows of a cache into a tensor of a state, and back. False where ggml has to copy bytes.
bool copy_to_state(const Located& from, const ggml_tensor* source, BufferContext& to,
                   const ggml_tensor* target) {
  const auto cells = cells_of(source, *from.tensor);
  if (!cells || target->view_src) return false;
  const StateBuffer::Origin origin{from.buffer->id(), from.tensor->layer, from.tensor->side};
  auto kept = from.buffer->keep(*from.tensor, *cells, to.state->other_side(origin));
  if (!kept.ok()) return false;
  to.state->hold(offset_in(to, target), ggml_nbytes(target), origin, std::move(*kept));
  return true;
}

bool copy_from_state(const BufferContext& from, const ggml_tensor* source, const Located& to,
                     const ggml_tensor* target) {
  const auto rows = from.state->find(offset_in(from, source), ggml_nbytes(source));
  const auto cells = cells_of(target, *to.tensor);
  const StateBuffer::Origin origin{to.buffer->id(), to.tensor->layer, to.tensor->side};
  if (!rows || !cells || rows->origin != origin) return false;
  const Status status = to.buffer->restore(*to.tensor, *cells, *rows->kept, rows->first);
  if (!status.ok()) to.buffer->poison(status.message());
  return true;
}

// Streams and rows of states are copied as they are stored; everything else ggml copies by reading
// and writing rows.
bool copy(const ggml_tensor* source, ggml_tensor* target) {
  const Located from = locate(source), to = locate(target);
  BufferContext *state = state_of(source), *other_state = state_of(target);
  if (from.tensor && other_state) return copy_to_state(from, source, *other_state, target);
  if (state && to.tensor) return copy_from_state(*state, source, to, target);
  if (!from.tensor || !to.tensor || from.buffer != to.buffer ||
      from.tensor->layer != to.tensor->layer || from.tensor->side != to.tensor->side)
    return false;
  const int stream = whole_stream(source, *from.tensor), other = whole_stream(target, *to.tensor);
  if (stream < 0 || other < 0) return false;
  const Status status = to.buffer->copy(*to.tensor, stream, other);
  if (!status.ok()) to.buffer->poison(status.message());
  return true;
}

bool buffer_copy(ggml_backend_buffer_t, const ggml_tensor* source, ggml_tensor* target) {
  bool copied = false;
  const Status status = without_exceptions([&] {
    copied = copy(source, target);
    return ok();
  });
  if (status.ok()) return copied;
  // What ended half way has no other sign; where no cache was changed, ggml copies the bytes.
  const Located to = locate(target);
  if (to.tensor) to.buffer->poison(status.message());
  return to.tensor != nullptr;
}

void buffer_clear(ggml_backend_buffer_t buffer, uint8_t value) {
  BufferContext& context = context_of(buffer);
  if (context.cache) return context.cache->clear();
  if (context.state) context.state->place(0, context.size);
  std::memset(context.base, value, context.size);
}

// Ordinary memory, from the system page by page, so that a cache buffer's unused bytes cost
// nothing.
ggml_backend_buffer_t type_alloc(ggml_backend_buffer_type_t type, size_t size) {
  if (t_refuse) {
    t_refuse = false;
    return nullptr;
  }
  void* base = mmap(nullptr, std::max<size_t>(size, 1), PROT_READ | PROT_WRITE,
                    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (base == MAP_FAILED) {
    host::log(true, fmt::format("no memory for a buffer of {} MiB; use a shorter context (-c)",
                                size >> 20));
    return nullptr;
  }
  auto* context = new BufferContext{static_cast<uint8_t*>(base), size, nullptr, nullptr};
  // A cache's buffer is asked for as working memory; what has the cache's type from the beginning
  // is for states.
  if (type == cache_type()) context->state = std::make_unique<StateBuffer>(context->base);
  const abi::BufferTable table{
      buffer_free, buffer_base, buffer_init_tensor, buffer_memset, buffer_set, buffer_get,
      nullptr,     nullptr,     buffer_copy,        buffer_clear,  nullptr};
  return ggml_backend_buffer_init(type, table, context, size);
}

struct BufferTypes {
  abi::BufferTypeV2 v2[2];
  abi::BufferTypeV3 v3[2];
};
BufferTypes g_types;

ggml_backend_buffer_type_t type_at(int i) {
  return host::interface_version() == 3
             ? reinterpret_cast<ggml_backend_buffer_type_t>(&g_types.v3[i])
             : reinterpret_cast<ggml_backend_buffer_type_t>(&g_types.v2[i]);
}

}  // namespace

void init_buffer_types(ggml_backend_dev_t device) {
  for (int i = 0; i < 2; ++i) {
    const auto is_host = i == 0 ? yes : no;
    g_types.v2[i] = {type_name,       type_alloc, type_alignment, nullptr,
                     type_alloc_size, is_host,    device,         nullptr};
    g_types.v3[i] = {type_name,       type_alloc, nullptr, type_alignment, nullptr,
                     type_alloc_size, nullptr,    is_host, device,         nullptr};
  }
}

ggml_backend_buffer_type_t working_type() { return type_at(0); }
ggml_backend_buffer_type_t cache_type() { return type_at(1); }

const ggml_tensor* root_of(const ggml_tensor* tensor) {
  while (tensor->view_src) tensor = tensor->view_src;
  return tensor;
}

Located locate(const ggml_tensor* tensor) {
  const ggml_tensor* root = root_of(tensor);
  if (!root->buffer || abi::open(root->buffer).type != cache_type()) return {};
  BufferContext& context = context_of(root->buffer);
  if (!context.cache) return {};
  const CacheTensor* found =
      context.cache->find(size_t(static_cast<uint8_t*>(root->data) - context.base));
  return found ? Located{context.cache.get(), found} : Located{};
}

void refuse_next_allocation() { t_refuse = true; }

bool is_window(const CacheExtent& cache, const CacheExtent& before) {
  return cache.n_cells < before.n_cells &&
         std::none_of(cache.layers.begin(), cache.layers.end(), [&](int layer) {
           return std::find(before.layers.begin(), before.layers.end(), layer) !=
                  before.layers.end();
         });
}

CacheBuffer::CacheBuffer() {
  const std::lock_guard<std::mutex> guard(g_lock);
  id_ = g_next_id++;
  if (!g_live.empty()) before_ = g_live.back()->extent();
  g_live.push_back(this);
  Result<Policy> policy = current_policy();
  if (policy.ok()) policy_ = *policy;
}

CacheBuffer::~CacheBuffer() {
  // A refusal that no allocation has met yet was about this cache only.
  if (!poison_.empty()) t_refuse = false;
  t_placed_cells = 0;
  const std::lock_guard<std::mutex> guard(g_lock);
  std::erase(g_live, this);
}

Status CacheBuffer::add(size_t offset, const CacheTensor& tensor) {
  if (tensor.n_cells < 1 || tensor.n_streams < 1 || tensor.width < 1) {
    return {Code::Incompatible,
            fmt::format("cache tensor of layer {}: shape {} x {} x {} cannot be served",
                        tensor.layer, tensor.width, tensor.n_cells, tensor.n_streams)};
  }
  tensors_[offset] = tensor;
  Layer& layer = layers_[tensor.layer];
  (tensor.side == SideId::K ? layer.k : layer.v) = tensor;
  return ok();
}

CacheExtent CacheBuffer::extent() const {
  CacheExtent extent;
  for (const auto& [offset, tensor] : tensors_) {
    extent.n_cells = tensor.n_cells;
    if (tensor.side == SideId::K) extent.layers.push_back(tensor.layer);
  }
  return extent;
}

const CacheTensor* CacheBuffer::find(size_t offset) const {
  const auto found = tensors_.find(offset);
  return found == tensors_.end() ? nullptr : &found->second;
}

void CacheBuffer::poison(const std::string& reason) {
  if (!poison_.empty()) return;
  poison_ = reason;
  host::log(true, reason);
}

void CacheBuffer::learn(const CacheTensor& k, const CacheTensor& v, int64_t k_dim, int64_t v_dim,
                        int64_t n_heads) {
  Layer& layer = layers_[k.layer];
  const LayerShape shape{int(n_heads), int(k_dim), int(v_dim)};
  if (layer.shape == shape || !poison_.empty()) return;
  const bool fits = k.layer == v.layer && k.side == SideId::K && v.side == SideId::V &&
                    k.width == n_heads * k_dim && v.width == n_heads * v_dim;
  const Status status = check(CacheShape{1, 1, {shape}});
  if (!fits || layer.shape.n_heads != 0) {
    poison(fmt::format(
        "layer {}: attention over {} heads of {} and {} does not match cache rows of {} and "
        "{}; this model's attention (MLA, for one) is not served: use --device none",
        k.layer, n_heads, k_dim, v_dim, k.width, v.width));
  } else if (!status.ok()) {
    poison(fmt::format("layer {}: {} (--device none)", k.layer, status.message()));
  }
  if (!poison_.empty()) return refuse_next_allocation();
  layer.shape = shape;
}

Status CacheBuffer::keep_window_at_16_bits() {
  window_ = is_window(extent(), before_);
  if (!window_ || settings().pack_windows) return ok();
  Result<Policy> raw = parse_policy("f16");
  if (!raw.ok()) return raw.status();
  policy_ = std::move(*raw);
  return ok();
}

Status CacheBuffer::make_cache() {
  ZC_TRY(keep_window_at_16_bits());
  CacheShape shape;
  for (auto& [number, layer] : layers_) {
    if (!layer.k || !layer.v) {
      return {Code::Incompatible,
              fmt::format("layer {} has {} cache only; this kind of attention is not "
                          "served: use --device none",
                          number, layer.k ? "a K" : "a V")};
    }
    if (layer.shape.n_heads == 0) {
      return {Code::Incompatible,
              fmt::format("layer {} has a cache but no flash attention reads it; start "
                          "with flash attention (-fa on) or use --device none",
                          number)};
    }
    if (shape.layers.empty()) {
      shape.n_cells = int(layer.k->n_cells);
      shape.n_streams = int(layer.k->n_streams);
    }
    if (layer.k->n_cells != shape.n_cells || layer.v->n_cells != shape.n_cells ||
        layer.k->n_streams != shape.n_streams || layer.v->n_streams != shape.n_streams) {
      return {Code::Incompatible,
              fmt::format("layer {}: cells or streams differ from other layers of the "
                          "same buffer; use --device none",
                          number)};
    }
    layer.index = int(shape.layers.size());
    shape.layers.push_back(layer.shape);
    shape.numbers.push_back(number);
  }
  Result<std::unique_ptr<Cache>> made = Cache::create(shape, policy_);
  if (!made.ok()) return made.status();
  cache_ = std::move(*made);
  if (settings().check) check_ = std::make_unique<SelfCheck>(policy_, shape.layers);
  announce(shape);
  return ok();
}

// The start-up line: what the cache is and what a token costs in the long run.
void CacheBuffer::announce(const CacheShape& shape) const {
  const Result<double> bits = long_run_bits(policy_, shape.layers);
  if (!bits.ok()) return;
  double elements = 0;  // of one token
  for (const LayerShape& layer : shape.layers)
    elements += double(layer.n_heads) * (layer.k_dim + layer.v_dim);
  std::string line = fmt::format(
      "policy {}, {:.2f} bits per element, kernel {}, {} threads, {:.1f} KiB per 1,000 tokens "
      "(16-bit: {:.1f})",
      to_text(policy_), *bits, cache_->stats().kernel, n_threads_,
      *bits / 8 * elements * 1000 / 1024, elements * 2 * 1000 / 1024);
  if (window_) {
    line += fmt::format("; sliding-window layers, {} cells{}", shape.n_cells,
                        settings().pack_windows ? "" : " (ZIPCACHE_WINDOW=policy packs them too)");
  }
  if (policy_.cadence == Cadence::Prompt && !policy_.raw()) {
    line += "; a prompt is held at 16 bits until it ends";
  }
  host::log(false, line);
}

Result<Cache*> CacheBuffer::cache() {
  if (!poison_.empty()) return Status{Code::Incompatible, poison_};
  if (!cache_) {
    const Status status = make_cache();
    if (!status.ok()) {
      poison(status.message());
      return status;
    }
  }
  return cache_.get();
}

void CacheBuffer::clear() {
  if (cache_) cache_->clear();
  if (check_) check_->clear();
  // Whatever was wrong with the rows is gone; what is wrong with the shape stays.
  if (cache_) poison_.clear();
}

Status CacheBuffer::read(const CacheTensor& tensor, size_t offset, size_t size, void* data) {
  Result<Cache*> cache = this->cache();
  if (!cache.ok()) return cache.status();
  const size_t row_bytes = tensor.row_bytes();
  auto* out = static_cast<uint8_t*>(data);
  std::vector<uint16_t> rows;
  while (size > 0) {
    const size_t row = offset / row_bytes, within = offset % row_bytes;
    const size_t cell = row % size_t(tensor.n_cells);
    const size_t wanted = (within + size + row_bytes - 1) / row_bytes;
    const size_t n = std::min(wanted, size_t(tensor.n_cells) - cell);
    rows.resize(n * size_t(tensor.width));
    ZC_TRY((*cache)->save(index_of(tensor.layer), int(row / size_t(tensor.n_cells)), tensor.side,
                          int(cell), int(n), rows.data()));
    const size_t bytes = std::min(size, n * row_bytes - within);
    std::memcpy(out, reinterpret_cast<const uint8_t*>(rows.data()) + within, bytes);
    out += bytes;
    offset += bytes;
    size -= bytes;
  }
  return ok();
}

void CacheBuffer::wrote(int layer, int stream, SideId side, std::span<const int64_t> cells,
                        const float* rows, ptrdiff_t row_stride) {
  if (check_) check_->note(layer, stream, side, cells, rows, row_stride);
}

// One line of the counters that change, in the form of key=value, once the interval is over. After
// the last layer, when none is behind another.
void CacheBuffer::log_counters_if_due() {
  const auto now = std::chrono::steady_clock::now();
  const double interval = settings().log_interval;
  if (interval <= 0 || std::chrono::duration<double>(now - logged_).count() < interval) return;
  logged_ = now;
  const CacheStats s = cache_->stats();
  const double seconds = s.seconds.attention + s.seconds.scoring + s.seconds.packing;
  const double share = seconds > 0 ? 100 / seconds : 0;
  host::log(false, fmt::format(
                       "cache={} policy={} kernel={} blocks_raw={} blocks_packed={} blocks_free={} "
                       "rows_live={} rows_dead={} compactions={} bytes={} codes={} params={} "
                       "tags={} raw={} scores={} map={} padding={} bits={:.2f} seconds={:.1f} "
                       "scoring={:.1f}% packing={:.1f}%",
                       id_, s.policy, s.kernel, s.blocks.raw, s.blocks.packed, s.blocks.free,
                       s.rows_live, s.rows_dead, s.compactions, s.bytes.allocated(), s.bytes.codes,
                       s.bytes.params, s.bytes.tags, s.bytes.raw, s.bytes.scores, s.bytes.map,
                       s.bytes.padding, s.bits_per_element(), seconds, share * s.seconds.scoring,
                       share * s.seconds.packing));
}

void CacheBuffer::attended(const Attention& done) {
  if (size_t(done.layer) + 1 == cache_->shape().layers.size()) log_counters_if_due();
  if (!check_) return;
  const Result<bool> complete = check_->compare(*cache_, done);
  if (complete.ok() && !*complete) return;
  if (complete.ok() && check_->broken()) host::log(true, check_->warning());
  check_.reset();
}

Status CacheBuffer::write(const CacheTensor& tensor, size_t offset, size_t size, const void* data) {
  stop_check();
  Result<Cache*> cache = this->cache();
  if (!cache.ok()) return cache.status();
  const size_t row_bytes = tensor.row_bytes();
  const auto* in = static_cast<const uint8_t*>(data);
  std::vector<uint16_t> rows;
  size_t n_broken = 0;
  while (size > 0) {
    const size_t row = offset / row_bytes, within = offset % row_bytes;
    const size_t cell = row % size_t(tensor.n_cells);
    const int stream = int(row / size_t(tensor.n_cells));
    const size_t whole = within == 0 ? size / row_bytes : 0;
    const size_t n = whole ? std::min(whole, size_t(tensor.n_cells) - cell) : 1;
    rows.resize(n * size_t(tensor.width));
    const size_t bytes = whole ? n * row_bytes : std::min(size, row_bytes - within);
    if (!whole) {
      ZC_TRY((*cache)->read_half(index_of(tensor.layer), stream, tensor.side, int(cell), 1,
                                 rows.data()));
    }
    std::memcpy(reinterpret_cast<uint8_t*>(rows.data()) + within, in, bytes);
    n_broken += replace_broken(rows);
    ZC_TRY((*cache)->restore(index_of(tensor.layer), stream, tensor.side, int(cell), int(n),
                             rows.data()));
    in += bytes;
    offset += bytes;
    size -= bytes;
  }
  if (n_broken > 0) {
    host::log(true,
              fmt::format("layer {}: {} numbers of a restored state are infinite or none and were "
                          "taken as 0: the saved state is damaged; read the text anew",
                          tensor.layer, n_broken));
  }
  return ok();
}

Result<std::unique_ptr<KeptRows>> CacheBuffer::keep(const CacheTensor& tensor,
                                                    const CellRange& cells, const KeptRows* other) {
  Result<Cache*> cache = this->cache();
  if (!cache.ok()) return cache.status();
  return (*cache)->keep(index_of(tensor.layer), cells.stream, tensor.side, cells.first, cells.n,
                        other);
}

Status CacheBuffer::restore(const CacheTensor& tensor, const CellRange& cells, const KeptRows& kept,
                            int from) {
  stop_check();
  Result<Cache*> cache = this->cache();
  if (!cache.ok()) return cache.status();
  return (*cache)->restore(index_of(tensor.layer), cells.stream, tensor.side, cells.first, cells.n,
                           kept, from);
}

Status CacheBuffer::copy(const CacheTensor& tensor, int from, int to) {
  stop_check();
  Result<Cache*> cache = this->cache();
  if (!cache.ok()) return cache.status();
  return (*cache)->copy(index_of(tensor.layer), from, to);
}

Status CacheBuffer::read_scores(int layer, int n_cells, float* sums, uint32_t* seen) {
  Result<Cache*> cache = this->cache();
  if (!cache.ok()) return cache.status();
  return (*cache)->read_scores(layer, 0, 0, n_cells, sums, seen);
}

std::string CacheBuffer::stats_json() {
  const bool known = std::all_of(layers_.begin(), layers_.end(),
                                 [](const auto& entry) { return entry.second.shape.n_heads > 0; });
  if (!known || !cache().ok()) return {};
  const CacheStats s = cache_->stats();
  nlohmann::ordered_json json = {
      {"id", id_},
      {"policy", s.policy},
      {"kernel", s.kernel},
      {"threads", n_threads_},
      {"n_layers", s.n_layers},
      {"n_streams", s.n_streams},
      {"n_cells", s.n_cells},
      {"rows_live", s.rows_live},
      {"rows_dead", s.rows_dead},
      {"rows_packed", s.rows_packed},
      {"blocks", {{"raw", s.blocks.raw}, {"packed", s.blocks.packed}, {"free", s.blocks.free}}},
      {"elements", s.elements},
      {"coded_elements", s.coded_elements},
      {"evicted_elements", s.evicted_elements},
      {"compactions", s.compactions},
      {"unscored_blocks", s.unscored_blocks},
      {"bytes",
       {{"codes", s.bytes.codes},
        {"params", s.bytes.params},
        {"tags", s.bytes.tags},
        {"raw", s.bytes.raw},
        {"scores", s.bytes.scores},
        {"map", s.bytes.map},
        {"padding", s.bytes.padding}}},
      {"seconds",
       {{"attention", s.seconds.attention},
        {"scoring", s.seconds.scoring},
        {"packing", s.seconds.packing}}},
      {"bytes_allocated", s.bytes.allocated()},
      {"bytes_states", state_bytes(id_)},
      {"bytes_peak", s.bytes_peak},
      {"bytes_planned", s.bytes_planned},
      {"ratio_params", s.ratio_params()},
      {"ratio_resident", s.ratio_resident()},
      {"bits_per_element", s.bits_per_element()}};
  return json.dump();
}

Status scores_of_cache(int id, int layer, int n_cells, float* sums, uint32_t* seen) {
  const std::lock_guard<std::mutex> guard(g_lock);
  for (CacheBuffer* buffer : g_live) {
    if (buffer->id() == id) return buffer->read_scores(layer, n_cells, sums, seen);
  }
  return {Code::BadArgument, fmt::format("read_scores: no cache has id {}", id)};
}

std::string all_stats_json() {
  const std::lock_guard<std::mutex> guard(g_lock);
  std::string out = "[";
  for (CacheBuffer* buffer : g_live) {
    const std::string one = buffer->stats_json();
    if (one.empty()) continue;
    if (out.size() > 1) out += ",";
    out += one;
  }
  return out + "]";
}

}  // namespace zipcache
