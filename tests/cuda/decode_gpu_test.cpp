// Decode attention against double precision over the same codes and parameters, on a GPU.
#include <fmt/format.h>

#include "cuda/gpu.hpp"

namespace zipcache::cuda::test {
namespace {

// Operands of 16 bits and sums of 32: cuda-pilot figures are 4e-4 to 1e-3.
constexpr double kBound = 2e-3;
// Where codes become 16-bit numbers first.
constexpr double kTileBound = 4e-3;

class Decode : public OnGpu {
 protected:
  static void expect_right(const Case& test, double bound = kBound) {
    double error = NAN;
    try {
      error = error_of(test);
    } catch (const std::exception& thrown) {
      ADD_FAILURE() << thrown.what();
      cudaGetLastError();
      return;
    }
    EXPECT_LT(error, bound) << "policy " << test.policy << " dim " << test.dim << " group "
                            << test.group << " queries " << test.n_queries;
  }
};

const char* const kPolicies[] = {"zipcache,score=random",
                                 "zip,score=random",
                                 "uniform2",
                                 "uniform3",
                                 "uniform4",
                                 "zip4,score=random",
                                 "zip3",
                                 "zip2",
                                 "had4",
                                 "qserve4,k_axis=token",
                                 "uniform4,bits=8",
                                 "zip,bits=8/4/2,ratio=0.2/0.3,score=random",
                                 "zipcache,k=16/2,v=16/2,score=random",
                                 "kvarn-k4v2,k_dual=0",
                                 "streaming,bits=4,k_axis=token,v_axis=token,recent=0"};

TEST_F(Decode, EveryPolicy) {
  for (const char* policy : kPolicies) expect_right({.policy = policy});
}

// With a side in the order of tiles: every codec, axis and kind of factors.
const char* const kTilePolicies[] = {"kivi2",
                                     "kivi4",
                                     "kivi4,bits=3",
                                     "kivi2,v_axis=channel48",
                                     "gear2-l",
                                     "kvarn-k4v2",
                                     "kvarn-k2v2,sinks=5",
                                     "sym8",
                                     "sym8-had",
                                     "sym4",
                                     "sym4,bits=3",
                                     "sym4-had,bits=2",
                                     "turbo-k4v4",
                                     "turbo-k4v4,bits=3",
                                     "turbo-k4v4,bits=2,v_codec=lloyd",
                                     "fp8",
                                     "fp8,v_axis=token",
                                     "nvfp4",
                                     "qserve4",
                                     "rotatekv",
                                     "wkvquant",
                                     "mikv,score=random",
                                     "zipcache,v_axis=channel,score=random",
                                     "zipcache,k_axis=cst,score=random",
                                     "zipcache,v_axis=group64,rank=1,score=random",
                                     "zip,bits=8/3/2,ratio=0.2/0.3,v_axis=group32,score=random"};

TEST_F(Decode, SidesInTheOrderOfTiles) {
  for (const char* policy : kTilePolicies) {
    for (const bool threads : {false, true})
      expect_right({.policy = policy, .copy_by_threads = threads}, kTileBound);
  }
}

TEST_F(Decode, SidesInTheOrderOfTilesOfEveryShape) {
  for (const char* policy : {"kivi2", "nvfp4", "turbo-k4v4", "kvarn-k4v2", "gear2-l"}) {
    for (const int dim : {64, 128, 256}) {
      expect_right({.policy = policy, .dim = dim, .group = 3}, kTileBound);
      expect_right({.policy = policy, .dim = dim, .n_queries = 4, .lengths = {640, 129, 64}},
                   kTileBound);
    }
    for (const int warps : {kLargeWarps, kMostWarps})
      expect_right({.policy = policy, .lengths = {10000}, .n_blocks = 16, .large = warps},
                   kTileBound);
    expect_right({.policy = policy, .lengths = {900}, .window = 333}, kTileBound);
  }
}

TEST_F(Decode, EveryHeadSizeAndGroup) {
  for (const int dim : {64, 128, 256}) {
    for (const int group : {1, 3, 4, 8, 12}) {
      expect_right({.policy = "zip,score=random", .dim = dim, .group = group});
      expect_right({.dim = dim, .group = group});
    }
  }
}

TEST_F(Decode, DraftedTokens) {
  for (const int n : {2, 4, 8}) {
    for (const char* policy : {"zipcache,score=random", "zip,score=random"}) {
      expect_right({.policy = policy, .n_queries = n});
      expect_right({.policy = policy, .n_queries = n, .lengths = {640, 129, 64}});
    }
  }
}

TEST_F(Decode, StreamsOfDifferentLengths) {
  for (const int n_blocks : {1, 16, 132, 1000}) {
    expect_right({.lengths = {1, 3, 128, 500, 1300}, .n_blocks = n_blocks});
    expect_right(
        {.policy = "zip,score=random", .lengths = {1, 3, 128, 500, 1300}, .n_blocks = n_blocks});
  }
}

// Warps that take turns with many more records than there are slots for.
TEST_F(Decode, ManyRecordsOfABlock) {
  for (const char* policy : {"zipcache,score=random", "uniform4", "uniform2"}) {
    for (const int length : {2048, 10000})
      expect_right({.policy = policy, .lengths = {length}, .n_blocks = 1, .repeats = 50});
  }
}

// Eight or twelve warps, which share records or do not.
TEST_F(Decode, LargeBlocks) {
  for (const char* policy : {"zipcache,score=random", "zip,score=random", "uniform2"}) {
    for (const int n_blocks : {2, 16}) {
      for (const int warps : {kLargeWarps, kMostWarps})
        expect_right({.policy = policy, .lengths = {10000}, .n_blocks = n_blocks, .large = warps});
      expect_right({.policy = policy,
                    .n_queries = 2,
                    .lengths = {2048, 5000},
                    .n_blocks = n_blocks,
                    .large = kLargeWarps});
    }
  }
  expect_right({.group = 12, .lengths = {3000}, .n_blocks = 4, .large = kLargeWarps});
  for (const int warps : {kLargeWarps, kMostWarps}) {
    expect_right({.lengths = {3000}, .n_blocks = 4, .large = warps, .window = 500});
    expect_right({.lengths = {3000}, .n_blocks = 4, .large = warps, .copy_by_threads = true});
    expect_right({.dim = 64, .lengths = {3000}, .n_blocks = 4, .large = warps});
  }
}

// Two products side by side take the registers of twelve warps.
TEST_F(Decode, RefusesWarpsThatTheKernelHasNoRegistersFor) {
  const Case test = {.n_queries = 2, .lengths = {3000}, .n_blocks = 4, .large = kMostWarps};
  EXPECT_THROW(error_of(test), std::runtime_error);
}

TEST_F(Decode, TypesOfNumbers) {
  expect_right({.type = Number::F16});
  expect_right({.type = Number::BF16}, 6e-3);
}

TEST_F(Decode, ValuesOfAllSizes) {
  for (const char* policy : {"zipcache,score=random", "zip,score=random", "uniform4"}) {
    expect_right({.policy = policy, .v_size = 1000});
    expect_right({.policy = policy, .v_size = 1e-3f});
    expect_right({.policy = policy, .k_size = 300, .q_size = 1e-3f});
    expect_right({.policy = policy, .k_size = 1e-3f, .q_size = 300});
    expect_right({.policy = policy, .q_size = 0});
  }
}

// Their steps are 0, so that nothing bounds weights times floors to 16 bits. Rotated, all but one
// channel have the same code, so that what weights lose in rounding is the same in all of these.
TEST_F(Decode, ValuesThatAreFlat) {
  for (const char* policy : {"zipcache,score=random", "zip,score=random", "uniform4"}) {
    expect_right({.policy = policy, .flat_values = true}, 3e-3);
    expect_right({.policy = policy, .v_size = 100, .flat_values = true}, 3e-3);
  }
}

// Of a token that is not attended to, so that the others' weights must not be rounded in its units:
// a mask hides it, or it is behind the only query.
TEST_F(Decode, ATokenOfLargeValues) {
  for (const char* policy : {"zipcache,score=random", "zip,score=random", "uniform4"}) {
    for (const bool threads : {false, true})
      expect_right(
          {.policy = policy, .large_value = 300, .bits = true, .copy_by_threads = threads});
    expect_right({.policy = policy + std::string(",recent=0"),
                  .group = 8,
                  .lengths = {128},
                  .large_value = 300,
                  .n_behind = 64});
  }
}

// What these are divided by stands in factors of channels, which a query is multiplied with.
TEST_F(Decode, FactorsOfLargeKeys) {
  expect_right({.policy = "kvarn-k4v2,k_axis=token", .k_size = 1000, .q_size = 1 / 1000.0f},
               kTileBound);
}

TEST_F(Decode, SharpAttention) {
  for (const char* policy : {"zipcache,score=random", "zip,score=random", "uniform2"})
    expect_right({.policy = policy, .q_size = 6}, 6e-3);
}

TEST_F(Decode, WhatHidesAndChangesScores) {
  for (const char* policy : {"zipcache,score=random", "zip,score=random"}) {
    for (const bool threads : {false, true}) {
      expect_right({.policy = policy, .window = 100, .copy_by_threads = threads});
      expect_right({.policy = policy, .n_queries = 3, .window = 333, .copy_by_threads = threads});
      expect_right({.policy = policy, .soft_cap = 3, .copy_by_threads = threads});
      expect_right({.policy = policy, .max_bias = 8, .copy_by_threads = threads});
      expect_right({.policy = policy, .n_queries = 2, .bits = true, .copy_by_threads = threads});
      expect_right({.policy = policy, .sinks = true, .copy_by_threads = threads});
    }
  }
}

TEST_F(Decode, CopiesByThreads) {
  for (const char* policy : kPolicies) expect_right({.policy = policy, .copy_by_threads = true});
  expect_right({.dim = 64, .n_queries = 4, .copy_by_threads = true});
  expect_right({.dim = 256, .n_queries = 4, .copy_by_threads = true});
}

TEST_F(Decode, AgainAndFromAGraph) {
  expect_right({.repeats = 3});
  expect_right({.policy = "zip,score=random", .lengths = {900, 50}, .repeats = 5, .graph = true});
}

TEST_F(Decode, EmptyStreamGivesZeros) { expect_right({.lengths = {0, 300}}); }

}  // namespace
}  // namespace zipcache::cuda::test
