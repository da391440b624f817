// Wrong calls are refused with a reason, change nothing, and leave the next good call working.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "support/harness.hpp"
#include "support/random_rows.hpp"

namespace zipcache {
namespace {

using test::Harness;

const CacheShape kShape{2, 256, {{2, 64, 64}, {2, 64, 64}}};

Code create_code(const CacheShape& shape) {
  return Cache::create(shape, *parse_policy("zipcache")).status().code();
}

TEST(Refusal, ShapesThatCannotBeServedAreIncompatible) {
  for (const int dim : {0, 8, 20, 36, 255, 264, 512, -64}) {
    const auto made =
        Cache::create({1, 128, {{1, 64, 64}, {1, dim, 64}}}, *parse_policy("zipcache"));
    ASSERT_FALSE(made.ok()) << dim;
    EXPECT_EQ(made.status().code(), Code::Incompatible);
    EXPECT_NE(made.status().message().find("layer 1: head size " + std::to_string(dim)),
              std::string::npos);
    EXPECT_EQ(create_code({1, 128, {{1, 64, dim}}}), Code::Incompatible);
  }
  EXPECT_EQ(create_code({0, 128, {{1, 64, 64}}}), Code::Incompatible);
  EXPECT_EQ(create_code({5000, 128, {{1, 64, 64}}}), Code::Incompatible);
  EXPECT_EQ(create_code({1, 0, {{1, 64, 64}}}), Code::Incompatible);
  EXPECT_EQ(create_code({1, -5, {{1, 64, 64}}}), Code::Incompatible);
  EXPECT_EQ(create_code({1, (1 << 28) + 1, {{1, 64, 64}}}), Code::Incompatible);
  EXPECT_EQ(create_code({1, 128, {}}), Code::Incompatible);
  EXPECT_EQ(create_code({1, 128, {{0, 64, 64}}}), Code::Incompatible);
  EXPECT_EQ(create_code({1, 128, {{1025, 64, 64}}}), Code::Incompatible);
  for (const int dim : {16, 24, 64, 80, 96, 128, 256})
    EXPECT_EQ(create_code({1, 128, {{1, dim, dim}}}), Code::Ok);
}

TEST(Refusal, GroupsThatDoNotDivideTheHeadSizeAreNamedWithTheirLayer) {
  const auto made =
      Cache::create({1, 128, {{1, 64, 64}, {1, 80, 80}}}, *parse_policy("uniform,k_axis=group32"));
  ASSERT_FALSE(made.ok());
  EXPECT_EQ(made.status().code(), Code::BadPolicy);
  EXPECT_NE(made.status().message().find("layer 1: group32"), std::string::npos);
}

class RefusedCall : public testing::Test {
 protected:
  RefusedCall() : harness_(kShape, "zipcache", 2), rows_(test::random_rows(2, 128, 1)) {
    EXPECT_TRUE(harness_.feed(140).ok());
    before_ = harness_.read(0, SideId::K);
  }
  // After every refusal: same rows, same bytes, and a good step works.
  ~RefusedCall() override {
    EXPECT_EQ(harness_.read(0, SideId::K, 0, 140), before_);
    EXPECT_EQ(harness_.stats().rows_live, 140u);
    EXPECT_TRUE(harness_.feed(5).ok());
  }
  void expect_refused(const Status& status, Code code, const char* names) {
    EXPECT_EQ(status.code(), code);
    EXPECT_NE(status.message().find(names), std::string::npos) << status.message();
    EXPECT_EQ(status.message().find('\n'), std::string::npos);
  }
  Status write(int layer, int stream, std::vector<int64_t> cells, const std::vector<float>& rows) {
    return harness_.cache().write(layer, stream, SideId::K, cells, rows.data(), 128);
  }
  Harness harness_;
  std::vector<float> rows_;
  std::vector<half> before_;
};

TEST_F(RefusedCall, NumbersOutside16BitsAreBadDataWithTheirPlace) {
  for (const float wrong : {NAN, INFINITY, -INFINITY, 65505.0f, -1e30f}) {
    auto rows = rows_;
    rows[128 + 77] = wrong;
    const Status status = write(1, 0, {3, 9}, rows);
    expect_refused(status, Code::BadData, "layer 1, cell 9, K channel 77");
  }
}

TEST_F(RefusedCall, CellsLayersAndStreamsOutOfRange) {
  expect_refused(write(0, 0, {0, 256}, rows_), Code::BadArgument, "cell 256");
  expect_refused(write(0, 0, {-1, 0}, rows_), Code::BadArgument, "cell -1");
  expect_refused(write(0, 0, {0, int64_t(1) << 40}, rows_), Code::BadArgument,
                 "cell 1099511627776");
  expect_refused(write(2, 0, {0}, rows_), Code::BadArgument, "layer 2");
  expect_refused(write(-1, 0, {0}, rows_), Code::BadArgument, "layer -1");
  expect_refused(write(0, 2, {0}, rows_), Code::BadArgument, "stream 2");
  expect_refused(write(0, -1, {0}, rows_), Code::BadArgument, "stream -1");
}

TEST_F(RefusedCall, HalfRowsOutOfRangeOrDamaged) {
  std::vector<half> rows(300 * 128);
  Cache& cache = harness_.cache();
  expect_refused(cache.read_half(0, 0, SideId::K, 0, 257, rows.data()), Code::BadArgument,
                 "cells 0 to 256");
  expect_refused(cache.read_half(0, 0, SideId::K, -1, 2, rows.data()), Code::BadArgument,
                 "cells -1");
  expect_refused(cache.read_half(0, 0, SideId::K, 256, 1, rows.data()), Code::BadArgument,
                 "cells 256");
  expect_refused(cache.read_half(0, 0, SideId::K, 5, -1, rows.data()), Code::BadArgument,
                 "expected 0 to 255");
  expect_refused(cache.read_half(9, 0, SideId::K, 0, 1, rows.data()), Code::BadArgument, "layer 9");
  expect_refused(cache.write_half(0, 0, SideId::V, 250, 7, rows.data()), Code::BadArgument,
                 "cells 250 to 256");
  // Sizes that no memory holds, and sums that no int does.
  constexpr int kMost = std::numeric_limits<int>::max();
  expect_refused(cache.read_half(0, 0, SideId::K, 1, kMost, rows.data()), Code::BadArgument,
                 "cells 1 to 2147483647");
  expect_refused(cache.write_half(0, 0, SideId::K, kMost, kMost, rows.data()), Code::BadArgument,
                 "expected 0 to 255");
  for (const half wrong : {half{0x7C00}, half{0xFC00}, half{0x7E01}}) {
    rows[128 * 2 + 1] = wrong;
    expect_refused(cache.write_half(0, 0, SideId::V, 4, 3, rows.data()), Code::BadData, "cell 6");
  }
}

TEST_F(RefusedCall, StepsWithWrongHeadsRowsOrPointers) {
  const auto q = test::random_rows(1, 4 * 64, 2);
  std::vector<float> out(4 * 64);
  Attention good;
  good.n_queries = 1, good.n_heads = 4, good.q = q.data(), good.q_row_stride = 256,
  good.q_head_stride = 64;
  good.out = out.data(), good.out_row_stride = 256, good.out_head_stride = 64, good.n_cells = 140;
  const auto refused = [&](auto change, const char* names) {
    Attention step = good;
    change(step);
    expect_refused(harness_.cache().attend(step), Code::BadArgument, names);
  };
  refused([](Attention& s) { s.n_heads = 3; }, "3 heads");
  refused([](Attention& s) { s.n_heads = 0; }, "0 heads");
  refused([](Attention& s) { s.n_queries = 0; }, "0 query rows");
  refused([](Attention& s) { s.n_queries = -1; }, "-1 query rows");
  refused([](Attention& s) { s.q = nullptr; }, "q or out");
  refused([](Attention& s) { s.out = nullptr; }, "q or out");
  refused([](Attention& s) { s.n_threads = 0; }, "threads");
  refused([](Attention& s) { s.n_threads = 1 << 30; }, "1 to 1024 threads");
  refused([](Attention& s) { s.n_cells = -1; }, "n_cells");
  refused([](Attention& s) { s.layer = 2; }, "layer 2");
  refused([](Attention& s) { s.stream = -1; }, "stream -1");
  EXPECT_TRUE(harness_.cache().attend(good).ok());
}

TEST_F(RefusedCall, AStepThatTheCallerStopsIsAborted) {
  const auto q = test::random_rows(1, 4 * 64, 2);
  std::vector<float> out(4 * 64);
  Attention step;
  step.n_queries = 1, step.n_heads = 4, step.q = q.data(), step.q_row_stride = 256,
  step.q_head_stride = 64;
  step.out = out.data(), step.out_row_stride = 256, step.out_head_stride = 64, step.n_cells = 140;
  step.aborted = [](void*) { return true; };
  EXPECT_EQ(harness_.cache().attend(step).code(), Code::Aborted);
}

}  // namespace
}  // namespace zipcache
