// Every allocation of every call of the C interface fails once, and then that one and all after it:
// the call says so or did not need it, no memory is lost, a row that can be read is the old one or
// the new one, and after clear() the cache works as a new one does.
#include <gtest/gtest.h>
#include <sys/resource.h>

#include <array>
#include <functional>
#include <string>
#include <vector>

#include "memory/failing_allocations.hpp"
#include "support/random_rows.hpp"
#include "zipcache/zipcache.h"

namespace zipcache {
namespace {

using test::Failing;

constexpr int kCells = 300, kDim = 16, kHeads = 2, kWidth = kDim * kHeads, kLayers = 2;
constexpr zipcache_side kSides[] = {ZC_SIDE_K, ZC_SIDE_V};

using Rows = std::vector<uint16_t>;
using Snapshot = std::array<Rows, kLayers * 2>;  // by layer and side

class Session {
 public:
  explicit Session(const char* policy) {
    policy_ = zipcache_policy_parse(policy, &error_);
    EXPECT_NE(policy_, nullptr) << error_.message;
    create();
  }
  ~Session() {
    zipcache_cache_free(cache_);
    zipcache_policy_free(policy_);
  }
  Session(const Session&) = delete;
  Session& operator=(const Session&) = delete;

  zipcache_code create() {
    zipcache_cache_free(cache_);
    const zipcache_layer layers[kLayers] = {{kHeads, kDim, kDim}, {kHeads, kDim, kDim}};
    const zipcache_shape shape = {1, kCells, kLayers, layers};
    cache_ = zipcache_cache_create(&shape, policy_, &error_);
    return cache_ ? ZC_OK : error_.code;
  }
  zipcache_code write(int layer, zipcache_side side, int first, int n, uint64_t seed) {
    // Data made before an allocation is to fail.
    return zipcache_cache_write(cache_, layer, 0, side, &cells_[size_t(first)], size_t(n),
                                &data_[seed % 7 * 64], kWidth, &error_);
  }
  zipcache_code attend(int layer, int n_queries, int n_threads) {
    zipcache_attention step{};
    step.layer = layer, step.n_queries = n_queries, step.n_heads = 2 * kHeads;
    step.q = data_.data(), step.q_head_stride = kDim, step.q_row_stride = 2 * kWidth;
    step.n_cells = kCells, step.scale = 0.25f, step.n_threads = n_threads;
    step.out = out_.data(), step.out_head_stride = kDim, step.out_row_stride = 2 * kWidth;
    return zipcache_cache_attend(cache_, &step, &error_);
  }
  // One micro-batch through all layers.
  zipcache_code step(int first, int n, uint64_t seed, int n_queries, int n_threads) {
    for (int layer = 0; layer < kLayers; ++layer) {
      for (const zipcache_side side : kSides) {
        const zipcache_code code = write(layer, side, first, n, seed + uint64_t(layer));
        if (code != ZC_OK) return code;
      }
      const zipcache_code code = attend(layer, n_queries, n_threads);
      if (code != ZC_OK) return code;
    }
    return ZC_OK;
  }
  // Two blocks packed, some rows dead, the newest ones raw.
  void fill() {
    for (const int first : {0, 100, 200})
      ASSERT_EQ(step(first, 100, uint64_t(first), 30, 1), ZC_OK);
    ASSERT_EQ(step(20, 70, 5, 1, 1), ZC_OK);
  }
  zipcache_code read(int layer, zipcache_side side, Rows& rows) {
    return zipcache_cache_read_half(cache_, layer, 0, side, 0, kCells, rows.data(), &error_);
  }
  zipcache_code restore(int layer, zipcache_side side, int first, int n, const Rows& rows) {
    return zipcache_cache_write_half(cache_, layer, 0, side, first, n, rows.data(), &error_);
  }
  // All rows, empty where they are refused.
  Snapshot snapshot() {
    Snapshot all;
    for (size_t i = 0; i < all.size(); ++i) {
      all[i].resize(size_t(kCells * kWidth));
      if (read(int(i / 2), kSides[i % 2], all[i]) != ZC_OK) all[i].clear();
    }
    return all;
  }

