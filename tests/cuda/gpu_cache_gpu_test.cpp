// The cache of a GPU beside the CPU's: the same tokens, the same answers.
#include "cuda/gpu_cache.hpp"

#include <cstring>
#include <numeric>

#include "base/half.hpp"
#include "cuda/fragments.hpp"
#include "cuda/gpu.hpp"
#include "cuda/prompt.hpp"
#include "support/random_rows.hpp"
#include "support/rotations.hpp"
#include "zipcache/cache.hpp"

namespace zipcache::cuda::test {
namespace {

struct Model {
  const char* policy = "uniform4";
  int dim = 128, n_heads = 2, group = 4, n_layers = 2;
  std::vector<int> prompts = {300, 170};
  int n_steps = 150, n_new = 1;
  int piece_tokens = 0;
};

std::vector<half> rounded(const std::vector<float>& x) {
  std::vector<half> out(x.size());
  std::transform(x.begin(), x.end(), out.begin(), to_half);
  return out;
}
std::vector<float> widened(const std::vector<half>& x) {
  std::vector<float> out(x.size());
  std::transform(x.begin(), x.end(), out.begin(), [](half value) { return to_float(value); });
  return out;
}

// Rows of one layer's step: [stream, token, head, dim].
struct Rows {
  std::vector<half> k, v, q;
};

class Pair {
 public:
  explicit Pair(const Model& model) : model_(model), n_streams_(int(model.prompts.size())) {
    const LayerShape layer{model.n_heads, model.dim, model.dim};
    const std::vector<LayerShape> layers(size_t(model.n_layers), layer);
    // The CPU's kernels as exact as the GPU's.
    const std::string text = std::string(model.policy) + ",precision=exact";
    Result<Policy> policy = parse_policy(text);
    if (!policy.ok()) throw std::runtime_error(policy.status().message());
    if (needs_rotations(*policy)) {
      rotations_ = std::make_unique<zipcache::test::RotationFile>(layers);
      policy->rotations = rotations_->path();
    }
    GpuCacheShape shape;
    shape.n_layers = model.n_layers, shape.n_heads = model.n_heads, shape.group = model.group;
    shape.dim = model.dim, shape.n_streams = n_streams_, shape.max_tokens = 2048;
    shape.piece_tokens = model.piece_tokens;
    auto gpu = GpuCache::create(shape, *policy, nullptr);
    if (!gpu.ok()) throw std::runtime_error(gpu.status().message());
    gpu_ = std::move(*gpu);
    auto cpu = zipcache::Cache::create({n_streams_, 2048, layers}, *policy);
    if (!cpu.ok()) throw std::runtime_error(cpu.status().message());
    cpu_ = std::move(*cpu);
  }

  void prompt() {
    must(gpu_->begin(model_.prompts, nullptr));
    const int most = *std::max_element(model_.prompts.begin(), model_.prompts.end());
    for (int layer = 0; layer < model_.n_layers; ++layer) {
      const Rows rows = make_rows(most);
      const Buffer<half> k(rows.k), v(rows.v), q(rows.q);
      PromptStep step;
      step.k = input(k.get(), most, model_.n_heads);
      step.v = input(v.get(), most, model_.n_heads);
      step.q = input(q.get(), most, model_.n_heads * model_.group);
      step.scale = scale();
      must(gpu_->prefill(layer, step, nullptr));
      cuda_done();
      for (int s = 0; s < n_streams_; ++s)
        step_cpu(layer, s, rows, most, model_.prompts[size_t(s)]);
    }
    lengths_ = model_.prompts;
  }

