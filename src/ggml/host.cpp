#include "ggml/host.hpp"

#include <fmt/format.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "ggml/abi.hpp"
#include "ggml/settings.hpp"

// Present from interface version 3 on.
extern "C" __attribute__((weak)) ggml_backend_buffer_t ggml_backend_buft_alloc_buffer_n(
    ggml_backend_buffer_type_t, ggml_tensor**, int);
extern "C" __attribute__((weak)) void ggml_log_internal(ggml_log_level level, const char* format,
                                                        ...);

namespace zipcache::host {
namespace {

constexpr const char* kTested = "0.25 and 0.26";

Operations g_operations;

int operation_named(const char* name) {
  for (int op = 0; op < 512; ++op) {
    const char* found = ggml_op_name(static_cast<ggml_op>(op));
    if (std::strcmp(found, name) == 0) return op;
    // The table has no end mark that every version shares; its last entry is GLU.
    if (std::strcmp(found, "GLU") == 0) break;
  }
  return -1;
}

Status wrong(const char* what) {
  return {Code::Incompatible,
          fmt::format("ggml {}: {} differs from what this build knows (tested with {}); "
                      "use a tested llama.cpp or rebuild against this one's headers",
                      ggml_version(), what, kTested)};
}

bool tested_version() {
  int major = 0, minor = 0;
  if (std::sscanf(ggml_version(), "%d.%d", &major, &minor) != 2) return false;
  return major == 0 && (minor == 25 || minor == 26);
}

// Builds one attention node over views of a 16-bit tensor and reads every field that is used.
Status check_tensors() {
  ggml_init_params params{16 * 1024, nullptr, /*no_alloc=*/true};
  ggml_context* context = ggml_init(params);
  if (!context) return wrong("the tensor context");
  ggml_tensor* cache = ggml_new_tensor_3d(context, GGML_TYPE_F16, 128, 256, 2);
  ggml_set_name(cache, "probe");
  ggml_tensor* k = ggml_view_4d(context, cache, 64, 32, 2, 1, 256, 128, 512 * 256, 65536);
  ggml_tensor* q = ggml_new_tensor_4d(context, GGML_TYPE_F32, 64, 8, 4, 1);
  ggml_tensor* mask = ggml_new_tensor_4d(context, GGML_TYPE_F16, 32, 8, 1, 1);
  ggml_tensor* node = ggml_flash_attn_ext(context, q, k, k, mask, 0.125f, 8.0f, 30.0f);
  float numbers[3];
  std::memcpy(numbers, node->op_params, sizeof numbers);
  const bool fits =
      std::strcmp(cache->name, "probe") == 0 && cache->type == GGML_TYPE_F16 &&
      cache->ne[1] == 256 && cache->nb[1] == 256 && cache->data == nullptr &&
      k->view_src == cache && k->view_offs == 65536 && k->nb[2] == 128 &&
      int(node->op) == g_operations.flash_attn_ext && node->src[0] == q && node->src[1] == k &&
      node->src[2] == k && node->src[3] == mask && node->ne[0] == 64 && node->ne[1] == 4 &&
      numbers[0] == 0.125f && numbers[1] == 8.0f && numbers[2] == 30.0f &&
      ggml_nbytes(cache) == 128 * 256 * 2 * 2 && ggml_row_size(GGML_TYPE_F16, 128) == 256;
  ggml_free(context);
  return fits ? ok() : wrong("the layout of a tensor");
}

}  // namespace

const Operations& operations() { return g_operations; }

int interface_version() { return ggml_backend_buft_alloc_buffer_n ? 3 : 2; }

Status check_layout() {
  if (!tested_version() && !settings().any_ggml) {
    return {
        Code::Incompatible,
        fmt::format(
            "ggml {} has not been tested with this build (tested: {}); use a tested llama.cpp, or "
            "set ZIPCACHE_ANY_GGML=1 to try: the layout is still checked",
            ggml_version(), kTested)};
  }
  g_operations = {operation_named("NONE"),           operation_named("VIEW"),
                  operation_named("RESHAPE"),        operation_named("PERMUTE"),
                  operation_named("TRANSPOSE"),      operation_named("SET_ROWS"),
                  operation_named("FLASH_ATTN_EXT"), operation_named("ROPE")};
  const Operations& ops = g_operations;
  for (const int op : {ops.none, ops.view, ops.reshape, ops.permute, ops.transpose, ops.set_rows,
                       ops.flash_attn_ext, ops.rope}) {
    if (op < 0) return wrong("the set of operations");
  }
  return check_tensors();
}

void log(bool error, const std::string& line) {
  if (!error && settings().quiet) return;
  if (error || !ggml_log_internal) {
    // Programs that stop because of a refusal drop what their log has not yet written.
    std::fprintf(stderr, "zipcache: %s\n", line.c_str());
    std::fflush(stderr);
    return;
  }
  // llama.cpp's programs hide lines below this level unless told otherwise.
  ggml_log_internal(GGML_LOG_LEVEL_WARN, "zipcache: %s\n", line.c_str());
}

}  // namespace zipcache::host
