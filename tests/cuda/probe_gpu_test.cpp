// The saliency pass against double precision over the same 16-bit rows, on a GPU.
#include <fmt/format.h>

#include <cmath>

#include "base/random.hpp"
#include "cuda/gpu.hpp"
#include "cuda/probe.hpp"
#include "support/random_rows.hpp"

namespace zipcache::cuda::test {
namespace {

using zipcache::test::random_rows;
using zipcache::test::to_halves;

// Sums of 32 bits over products of 16-bit numbers; the exponential is 2^-22 off.
constexpr double kBound = 3e-5;

class Probe : public OnGpu {};

// The rows that see what: each the newest tokens up to its own, as in a prompt, or any number.
enum class Limits { Causal, Any, Most };

struct ProbeCase {
  int dim = 128, n_heads = 2, group = 4, n_streams = 1, n_probes = 40, n_tokens = 700;
  Limits limits = Limits::Causal;
  bool log_sums = false;  // given, over twice as much as the probes see here
  float q_size = 1;
  bool seen = true;
  int oldest = 0;  // row of the first stream's first token; of each other one 5 rows further on
};

// Rows of a ring that begins at a stream's oldest token.
int row_of(const ProbeCase& test, int stream, int token) {
  return (test.oldest + 5 * stream * (test.oldest > 0) + token) % test.n_tokens;
}

struct Expected {
  std::vector<double> sums;    // [stream, head, token]
  std::vector<uint32_t> seen;  // [stream, token]
  std::vector<float> log_sums;
};

struct Rows {
  std::vector<half> q, k;  // [stream, probe, query head, dim], [stream, token, head, dim]
  std::vector<int32_t> limits;
};

Rows make_rows(const ProbeCase& test) {
  Rows rows;
  const int n_queries = test.n_streams * test.n_probes * test.n_heads * test.group;
  std::vector<float> q = random_rows(n_queries, test.dim, 1, 1.0f);
  for (float& value : q) value *= test.q_size;
  rows.q = to_halves(q);
  rows.k = to_halves(random_rows(test.n_streams * test.n_tokens * test.n_heads, test.dim, 2, 2.0f));
  Random random(3, 0);
  for (int i = 0; i < test.n_streams * test.n_probes; ++i) {
    const int probe = i % test.n_probes;
    int limit = test.n_tokens;
    if (test.limits == Limits::Causal) limit = (probe + 1) * test.n_tokens / test.n_probes;
    if (test.limits == Limits::Any) limit = int(random.below(uint32_t(test.n_tokens) + 1));
    if (test.limits == Limits::Any && probe % 5 == 2) limit = 0;
    rows.limits.push_back(limit);
  }
  return rows;
}

double scale_of(const ProbeCase& test) { return 1 / std::sqrt(double(test.dim)); }

Expected expected_of(const ProbeCase& test, const Rows& rows) {
  Expected out;
  out.sums.assign(size_t(test.n_streams * test.n_heads) * size_t(test.n_tokens), 0.0);
  out.seen.assign(size_t(test.n_streams) * size_t(test.n_tokens), 0);
  for (int s = 0; s < test.n_streams; ++s) {
    for (int probe = 0; probe < test.n_probes; ++probe) {
      const int limit = rows.limits[size_t(s * test.n_probes + probe)];
      for (int t = 0; t < limit; ++t) ++out.seen[size_t(s * test.n_tokens + row_of(test, s, t))];
      for (int head = 0; head < test.n_heads * test.group; ++head) {
        const int kv = head / test.group;
        const half* q =
            &rows.q[size_t((s * test.n_probes + probe) * test.n_heads * test.group + head) *
                    size_t(test.dim)];
        std::vector<double> weights;
        double mass = 0;
        for (int t = 0; t < limit; ++t) {
          const half* k =
              &rows.k[size_t((s * test.n_tokens + row_of(test, s, t)) * test.n_heads + kv) *
                      size_t(test.dim)];
          double score = 0;
          for (int c = 0; c < test.dim; ++c) score += double(to_float(q[c])) * to_float(k[c]);
          weights.push_back(std::exp(score * scale_of(test)));
          mass += weights.back();
        }
        // What the GPU is given it has as a float.
        float log_sum = float(std::log(test.log_sums ? 2 * mass : mass));
        out.log_sums.push_back(log_sum);
        if (test.log_sums) mass = std::exp(double(log_sum));
        for (int t = 0; t < limit; ++t) {
          out.sums[size_t((s * test.n_heads + kv) * test.n_tokens + row_of(test, s, t))] +=
              weights[size_t(t)] / mass;
        }
      }
    }
  }
  return out;
}

// What a pass adds to sums and counts that are 1 before.
void expect_right(const ProbeCase& test) {
  const std::string text =
      fmt::format("dim {} heads {} group {} streams {} probes {} tokens {} limits {} given {}",
                  test.dim, test.n_heads, test.group, test.n_streams, test.n_probes, test.n_tokens,
                  int(test.limits), test.log_sums);
  const Rows rows = make_rows(test);
  const Expected expected = expected_of(test, rows);
  const Buffer<half> q(rows.q), k(rows.k);
  const Buffer<int32_t> limits(rows.limits);
  const Buffer<float> log_sums(expected.log_sums);
  const Buffer<float> sums(std::vector<float>(expected.sums.size(), 1.0f));
  const Buffer<uint32_t> seen(std::vector<uint32_t>(expected.seen.size(), 1));
  ProbeArgs args;
  args.dim = test.dim;
  args.n_heads = test.n_heads;
  args.group = test.group;
  args.n_streams = test.n_streams;
  args.n_probes = test.n_probes;
  args.n_tokens = test.n_tokens;
  const int64_t q_row = int64_t{test.n_heads} * test.group * test.dim;
  const int64_t k_row = int64_t{test.n_heads} * test.dim;
  args.q = {q.get(), q_row * test.n_probes, q_row, test.dim};
  args.k = {k.get(), k_row * test.n_tokens, k_row, test.dim};
  std::vector<int32_t> first_rows;
  for (int s = 0; s < test.n_streams; ++s) first_rows.push_back(row_of(test, s, 0));
  const Buffer<int32_t> oldest(first_rows);
  if (test.oldest > 0) args.oldest = oldest.get();
  args.limits = limits.get();
  if (test.log_sums) args.log_sums = log_sums.get();
  const Buffer<float> workspace(probe_workspace(args) / sizeof(float));
  args.workspace = workspace.get();
  args.scale = float(scale_of(test));
  args.sums = {sums.get(), int64_t{test.n_heads} * test.n_tokens, test.n_tokens};
  if (test.seen) args.seen = {seen.get(), test.n_tokens, 0};
  const Status status = sum_probes(args, nullptr);
  ASSERT_TRUE(status.ok()) << status.message();
  ASSERT_EQ(cudaDeviceSynchronize(), cudaSuccess) << text;

  const std::vector<float> found = sums.read();
  double distance = 0, norm = 0;
  for (size_t i = 0; i < found.size(); ++i) {
    const double off = double(found[i]) - 1 - expected.sums[i];
    distance += off * off;
    norm += (1 + expected.sums[i]) * (1 + expected.sums[i]);
  }
  const double error = std::sqrt(distance / norm);
  EXPECT_LT(error, kBound) << text;
  EXPECT_FALSE(std::isnan(error)) << text;
  const std::vector<uint32_t> counts = seen.read();
  for (size_t i = 0; i < counts.size(); ++i)
    ASSERT_EQ(counts[i], 1 + (test.seen ? expected.seen[i] : 0)) << text << ", token " << i;
}

TEST_F(Probe, HeadSizesAndGroups) {
  for (const int dim : {64, 128, 256}) {
    for (const int group : {1, 3, 4, 7}) {
      expect_right({.dim = dim, .group = group});
      expect_right({.dim = dim, .group = group, .log_sums = true});
    }
  }
}

TEST_F(Probe, NumbersOfRows) {
  for (const int n_tokens : {1, 7, 128, 129, 1000}) {
    for (const int n_probes : {1, 15, 64, 65}) {
      expect_right({.n_probes = n_probes, .n_tokens = n_tokens});
      expect_right({.dim = 256, .n_heads = 1, .n_probes = n_probes, .n_tokens = n_tokens});
    }
  }
}

TEST_F(Probe, LimitsOfAnyKind) {
  for (const Limits limits : {Limits::Any, Limits::Most}) {
    for (const bool log_sums : {false, true})
      expect_right({.n_streams = 3, .limits = limits, .log_sums = log_sums});
  }
}

TEST_F(Probe, SharpAttention) {
  expect_right({.q_size = 6});
  expect_right({.log_sums = true, .q_size = 6});
}

TEST_F(Probe, RowsOfARing) {
  for (const int oldest : {1, 130, 699}) {
    for (const bool log_sums : {false, true}) {
      expect_right({.n_streams = 2, .limits = Limits::Any, .log_sums = log_sums, .oldest = oldest});
    }
  }
}

TEST_F(Probe, WithoutCounts) { expect_right({.seen = false}); }

TEST_F(Probe, SaysWhatIsWrongWithArguments) {
  ProbeArgs args;
  EXPECT_NE(sum_probes(args, nullptr).message().find("dim = 0"), std::string::npos);
  args.dim = 64;
  args.n_heads = args.group = args.n_streams = args.n_probes = args.n_tokens = 1;
  EXPECT_NE(sum_probes(args, nullptr).message().find("q with a null pointer"), std::string::npos);
}

}  // namespace
}  // namespace zipcache::cuda::test
