// Generated tokens from CUDA graphs: what the calls of all layers of one step enqueue, captured and
// launched again in steps of the same shape, answers as the calls do.
#include <map>

#include "base/half.hpp"
#include "cuda/gpu.hpp"
#include "cuda/gpu_cache.hpp"
#include "support/random_rows.hpp"
#include "support/rotations.hpp"

namespace zipcache::cuda::test {
namespace {

constexpr int kLayers = 3, kHeads = 2, kGroup = 4, kDim = 128, kStreams = 2;
constexpr float kScale = 0.02f;  // so that more than one token counts

void must(const Status& status) {
  if (!status.ok()) throw std::runtime_error(status.message());
}
using zipcache::cuda::test::must;

// Rows of a step at a place that stays: [stream, token, head, dim].
struct Rows {
  Rows(int n_tokens, int n_heads)
      : n_tokens(n_tokens),
        n_heads(n_heads),
        data(size_t(kStreams) * size_t(n_tokens) * size_t(n_heads * kDim)) {}

  void fill(uint64_t seed) const {
    const std::vector<float> x =
        zipcache::test::random_rows(kStreams * n_tokens, n_heads * kDim, seed);
    std::vector<half> rounded(x.size());
    std::transform(x.begin(), x.end(), rounded.begin(), to_half);
    must(cudaMemcpy(data.get(), rounded.data(), rounded.size() * sizeof(half),
                    cudaMemcpyHostToDevice));
  }
  InputRows input() const {
    const int64_t token = int64_t{n_heads} * kDim;
    return {data.get(), n_tokens * token, token, kDim};
  }

  int n_tokens, n_heads;
  Buffer<half> data;
};

struct LayerRows {
  explicit LayerRows(int n)
      : k(n, kHeads),
        v(n, kHeads),
        q(n, kHeads * kGroup),
        out(size_t(kStreams * n * kHeads * kGroup * kDim)) {}

  void fill(uint64_t seed) const { k.fill(seed), v.fill(seed + 1), q.fill(seed + 2); }

  Rows k, v, q;
  Buffer<float> out;
};

// A cache that takes steps of n tokens, by calls or from graphs.
class Text {
 public:
  Text(const char* policy, int n, bool from_graphs) : n_(n), from_graphs_(from_graphs) {
    must(cudaStreamCreate(&stream_));
    GpuCacheShape shape;
    shape.n_layers = kLayers, shape.n_heads = kHeads, shape.group = kGroup, shape.dim = kDim;
    shape.n_streams = kStreams, shape.max_tokens = 2048;
    const zipcache::test::RotationFile file(std::vector<LayerShape>(kLayers, {kHeads, kDim, kDim}));
    Result<Policy> parsed = parse_policy(policy);
    must(parsed.status());
    if (needs_rotations(*parsed)) parsed->rotations = file.path();
    auto made = GpuCache::create(shape, *parsed, stream_);
    must(made.status());
    cache_ = std::move(*made);
    for (int layer = 0; layer < kLayers; ++layer) rows_.push_back(std::make_unique<LayerRows>(n));
  }
  ~Text() {
    for (const auto& [shape, graph] : graphs_) cudaGraphExecDestroy(graph);
    cache_ = nullptr;
    cudaStreamDestroy(stream_);
  }

  void prompt() {
    constexpr int kTokens = 300;
    const LayerRows rows(kTokens);
    rows.fill(1);
    must(cache_->begin(std::vector{kTokens, 170}, stream_));
    PromptStep step;
    step.k = rows.k.input(), step.v = rows.v.input(), step.q = rows.q.input();
    step.scale = kScale;
    for (int layer = 0; layer < kLayers; ++layer) must(cache_->prefill(layer, step, stream_));
    must(cudaStreamSynchronize(stream_));
  }

  // Outputs of all layers.
  std::vector<float> step(uint64_t seed) {
    for (size_t layer = 0; layer < kLayers; ++layer) rows_[layer]->fill(seed + 3 * layer);
    must(cache_->begin(std::vector(kStreams, n_), stream_));
    const uint64_t shape = cache_->step_shape();
    if (from_graphs_ && shape != 0)
      replay(shape);
    else
      decode();
    must(cudaStreamSynchronize(stream_));
    std::vector<float> outs;
    for (const auto& rows : rows_) {
      const std::vector<float> out = rows->out.read();
      outs.insert(outs.end(), out.begin(), out.end());
    }
    return outs;
  }