  // The next tokens of each stream's prompt, to which the cache attends itself: the largest
  // distance of a stream's outputs from the CPU's, relative to these.
  double attended_prompt(const std::vector<int>& n_new) {
    must(gpu_->begin(n_new, nullptr));
    if (lengths_.empty()) lengths_.assign(size_t(n_streams_), 0);
    const int most = *std::max_element(n_new.begin(), n_new.end());
    double worst = 0;
    for (int layer = 0; layer < model_.n_layers; ++layer) {
      const Rows rows = make_rows(most);
      const Buffer<half> k(rows.k), v(rows.v), q(rows.q);
      const Buffer<float> out(rows.q.size());
      must(cudaMemset(out.get(), 0xFF, rows.q.size() * sizeof(float)));
      PromptStep step;
      step.k = input(k.get(), most, model_.n_heads);
      step.v = input(v.get(), most, model_.n_heads);
      step.q = input(q.get(), most, model_.n_heads * model_.group);
      step.scale = scale();
      step.out = out.get(), step.out_type = Number::F32;
      must(gpu_->prefill(layer, step, nullptr));
      cuda_done();
      const std::vector<float> found = out.read();
      for (int s = 0; s < n_streams_; ++s) {
        if (n_new[size_t(s)] == 0) continue;
        const std::vector<float> expected = step_cpu(layer, s, rows, most, n_new[size_t(s)]);
        worst = std::max(worst,
                         error_of(&found[size_t(s) * found.size() / size_t(n_streams_)], expected));
      }
    }
    for (size_t s = 0; s < lengths_.size(); ++s) lengths_[s] += n_new[s];
    return worst;
  }

  // The same of a step of n_new tokens.
  double decode() {
    const int n = model_.n_new, heads = model_.n_heads * model_.group;
    must(gpu_->begin(std::vector<int>(size_t(n_streams_), n), nullptr));
    double worst = 0;
    for (int layer = 0; layer < model_.n_layers; ++layer) {
      const Rows rows = make_rows(n);
      const Buffer<half> k(rows.k), v(rows.v), q(rows.q);
      const Buffer<float> out(rows.q.size());
      DecodeStep step;
      step.k = input(k.get(), n, model_.n_heads);
      step.v = input(v.get(), n, model_.n_heads);
      step.q = q.get(), step.out = out.get();
      step.out_type = Number::F32;
      step.scale = scale();
      must(gpu_->decode(layer, step, nullptr));
      cuda_done();
      const std::vector<float> found = out.read();
      const size_t size = size_t(n * heads * model_.dim);
      for (int s = 0; s < n_streams_; ++s) {
        const std::vector<float> expected = step_cpu(layer, s, rows, n, n);
        worst = std::max(worst, error_of(&found[size_t(s) * size], expected));
      }
    }
    for (int& length : lengths_) length += n;
    return worst;
  }

  GpuCache& gpu() { return *gpu_; }

 private:
  static void must(const Status& status) {
    if (!status.ok()) throw std::runtime_error(status.message());
  }
  static void must(cudaError_t error) { zipcache::cuda::test::must(error); }
  // Infinity where a number is NaN.
  static double error_of(const float* found, const std::vector<float>& expected) {
    double distance = 0, norm = 0;
    for (size_t i = 0; i < expected.size(); ++i) {
      const double gap = double(found[i]) - double(expected[i]);
      distance += gap * gap;
      norm += double(expected[i]) * double(expected[i]);
    }
    return std::isnan(distance) ? INFINITY : std::sqrt(distance / norm);
  }
  static void cuda_done() { zipcache::cuda::test::must(cudaDeviceSynchronize()); }
  float scale() const { return 1 / std::sqrt(float(model_.dim)); }

  InputRows input(const half* data, int n_tokens, int n_heads) const {
    const int64_t token = int64_t{n_heads} * model_.dim;
    return {data, n_tokens * token, token, model_.dim};
  }

  Rows make_rows(int n) {
    const auto of = [&](int heads, float factor) {
      auto x = zipcache::test::random_rows(n_streams_ * n, heads * model_.dim, seed_++);
      for (float& value : x) value *= factor;
      return rounded(x);
    };
    constexpr float kSofter = 0.25f;  // so that more than one token counts
    return {of(model_.n_heads, 1), of(model_.n_heads, 1),
            of(model_.n_heads * model_.group, kSofter)};
  }

