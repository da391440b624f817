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

// Weights are rounded to 16 bits, outputs to their type: half a unit of the last place each.
double bound_of(Number type) {
  constexpr double kHalf = 1.0 / 2048, kBrain = 1.0 / 256;
  return kHalf + (type == Number::F16 ? kHalf : type == Number::BF16 ? kBrain : 0);
}
// Of a logarithm where scores are a few units: 32-bit sums whose last bits a matrix unit cuts off.
constexpr double kLogBound = 1e-4;

class Prompt : public ::testing::Test {
 protected:
  void SetUp() override {
    if (!have_gpu()) GTEST_SKIP() << "found no CUDA device; run on a machine with one";
  }
};

struct PromptCase {
  int dim = 128, n_heads = 2, group = 4;
  std::vector<int> lengths = {200};
  Number type = Number::F32;  // of the outputs
  bool by_heads = false;  // rows [stream, head, token, dim] with gaps, else [.., token, head, ..]
  bool sinks = false, log_sums = true;
  float q_size = 1;
};

int n_streams(const PromptCase& test) { return int(test.lengths.size()); }
int n_tokens(const PromptCase& test) {
  return *std::max_element(test.lengths.begin(), test.lengths.end());
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

// visit(stream, token, query head, its attention over the tokens up to itself).
template <class Visit>
void each_row(const PromptCase& test, const Rows& q, const Rows& k, const Rows& v, Visit&& visit) {
  for (int s = 0; s < n_streams(test); ++s) {
    for (int head = 0; head < test.n_heads; ++head) {
      std::vector<std::vector<double>> keys, values;
      for (int t = 0; t < test.lengths[size_t(s)]; ++t) {
        keys.push_back(k.row(s, t, head));
        values.push_back(v.row(s, t, head));
      }
      for (int t = 0; t < test.lengths[size_t(s)]; ++t) {
        for (int i = 0; i < test.group; ++i) {
          const int query_head = head * test.group + i;
          const float sink = sink_of(query_head);
          visit(s, t, query_head,
                attended(test, q.row(s, t, query_head), keys, values, t + 1,
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

void expect_right(const PromptCase& test) {
  std::string text =
      fmt::format("dim {} heads {} group {} type {} by heads {} sinks {} size {} lengths", test.dim,
                  test.n_heads, test.group, int(test.type), test.by_heads, test.sinks, test.q_size);
  for (const int length : test.lengths) text += fmt::format(" {}", length);
  const int query_heads = test.n_heads * test.group;
  const Rows q(test, query_heads, 1, test.q_size), k(test, test.n_heads, 2),
      v(test, test.n_heads, 3);
  const Buffer<half> q_rows(q.data()), k_rows(k.data()), v_rows(v.data());
  std::vector<float> sinks;
  for (int head = 0; head < query_heads; ++head) sinks.push_back(sink_of(head));
  const Buffer<float> sink_logits(sinks);
  const Buffer<int32_t> lengths(test.lengths);
  const size_t n_rows = size_t(n_streams(test)) * size_t(n_tokens(test)) * size_t(query_heads);
  const Poisoned<uint8_t> out(n_rows * size_t(test.dim) * (test.type == Number::F32 ? 4 : 2));
  const Poisoned<float> log_sums(n_rows);
  PromptArgs args = args_of(test);
  args.q = q.at(q_rows), args.k = k.at(k_rows), args.v = v.at(v_rows);
  if (n_streams(test) > 1) args.lengths = lengths.get();
  if (test.sinks) args.sinks = sink_logits.get();
  args.out = out.get();
  if (test.log_sums) args.log_sums = log_sums.get();
  const Status status = attend_prompt(args, nullptr);
  ASSERT_TRUE(status.ok()) << status.message();
  ASSERT_EQ(cudaDeviceSynchronize(), cudaSuccess) << text;

  const std::vector<uint8_t> found = out.read();
  const std::vector<float> logs = log_sums.read();
  std::vector<bool> written(n_rows);
  double distance = 0, norm = 0, worst_log = 0;
  each_row(test, q, k, v, [&](int s, int t, int head, const Attended& expected) {
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
  EXPECT_LT(std::sqrt(distance / norm), bound_of(test.type)) << text;
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

// Attention over the first kPast tokens comes from the host, that over the others from the GPU.
TEST_F(Prompt, MergeOfTwoPartsIsTheWhole) {
  constexpr int kPast = 100, kRows = 64;
  for (const Number type : {Number::F16, Number::BF16, Number::F32}) {
    const PromptCase test{
        .dim = type == Number::F32 ? 64 : 128, .lengths = {230, 190}, .type = type};
    const int query_heads = test.n_heads * test.group, tokens = n_tokens(test) - kPast;
    const Rows q(test, query_heads, 1), k(test, test.n_heads, 2), v(test, test.n_heads, 3);
    const Buffer<half> q_rows(q.data()), k_rows(k.data()), v_rows(v.data());
    PromptArgs args = args_of(test);
    args.n_tokens = tokens;
    const auto newer = [](InputRows rows) {
      rows.data += kPast * rows.token_stride;
      return rows;
    };
    args.q = newer(q.at(q_rows)), args.k = newer(k.at(k_rows)), args.v = newer(v.at(v_rows));
    const Buffer<int32_t> lengths(std::vector<int32_t>{130, 90});
    args.lengths = lengths.get();
    const size_t n_rows = 2 * size_t(tokens) * size_t(query_heads);
    const Poisoned<uint8_t> out(n_rows * size_t(test.dim) * 4);
    const Poisoned<float> log_sums(n_rows);
    args.out = out.get(), args.log_sums = log_sums.get();
    ASSERT_TRUE(attend_prompt(args, nullptr).ok());

    for (int first = 0; first < tokens; first += kRows) {
      const size_t n = 2 * size_t(kRows) * size_t(query_heads);
      std::vector<float> past(n * size_t(test.dim), NAN), past_logs(n, NAN);
      for (int s = 0; s < 2; ++s) {
        for (int t = first; t < std::min(first + kRows, test.lengths[size_t(s)] - kPast); ++t) {
          for (int head = 0; head < query_heads; ++head) {
            std::vector<std::vector<double>> keys, values;
            for (int p = 0; p < kPast; ++p) {
              keys.push_back(k.row(s, p, head / test.group));
              values.push_back(v.row(s, p, head / test.group));
            }
            const Attended part =
                attended(test, q.row(s, kPast + t, head), keys, values, kPast, nullptr);
            const size_t row = size_t((s * kRows + t - first) * query_heads + head);
            std::copy(part.out.begin(), part.out.end(), &past[row * size_t(test.dim)]);
            past_logs[row] = float(part.log_sum);
          }
        }
      }
      const Buffer<float> past_rows(past), past_sums(past_logs);
      MergeArgs merge;
      merge.dim = test.dim, merge.n_query_heads = query_heads;
      merge.n_streams = 2, merge.n_tokens = tokens;
      merge.first = first, merge.n_rows = kRows;
      merge.lengths = lengths.get();
      merge.past = past_rows.get(), merge.past_log_sums = past_sums.get();
      merge.out = out.get(), merge.out_type = type;
      merge.log_sums = log_sums.get();
      ASSERT_TRUE(merge_past(merge, nullptr).ok());
      ASSERT_EQ(cudaDeviceSynchronize(), cudaSuccess);
    }

    const std::vector<uint8_t> found = out.read();
    const std::vector<float> logs = log_sums.read();
    double distance = 0, norm = 0, worst_log = 0;
    each_row(test, q, k, v, [&](int s, int t, int head, const Attended& expected) {
      if (t < kPast) return;
      const size_t row = size_t((s * tokens + t - kPast) * query_heads + head);
      for (size_t c = 0; c < expected.out.size(); ++c) {
        const double off = number_at(found, type, row * size_t(test.dim) + c) - expected.out[c];
        distance += off * off;
        norm += expected.out[c] * expected.out[c];
      }
      const double off = std::abs(double(logs[row]) - expected.log_sum);
      if (!(off <= worst_log)) worst_log = off;
    });
    // A row is rounded to its type twice.
    EXPECT_LT(std::sqrt(distance / norm), 2 * bound_of(type)) << int(type);
    EXPECT_LT(worst_log, kLogBound) << int(type);
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
  EXPECT_EQ(merge_past({}, nullptr).code(), Code::BadArgument);
}

}  // namespace
}  // namespace zipcache::cuda::test
