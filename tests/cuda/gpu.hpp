// What tests of kernels need of a GPU: buffers, and a step of attention over many streams beside
// its double precision reference.
#pragma once

#include <cuda_runtime_api.h>
#include <gtest/gtest.h>

#include <stdexcept>
#include <string>
#include <vector>

#include "cuda/record_set.hpp"
#include "support/block_rig.hpp"

namespace zipcache::cuda::test {

inline bool have_gpu() {
  int n = 0;
  return cudaGetDeviceCount(&n) == cudaSuccess && n > 0;
}

inline void must(cudaError_t error) {
  if (error != cudaSuccess) throw std::runtime_error(cudaGetErrorString(error));
}

// Tests that need a GPU; skipped, saying so, where there is none.
class OnGpu : public ::testing::Test {
 protected:
  void SetUp() override {
    if (!have_gpu()) GTEST_SKIP() << "found no CUDA device; run on a machine with one";
  }
};

// A graph of what `enqueue` gives the stream, to be launched; destroyed by the caller.
template <class Enqueue>
cudaGraphExec_t captured(cudaStream_t stream, Enqueue&& enqueue) {
  cudaGraph_t graph = nullptr;
  cudaGraphExec_t ready = nullptr;
  must(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal));
  enqueue();
  must(cudaStreamEndCapture(stream, &graph));
  must(cudaGraphInstantiate(&ready, graph, 0));
  must(cudaGraphDestroy(graph));
  return ready;
}

template <class T>
class Buffer {
 public:
  explicit Buffer(size_t n) : n_(n) {
    must(cudaMalloc(reinterpret_cast<void**>(&data_), std::max<size_t>(1, n) * sizeof(T)));
  }
  explicit Buffer(std::span<const T> values) : Buffer(values.size()) {
    must(cudaMemcpy(data_, values.data(), values.size_bytes(), cudaMemcpyHostToDevice));
  }
  ~Buffer() { cudaFree(data_); }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  T* get() const { return data_; }
  std::vector<T> read() const {
    std::vector<T> values(n_);
    must(cudaMemcpy(values.data(), data_, n_ * sizeof(T), cudaMemcpyDeviceToHost));
    return values;
  }

 private:
  T* data_ = nullptr;
  size_t n_;
};

// A step to compute, and what may change it.
struct Case {
  std::string policy = "zipcache,score=random";
  int dim = 128, n_heads = 2, group = 4, n_queries = 1;
  std::vector<int> lengths = {700};  // tokens of each stream, those of the step included
  float k_size = 1, v_size = 1, q_size = 1;
  bool flat_values = false;   // the same in all channels of a token
  float large_value = 1;      // how many times as large one token's of each 128 are
  int n_blocks = 132;         // of threads that the plan is made for
  int large = 0;              // they may be large ones, of so many warps
  Number type = Number::F32;  // of q and out
  int n_behind = 0;           // last tokens that no query sees
  int window = 0;
  float soft_cap = 0, max_bias = 0;
  bool sinks = false, bits = false, copy_by_threads = false;
  int repeats = 1;     // launches, of which the last one counts
  bool graph = false;  // launched from a captured graph
};

// What the streams' tokens are as records: packed ones of whole blocks, 16-bit rows of the others
// and of sinks.
RecordSet records_of(const Case& test);

// ||out - reference|| / ||reference|| over all query rows, the largest of the streams.
double error_of(const Case& test);

}  // namespace zipcache::cuda::test