  // Writes the n tokens of a stream, of `stride`, and attends to them: the outputs.
  std::vector<float> step_cpu(int layer, int s, const Rows& rows, int stride, int n) {
    const int width = model_.n_heads * model_.dim, q_width = width * model_.group;
    const int first = lengths_.empty() ? 0 : lengths_[size_t(s)];
    std::vector<int64_t> cells(size_t(n), 0);
    std::iota(cells.begin(), cells.end(), int64_t{first});
    const auto part = [&](const std::vector<half>& all, int of_token) {
      const auto begin = all.begin() + ptrdiff_t(s) * stride * of_token;
      return widened(std::vector<half>(begin, begin + ptrdiff_t(n) * of_token));
    };
    must(cpu_->write(layer, s, SideId::K, cells, part(rows.k, width).data(), width));
    must(cpu_->write(layer, s, SideId::V, cells, part(rows.v, width).data(), width));
    const std::vector<float> q = part(rows.q, q_width);
    std::vector<float> out(q.size());
    const int n_cells = first + n;
    std::vector<half> mask(size_t(n) * size_t(n_cells), kHalfNegInf);
    for (int i = 0; i < n; ++i)
      std::fill_n(mask.begin() + ptrdiff_t(i) * n_cells, first + i + 1, half{0});
    Attention step;
    step.layer = layer, step.stream = s, step.n_queries = n;
    step.n_heads = model_.n_heads * model_.group;
    step.q = q.data(), step.q_head_stride = model_.dim, step.q_row_stride = q_width;
    step.mask = mask.data(), step.mask_stride = step.n_cells = n_cells;
    step.scale = scale();
    step.out = out.data(), step.out_head_stride = model_.dim, step.out_row_stride = q_width;
    must(cpu_->attend(step));
    return out;
  }