  zipcache_cache* cache() { return cache_; }
  zipcache_policy* policy() { return policy_; }
  const std::vector<float>& out() const { return out_; }
  zipcache_error error_{};

 private:
  zipcache_policy* policy_ = nullptr;
  zipcache_cache* cache_ = nullptr;
  const std::vector<float> data_ = test::random_rows(kCells + 64, kWidth, 1);
  const std::vector<int64_t> cells_ = [] {
    std::vector<int64_t> cells;
    for (int i = 0; i < kCells; ++i) cells.push_back(i);
    return cells;
  }();
  std::vector<float> out_ = std::vector<float>(size_t(40 * 2 * kWidth));
};

struct Call {
  const char* name;
  std::function<zipcache_code(Session&)> run;
  // A micro-batch: where it stops, later layers have nothing in the rows that it placed.
  bool many_calls = false;
};

// Rows of a restored state, other than any that were written.
const Rows& saved_rows() {
  static const Rows rows = test::to_halves(test::random_rows(kCells, kWidth, 99));
  return rows;
}

zipcache_code read_all(Session& session) {
  static Rows rows(size_t(kCells * kWidth));
  return session.read(0, ZC_SIDE_K, rows);
}

const std::vector<Call>& calls() {
  static const std::vector<Call> all = {
      {"create", [](Session& s) { return s.create(); }},
      {"write new rows", [](Session& s) { return s.step(250, 50, 3, 1, 1); }, true},
      {"write packed cells again", [](Session& s) { return s.write(0, ZC_SIDE_K, 0, 128, 2); }},
      {"write until rows move", [](Session& s) { return s.step(100, 110, 4, 1, 1); }, true},
      {"attend to a prompt", [](Session& s) { return s.attend(0, 30, 1); }},
      {"attend on two threads", [](Session& s) { return s.attend(0, 30, 2); }},
      {"attend to one token", [](Session& s) { return s.attend(1, 1, 2); }},
      {"read", read_all},
      {"restore packed cells",
       [](Session& s) { return s.restore(0, ZC_SIDE_K, 10, 60, saved_rows()); }},
      {"clear", [](Session& s) { return zipcache_cache_clear(s.cache()), ZC_OK; }},
      {"stats",
       [](Session& s) {
         zipcache_stats stats;
         return zipcache_cache_stats(s.cache(), &stats, &s.error_);
       }},
      {"parse a policy",
       [](Session& s) {
         zipcache_policy* made = zipcache_policy_parse("zip,0-3:k=8,recent=64", &s.error_);
         zipcache_policy_free(made);
         return made ? ZC_OK : s.error_.code;
       }},
      {"policy as text",
       // Not as JSON: nlohmann-json (3.11) takes memory to destroy an object, and ends the program
       // when there is none.
       [](Session& s) {
         return zipcache_policy_text(s.policy(), nullptr, 0) > 0 ? ZC_OK : ZC_OVER_LIMIT;
       }},
  };
  return all;
}

class OutOfMemory : public testing::TestWithParam<const char*> {
 protected:
  // Every row that can be read is one of before or one of after.
  void expect_old_or_new(const Snapshot& now, const Snapshot& before, const Snapshot& after) {
    for (size_t part = 0; part < now.size(); ++part) {
      if (now[part].empty()) continue;  // refused
      for (size_t at = 0; at < now[part].size(); at += kWidth) {
        const auto same = [&](const Snapshot& other) {
          return std::equal(&now[part][at], &now[part][at] + kWidth, &other[part][at]);
        };
        ASSERT_TRUE(same(before) || same(after)) << "part " << part << " cell " << at / kWidth;
      }
    }
  }

  // The known answer after clear(): of one token its own value.
  void expect_fresh_answer(Session& session) {
    zipcache_cache_clear(session.cache());
    ASSERT_NO_FATAL_FAILURE(session.fill()) << session.error_.message;
    zipcache_cache_clear(session.cache());
    const int64_t cell = 7;
    const std::vector<float> ones(kWidth, 1.5f);
    for (const zipcache_side side : kSides)
      ASSERT_EQ(
          zipcache_cache_write(session.cache(), 0, 0, side, &cell, 1, ones.data(), kWidth, nullptr),
          ZC_OK);
    ASSERT_EQ(session.attend(0, 1, 1), ZC_OK) << session.error_.message;
    for (int c = 0; c < 2 * kWidth; ++c) ASSERT_EQ(session.out()[size_t(c)], 1.5f);
  }

