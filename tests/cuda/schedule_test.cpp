// What a schedule tells is carried out on a model of a GPU's memory, which knows only places of
// tokens: every query finds every token before it once, and every block its own rows.
#include "cuda/schedule.hpp"

#include <gtest/gtest.h>

#include <cstring>
#include <map>

#include "base/random.hpp"

namespace zipcache::cuda {
namespace {

constexpr ScheduleShape kShape{
    .n_heads = 2, .dim = 64, .n_streams = 3, .max_tokens = 3000, .n_blocks = 40};

struct Token {
  int stream, place;
  bool operator==(const Token&) const = default;
};
constexpr Token kNone{-1, -1};

class Model {
 public:
  explicit Model(const Schedule& schedule)
      : schedule_(schedule),
        ring_(size_t(kShape.n_streams * schedule.sizes().ring), kNone),
        table_(size_t(kShape.n_streams * schedule.sizes().record_stride)) {}

  // Queries of a prompt attend to what was there before it.
  void step(std::span<const int> n_new, bool prompt) {
    for (const TableChange& change : schedule_.changes())
      entry(change.stream, change.index) = change.record;
    if (prompt) attend(n_new);
    put(schedule_.first_rows());
    if (!prompt) attend(std::vector<int>(n_new.size()));
    pack(schedule_.ring_tasks(), [&](int s, int row) { return ring(s, row); });
    pack(schedule_.own_tasks(), [&](int s, int row) {
      EXPECT_LT(row, n_new[size_t(s)]);
      return Token{s, schedule_.first_rows()[size_t(s)].place + row};
    });
    put(schedule_.last_rows());
  }

 private:
  Token& ring(int s, int place) {
    const int ring = schedule_.sizes().ring;
    return ring_[size_t(s * ring + place % ring)];
  }
  Record& entry(int s, int index) {
    return table_[size_t(s * schedule_.sizes().record_stride + index)];
  }

  void put(std::span<const StreamRows> rows) {
    for (int s = 0; s < kShape.n_streams; ++s) {
      const StreamRows& own = rows[size_t(s)];
      for (int i = own.begin; i < own.end; ++i) {
        const int place = own.place + i;
        ring(s, place) = {s, place};
      }
      for (int i = 0; i < own.n_sinks; ++i) sinks_[{s, own.place + i}] = true;
    }
  }

  template <class RowOf>
  void pack(std::span<const PackTask> tasks, RowOf&& row_of) {
    for (const PackTask& task : tasks) {
      const Record& record = entry(task.stream, task.record);
      std::vector<Token> tokens;
      for (int row = 0; row < kPackRows; ++row) {
        const Token token = row_of(task.stream, task.row + row);
        EXPECT_EQ(token, (Token{task.stream, int(record.first) + row}));
        if (!(task.left_out[row / 32] >> row % 32 & 1)) tokens.push_back(token);
      }
      EXPECT_LE(size_t(record.at) * 16 + size_t(record.size) * 16 + tokens.size(),
                schedule_.sizes().sinks_at);
      packed_[record.at] = tokens;
    }
  }

  // The tokens that records of a stream hold, but for its last `n_without`.
  void attend(std::span<const int> n_without) {
    for (int s = 0; s < kShape.n_streams; ++s) {
      const int length = schedule_.length(s) - n_without[size_t(s)];
      const auto [n_packed, n_raw] = schedule_.counts()[size_t(s)];
      ASSERT_EQ(schedule_.records(s).size(), size_t(n_packed + n_raw));
      std::vector<int> seen(size_t(length), 0);
      const auto see = [&](const Token& token) {
        ASSERT_EQ(token.stream, s);
        ASSERT_LT(token.place, length);
        ++seen[size_t(token.place)];
      };
      for (int i = 0; i < n_packed + n_raw; ++i) {
        const Record& record = entry(s, i);
        ASSERT_EQ(std::memcmp(&schedule_.records(s)[size_t(i)], &record, sizeof record), 0);
        const size_t at = size_t(record.at) * 16;
        if (i < n_packed) {
          ASSERT_TRUE(packed_.contains(record.at));
          for (const Token& token : packed_.at(record.at)) see(token);
        } else if (at < schedule_.sizes().ring_at) {
          for (uint32_t t = 0; t < record.tokens; ++t) {
            ASSERT_TRUE(sinks_.contains({s, int(record.first + t)}));
            see({s, int(record.first + t)});
          }
        } else {
          const size_t of_record = size_t(kShape.n_heads) * size_t(schedule_.sizes().raw);
          const size_t index = (at - schedule_.sizes().ring_at) / of_record * 32;
          for (uint32_t t = 0; t < record.tokens; ++t) see(ring_[index + t]);
        }
      }
      for (size_t place = 0; place < seen.size(); ++place)
        ASSERT_EQ(seen[place], 1) << "stream " << s << " place " << place;
    }
  }