  Model model_;
  int n_streams_;
  std::unique_ptr<zipcache::test::RotationFile> rotations_;
  std::unique_ptr<GpuCache> gpu_;
  std::unique_ptr<zipcache::Cache> cpu_;
  std::vector<int> lengths_;
  uint64_t seed_ = 1;
};

class GpuCaches : public OnGpu {
 protected:
  static void expect_equal(const Model& model, double bound) {
    try {
      Pair pair(model);
      pair.prompt();
      for (int step = 0; step < model.n_steps; ++step) {
        const double error = pair.decode();
        ASSERT_LT(error, bound) << model.policy << ", dim " << model.dim << ", step " << step;
      }
    } catch (const std::exception& thrown) {
      ADD_FAILURE() << model.policy << ": " << thrown.what();
      cudaGetLastError();
    }
  }
  // Long parts and short ones, streams that begin later or wait, then tokens one by one.
  static void expect_parts(const Model& model, double bound) {
    const std::vector<std::vector<int>> parts = {{300, 0}, {200, 70},  {33, 9}, {0, 150},
                                                 {65, 1},  {128, 128}, {1, 64}};
    try {
      Pair pair(model);
      for (const std::vector<int>& part : parts)
        ASSERT_LT(pair.attended_prompt(part), bound)
            << model.policy << ", dim " << model.dim << ", part " << part[0] << " " << part[1];
      for (int step = 0; step < model.n_steps; ++step)
        ASSERT_LT(pair.decode(), bound) << model.policy << ", dim " << model.dim;
    } catch (const std::exception& thrown) {
      ADD_FAILURE() << model.policy << ": " << thrown.what();
      cudaGetLastError();
    }
  }
};

// What operands of 16 bits leave.
constexpr double kBound = 2e-3;
constexpr double kTileBound = 5e-3;  // where codes become 16-bit numbers first
// The same where keys and values of the past are rounded to 16 bits besides, up to three times.
constexpr double kUnpackedBound = 3e-3;

// Without scores both have the same codes.
TEST_F(GpuCaches, PoliciesWithoutScoresAnswerAsTheCpu) {
  for (const char* policy :
       {"uniform4", "uniform2,recent=0", "had4", "uniform4,sinks=5,recent=40"}) {
    for (const int dim : {64, 128}) expect_equal({.policy = policy, .dim = dim}, kBound);
  }
  for (const char* policy : {"uniform4,k_axis=token", "had4,k_axis=token,sinks=5,recent=40"})
    expect_equal({.policy = policy}, kBound);
  // With sides in the order of tiles; of kvarn the first block stays 16-bit rows.
  for (const char* policy : {"kivi2", "kvarn-k4v2", "nvfp4", "gear2-l", "sym8-had", "turbo-k4v4"})
    expect_equal({.policy = policy}, kTileBound);
}

// Scores differ in their last digits, so that now and then two tokens near each other in rank have
// each other's tier.
TEST_F(GpuCaches, PoliciesWithScoresAnswerNearlyAsTheCpu) {
  for (const char* policy : {"zipcache", "zip", "zip,k_round=nearest"})
    expect_equal({.policy = policy}, 3e-2);
}

// Steps that are long enough to learn from, with probes as in a prompt, but no prompts.
TEST_F(GpuCaches, LongStepsTeach) {
  expect_equal({.policy = "zip,recent=100", .n_steps = 10, .n_new = 40}, 3e-2);
}

TEST_F(GpuCaches, DraftedTokens) {
  expect_equal({.n_steps = 40, .n_new = 4}, kBound);
  expect_equal({.policy = "uniform4,recent=100", .n_steps = 10, .n_new = 40}, kBound);
  // Probes among them see no token behind them.
  expect_equal({.policy = "zipcache", .n_steps = 40, .n_new = 4}, 3e-2);
}

TEST_F(GpuCaches, PromptsInPartsAnswerAsTheCpu) {
  for (const char* policy :
       {"uniform4", "uniform2,recent=0", "had4", "uniform4,sinks=5,recent=40"}) {
    for (const int dim : {64, 128, 256})
      expect_parts({.policy = policy, .dim = dim, .n_steps = 20}, kUnpackedBound);
  }
  for (const int group : {1, 8}) expect_parts({.group = group, .n_steps = 3}, kUnpackedBound);
  for (const char* policy : {"zipcache", "zip", "zip,k_round=nearest,recent=300"})
    expect_parts({.policy = policy, .n_steps = 20}, 3e-2);
  // Over several pieces of the past.
  for (const int piece : {1, 256}) {
    for (const int dim : {64, 128, 256}) {
      for (const char* policy : {"uniform4", "had4,sinks=5,recent=40", "uniform4,k_axis=token"})
        expect_parts({.policy = policy, .dim = dim, .n_steps = 3, .piece_tokens = piece},
                     kUnpackedBound);
    }
    expect_parts({.policy = "zip", .group = 8, .n_steps = 3, .piece_tokens = piece}, 3e-2);
    for (const char* policy : {"kivi2", "kvarn-k4v2", "nvfp4", "gear2-l"})
      expect_parts({.policy = policy, .n_steps = 3, .piece_tokens = piece}, kTileBound);
  }
  // Where tokens are evicted, one that has another's rank counts fully.
  expect_parts({.policy = "zipcache,bits=4/0,ratio=0.5", .n_steps = 3, .piece_tokens = 128}, 0.15);
}

// Bits, axes, rotations and codecs of single layers, and layers that pack nothing.
TEST_F(GpuCaches, LayersThatDifferAnswerAsTheCpu) {
  for (const char* policy : {"uniform4,0:k=8,1:k=2,1:v=3", "had4,1:bits=16,sinks=5,recent=40",
                             "uniform4,0:bits=16,1:k_axis=token,2:rotate=hadamard,recent=0"}) {
    for (const int dim : {64, 128}) {
      const Model model = {.policy = policy, .dim = dim, .n_layers = 4};
      expect_equal(model, kBound);
      expect_parts({.policy = policy, .dim = dim, .n_layers = 4, .n_steps = 3}, kUnpackedBound);
    }
  }
  const char* codecs = "uniform4,1:k_axis=group32,1:codec=sym,2:k_axis=group32,2:v_axis=channel";
  expect_equal({.policy = codecs, .n_layers = 4}, kTileBound);
  expect_parts({.policy = codecs, .n_layers = 4, .n_steps = 3, .piece_tokens = 256}, kTileBound);
}

TEST_F(GpuCaches, LayersWithScoresBesideSomeWithoutAnswerNearlyAsTheCpu) {
  for (const char* policy :
       {"zipcache,0:bits=4,2:ratio=0.3", "zip,1:bits=16,2:k_round=nearest,3:bits=4,recent=100"}) {
    expect_equal({.policy = policy, .n_layers = 4}, 3e-2);
    expect_parts({.policy = policy, .n_layers = 4, .n_steps = 20}, 3e-2);
  }
}

TEST_F(GpuCaches, RotationsFromAFileAnswerAsTheCpu) {
  for (const int dim : {64, 128, 256}) {
    for (const char* policy : {"oscar2,recent=40", "uniform4,rotate=file,recent=0"}) {
      expect_equal({.policy = policy, .dim = dim}, kBound);
      expect_parts({.policy = policy, .dim = dim, .n_steps = 3, .piece_tokens = 256},
                   kUnpackedBound);
    }
  }
  for (const char* policy : {"uniform4,k_rotate=file,sinks=5", "had4,v_rotate=file,k_axis=token",
                             "uniform4,1:rotate=file,2:bits=16"}) {
    expect_equal({.policy = policy, .n_layers = 3}, kBound);
    expect_parts({.policy = policy, .n_layers = 3, .n_steps = 3}, kUnpackedBound);
  }
  for (const char* policy : {"skvq", "kvarn-k4v2,rotate=file"}) {
    expect_equal({.policy = policy}, kTileBound);
    expect_parts({.policy = policy, .n_steps = 3, .piece_tokens = 256}, kTileBound);
  }
  expect_equal({.policy = "oscar2,recent=40", .n_steps = 40, .n_new = 4}, kBound);
}

TEST_F(GpuCaches, RotationsFromAFileWithScoresAnswerNearlyAsTheCpu) {
  for (const char* policy : {"zip,rotate=file", "zipcache,k_rotate=file"}) {
    expect_equal({.policy = policy}, 3e-2);
    expect_parts({.policy = policy, .n_steps = 20}, 3e-2);
  }
  expect_equal({.policy = "zip,rotate=file,recent=100", .n_steps = 10, .n_new = 40}, 3e-2);
}

// Two matrices a head and side; a file of another model is refused as the CPU does.
TEST_F(GpuCaches, RotationsFromAFileCountAndHaveToFit) {
  const auto capacity = [](const char* policy) { return Pair({.policy = policy}).gpu().bytes(); };
  const size_t matrices = 2 * 2 * 2 * 2 * 128 * 128 * sizeof(float);  // layers, sides, heads
  EXPECT_EQ(capacity("uniform4,rotate=file").capacity, capacity("uniform4").capacity + matrices);

  const GpuCacheShape shape = {2, 2, 4, 128, 1, 1024, 0, 0};
  const std::vector<LayerShape> layers(2, {2, 128, 128});
  const zipcache::test::RotationFile other({{2, 64, 64}, {2, 64, 64}});
  const std::string texts[] = {"oscar2", "oscar2,rotations=/no/such/file",
                               "oscar2,rotations=" + other.path()};
  for (const std::string& text : texts) {
    const Policy policy = *parse_policy(text);
    const Status found = GpuCache::create(shape, policy, nullptr).status();
    const Status expected = zipcache::Cache::create({1, 1024, layers}, policy).status();
    EXPECT_FALSE(found.ok()) << text;
    EXPECT_EQ(found.code(), expected.code()) << text;
    EXPECT_EQ(found.message(), expected.message());
  }
}

TEST_F(GpuCaches, A16BitCacheAnswersAsTheCpu) {
  for (const int dim : {64, 128, 256}) {
    expect_equal({.policy = "f16", .dim = dim}, kBound);
    expect_parts({.policy = "f16", .dim = dim, .n_steps = 3, .piece_tokens = 256}, kUnpackedBound);
  }
  expect_equal({.policy = "f16", .n_steps = 40, .n_new = 4}, kBound);
}

// Bytes are those of each layer's own policy.
TEST_F(GpuCaches, BytesOfLayersThatDiffer) {
  const auto bytes = [](const char* policy) {
    Pair pair({.policy = policy});
    pair.prompt();
    return pair.gpu().bytes();
  };
  const GpuCacheBytes four = bytes("uniform4"), eight = bytes("uniform4,k=8");
  const GpuCacheBytes both = bytes("uniform4,1:k=8"), half = bytes("uniform4,1:bits=16");
  EXPECT_EQ(2 * both.records, four.records + eight.records);
  EXPECT_EQ(2 * both.capacity, four.capacity + eight.capacity);
  EXPECT_EQ(2 * half.records, four.records);
}

// A cache of one layer and stream, and what one step after another gives it.
class Solo {
 public:
  explicit Solo(const char* policy) {
    GpuCacheShape shape;
    shape.n_layers = shape.n_streams = 1, shape.n_heads = kHeads, shape.group = kGroup;
    shape.dim = kDim, shape.max_tokens = 1024;
    auto made = GpuCache::create(shape, *parse_policy(policy), nullptr);
    if (!made.ok()) throw std::runtime_error(made.status().message());
    cache_ = std::move(*made);
  }

