// A caller that wants to stop is asked between blocks, on its own thread; what was stopped can be
// done again as if it had not begun.
#include <gtest/gtest.h>

#include <set>
#include <thread>

#include "support/random_rows.hpp"
#include "zipcache/cache.hpp"

namespace zipcache {
namespace {

constexpr int kTokens = 400, kDim = 32, kHeads = 2, kWidth = kDim * kHeads;

// Says stop at the `nth` question.
struct Caller {
  int nth = 0, asked = 0;
  std::set<std::thread::id> threads;
  static bool stops(void* self) {
    auto* caller = static_cast<Caller*>(self);
    caller->threads.insert(std::this_thread::get_id());
    return ++caller->asked == caller->nth;
  }
};

class Cancelled : public testing::TestWithParam<int> {
 protected:
  // 300 tokens packed or raw, then 100 written and not yet attended to.
  static std::unique_ptr<Cache> filled(int n_threads) {
    auto cache = std::move(*Cache::create({1, kTokens, {{kHeads, kDim, kDim}}},
                                          *parse_policy("zipcache,recent=20,sinks=2")));
    for (const int first : {0, 100, 200, 300}) {
      std::vector<int64_t> cells;
      for (int i = 0; i < 100; ++i) cells.push_back(first + i);
      const auto rows = test::random_rows(100, kWidth, uint64_t(first));
      EXPECT_TRUE(cache->write(0, 0, SideId::K, cells, rows.data(), kWidth).ok());
      EXPECT_TRUE(cache->write(0, 0, SideId::V, cells, rows.data(), kWidth).ok());
      if (first == 300) break;
      EXPECT_TRUE(attend(*cache, 100, n_threads, nullptr, nullptr).ok());
    }
    return cache;
  }

  static Status attend(Cache& cache, int n_queries, int n_threads, Caller* caller,
                       std::vector<float>* out) {
    static const auto q = test::random_rows(100, kWidth, 77, 1.0f);
    std::vector<float> sums(size_t(n_queries * kWidth));
    Attention step;
    step.n_queries = n_queries, step.n_heads = kHeads, step.n_cells = kTokens, step.scale = 0.1f;
    step.q = q.data(), step.q_row_stride = kWidth, step.q_head_stride = kDim;
    step.out = sums.data(), step.out_row_stride = kWidth, step.out_head_stride = kDim;
    step.n_threads = n_threads;
    if (caller) step.aborted = Caller::stops, step.aborted_data = caller;
    const Status status = cache.attend(step);
    if (out) *out = sums;
    return status;
  }

  static std::vector<half> rows_of(const Cache& cache) {
    std::vector<half> rows(size_t(kTokens * kWidth));
    EXPECT_TRUE(cache.read_half(0, 0, SideId::K, 0, kTokens, rows.data()).ok());
    return rows;
  }
};

TEST_P(Cancelled, AtEveryQuestionTheStepCanBeDoneAgain) {
  for (const int n_queries : {100, 1}) {
    SCOPED_TRACE(testing::Message() << n_queries << " queries");
    std::vector<float> expected, found;
    auto undisturbed = filled(GetParam());
    Caller patient;
    ASSERT_TRUE(attend(*undisturbed, n_queries, GetParam(), &patient, &expected).ok());
    const auto expected_rows = rows_of(*undisturbed);
    // Four blocks for each tile of queries; a thread may come too late for its share of them.
    if (GetParam() == 1) {
      ASSERT_GE(patient.asked, n_queries == 1 ? 8 : 4 * 2 * kHeads);
    }
    EXPECT_EQ(patient.threads, std::set{std::this_thread::get_id()});
    for (int nth = 1; nth <= patient.asked; ++nth) {
      auto cache = filled(GetParam());
      Caller caller{nth, 0, {}};
      const Status status = attend(*cache, n_queries, GetParam(), &caller, nullptr);
      if (caller.asked < nth) continue;  // the other threads did the work this time
      ASSERT_EQ(status.code(), Code::Aborted) << "question " << nth;
      EXPECT_EQ(caller.asked, nth) << "asked again after it said stop";
      ASSERT_TRUE(attend(*cache, n_queries, GetParam(), nullptr, &found).ok());
      ASSERT_EQ(found, expected) << "question " << nth;
      ASSERT_EQ(rows_of(*cache), expected_rows) << "question " << nth;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Threads, Cancelled, testing::Values(1, 2),
                         [](const auto& info) { return std::to_string(info.param); });

}  // namespace
}  // namespace zipcache
