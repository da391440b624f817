// The attention of all layers of a model of the shape of an 8B one (32 layers, 32 query heads on 8
// KV heads of 128 channels), through ZipCache's C interface alone, over random rows: a prompt
// comes, then tokens one by one. Prints one JSON line with the times and the memory.
//
//   gpu_stack [policy [tokens [streams [steps [part [graph]]]]]]          zipcache 4096 8 64
//
// The policy may differ between layers ('uniform4,0-3:k=8', or a file of `zipcache tune`).
// The prompt comes in parts of `part` tokens, or whole; its time is measured with its attention
// (prompt_ms) and without it, as a program sees it that attends by another library
// (prompt_without_ms, whole prompts only). With the word `graph` steps come from CUDA graphs where
// they can. A model would compute projections and all else besides.
#include <cuda_runtime_api.h>
#include <zipcache/zipcache_cuda.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <map>
#include <string>
#include <vector>

namespace {

constexpr int kLayers = 32, kHeads = 8, kGroup = 4, kDim = 128;

[[noreturn]] void fail(const char* what, const char* why) {
  std::fprintf(stderr, "gpu_stack: %s: %s\n", what, why);
  std::exit(1);
}
void must(cudaError_t error) {
  if (error != cudaSuccess) fail("CUDA", cudaGetErrorString(error));
}
void must(zipcache_code code, const zipcache_error& error) {
  if (code != ZC_OK) fail(zipcache_code_name(code), error.message);
}

int number(const char* text, const char* name) {
  char* end = nullptr;
  const long value = std::strtol(text, &end, 10);
  if (*text == '\0' || *end != '\0' || value < 1 || value > 1 << 20)
    fail(name, (std::string("found '") + text + "', expected a number from 1 to 1048576").c_str());
  return int(value);
}

// Random 16-bit numbers between -2 and 2 on the device: rows [streams, tokens, heads, kDim].
class Rows {
 public:
  Rows(int n_streams, int n_tokens, int n_heads) : n_tokens_(n_tokens), n_heads_(n_heads) {
    const size_t n = size_t(n_streams) * size_t(n_tokens) * size_t(n_heads) * kDim;
    std::vector<uint16_t> some(std::min<size_t>(n, size_t{1} << 22));
    uint32_t state = uint32_t(12345 + n_heads);
    for (uint16_t& x : some) {
      state = state * 1664525u + 1013904223u;
      x = uint16_t((state >> 16 & 0x83FF) | (14u + (state >> 10) % 2) << 10);  // sign, 0.5 to 2
    }
    must(cudaMalloc(&data_, n * sizeof(uint16_t)));
    for (size_t at = 0; at < n; at += some.size())
      must(cudaMemcpy(static_cast<uint16_t*>(data_) + at, some.data(),
                      std::min(some.size(), n - at) * sizeof(uint16_t), cudaMemcpyHostToDevice));
  }
  ~Rows() { cudaFree(data_); }
  Rows(const Rows&) = delete;

  void* data() const { return data_; }
  // Of tokens `first` and on.
  zipcache_gpu_rows rows(int first = 0) const {
    const int64_t token = int64_t{n_heads_} * kDim;
    return {static_cast<const uint16_t*>(data_) + first * token, n_tokens_ * token, token, kDim};
  }

 private:
  void* data_ = nullptr;
  int n_tokens_, n_heads_;
};

// Steps of the same shape from one CUDA graph each.
class Graphs {
 public:
  // What `decode` enqueues; shape 0 is a step that the calls have to make.
  void run(uint64_t shape, cudaStream_t stream, const std::function<void()>& decode) {
    if (shape == 0) return decode();
    cudaGraphExec_t& graph = graphs_[shape];
    n_replayed_ += graph != nullptr;
    if (!graph) graph = captured(stream, decode);
    must(cudaGraphLaunch(graph, stream));
  }
  ~Graphs() {
    for (const auto& [shape, graph] : graphs_) cudaGraphExecDestroy(graph);
  }
  int n_replayed() const { return n_replayed_; }

 private:
  static cudaGraphExec_t captured(cudaStream_t stream, const std::function<void()>& decode) {
    cudaGraph_t graph = nullptr;
    cudaGraphExec_t ready = nullptr;
    must(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal));
    decode();
    must(cudaStreamEndCapture(stream, &graph));
    must(cudaGraphInstantiate(&ready, graph, 0));
    must(cudaGraphDestroy(graph));
    return ready;
  }

  std::map<uint64_t, cudaGraphExec_t> graphs_;
  int n_replayed_ = 0;
};

// Milliseconds of what is enqueued between the two calls.
class Clock {
 public:
  explicit Clock(cudaStream_t stream) : stream_(stream) {
    must(cudaEventCreate(&begin_));
    must(cudaEventCreate(&end_));
  }
  void start() { must(cudaEventRecord(begin_, stream_)); }
  float stop() {
    must(cudaEventRecord(end_, stream_));
    must(cudaEventSynchronize(end_));
    float ms = 0;
    must(cudaEventElapsedTime(&ms, begin_, end_));
    return ms;
  }