  size_t n_graphs() const { return graphs_.size(); }
  int n_replayed() const { return n_replayed_; }

 private:
  void decode() const {
    for (int layer = 0; layer < kLayers; ++layer) {
      const LayerRows& rows = *rows_[size_t(layer)];
      DecodeStep step;
      step.k = rows.k.input(), step.v = rows.v.input(), step.q = rows.q.data.get();
      step.out = rows.out.get(), step.out_type = Number::F32;
      step.scale = kScale;
      must(cache_->decode(layer, step, stream_));
    }
  }

  void replay(uint64_t shape) {
    n_replayed_ += int(graphs_.contains(shape));
    if (!graphs_.contains(shape)) graphs_[shape] = captured(stream_, [&] { decode(); });
    must(cudaGraphLaunch(graphs_[shape], stream_));
  }

  int n_;
  bool from_graphs_;
  cudaStream_t stream_ = nullptr;
  std::unique_ptr<GpuCache> cache_;
  std::vector<std::unique_ptr<LayerRows>> rows_;
  std::map<uint64_t, cudaGraphExec_t> graphs_;
  int n_replayed_ = 0;
};

class StepGraphs : public OnGpu {
 protected:
  // Steps of n tokens, of which at least so many come from a graph of an earlier one.
  static void expect_same(const char* policy, int n, int n_steps, int least) {
    try {
      Text calls(policy, n, false), graphs(policy, n, true);
      calls.prompt();
      graphs.prompt();
      for (int step = 0; step < n_steps; ++step) {
        const uint64_t seed = 100 + 10 * uint64_t(step);
        ASSERT_EQ(graphs.step(seed), calls.step(seed)) << policy << ", step " << step;
      }
      EXPECT_GE(graphs.n_replayed(), least) << policy;
      EXPECT_LT(graphs.n_graphs(), size_t(30)) << policy;
    } catch (const std::exception& thrown) {
      ADD_FAILURE() << policy << ": " << thrown.what();
      cudaGetLastError();
    }
  }
};

TEST_F(StepGraphs, AnswerAsTheCalls) {
  for (const char* policy : {"uniform4", "uniform2,recent=0", "zip,v=4,recent=40", "f16", "kivi2",
                             "uniform4,1:k=8,2:bits=16", "uniform4,rotate=file,1:k=8"})
    expect_same(policy, 1, 300, 240);
  expect_same("uniform4", 4, 60, 20);
}

// Steps with probes are left to the calls.
TEST_F(StepGraphs, PoliciesWithScoresAnswerAsTheCalls) { expect_same("zipcache", 1, 150, 10); }

TEST_F(StepGraphs, ShapesTellStepsApart) {
  GpuCacheShape shape;
  shape.n_layers = kLayers, shape.n_heads = kHeads, shape.group = kGroup, shape.dim = kDim;
  shape.n_streams = kStreams, shape.max_tokens = 2048;
  auto made = GpuCache::create(shape, *parse_policy("uniform4,recent=0"), nullptr);
  ASSERT_TRUE(made.ok()) << made.status().message();
  GpuCache& cache = **made;
  const auto shape_of = [&](std::vector<int> n_new) {
    EXPECT_TRUE(cache.begin(n_new, nullptr).ok());
    return cache.step_shape();
  };
  EXPECT_EQ(cache.step_shape(), 0u);  // before a step
  const uint64_t one = shape_of({1, 1});
  EXPECT_NE(one, 0u);
  EXPECT_EQ(shape_of({1, 1}), one);
  EXPECT_EQ(shape_of({0, 1}), one);
  EXPECT_NE(shape_of({4, 4}), one);
  EXPECT_EQ(shape_of({1, 2}), 0u);      // not for decode()
  EXPECT_EQ(shape_of({100, 100}), 0u);  // neither
  EXPECT_EQ(shape_of({64, 64}), 0u);    // packs
}

}  // namespace
}  // namespace zipcache::cuda::test
