// Attention of prompts against double precision over the same 16-bit rows, on a GPU.
#include "cuda/prompt.hpp"

#include <fmt/format.h>

#include <cmath>
#include <cstring>

#include "cuda/gpu.hpp"
#include "support/random_rows.hpp"

namespace zipcache::cuda::test {
namespace {

using zipcache::test::random_rows;
using zipcache::test::to_halves;

// Weights are rounded to 16 bits, outputs to their type as often as they are stored: half a unit of
// the last place each.
double bound_of(Number type, int n_stored) {
  constexpr double kHalf = 1.0 / 2048, kBrain = 1.0 / 256;
  return kHalf + n_stored * (type == Number::F16 ? kHalf : type == Number::BF16 ? kBrain : 0);
}
// Of a logarithm where scores are a few units: 32-bit sums whose last bits a matrix unit cuts off.
constexpr double kLogBound = 1e-4;

class Prompt : public OnGpu {};

struct PromptCase {
  int dim = 128, n_heads = 2, group = 4;
  std::vector<int> lengths = {200};
  Number type = Number::F32;  // of the outputs
  bool by_heads = false;  // rows [stream, head, token, dim] with gaps, else [.., token, head, ..]
  bool sinks = false, log_sums = true;
  float q_size = 1;
  std::vector<int> past = {};  // earlier tokens of each stream, attended to in pieces of n_at_once
  int n_at_once = 64;
  bool shared = true;  // blocks of threads may share it
};

int n_streams(const PromptCase& test) { return int(test.lengths.size()); }
int n_tokens(const PromptCase& test) {
  return *std::max_element(test.lengths.begin(), test.lengths.end());
}
size_t n_rows_of(const PromptCase& test) {
  return size_t(n_streams(test)) * size_t(n_tokens(test)) * size_t(test.n_heads * test.group);
}
double scale_of(const PromptCase& test) { return 1 / std::sqrt(double(test.dim)); }
float sink_of(int head) { return 0.5f * float(head % 5) - 1; }

// Rows of a stream's own tokens; all that nobody may read is NaN.
class Rows {
 public:
  Rows(const PromptCase& test, int n_heads, uint64_t seed, float size = 1) : test_(test) {
    const int tokens = n_tokens(test), gap = test.by_heads ? 8 : 0, row = test.dim + gap;
    token_stride_ = test.by_heads ? row : n_heads * row;
    head_stride_ = test.by_heads ? tokens * row : row;
    stream_stride_ = int64_t{tokens} * n_heads * row + gap;
    constexpr half kNan = 0x7E00;
    data_.assign(size_t(n_streams(test)) * size_t(stream_stride_), kNan);
    for (int s = 0; s < n_streams(test); ++s) {
      const int n = test.lengths[size_t(s)] * n_heads;
      std::vector<float> x = random_rows(n, test.dim, seed + uint64_t(s) * 10, 2.0f);
      for (float& value : x) value *= size;
      const std::vector<half> halves = to_halves(x);
      for (int i = 0; i < n; ++i)
        std::copy_n(&halves[size_t(i) * size_t(test.dim)], test.dim,
                    &data_[place(s, i / n_heads, i % n_heads)]);
    }
  }

  const std::vector<half>& data() const { return data_; }
  InputRows at(const Buffer<half>& device) const {
    return {device.get(), stream_stride_, token_stride_, head_stride_};
  }
  std::vector<double> row(int stream, int token, int head) const {
    std::vector<double> x;
    for (int c = 0; c < test_.dim; ++c)
      x.push_back(to_float(data_[place(stream, token, head) + size_t(c)]));
    return x;
  }

 private:
  size_t place(int stream, int token, int head) const {
    return size_t(stream * stream_stride_ + token * token_stride_ + head * head_stride_);
  }

