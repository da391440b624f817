// The internal interface of a ggml backend, as far as this plug-in needs it: the order of function
// pointers in each table, which the public headers leave out. Seen in ggml 0.25 (interface version
// 2) and ggml 0.26 (version 3); they differ in the buffer type's table only. layout_check.hpp
// proves at load that the host agrees. The first type name of each table is the host's.
#pragma once

#include <ggml-backend.h>
#include <ggml.h>

#include <cstddef>
#include <cstdint>

namespace zipcache::abi {

// ggml_backend_buffer_type: a table whose length depends on the version, then device and context.
struct BufferTypeV2 {
  const char* (*get_name)(ggml_backend_buffer_type_t);
  ggml_backend_buffer_t (*alloc_buffer)(ggml_backend_buffer_type_t, size_t);
  size_t (*get_alignment)(ggml_backend_buffer_type_t);
  size_t (*get_max_size)(ggml_backend_buffer_type_t);
  size_t (*get_alloc_size)(ggml_backend_buffer_type_t, const ggml_tensor*);
  bool (*is_host)(ggml_backend_buffer_type_t);
  ggml_backend_dev_t device;
  void* context;
};

struct BufferTypeV3 {
  const char* (*get_name)(ggml_backend_buffer_type_t);
  ggml_backend_buffer_t (*alloc_buffer)(ggml_backend_buffer_type_t, size_t);
  void* alloc_buffer_n;  // null: the host falls back to alloc_buffer
  size_t (*get_alignment)(ggml_backend_buffer_type_t);
  size_t (*get_max_size)(ggml_backend_buffer_type_t);
  size_t (*get_alloc_size)(ggml_backend_buffer_type_t, const ggml_tensor*);
  void* alloc_size_n;  // null: the host adds up get_alloc_size
  bool (*is_host)(ggml_backend_buffer_type_t);
  ggml_backend_dev_t device;
  void* context;
};

// ggml_backend_buffer_i
struct BufferTable {
  void (*free_buffer)(ggml_backend_buffer_t);
  void* (*get_base)(ggml_backend_buffer_t);
  ggml_status (*init_tensor)(ggml_backend_buffer_t, ggml_tensor*);
  void (*memset_tensor)(ggml_backend_buffer_t, ggml_tensor*, uint8_t value, size_t offset,
                        size_t size);
  void (*set_tensor)(ggml_backend_buffer_t, ggml_tensor*, const void* data, size_t offset,
                     size_t size);
  void (*get_tensor)(ggml_backend_buffer_t, const ggml_tensor*, void* data, size_t offset,
                     size_t size);
  void* set_tensor_2d;
  void* get_tensor_2d;
  bool (*cpy_tensor)(ggml_backend_buffer_t, const ggml_tensor* src, ggml_tensor* dst);
  void (*clear)(ggml_backend_buffer_t, uint8_t value);
  void (*reset)(ggml_backend_buffer_t);
};

// ggml_backend_buffer
struct Buffer {
  BufferTable table;
  ggml_backend_buffer_type_t type;
  void* context;
  size_t size;
  ggml_backend_buffer_usage usage;
};

// ggml_backend_i
struct BackendTable {
  const char* (*get_name)(ggml_backend_t);
  void (*free)(ggml_backend_t);
  void* set_tensor_async;
  void* get_tensor_async;
  void* set_tensor_2d_async;
  void* get_tensor_2d_async;
  void* cpy_tensor_async;
  void (*synchronize)(ggml_backend_t);
  void* graph_plan[4];  // create, free, update, compute
  ggml_status (*graph_compute)(ggml_backend_t, ggml_cgraph*);
  void* event_record;
  void* event_wait;
  void* graph_optimize;
};

// ggml_backend
struct Backend {
  ggml_guid_t guid;
  BackendTable table;
  ggml_backend_dev_t device;
  void* context;
};

// ggml_backend_device_i
struct DeviceTable {
  const char* (*get_name)(ggml_backend_dev_t);
  const char* (*get_description)(ggml_backend_dev_t);
  void (*get_memory)(ggml_backend_dev_t, size_t* free, size_t* total);
  enum ggml_backend_dev_type (*get_type)(ggml_backend_dev_t);
  void (*get_props)(ggml_backend_dev_t, ggml_backend_dev_props*);
  ggml_backend_t (*init_backend)(ggml_backend_dev_t, const char* params);
  ggml_backend_buffer_type_t (*get_buffer_type)(ggml_backend_dev_t);
  ggml_backend_buffer_type_t (*get_host_buffer_type)(ggml_backend_dev_t);
  void* buffer_from_host_ptr;
  bool (*supports_op)(ggml_backend_dev_t, const ggml_tensor*);
  bool (*supports_buft)(ggml_backend_dev_t, ggml_backend_buffer_type_t);
  void* offload_op;
  void* events[3];  // new, free, synchronize
};

// ggml_backend_device
struct Device {
  DeviceTable table;
  ggml_backend_reg_t registry;
  void* context;
};

// ggml_backend_reg
struct Registry {
  int version;
  const char* (*get_name)(ggml_backend_reg_t);
  size_t (*get_device_count)(ggml_backend_reg_t);
  ggml_backend_dev_t (*get_device)(ggml_backend_reg_t, size_t);
  void* (*get_proc_address)(ggml_backend_reg_t, const char* name);
  void* context;
};

static_assert(sizeof(BufferTypeV2) == 8 * sizeof(void*));
static_assert(sizeof(BufferTypeV3) == 10 * sizeof(void*));
static_assert(sizeof(BufferTable) == 11 * sizeof(void*));
static_assert(sizeof(BackendTable) == 16 * sizeof(void*));
static_assert(sizeof(DeviceTable) == 15 * sizeof(void*));

inline Buffer& open(ggml_backend_buffer_t buffer) { return *reinterpret_cast<Buffer*>(buffer); }
inline Backend& open(ggml_backend_t backend) { return *reinterpret_cast<Backend*>(backend); }

}  // namespace zipcache::abi

// Exported by libggml-base, declared in its internal header.
extern "C" ggml_backend_buffer_t ggml_backend_buffer_init(ggml_backend_buffer_type_t type,
                                                          zipcache::abi::BufferTable table,
                                                          void* context, size_t size);
