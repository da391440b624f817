// Caches and threads: one thread at a time for each cache, any thread, and any number of caches at
// once. The thread sanitizer's build (tests/README.md) sees here what they share.
#include <gtest/gtest.h>

#include <functional>
#include <thread>

#include "support/harness.hpp"

namespace zipcache {
namespace {

using test::Harness;

constexpr const char* kPolicies[] = {"zip,recent=20", "zipcache,cadence=prompt", "kivi2,recent=0",
                                     "roco,bits=4/0,ratio=0.5,recent=40", "turbo-k4v4"};
const CacheShape kShape{1, 300, {{2, 64, 64}, {1, 32, 32}}};

// Two prompts and some single tokens, then everything is saved and restored: the last outputs and
// the rows of one side. `run` runs each call.
std::vector<float> answer_of(
    const char* policy, int n_threads,
    const std::function<void(const std::function<void()>&)>& run = [](const auto& call) {
      call();
    }) {
  Harness harness(kShape, policy);
  harness.n_threads = n_threads;
  for (const int n : {100, 90, 1, 3, 1}) run([&] { EXPECT_TRUE(harness.feed(n).ok()); });
  std::vector<float> answer = harness.out(1);
  std::vector<half> rows(size_t(kShape.n_cells) * 2 * 64);
  run([&] {
    EXPECT_TRUE(harness.cache().save(0, 0, SideId::K, 0, kShape.n_cells, rows.data()).ok());
    EXPECT_TRUE(harness.cache().restore(0, 0, SideId::K, 0, kShape.n_cells, rows.data()).ok());
  });
  for (const half x : rows) answer.push_back(to_float(x));
  return answer;
}

TEST(Threads, CachesOnThreadsOfTheirOwnAreIndependent) {
  std::vector<std::vector<float>> answers(2 * std::size(kPolicies));
  std::vector<std::thread> threads;
  for (size_t i = 0; i < answers.size(); ++i)
    threads.emplace_back([&, i] { answers[i] = answer_of(kPolicies[i / 2], 2); });
  for (std::thread& thread : threads) thread.join();
  for (size_t i = 0; i < answers.size(); ++i)
    EXPECT_EQ(answers[i], answer_of(kPolicies[i / 2], 2)) << kPolicies[i / 2];
}

TEST(Threads, ACacheMayBeCalledFromAnotherThreadEachTime) {
  for (const char* policy : kPolicies) {
    const auto elsewhere = answer_of(policy, 2, [](const auto& call) { std::thread(call).join(); });
    EXPECT_EQ(elsewhere, answer_of(policy, 2)) << policy;
  }
}

}  // namespace
}  // namespace zipcache