  PromptCase test_;
  int64_t stream_stride_, token_stride_, head_stride_;
  std::vector<half> data_;
};

double dot(const std::vector<double>& a, const std::vector<double>& b) {
  double sum = 0;
  for (size_t i = 0; i < a.size(); ++i) sum += a[i] * b[i];
  return sum;
}

// A row's attention over the first n_seen tokens.
struct Attended {
  std::vector<double> out;
  double log_sum;
};
Attended attended(const PromptCase& test, const std::vector<double>& q,
                  const std::vector<std::vector<double>>& k,
                  const std::vector<std::vector<double>>& v, int n_seen, const float* sink) {
  std::vector<double> scores;
  double peak = sink ? double(*sink) : -INFINITY;
  for (int t = 0; t < n_seen; ++t) {
    scores.push_back(dot(q, k[size_t(t)]) * scale_of(test));
    peak = std::max(peak, scores.back());
  }
  Attended result{std::vector<double>(size_t(test.dim)), -INFINITY};
  if (std::isinf(peak)) return result;
  double mass = sink ? std::exp(double(*sink) - peak) : 0;
  for (const double score : scores) mass += std::exp(score - peak);
  for (size_t t = 0; t < scores.size(); ++t) {
    const double weight = std::exp(scores[t] - peak) / mass;
    for (size_t c = 0; c < result.out.size(); ++c) result.out[c] += weight * v[t][c];
  }
  result.log_sum = peak + std::log(mass);
  return result;
}

struct PastRows {
  explicit PastRows(const PromptCase& test)
      : test(as_own(test)), k(this->test, test.n_heads, 5), v(this->test, test.n_heads, 6) {}
  static PromptCase as_own(PromptCase test) {
    test.lengths = test.past.empty() ? std::vector<int>(test.lengths.size()) : test.past;
    test.by_heads = true;
    return test;
  }
  PromptCase test;  // with the past's lengths
  Rows k, v;
};

struct Inputs {
  explicit Inputs(const PromptCase& test)
      : q(test, test.n_heads * test.group, 1, test.q_size),
        k(test, test.n_heads, 2),
        v(test, test.n_heads, 3),
        past(test) {}
  Rows q, k, v;
  PastRows past;
};

// visit(stream, token, query head, its attention over the past and the tokens up to itself).
template <class Visit>
void each_row(const PromptCase& test, const Inputs& inputs, Visit&& visit) {
  const auto& [q, k, v, past] = inputs;
  for (int s = 0; s < n_streams(test); ++s) {
    for (int head = 0; head < test.n_heads; ++head) {
      std::vector<std::vector<double>> keys, values;
      const int n_past = past.test.lengths[size_t(s)];
      for (int t = 0; t < n_past; ++t) {
        keys.push_back(past.k.row(s, t, head));
        values.push_back(past.v.row(s, t, head));
      }
      for (int t = 0; t < test.lengths[size_t(s)]; ++t) {
        keys.push_back(k.row(s, t, head));
        values.push_back(v.row(s, t, head));
      }
      for (int t = 0; t < test.lengths[size_t(s)]; ++t) {
        for (int i = 0; i < test.group; ++i) {
          const int query_head = head * test.group + i;
          const float sink = sink_of(query_head);
          visit(s, t, query_head,
                attended(test, q.row(s, t, query_head), keys, values, n_past + t + 1,
                         test.sinks ? &sink : nullptr));
        }
      }
    }
  }
}

double number_at(const std::vector<uint8_t>& bytes, Number type, size_t i) {
  const size_t size = type == Number::F32 ? 4 : 2;
  uint32_t bits = 0;
  std::memcpy(&bits, &bytes[i * size], size);
  if (type == Number::F16) return to_float(half(bits));
  return std::bit_cast<float>(type == Number::BF16 ? bits << 16 : bits);
}

// Memory for outputs whose bytes are all 0xFF, NaN as numbers.
template <class T>
class Poisoned : public Buffer<T> {
 public:
  explicit Poisoned(size_t n) : Buffer<T>(n) { must(cudaMemset(this->get(), 0xFF, n * sizeof(T))); }
};

PromptArgs args_of(const PromptCase& test) {
  PromptArgs args;
  args.dim = test.dim, args.n_heads = test.n_heads, args.group = test.group;
  args.n_streams = n_streams(test), args.n_tokens = n_tokens(test);
  args.scale = float(scale_of(test));
  args.out_type = test.type;
  return args;
}

struct Results {
  std::vector<uint8_t> out;
  std::vector<float> log_sums;
  int n_pieces = 0;
};

void attend(const PromptArgs& args) {
  const Status status = attend_prompt(args, nullptr);
  if (!status.ok()) throw std::runtime_error(status.message());
  must(cudaDeviceSynchronize());
}

// Joins what `args` left with attention over the past, piece after piece. Returns their number.
int add_past(PromptArgs args, const PromptCase& test, const PastRows& past) {
  const Buffer<half> k_rows(past.k.data()), v_rows(past.v.data());
  const InputRows k = past.k.at(k_rows), v = past.v.at(v_rows);
  const std::vector<int> zeros(kPromptTurns);
  const Buffer<int> turns(zeros);
  args.sinks = nullptr;
  args.turns = test.shared ? turns.get() : nullptr;
  int n_pieces = 0;
  for (int first = 0; first < n_tokens(past.test); first += test.n_at_once, ++n_pieces) {
    std::vector<int32_t> counts;
    for (const int n : past.test.lengths)
      counts.push_back(std::clamp(n - first, 0, test.n_at_once));
    const Buffer<int32_t> device_counts(counts);
    args.past = device_counts.get();
    args.k = k, args.k.data += first * k.token_stride;
    args.v = v, args.v.data += first * v.token_stride;
    attend(args);
    EXPECT_EQ(turns.read(), zeros);
  }
  return n_pieces;
}

Results attend(const PromptCase& test, const Inputs& inputs) {
  const Buffer<half> q(inputs.q.data()), k(inputs.k.data()), v(inputs.v.data());
  std::vector<float> sinks;
  for (int head = 0; head < test.n_heads * test.group; ++head) sinks.push_back(sink_of(head));
  const Buffer<float> sink_logits(sinks);
  const Buffer<int32_t> lengths(test.lengths);
  const size_t n_rows = n_rows_of(test);
  const Poisoned<uint8_t> out(n_rows * size_t(test.dim) * (test.type == Number::F32 ? 4 : 2));
  const Poisoned<float> log_sums(n_rows);
  PromptArgs args = args_of(test);
  args.q = inputs.q.at(q), args.k = inputs.k.at(k), args.v = inputs.v.at(v);
  if (n_streams(test) > 1) args.lengths = lengths.get();
  if (test.sinks) args.sinks = sink_logits.get();
  args.out = out.get();
  if (test.log_sums) args.log_sums = log_sums.get();
  attend(args);
  const int n_pieces = add_past(args, test, inputs.past);
  return {out.read(), log_sums.read(), n_pieces};
}

std::string describe(const PromptCase& test) {
  std::string text =
      fmt::format("dim {} heads {} group {} type {} by heads {} sinks {} size {} lengths", test.dim,
                  test.n_heads, test.group, int(test.type), test.by_heads, test.sinks, test.q_size);
  for (const int length : test.lengths) text += fmt::format(" {}", length);
  for (const int n : test.past) text += fmt::format(", after {}", n);
  return text;
}

void expect_right(const PromptCase& test) {
  const std::string text = describe(test);
  const int query_heads = test.n_heads * test.group;
  const size_t n_rows = n_rows_of(test);
  const Inputs inputs(test);
  const auto [found, logs, n_pieces] = attend(test, inputs);
  std::vector<bool> written(n_rows);
  double distance = 0, norm = 0, worst_log = 0;
  each_row(test, inputs, [&](int s, int t, int head, const Attended& expected) {
    const size_t row = size_t((s * n_tokens(test) + t) * query_heads + head);
    written[row] = true;
    for (size_t c = 0; c < expected.out.size(); ++c) {
      const double off = number_at(found, test.type, row * size_t(test.dim) + c) - expected.out[c];
      distance += off * off;
      norm += expected.out[c] * expected.out[c];
    }
    if (!test.log_sums) return;
    const double off = std::abs(double(logs[row]) - expected.log_sum);
    if (!(off <= worst_log)) worst_log = off;  // NaN too
  });
  EXPECT_LT(std::sqrt(distance / norm), bound_of(test.type, 1 + n_pieces)) << text;
  EXPECT_LT(worst_log, kLogBound * std::max(1.0f, test.q_size)) << text;
  for (size_t row = 0; row < n_rows; ++row) {
    if (written[row]) continue;
    ASSERT_TRUE(std::isnan(logs[row])) << text << ", row " << row;
    for (size_t c = 0; c < size_t(test.dim); ++c)
      ASSERT_TRUE(std::isnan(number_at(found, test.type, row * size_t(test.dim) + c))) << text;
  }
}

TEST_F(Prompt, HeadSizesAndGroups) {
  for (const int dim : {64, 128, 256}) {
    for (const int group : {1, 4, 8}) expect_right({.dim = dim, .group = group});
  }
}

TEST_F(Prompt, NumbersOfTokens) {
  for (const int dim : {64, 128, 256}) {
    for (const int n : {1, 2, 15, 16, 17, 31, 33, 63, 64, 65, 127, 128, 129, 191, 193, 257})
      expect_right({.dim = dim, .n_heads = 1, .group = 2, .lengths = {n}});
  }
}

TEST_F(Prompt, LongText) {
  expect_right({.dim = 64, .n_heads = 1, .group = 2, .lengths = {1501}});
  expect_right({.n_heads = 1, .group = 1, .lengths = {2000}});
  expect_right({.dim = 256, .n_heads = 1, .group = 1, .lengths = {1000}});
}

TEST_F(Prompt, StreamsOfDifferentLengths) {
  for (const int dim : {64, 128, 256})
    expect_right({.dim = dim, .group = 2, .lengths = {130, 0, 1, 300, 64, 129}});
}

TEST_F(Prompt, RowsOfAnyStride) {
  for (const int dim : {64, 128, 256})
    expect_right({.dim = dim, .lengths = {100, 170}, .by_heads = true});
}

TEST_F(Prompt, TypesOfNumbers) {
  for (const Number type : {Number::F16, Number::BF16, Number::F32}) {
    for (const int dim : {64, 128, 256})
      expect_right({.dim = dim, .n_heads = 1, .lengths = {70, 133}, .type = type});
  }
}

TEST_F(Prompt, SharpAttention) {
  for (const int dim : {64, 128, 256}) expect_right({.dim = dim, .lengths = {300}, .q_size = 6});
}

TEST_F(Prompt, Sinks) {
  for (const int dim : {64, 128, 256})
    expect_right({.dim = dim, .lengths = {150, 40}, .sinks = true});
}

TEST_F(Prompt, WithoutLogarithms) { expect_right({.log_sums = false}); }

TEST_F(Prompt, PastInOnePiece) {
  for (const int dim : {64, 128, 256}) {
    for (const int group : {1, 4, 8})
      expect_right(
          {.dim = dim, .group = group, .lengths = {150}, .past = {170}, .n_at_once = 1000});
    for (const int n : {1, 15, 63, 64, 65, 127, 128, 129, 300})
      expect_right(
          {.dim = dim, .n_heads = 1, .group = 2, .lengths = {70}, .past = {n}, .n_at_once = 512});
  }
}

TEST_F(Prompt, PastInManyPieces) {
  for (const int dim : {64, 128, 256}) {
    for (const int n_at_once : {64, 100, 128})
      expect_right({.dim = dim, .lengths = {140}, .past = {400}, .n_at_once = n_at_once});
  }
}

// Few new tokens, whose past several blocks of threads share, the same way every time.
TEST_F(Prompt, PastThatBlocksShare) {
  for (const int dim : {64, 128, 256}) {
    for (const bool shared : {true, false})
      expect_right({.dim = dim,
                    .n_heads = 1,
                    .lengths = {70, 130, 3},
                    .past = {2100, 700, 250},
                    .n_at_once = 4096,
                    .shared = shared});
    const PromptCase test{.dim = dim, .lengths = {100}, .past = {3000}, .n_at_once = 2000};
    const Inputs inputs(test);
    const Results first = attend(test, inputs);
    for (int repeat = 0; repeat < 20; ++repeat) {
      const Results again = attend(test, inputs);
      ASSERT_EQ(again.out, first.out) << describe(test);
      ASSERT_EQ(again.log_sums, first.log_sums) << describe(test);
    }
  }
}

TEST_F(Prompt, PastsOfDifferentLengths) {
  for (const int dim : {64, 128, 256})
    expect_right({.dim = dim,
                  .group = 2,
                  .lengths = {130, 0, 1, 300, 64, 129},
                  .past = {0, 90, 200, 128, 1, 333},
                  .n_at_once = 128});
}

TEST_F(Prompt, PastAndTypesOfNumbers) {
  for (const Number type : {Number::F16, Number::BF16, Number::F32}) {
    for (const int dim : {64, 128, 256})
      expect_right({.dim = dim, .lengths = {70, 133}, .type = type, .past = {200, 100}});
  }
}

TEST_F(Prompt, PastWithSinksAndSharpAttention) {
  for (const int dim : {64, 128, 256}) {
    expect_right({.dim = dim, .lengths = {150, 40}, .sinks = true, .past = {90, 250}});
    expect_right({.dim = dim, .lengths = {300}, .q_size = 6, .past = {300}});
  }
}

TEST_F(Prompt, SaysWhatIsWrongWithArguments) {
  PromptArgs args;
  EXPECT_NE(attend_prompt(args, nullptr).message().find("n_heads = 0"), std::string::npos);
  args.n_heads = args.group = args.n_streams = args.n_tokens = 1;
  EXPECT_NE(attend_prompt(args, nullptr).message().find("dim = 0"), std::string::npos);
  args.dim = 64;
  EXPECT_NE(attend_prompt(args, nullptr).message().find("q with a null pointer"),
            std::string::npos);
  const Buffer<half> rows(64);
  args.q = args.k = args.v = {rows.get(), 64, 64, 64};
  EXPECT_NE(attend_prompt(args, nullptr).message().find("for out"), std::string::npos);
  args.out = rows.get();
  EXPECT_NE(attend_prompt(args, nullptr).message().find("scale = 0"), std::string::npos);
  args.k.token_stride = int64_t{1} << 31;
  EXPECT_NE(attend_prompt(args, nullptr).message().find("k with a token stride"),
            std::string::npos);
  args.k.token_stride = 64;
  args.scale = 1;
  const Buffer<int32_t> past(1);
  args.past = past.get();
  EXPECT_NE(attend_prompt(args, nullptr).message().find("a past without log_sums"),
            std::string::npos);
}

}  // namespace
}  // namespace zipcache::cuda::test
