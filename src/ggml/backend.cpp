// Entry of libggml-zipcache.so: registry, device and backend. The device calls itself a GPU, so
// that llama.cpp gives it every layer's cache; it computes operations on cache tensors only, so
// that weights and all other work stay with the CPU backend. See docs/decisions.md for why it
// claims operations instead of wrapping another device.
#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>

#include "base/text.hpp"
#include "ggml/cache_buffer.hpp"
#include "ggml/host.hpp"
#include "ggml/operations.hpp"
#include "ggml/settings.hpp"

namespace zipcache {
namespace {

abi::Registry g_registry;
abi::Device g_device;

ggml_backend_dev_t device() { return reinterpret_cast<ggml_backend_dev_t>(&g_device); }

// --- backend: one per llama_context
// -------------------------------------------------------------------

RunSettings& run_settings(ggml_backend_t backend) {
  return *static_cast<RunSettings*>(abi::open(backend).context);
}

const char* backend_name(ggml_backend_t) { return "ZipCache"; }

void backend_free(ggml_backend_t backend) {
  delete &run_settings(backend);
  delete &abi::open(backend);
}

ggml_status backend_compute(ggml_backend_t backend, ggml_cgraph* graph) {
  const RunSettings& run = run_settings(backend);
  for (int i = 0; i < ggml_graph_n_nodes(graph); ++i) {
    const Status status =
        without_exceptions([&] { return compute(ggml_graph_node(graph, i), run); });
    if (status.ok()) continue;
    return status.code() == Code::Aborted ? GGML_STATUS_ABORTED : GGML_STATUS_FAILED;
  }
  return GGML_STATUS_SUCCESS;
}

void set_n_threads(ggml_backend_t backend, int n_threads) {
  run_settings(backend).n_threads = std::max(1, n_threads);
}

void set_abort_callback(ggml_backend_t backend, ggml_abort_callback callback, void* data) {
  run_settings(backend).aborted = callback;
  run_settings(backend).aborted_data = data;
}

ggml_backend_t device_init(ggml_backend_dev_t, const char*) {
  static ggml_guid guid = {0x7a, 0x69, 0x70, 0x63, 0x61, 0x63, 0x68, 0x65,
                           0x20, 0x62, 0x61, 0x63, 0x6b, 0x65, 0x6e, 0x64};
  auto* backend = new abi::Backend{};
  backend->guid = &guid;
  backend->table.get_name = backend_name;
  backend->table.free = backend_free;
  backend->table.graph_compute = backend_compute;
  backend->device = device();
  backend->context = new RunSettings;
  return reinterpret_cast<ggml_backend_t>(backend);
}

// --- device
// -------------------------------------------------------------------------------------------

const char* device_name(ggml_backend_dev_t) { return "ZipCache0"; }
const char* device_description(ggml_backend_dev_t) {
  return "compressed key-value cache on the CPU";
}

void device_memory(ggml_backend_dev_t, size_t* free, size_t* total) {
  const size_t page = size_t(sysconf(_SC_PAGESIZE));
  *total = size_t(sysconf(_SC_PHYS_PAGES)) * page;
  *free = size_t(sysconf(_SC_AVPHYS_PAGES)) * page;
}

enum ggml_backend_dev_type device_type(ggml_backend_dev_t) { return GGML_BACKEND_DEVICE_TYPE_GPU; }

void device_props(ggml_backend_dev_t dev, ggml_backend_dev_props* props) {
  *props = {};
  props->name = device_name(dev);
  props->description = device_description(dev);
  props->type = device_type(dev);
  device_memory(dev, &props->memory_free, &props->memory_total);
  props->caps.host_buffer = true;
  // Without it llama.cpp reads all weights into memory instead of mapping the file.
  props->caps.mmap_support = true;
}

ggml_backend_buffer_type_t device_buffer_type(ggml_backend_dev_t) { return working_type(); }

bool device_supports_op(ggml_backend_dev_t, const ggml_tensor* node) { return serves(node); }

bool device_supports_buft(ggml_backend_dev_t, ggml_backend_buffer_type_t type) {
  return type == working_type() || type == cache_type() || ggml_backend_buft_is_host(type);
}

// --- registry
// -----------------------------------------------------------------------------------------

const char* registry_name(ggml_backend_reg_t) { return "ZipCache"; }
size_t registry_device_count(ggml_backend_reg_t) { return 1; }
ggml_backend_dev_t registry_device(ggml_backend_reg_t, size_t index) {
  return index == 0 ? device() : nullptr;
}

// A status for C: the answer is its exit status, and `error` its message.
int report(const Status& status, char* error, size_t error_size) {
  copy_text(status.message(), error, error_size);
  return info(status.code()).exit_status;
}

int set_policy_text(const char* text, char* error, size_t error_size) {
  return report(without_exceptions([&] {
                  return text ? set_policy(text) : Status{Code::BadArgument, "policy text is null"};
                }),
                error, error_size);
}

// Sums [n_heads, n_cells] and counts [n_cells] of the first cells of a layer of the cache `id`.
int read_scores(int id, int layer, int n_cells, float* sums, uint32_t* seen, char* error,
                size_t error_size) {
  return report(without_exceptions([&] { return scores_of_cache(id, layer, n_cells, sums, seen); }),
                error, error_size);
}

size_t stats_text(char* out, size_t size) { return copy_text(all_stats_json(), out, size); }
size_t settings_text(char* out, size_t size) { return copy_text(settings_json(), out, size); }

void* registry_function(ggml_backend_reg_t, const char* name) {
  const struct {
    const char* name;
    void* function;
  } functions[] = {
      {"ggml_backend_set_n_threads", reinterpret_cast<void*>(set_n_threads)},
      {"ggml_backend_set_abort_callback", reinterpret_cast<void*>(set_abort_callback)},
      {"zipcache_set_policy", reinterpret_cast<void*>(set_policy_text)},
      {"zipcache_read_scores", reinterpret_cast<void*>(read_scores)},
      {"zipcache_stats_json", reinterpret_cast<void*>(stats_text)},
      {"zipcache_settings_json", reinterpret_cast<void*>(settings_text)},
  };
  for (const auto& entry : functions) {
    if (std::strcmp(entry.name, name) == 0) return entry.function;
  }
  return nullptr;
}

void fill_tables() {
  g_device.table.get_name = device_name;
  g_device.table.get_description = device_description;
  g_device.table.get_memory = device_memory;
  g_device.table.get_type = device_type;
  g_device.table.get_props = device_props;
  g_device.table.init_backend = device_init;
  g_device.table.get_buffer_type = device_buffer_type;
  // The CPU's working memory too: attention without a SET_ROWS before it then still finds its way
  // here.
  g_device.table.get_host_buffer_type = device_buffer_type;
  g_device.table.supports_op = device_supports_op;
  g_device.table.supports_buft = device_supports_buft;
  g_device.registry = reinterpret_cast<ggml_backend_reg_t>(&g_registry);
  g_registry = {host::interface_version(), registry_name,     registry_device_count,
                registry_device,           registry_function, nullptr};
}

}  // namespace
}  // namespace zipcache

extern "C" __attribute__((visibility("default"))) ggml_backend_reg_t ggml_backend_init() {
  using namespace zipcache;
  for (const Status& status : {host::check_layout(), check_settings()}) {
    if (status.ok()) continue;
    host::log(true, status.message());
    return nullptr;
  }
  fill_tables();
  init_buffer_types(device());
  return reinterpret_cast<ggml_backend_reg_t>(&g_registry);
}