  static constexpr int kHeads = 2, kGroup = 4, kDim = 128;
  static std::vector<half> rows(int n, int heads, uint64_t seed) {
    return rounded(zipcache::test::random_rows(n, heads * kDim, seed));
  }
  static InputRows input(const Buffer<half>& rows, int heads) {
    return {rows.get(), 0, int64_t{heads} * kDim, kDim};
  }

  // Rows of a step's tokens, of which the first n come.
  struct Tokens {
    explicit Tokens(int n, uint64_t seed)
        : k(rows(n, kHeads, seed)),
          v(rows(n, kHeads, seed + 1)),
          q(rows(n, kHeads * kGroup, seed + 2)),
          out(size_t(n * kHeads * kGroup * kDim)),
          log_sums(size_t(n * kHeads * kGroup)) {}
    Buffer<half> k, v, q;
    Buffer<float> out, log_sums;
  };
  PromptStep prompt_step(const Tokens& tokens) const {
    PromptStep step;
    step.k = input(tokens.k, kHeads), step.v = input(tokens.v, kHeads);
    step.q = input(tokens.q, kHeads * kGroup);
    step.scale = kScale;
    return step;
  }
  std::vector<float> attended(const Tokens& tokens, int n) {
    must(cache_->begin(std::vector{n}, nullptr));
    PromptStep step = prompt_step(tokens);
    step.out = tokens.out.get(), step.out_type = Number::F32;
    must(cache_->prefill(0, step, nullptr));
    return tokens.out.read();
  }
  // The attention is the caller's, the same kernel's.
  std::vector<float> given(const Tokens& tokens, int n) {
    must(cache_->begin(std::vector{n}, nullptr));
    PromptStep step = prompt_step(tokens);
    PromptArgs args;
    args.dim = kDim, args.n_heads = kHeads, args.group = kGroup;
    args.n_streams = 1, args.n_tokens = n;
    args.q = step.q, args.k = step.k, args.v = step.v;
    args.scale = kScale;
    args.out = tokens.out.get(), args.out_type = Number::F32;
    args.log_sums = tokens.log_sums.get();
    must(attend_prompt(args, nullptr));
    step.log_sums = tokens.log_sums.get();
    must(cache_->prefill(0, step, nullptr));
    return tokens.out.read();
  }
  void decode(const Tokens& tokens, int n) {
    must(cache_->begin(std::vector{n}, nullptr));
    DecodeStep step;
    step.k = input(tokens.k, kHeads), step.v = input(tokens.v, kHeads);
    step.q = tokens.q.get(), step.out = tokens.out.get(), step.out_type = Number::F32;
    step.scale = kScale;
    must(cache_->decode(0, step, nullptr));
    zipcache::cuda::test::must(cudaDeviceSynchronize());
  }
  void truncate(int length) { must(cache_->truncate(0, length)); }
  GpuCache::Image image() const {
    auto image = cache_->image(0, nullptr);
    must(image.status());
    return std::move(*image);
  }

