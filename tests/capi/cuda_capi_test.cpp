// The C interface on GPUs as far as it goes without one: what it refuses, and tensors as rows.
#include <dlpack/dlpack.h>
#include <gtest/gtest.h>

#include <string>

#include "zipcache/zipcache_cuda.h"

namespace {

constexpr zipcache_gpu_shape kShape = {2, 8, 4, 128, 2, 4096, 0, 0};

std::string refusal(const zipcache_gpu_shape& shape, const char* policy, zipcache_code code) {
  zipcache_error error = {};
  zipcache_gpu_cache* cache = zipcache_gpu_create(&shape, policy, nullptr, &error);
  EXPECT_EQ(cache, nullptr);
  zipcache_gpu_free(cache);
  EXPECT_EQ(error.code, code) << error.message;
  return error.message;
}

TEST(CudaInterface, CachesThatCannotBeAreRefusedByName) {
  EXPECT_NE(refusal(kShape, "zipcash", ZC_BAD_POLICY).find("zipcash"), std::string::npos);
#ifdef ZIPCACHE_CUDA
  EXPECT_NE(refusal(kShape, "skvq,rotations=a.rot", ZC_ENVIRONMENT).find("a.rot"),
            std::string::npos);
  EXPECT_NE(refusal(kShape, "tova", ZC_INCOMPATIBLE).find("score"), std::string::npos);
  EXPECT_NE(refusal(kShape, "uniform4,cadence=prompt", ZC_INCOMPATIBLE).find("cadence=stream"),
            std::string::npos);
  EXPECT_NE(refusal(kShape, "uniform4,1:k_axis=group48", ZC_INCOMPATIBLE).find("layer 1: "),
            std::string::npos);
  zipcache_gpu_shape shape = kShape;
  shape.dim = 96;
  EXPECT_NE(refusal(shape, "uniform4", ZC_INCOMPATIBLE).find("96"), std::string::npos);
  shape = kShape;
  shape.n_layers = 0;
  EXPECT_NE(refusal(shape, "uniform4", ZC_BAD_ARGUMENT).find("n_layers"), std::string::npos);
  shape = kShape;
  shape.n_streams = -1;
  refusal(shape, "uniform4", ZC_BAD_ARGUMENT);
  shape.n_streams = 20000, shape.max_tokens = 1 << 24;
  EXPECT_NE(refusal(shape, "uniform4", ZC_BAD_ARGUMENT).find("20000"), std::string::npos);
  shape = kShape;
  shape.n_blocks = -1;
  EXPECT_NE(refusal(shape, "uniform4", ZC_BAD_ARGUMENT).find("n_blocks"), std::string::npos);
#else
  EXPECT_NE(refusal(kShape, "zipcache", ZC_ENVIRONMENT).find("nvcc"), std::string::npos);
#endif
}

// There nothing but a GPU can be missing.
TEST(CudaInterface, LayersMayDiffer) {
  for (const char* policy : {"uniform4,0:k=8", "uniform4,1:bits=16", "zipcache,0:bits=4", "f16"}) {
    zipcache_error error = {};
    zipcache_gpu_cache* cache = zipcache_gpu_create(&kShape, policy, nullptr, &error);
    EXPECT_TRUE(cache || error.code == ZC_ENVIRONMENT) << policy << ": " << error.message;
    zipcache_gpu_free(cache);
  }
}

TEST(CudaInterface, NullHandlesAreErrors) {
  zipcache_error error = {};
  const int n_new = 1;
  EXPECT_EQ(zipcache_gpu_create(nullptr, "zip", nullptr, &error), nullptr);
  EXPECT_EQ(error.code, ZC_BAD_ARGUMENT);
  EXPECT_EQ(zipcache_gpu_begin(nullptr, &n_new, nullptr, nullptr), ZC_BAD_ARGUMENT);
  EXPECT_EQ(zipcache_gpu_decode(nullptr, 0, nullptr, nullptr, &error), ZC_BAD_ARGUMENT);
  EXPECT_EQ(zipcache_gpu_prefill(nullptr, 0, nullptr, nullptr, &error), ZC_BAD_ARGUMENT);
  EXPECT_EQ(zipcache_gpu_truncate(nullptr, 0, 0, &error), ZC_BAD_ARGUMENT);
  EXPECT_EQ(zipcache_gpu_clear(nullptr, 0, &error), ZC_BAD_ARGUMENT);
  EXPECT_EQ(zipcache_gpu_memory(nullptr, nullptr, &error), ZC_BAD_ARGUMENT);
  EXPECT_EQ(zipcache_gpu_rows_of(nullptr, nullptr, &error), ZC_BAD_ARGUMENT);
  EXPECT_EQ(zipcache_gpu_length(nullptr, 0), -1);
  EXPECT_EQ(zipcache_gpu_step_shape(nullptr), 0u);
  zipcache_gpu_free(nullptr);
}

class Tensors : public ::testing::Test {
 protected:
  zipcache_code rows_of() { return zipcache_gpu_rows_of(&tensor, &rows, &error); }

  int64_t shape[4] = {2, 5, 3, 64}, strides[4] = {2000, 320, 64, 1};
  DLTensor tensor = {
      reinterpret_cast<void*>(0x10000), {kDLCUDA, 0}, 4, {kDLFloat, 16, 1}, shape, nullptr, 32};
  zipcache_gpu_rows rows = {};
  zipcache_error error = {};
};

TEST_F(Tensors, AreRowsWithTheirStridesOrWithoutGaps) {
  ASSERT_EQ(rows_of(), ZC_OK) << error.message;
  EXPECT_EQ(rows.data, reinterpret_cast<void*>(0x10020));
  EXPECT_EQ(rows.stream_stride, 5 * 3 * 64);
  EXPECT_EQ(rows.token_stride, 3 * 64);
  EXPECT_EQ(rows.head_stride, 64);
  tensor.strides = strides;
  ASSERT_EQ(rows_of(), ZC_OK) << error.message;
  EXPECT_EQ(rows.stream_stride, 2000);
  EXPECT_EQ(rows.token_stride, 320);
}

TEST_F(Tensors, OfOtherKindsAreRefused) {
  const auto refused = [&](auto&& change) {
    const DLTensor good = tensor;
    change();
    EXPECT_EQ(rows_of(), ZC_BAD_ARGUMENT);
    EXPECT_NE(std::string(error.message).find("expected a tensor"), std::string::npos);
    tensor = good;
  };
  refused([&] { tensor.ndim = 3; });
  refused([&] { tensor.device.device_type = kDLCPU; });
  refused([&] { tensor.dtype.bits = 32; });
  refused([&] { tensor.dtype.code = kDLBfloat; });
  refused([&] { tensor.data = nullptr; });
  refused([&] { tensor.byte_offset = 2; });
  tensor.strides = strides;
  refused([&] { strides[3] = 2; });
  strides[3] = 1;
  refused([&] { strides[1] = 321; });
}

}  // namespace
