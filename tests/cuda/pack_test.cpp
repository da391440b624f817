// What a GPU does to pack, run on the host: records are the CPU's byte for byte.
#include <gtest/gtest.h>

#include "base/random.hpp"
#include "cuda/emulated_pack.hpp"
#include "cuda/pack_case.hpp"

namespace zipcache::cuda::test {
namespace {

void expect_same(const PackCase& test, const PackInput& input, Order order) {
  std::vector<uint8_t> pool(input.expected.size(), kUntouched);
  uint32_t n_wrong = 0;
  PackArgs args = args_of(input);
  args.pool = pool.data();
  args.n_wrong = &n_wrong;
  emulate_pack(args, order);
  EXPECT_EQ(n_wrong, 0u) << describe(test);
  EXPECT_EQ(difference(input, pool), "") << describe(test);
}

void expect_same(const PackCase& test) {
  const PackInput input = make_pack_input(test);
  for (const Order order : {Order::Ascending, Order::Descending}) expect_same(test, input, order);
}

class Packed : public ::testing::TestWithParam<const char*> {};

TEST_P(Packed, IsTheCpusRecord) {
  for (const int dim : {64, 128, 256})
    expect_same({.policy = GetParam(), .dim = dim, .n_heads = dim == 128 ? 3 : 1});
}

TEST_P(Packed, WithRowsThatStressIt) {
  for (const Kind kind : {Kind::Constant, Kind::Zeros, Kind::Extreme})
    expect_same({.policy = GetParam(), .dim = 64, .n_heads = 2, .kind = kind, .n_sinks = 3});
}

INSTANTIATE_TEST_SUITE_P(Policies, Packed, ::testing::ValuesIn(kPackPolicies));

TEST(Pack, TiersByScoresWithTies) {
  for (const int n_levels : {1, 3, 20}) expect_same({.dim = 64, .n_levels = n_levels});
}

TEST(Pack, ScoresOverProbesThatSawThem) {
  expect_same({.dim = 64, .n_blocks = 3, .by = By::SeenScores, .n_levels = 4});
  expect_same({.dim = 64, .n_blocks = 3, .by = By::SeenScores, .unscored = true});
}

TEST(Pack, TiersThatAreGiven) {
  for (const char* policy : {"zipcache", "zipcache,bits=16/8/4/2,ratio=0.1/0.2/0.3"})
    expect_same({.policy = policy, .dim = 64, .by = By::Tiers});
}

TEST(Pack, LeavesSinksOut) {
  for (const int n_sinks : {1, 4, 100, 127, 128}) {
    for (const char* policy : {"zipcache", "had4", "kvarn-k4v2", "qserve4", "mikv", "nvfp4"})
      expect_same({.policy = policy, .dim = 64, .n_sinks = n_sinks});
  }
}

TEST(Pack, StreamsAndRowsWithGaps) {
  expect_same({.dim = 64, .n_heads = 3, .n_streams = 3, .n_blocks = 2, .gaps = true});
}

TEST(Pack, WritesNothingWhereTheEntryIsOfAnotherSize) {
  for (const char* policy : {"zipcache", "zipcache,k_axis=channel32", "mikv"}) {
    const PackCase test{.policy = policy, .dim = 64, .n_heads = 1, .n_blocks = 1, .by = By::Tiers};
    PackInput input = make_pack_input(test);
    std::vector<uint8_t> pool(input.expected.size(), kUntouched);
    const std::vector<uint8_t> untouched = pool;
    uint32_t n_wrong = 0;
    PackArgs args = args_of(input);
    args.pool = pool.data();
    args.n_wrong = &n_wrong;
    for (int row = 0; row < 40; ++row) input.tiers[size_t(row)] = 0;  // tokens fill other units
    emulate_pack(args, Order::Ascending);
    EXPECT_EQ(n_wrong, 1u) << policy;
    input.tiers[5] = 7;  // no such tier
    emulate_pack(args, Order::Ascending);
    EXPECT_EQ(n_wrong, 2u) << policy;
    EXPECT_EQ(pool, untouched) << policy;
  }
}

// x / factor as the GPU computes it.
void check_quotient(float x, float by) {
  const float found = divided(x, inverse_of_half(by));
  ASSERT_EQ(bits_of(found), bits_of(x / by)) << x << " / " << by;
}

TEST(Pack, QuotientsOf16BitNumbersAreExact) {
  for (int x = 1024; x < 2048; ++x) {  // all pairs of 11-bit mantissas
    for (int by = 1024; by < 2048; ++by) check_quotient(float(x), float(by));
  }
  // Factors are roots of what they divide, so they lie between 2^-12 and 2^8.
  for (const half x : {half{0}, half{0x8000}, half{1}, half{0x8001}, half{0x3FF}, half{0x7BFF}}) {
    for (half by = to_half(0x1p-12f); by <= to_half(0x1p8f); ++by)
      check_quotient(to_float(x), to_float(by));
  }
}

// Of rotated numbers, which have 24 bits: those whose quotient is next to the middle of two floats.
TEST(Pack, QuotientsBy16BitNumbersAreExact) {
  Random random(5, 0);
  for (int by = 1024; by < 2048; ++by) {
    for (int i = 0; i < 500; ++i) {
      const double middle = double(2 * random.below(1u << 24) + 1) * by;
      const float x = float(middle);
      for (const float near : {std::nextafter(x, 0.0f), x, std::nextafter(x, INFINITY)})
        check_quotient(near, float(by));
    }
  }
}

// Codes that are cut off after the sum are those that are cut off before it.
TEST(Pack, CodesAreCutOffAfterTheSum) {
  for (const float step : {0x1p-24f, 0.3f, 1.0f, 4000.0f}) {
    for (int i = -4000; i <= 4000; ++i) {
      for (const float scale : {0.25f, 1.0f, 1000.0f}) {
        const Grid grid = grid_of(step, -3 * step);
        const float x = step * scale * float(i);
        for (const int top : {0, 3, 15, 255})
          ASSERT_EQ(near_code_on(grid, x, top), code_on(grid, x, float(top))) << x << " / " << step;
      }
    }
  }
}

TEST(PackForm, NamesWhatIsNotThere) {
  const auto message = [](const char* text) {
    const auto form = pack_form({1, 128, 128}, *parse_policy(text));
    EXPECT_FALSE(form.ok()) << text;
    if (form.ok()) return std::string();
    EXPECT_EQ(form.status().code(), Code::Incompatible);
    return form.status().message();
  };
  EXPECT_NE(message("had4,v_dual=9").find("v_dual=9, expected at most 8"), std::string::npos);
  for (const char* text : {"zip,k_clip=0.9", "zip,k_dual=2", "zip,k_rank=1"})
    EXPECT_NE(message(text).find("k_round=query with k_clip"), std::string::npos) << text;
}

TEST(PackForm, SaysWhichRankingsItHas) {
  EXPECT_TRUE(check_ranks_by_scores(*parse_policy("zipcache")).ok());
  for (const char* text : {"snapkv", "roco", "rdkv", "zipcache,scope=layer"})
    EXPECT_FALSE(check_ranks_by_scores(*parse_policy(text)).ok()) << text;
}

}  // namespace
}  // namespace zipcache::cuda::test
