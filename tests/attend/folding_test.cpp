// Property 14 of the method: attention over packed blocks equals attention over the rows they
// decode to, whatever the order of rows, tiers and blocks.
#include <gtest/gtest.h>

#include <cmath>

#include "attend/partial.hpp"
#include "support/block_rig.hpp"
#include "support/random_rows.hpp"

namespace zipcache {
namespace {

using test::BlockRig;

constexpr int kRows = 300, kDim = 64, kHeads = 2;

const char* const kPolicies[] = {"uniform",
                                 "uniform,bits=3",
                                 "uniform,bits=8,fit=midpoint",
                                 "zipcache",
                                 "zip",
                                 "uniform,k_axis=group16,v_axis=group32",
                                 "uniform,k_axis=cst,v_axis=channel",
                                 "kivi2",
                                 "h2o",
                                 "random+pin,bits=4/0",
                                 "mikv",
                                 "streaming",
                                 "zipcache,k_axis=channel32,v_axis=channel16",
                                 "zipcache,rotate=hadamard",
                                 "random-tiers",
                                 "kvarn-k4v2,sinks=0",
                                 "sym8",
                                 "sym4-had,k=4/3,v=8/2,ratio=0.4",
                                 "sym4,k_axis=cst,v_axis=channel32",
                                 "turbo-k4v4",
                                 "turbo-k4v4,v_codec=lloyd,bits=4/2,v=3/2,v_axis=channel32",
                                 "fp8",
                                 "fp8,k_axis=token,v_axis=token,v_dual=3",
                                 "nvfp4",
                                 "roco",
                                 "uniform,dual=3,k_axis=channel32,v_axis=group32",
                                 "zipcache,dual=2,k_axis=group16,v_axis=channel",
                                 "zipcache,k=16/4,v=8/3",
                                 "zip,v=4/3/2,ratio=0.2/0.3",
                                 "zipcache,bits=16/4/2/0,ratio=0.1/0.3/0.3",
                                 "zipcache,k=8/8/3,v=16/4/2,ratio=0.3/0.3,v_axis=channel",
                                 "random-tiers,bits=8/4/3/2,ratio=0.11/0.2/0.3,dual=2,"
                                 "v_axis=token",
                                 "random-tiers,bits=8/4/3/2,ratio=0.1/0.1/0.1,codec=sym,"
                                 "k_axis=group32,v_axis=token,rotate=hadamard",
                                 "turbo-k4v4,v_codec=lloyd,k=4/3/2,v=16/4/4/2,ratio=0.1/0.2/0.3",
                                 "gear2-l",
                                 "zipcache,k=16/4,v=8/3,k_rank=1,v_rank=5",
                                 "zip,v=4/3/2,ratio=0.2/0.3,rank=16",
                                 "kvarn-k4v2,rank=2",
                                 "fp8,k_rank=3",
                                 "turbo-k4v4,v_codec=lloyd,rank=4",
                                 "random+pin,bits=4/0,rank=2,rotate=file",
                                 "rdkv",
                                 "zip,rotate=file",
                                 "oscar2",
                                 "skvq,cadence=prompt",
                                 "zipcache,k_rotate=file,v_rotate=hadamard,k=16/4,v_clip=q0.9",
                                 "h2o,bits=4/0,v_rotate=file"};

struct Case {
  std::vector<float> k = test::random_rows(kRows, kHeads* kDim, 1);
  std::vector<float> v = test::random_rows(kRows, kHeads* kDim, 2, 3.0f);
  std::vector<float> q = test::random_rows(21, 2 * kHeads * kDim, 3, 1.0f);
};

test::OracleOut oracle_over(const BlockRig& rig, const std::vector<float>& q, int n_queries,
                            int last_visible) {
  test::OracleStep step{n_queries,
                        2 * kHeads,
                        kHeads,
                        kDim,
                        kDim,
                        rig.log.n_cells(),
                        test::to_doubles(q),
                        rig.decoded(SideId::K),
                        rig.decoded(SideId::V),
                        {},
                        rig.scale,
                        0,
                        0,
                        {},
                        rig.absent()};
  step.mask.assign(size_t(n_queries * rig.log.n_cells()), test::kHidden);
  for (int i = 0; i < n_queries; ++i) {
    for (int c = 0; c <= last_visible + i; ++c) step.mask[size_t(i * rig.log.n_cells() + c)] = 0;
  }
  return test::attention(step);
}

void expect_near(const std::vector<float>& out, const test::OracleOut& expected) {
  // The same numbers in float instead of double: 1e-5 of the largest value times the terms of a
  // score.
  const double tolerance = 1e-5 * expected.largest_value * (1 + expected.largest_score);
  for (size_t i = 0; i < out.size(); ++i) ASSERT_NEAR(out[i], expected.out[i], tolerance) << i;
}

TEST(Folding, PackedAttentionEqualsAttentionOverExpandedRows) {
  const Case data;
  for (const char* text : kPolicies) {
    for (const bool shared : {false, true}) {
      Policy policy = *parse_policy(text);
      policy.precision = Precision::Exact;
      BlockRig rig({kHeads, kDim, kDim}, policy, kRows);
      rig.scale = 0.125f;
      rig.append(kRows, data.k, data.v);
      if (rig.store.packed.policy().needs_scores()) {
        rig.attend(data.q, 21, 2 * kHeads, kRows - 21, *runnable_kernels().front());
        rig.score({0, 5, 20});
      }
      if (!shared) {  // some rows stay at 16 bits inside their packed blocks
        for (const int cell : {0, 1, 64, 200}) rig.log.mark_sink(rig.log.find(cell));
      }
      rig.pack(shared);
      for (const Kernels* kernels : runnable_kernels()) {
        for (const int n_queries : {1, 21}) {
          SCOPED_TRACE(testing::Message()
                       << text << " " << kernels->name << " " << n_queries << " " << shared);
          const auto out = rig.attend(data.q, n_queries, 2 * kHeads, kRows - n_queries, *kernels);
          const std::vector<float> q(data.q.begin(),
                                     data.q.begin() + n_queries * 2 * kHeads * kDim);
          expect_near(out, oracle_over(rig, q, n_queries, kRows - n_queries));
        }
      }
    }
  }
}

// Tokens differ in size by factors of up to 16, channels by 8: what is decoded with a factor of
// another token or channel, or without it, is far off. Raw tiers are not scaled at all.
TEST(Folding, SidesWithFactorsDecodeNearTheirRowsInEveryTier) {
  std::vector<float> rows = test::random_rows(kRows, kHeads * kDim, 7);
  const auto token_size = [](size_t i) { return std::exp2(float(i / (kHeads * kDim) % 5)); };
  for (size_t i = 0; i < rows.size(); ++i) rows[i] *= token_size(i);
  for (const char* text :
       {"random-tiers,bits=16/8,k_axis=cst", "random-tiers,bits=16/8,dual=4,v_axis=token",
        "random-tiers,bits=16/8,dual=4,k_axis=token,v_axis=channel32",
        "kvarn-k4v4,bits=8,sinks=0,rotate=none"}) {
    for (const bool shared : {false, true}) {
      BlockRig rig({kHeads, kDim, kDim}, *parse_policy(text), kRows);
      rig.append(kRows, rows, rows);
      rig.pack(shared);
      for (const SideId side : {SideId::K, SideId::V}) {
        const std::vector<double> decoded = rig.decoded(side);
        for (size_t i = 0; i < rows.size(); ++i) {
          // Half a step of 8 bits is 0.02 spreads in a set of ten; channel separation leaves quiet
          // channels a few times that.
          const double spread = token_size(i) * (i % 16 == 5 ? 8 : 1);
          ASSERT_NEAR(decoded[i], rows[i], 0.1 * spread) << text << " " << int(side) << " at " << i;
        }
      }
    }
  }
}

TEST(Folding, AnyOrderOfTokensAndAnySplitGiveTheSameAnswer) {
  const Case data;
  std::vector<float> k(data.k.size()), v(data.v.size());
  const size_t width = kHeads * kDim;
  for (int t = 0; t < kRows; ++t) {
    const size_t from = size_t((t * 7) % kRows) * width;
    std::copy_n(&data.k[from], width, &k[size_t(t) * width]);
    std::copy_n(&data.v[from], width, &v[size_t(t) * width]);
  }
  BlockRig straight({kHeads, kDim, kDim}, *parse_policy("f16"), kRows);
  BlockRig shuffled({kHeads, kDim, kDim}, *parse_policy("f16"), kRows);
  straight.scale = shuffled.scale = 0.125f;
  straight.append(kRows, data.k, data.v);
  shuffled.append(kRows, k, v);
  const auto expected =
      oracle_over(straight, {data.q.begin(), data.q.begin() + 2 * kHeads * kDim}, 1, kRows - 1);
  for (const int threads : {1, 2, 7}) {  // more threads split the log into more parts
    const Kernels& kernels = *runnable_kernels().front();
    expect_near(straight.attend(data.q, 1, 2 * kHeads, kRows - 1, kernels, threads), expected);
    expect_near(shuffled.attend(data.q, 1, 2 * kHeads, kRows - 1, kernels, threads), expected);
  }
}

Partial partial_of(int rows, int dim, uint64_t seed) {
  Partial partial;
  partial.reset(rows, dim);
  const auto out = test::random_rows(rows, dim, seed),
             peaks = test::random_rows(rows, 1, seed + 1, 1.0f);
  for (int r = 0; r < rows; ++r) {
    partial.raise(r, 5 * peaks[size_t(r)]);
    partial.mass[size_t(r)] = 1.0f + float(r);
    std::copy_n(&out[size_t(r * dim)], dim, partial.row(r));
  }
  return partial;
}

void expect_same(const Partial& a, const Partial& b) {
  for (int r = 0; r < a.n_rows; ++r) {
    EXPECT_NEAR(a.log_mass(r), b.log_mass(r), 1e-5);
    for (int c = 0; c < a.dim; ++c) {
      EXPECT_NEAR(a.row(r)[c] / a.mass[size_t(r)], b.row(r)[c] / b.mass[size_t(r)], 1e-4);
    }
  }
}

TEST(Partial, MergingIsAssociativeCommutativeAndHasAnIdentity) {
  const Partial a = partial_of(3, 5, 1), b = partial_of(3, 5, 11), c = partial_of(3, 5, 21);
  Partial left = a, right = b, swapped = c, identity;
  left.merge(b);
  left.merge(c);
  right.merge(c);
  Partial nested = a;
  nested.merge(right);
  swapped.merge(b);
  swapped.merge(a);
  expect_same(left, nested);
  expect_same(left, swapped);
  identity.reset(3, 5);
  identity.merge(a);
  expect_same(identity, a);
  Partial same = a;
  Partial fresh;
  fresh.reset(3, 5);
  same.merge(fresh);
  expect_same(same, a);
}

TEST(Partial, ALogitWithoutValueTakesItsShareOfTheMass) {
  Partial partial;
  partial.reset(1, 1);
  partial.raise(0, 2.0f);
  partial.mass[0] = 1;
  partial.row(0)[0] = 8;
  partial.add_logit(0, 2.0f);
  EXPECT_FLOAT_EQ(partial.row(0)[0] / partial.mass[0], 4.0f);
  partial.add_logit(0, 100.0f);
  EXPECT_NEAR(partial.row(0)[0] / partial.mass[0], 0.0f, 1e-6);
  EXPECT_NEAR(partial.log_mass(0), 100.0f, 1e-4);
}

}  // namespace
}  // namespace zipcache