 private:
  cudaStream_t stream_;
  cudaEvent_t begin_, end_;
};

}  // namespace

int main(int argc, char** argv) {
  if (argc > 7 ||
      (argc > 1 && (std::string(argv[1]) == "-h" || std::string(argv[1]) == "--help"))) {
    std::puts(
        "usage: gpu_stack [policy [tokens [streams [steps [part [graph]]]]]]\n"
        "       zipcache 4096 8 64");
    return argc > 7 ? 2 : 0;
  }
  const char* policy = argc > 1 ? argv[1] : "zipcache";
  const int n_tokens = argc > 2 ? number(argv[2], "tokens") : 4096;
  const int n_streams = argc > 3 ? number(argv[3], "streams") : 8;
  const int n_steps = argc > 4 ? number(argv[4], "steps") : 64;
  const int part = std::min(n_tokens, argc > 5 ? number(argv[5], "part") : n_tokens);
  const bool from_graphs = argc > 6 && std::string(argv[6]) == "graph";
  if (argc > 6 && !from_graphs) fail(argv[6], "expected the word graph, or nothing");

  cudaStream_t stream;
  must(cudaStreamCreate(&stream));
  zipcache_error error = {};
  const zipcache_gpu_shape shape = {kLayers, kHeads, kGroup, kDim, n_streams, n_tokens + n_steps,
                                    0,       0};
  zipcache_gpu_cache* cache = zipcache_gpu_create(&shape, policy, stream, &error);
  if (!cache) fail(zipcache_code_name(error.code), error.message);

  // One layer's rows serve all layers.
  const Rows k(n_streams, n_tokens, kHeads), v(n_streams, n_tokens, kHeads),
      q(n_streams, n_tokens, kHeads * kGroup), out(n_streams, part, kHeads * kGroup);
  const float scale = 0.0883883476f;
  Clock clock(stream);
  const auto time_prompt = [&](void* to) {
    for (int s = 0; s < n_streams; ++s) must(zipcache_gpu_clear(cache, s, &error), error);
    clock.start();
    for (int first = 0; first < n_tokens; first += part) {
      const std::vector<int> n_new(size_t(n_streams), std::min(part, n_tokens - first));
      zipcache_gpu_prompt prompt = {};
      prompt.k = k.rows(first), prompt.v = v.rows(first), prompt.q = q.rows(first);
      prompt.scale = scale;
      prompt.out = to;
      must(zipcache_gpu_begin(cache, n_new.data(), stream, &error), error);
      for (int layer = 0; layer < kLayers; ++layer)
        must(zipcache_gpu_prefill(cache, layer, &prompt, stream, &error), error);
    }
    return clock.stop();
  };
  // Each twice, since the first takes memory.
  float prompt_ms = 0, without_ms = 0;
  if (part == n_tokens) time_prompt(nullptr), without_ms = time_prompt(nullptr);
  time_prompt(out.data()), prompt_ms = time_prompt(out.data());

  zipcache_gpu_step step = {};
  step.k = k.rows(), step.v = v.rows();
  step.q = q.data(), step.out = out.data();
  step.scale = scale;
  const std::vector<int> one(size_t(n_streams), 1);
  const auto decode = [&] {
    for (int layer = 0; layer < kLayers; ++layer)
      must(zipcache_gpu_decode(cache, layer, &step, stream, &error), error);
  };
  Graphs graphs;
  std::vector<float> times;
  for (int i = 0; i < n_steps; ++i) {
    clock.start();
    must(zipcache_gpu_begin(cache, one.data(), stream, &error), error);
    graphs.run(from_graphs ? zipcache_gpu_step_shape(cache) : 0, stream, decode);
    times.push_back(clock.stop());
  }
  std::sort(times.begin(), times.end());
  zipcache_gpu_bytes bytes = {};
  must(zipcache_gpu_memory(cache, &bytes, &error), error);
  std::printf(
      "{\"policy\": \"%s\", \"tokens\": %d, \"streams\": %d, \"part\": %d, \"prompt_ms\": %.2f, "
      "\"prompt_without_ms\": %.2f, "
      "\"step_ms_median\": %.3f, \"step_ms_p95\": %.3f, \"replayed\": %d, \"records_mib\": %zu, "
      "\"capacity_mib\": "
      "%zu, "
      "\"fp16_mib\": %zu}\n",
      policy, n_tokens, n_streams, part, double(prompt_ms), double(without_ms),
      double(times[times.size() / 2]), double(times[times.size() * 95 / 100]), graphs.n_replayed(),
      bytes.records >> 20, (bytes.capacity + bytes.shared) >> 20,
      (size_t(n_streams) * size_t(n_tokens) * kLayers * kHeads * kDim * 4) >> 20);
  zipcache_gpu_free(cache);
  return 0;
}