 private:
  static constexpr float kScale = 0.02f;  // so that more than one token counts
  static void must(const Status& status) {
    if (!status.ok()) throw std::runtime_error(status.message());
  }
  std::unique_ptr<GpuCache> cache_;
};

TEST_F(GpuCaches, RecordsDoNotDependOnWhoAttends) {
  for (const char* policy : {"uniform4", "zipcache", "zip"}) {
    Solo own(policy), other(policy);
    const Solo::Tokens tokens(600, 1), again(600, 1);
    EXPECT_EQ(own.attended(tokens, 600), other.given(again, 600)) << policy;
    const GpuCache::Image found = own.image(), expected = other.image();
    EXPECT_EQ(found.pool, expected.pool) << policy;
    ASSERT_EQ(found.table.size(), expected.table.size());
    EXPECT_EQ(
        std::memcmp(found.table.data(), expected.table.data(), found.table.size() * sizeof(Record)),
        0)
        << policy;
  }
}

// What a draft left behind is not attended to, neither by long parts nor by short ones.
TEST_F(GpuCaches, PromptsGoOnAfterADraftWasCut) {
  for (const int part : {100, 20}) {
    Solo drafted("uniform4"), plain("uniform4");
    const Solo::Tokens prompt(300, 1), draft(4, 5), next(part, 9);
    for (Solo* cache : {&drafted, &plain}) {
      cache->attended(prompt, 300);
      cache->decode(draft, cache == &drafted ? 4 : 1);
    }
    drafted.truncate(301);
    EXPECT_EQ(drafted.attended(next, part), plain.attended(next, part)) << part;
  }
}

TEST_F(GpuCaches, RefusalsChangeNothing) {
  Pair pair({});
  EXPECT_EQ(pair.gpu().decode(0, {}, nullptr).code(), Code::BadArgument);  // before a step
  EXPECT_EQ(pair.gpu().begin(std::vector{1}, nullptr).code(), Code::BadArgument);
  const GpuCacheShape shape = {1, 1, 1, 64, 1, 100, 0, -1};
  const auto refused = GpuCache::create(shape, *parse_policy("uniform4"), nullptr);
  EXPECT_NE(refused.status().message().find("piece_tokens = -1"), std::string::npos);
  EXPECT_EQ(pair.gpu().begin(std::vector{3000, 0}, nullptr).code(), Code::OverLimit);
  pair.prompt();
  EXPECT_LT(pair.decode(), kBound);
  EXPECT_EQ(pair.gpu().decode(7, {}, nullptr).code(), Code::BadArgument);
  EXPECT_EQ(pair.gpu().truncate(0, 10).code(), Code::Incompatible);
  EXPECT_LT(pair.decode(), kBound);
}

// The first layer alone would let tokens go that the second has packed.
TEST_F(GpuCaches, WhatOneLayerRefusesChangesNone) {
  Pair pair({.policy = "uniform4,recent=0,0:bits=16"});
  pair.prompt();
  EXPECT_EQ(pair.gpu().truncate(0, 100).code(), Code::Incompatible);
  EXPECT_EQ(pair.gpu().begin(std::vector{1, 2000}, nullptr).code(), Code::OverLimit);
  EXPECT_EQ(pair.gpu().length(0), 300);
  for (int step = 0; step < 3; ++step) EXPECT_LT(pair.decode(), kBound);
}

}  // namespace
}  // namespace zipcache::cuda::test