  const Schedule& schedule_;
  std::vector<Token> ring_;
  std::vector<Record> table_;
  std::map<uint32_t, std::vector<Token>> packed_;
  std::map<std::pair<int, int>, bool> sinks_;
};

class Schedules : public ::testing::TestWithParam<const char*> {};

TEST_P(Schedules, EveryTokenStandsWhereItIsLookedFor) {
  const Result<Policy> parsed = parse_policy(GetParam());
  ASSERT_TRUE(parsed.ok()) << parsed.status().message();
  const Policy& policy = *parsed;
  for (uint64_t seed = 0; seed < 20; ++seed) {
    auto schedule = Schedule::create(kShape, policy);
    ASSERT_TRUE(schedule.ok()) << schedule.status().message();
    Model model(*schedule);
    Random random(seed);
    for (int step = 0; step < 150 && !HasFailure(); ++step) {
      const bool prompt = random.below(12) == 0;
      std::vector<int> n_new;
      for (int s = 0; s < kShape.n_streams; ++s)
        n_new.push_back(int(random.below(prompt ? 700 : kMostStepTokens + 1)));
      const auto before =
          std::vector<int>{schedule->length(0), schedule->length(1), schedule->length(2)};
      const Status status = schedule->begin(n_new);
      if (!status.ok()) {
        ASSERT_EQ(status.code(), Code::OverLimit);
        for (int s = 0; s < kShape.n_streams; ++s)
          ASSERT_EQ(schedule->length(s), before[size_t(s)]);
        schedule->clear(int(random.below(kShape.n_streams)));
        continue;
      }
      const bool is_prompt =
          std::any_of(n_new.begin(), n_new.end(), [](int n) { return n > kMostStepTokens; });
      model.step(n_new, is_prompt);
      const int s = int(random.below(kShape.n_streams)), back = int(random.below(4));
      if (schedule->length(s) - back >= schedule->packed_blocks(s) * kBlockTokens) {
        ASSERT_TRUE(schedule->truncate(s, schedule->length(s) - back).ok());
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Policies, Schedules,
                         ::testing::Values("zip,k_round=nearest", "zipcache", "uniform4",
                                           "uniform,bits=2,recent=0", "had4,sinks=7,recent=200",
                                           "zipcache,sinks=100,recent=64"));

TEST(Schedule, SaysWhatItCannotDo) {
  auto schedule = Schedule::create(kShape, *parse_policy("uniform4,recent=0"));
  ASSERT_TRUE(schedule.ok());
  EXPECT_EQ(schedule->begin(std::vector{1}).code(), Code::BadArgument);
  EXPECT_EQ(schedule->begin(std::vector{1, -1, 0}).code(), Code::BadArgument);
  EXPECT_EQ(schedule->begin(std::vector{3001, 0, 0}).code(), Code::OverLimit);
  EXPECT_EQ(schedule->begin(std::vector{3000, 2500, 0}).code(), Code::OverLimit);  // 23 + 19 blocks
  ASSERT_TRUE(schedule->begin(std::vector{300, 0, 0}).ok());
  EXPECT_EQ(schedule->truncate(0, 255).code(), Code::Incompatible);
  EXPECT_TRUE(schedule->truncate(0, 256).ok());
  EXPECT_EQ(schedule->truncate(3, 0).code(), Code::BadArgument);
  EXPECT_EQ(Schedule::create(kShape, *parse_policy("zipcache,cadence=prompt")).status().code(),
            Code::Incompatible);
  ScheduleShape shape = kShape;
  shape.max_tokens = 0;
  EXPECT_EQ(Schedule::create(shape, *parse_policy("uniform4")).status().code(), Code::BadArgument);
}

}  // namespace
}  // namespace zipcache::cuda