  // Allocation `nth` of the call fails; false when the call has fewer.
  bool fail_one(const Call& call, size_t nth, Failing how, const Snapshot& before,
                const Snapshot& after) {
    Session session(GetParam());
    session.fill();
    session.error_ = {};
    test::fail_allocation(nth, how);
    const zipcache_code code = call.run(session);
    if (!test::stop_failing()) return false;
    EXPECT_TRUE(code == ZC_OK || code == ZC_OVER_LIMIT) << code << " " << session.error_.message;
    if (session.error_.code != ZC_OK) {
      EXPECT_NE(session.error_.message[0], '\0') << "no reason was given";
    }
    if (!session.cache()) {
      EXPECT_EQ(session.create(), ZC_OK) << session.error_.message;
    } else {
      if (!call.many_calls) expect_old_or_new(session.snapshot(), before, after);
      const zipcache_code again = session.attend(0, 1, 1);
      EXPECT_TRUE(again == ZC_OK || again == ZC_OVER_LIMIT) << session.error_.message;
    }
    expect_fresh_answer(session);
    return true;
  }
};

TEST_P(OutOfMemory, EveryAllocationOfEveryCallMayFail) {
  for (const Call& call : calls()) {
    SCOPED_TRACE(call.name);
    Snapshot before, after;
    {
      Session session(GetParam());
      session.fill();
      before = session.snapshot();
      ASSERT_EQ(call.run(session), ZC_OK) << session.error_.message;
      after = session.snapshot();
    }
    // What a program makes once it has made now.
    fail_one(call, 1, Failing::Once, before, after);
    for (const Failing how : {Failing::Once, Failing::Forever}) {
      SCOPED_TRACE(how == Failing::Once ? "once" : "forever");
      const size_t live = test::live_allocations();
      size_t nth = 1;
      while (fail_one(call, nth, how, before, after)) {
        if (HasFailure()) FAIL() << "allocation " << nth;
        ++nth;
      }
      EXPECT_EQ(test::live_allocations(), live) << "memory was lost";
      const bool needs_none = call.name == std::string("clear");
      EXPECT_EQ(nth == 1, needs_none) << "found " << nth - 1 << " allocations";
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Policies, OutOfMemory,
                         testing::Values("zip,recent=20,sinks=2",
                                         "zipcache,cadence=prompt,recent=0", "h2o,recent=0"),
                         [](const auto& info) { return "policy" + std::to_string(info.index); });

TEST(OutOfMemoryOnce, ACacheThatTheSystemHasNoAddressesForIsRefused) {
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
  GTEST_SKIP() << "sanitizers need addresses of their own";
#endif
  zipcache_error error;
  zipcache_policy* policy = zipcache_policy_parse("zip", &error);
  const zipcache_layer layer = {8, 128, 128};
  const zipcache_shape shape = {1, 1 << 20, 1, &layer};
  rlimit before{};
  ASSERT_EQ(getrlimit(RLIMIT_AS, &before), 0);
  const rlimit tight = {size_t{1} << 30, before.rlim_max};
  ASSERT_EQ(setrlimit(RLIMIT_AS, &tight), 0);
  zipcache_cache* refused = zipcache_cache_create(&shape, policy, &error);
  ASSERT_EQ(setrlimit(RLIMIT_AS, &before), 0);
  EXPECT_EQ(refused, nullptr);
  EXPECT_EQ(error.code, ZC_OVER_LIMIT);
  EXPECT_NE(std::string(error.message).find("shorter context"), std::string::npos) << error.message;
  zipcache_cache* made = zipcache_cache_create(&shape, policy, &error);
  EXPECT_NE(made, nullptr) << error.message;
  zipcache_cache_free(made);
  zipcache_policy_free(policy);
}

}  // namespace
}  // namespace zipcache
