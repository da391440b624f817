// What schedules tell is carried out on a model of a GPU's memory, which knows only places of
// tokens: every query finds every token before it once, and every block its own rows.
#include "cuda/model_schedule.hpp"

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
constexpr int kLayers = 3;

ModelSchedule schedule_of(const ScheduleShape& shape, const char* text, int n_layers = kLayers) {
  const Result<Policy> policy = parse_policy(text);
  EXPECT_TRUE(policy.ok()) << policy.status().message();
  Result<ModelSchedule> schedule = ModelSchedule::create(shape, *policy, n_layers);
  EXPECT_TRUE(schedule.ok()) << schedule.status().message();
  return std::move(*schedule);
}

// Of the layers of one group.
class Model {
 public:
  Model(const ModelSchedule& all, int group)
      : all_(all),
        group_(group),
        schedule_(all.group(group)),
        ring_(size_t(kShape.n_streams * schedule_.sizes().ring), kNone),
        table_(size_t(kShape.n_streams * schedule_.sizes().record_stride)) {}

  // Queries of a prompt attend to what was there before it.
  void step(std::span<const int> n_new, bool prompt) {
    for (const TableChange& change : all_.changes()) {
      if (change.stream / kShape.n_streams == group_)
        entry(change.stream % kShape.n_streams, change.index) = change.record;
    }
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

  const ModelSchedule& all_;
  const int group_;
  const Schedule& schedule_;
  std::vector<Token> ring_;
  std::vector<Record> table_;
  std::map<uint32_t, std::vector<Token>> packed_;
  std::map<std::pair<int, int>, bool> sinks_;
};

// Of every group and stream.
std::vector<int> lengths_of(const ModelSchedule& schedule) {
  std::vector<int> lengths;
  for (int group = 0; group < schedule.n_groups(); ++group) {
    for (int s = 0; s < kShape.n_streams; ++s) lengths.push_back(schedule.group(group).length(s));
  }
  return lengths;
}

// Tokens of a stream that some layer has packed.
int most_packed(const ModelSchedule& schedule, int stream) {
  int most = 0;
  for (int group = 0; group < schedule.n_groups(); ++group)
    most = std::max(most, schedule.group(group).packed_blocks(stream) * kBlockTokens);
  return most;
}

class Schedules : public ::testing::TestWithParam<const char*> {};

TEST_P(Schedules, EveryTokenStandsWhereItIsLookedFor) {
  for (uint64_t seed = 0; seed < 20; ++seed) {
    ModelSchedule schedule = schedule_of(kShape, GetParam());
    std::vector<Model> models;
    for (int group = 0; group < schedule.n_groups(); ++group) models.emplace_back(schedule, group);
    Random random(seed);
    for (int step = 0; step < 150 && !HasFailure(); ++step) {
      const bool prompt = random.below(12) == 0;
      std::vector<int> n_new;
      for (int s = 0; s < kShape.n_streams; ++s)
        n_new.push_back(int(random.below(prompt ? 700 : kMostStepTokens + 1)));
      const std::vector<int> before = lengths_of(schedule);
      const Status status = schedule.begin(n_new);
      if (!status.ok()) {
        ASSERT_EQ(status.code(), Code::OverLimit);
        ASSERT_EQ(lengths_of(schedule), before);
        schedule.clear(int(random.below(kShape.n_streams)));
        continue;
      }
      const bool is_prompt =
          std::any_of(n_new.begin(), n_new.end(), [](int n) { return n > kMostStepTokens; });
      for (Model& model : models) model.step(n_new, is_prompt);
      const int s = int(random.below(kShape.n_streams)), back = int(random.below(4));
      const int length = schedule.length(s) - back;
      if (length >= most_packed(schedule, s)) {
        ASSERT_TRUE(schedule.truncate(s, length).ok());
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Policies, Schedules,
                         ::testing::Values("zip,k_round=nearest", "zipcache", "uniform4",
                                           "uniform,bits=2,recent=0", "had4,sinks=7,recent=200",
                                           "zipcache,sinks=100,recent=64", "f16",
                                           "uniform4,0:bits=8,1:k=2,2:bits=16,sinks=7",
                                           "zipcache,0-1:bits=16,2:ratio=0.3"));

TEST(ModelSchedule, GroupsLayersByPolicy) {
  const auto groups = [](const char* text) {
    const ModelSchedule schedule = schedule_of(kShape, text, 6);
    std::vector<int> groups;
    for (int layer = 0; layer < 6; ++layer) groups.push_back(schedule.group_of(layer));
    EXPECT_EQ(schedule.n_groups(), *std::max_element(groups.begin(), groups.end()) + 1);
    return groups;
  };
  using Groups = std::vector<int>;
  EXPECT_EQ(groups("uniform4"), Groups({0, 0, 0, 0, 0, 0}));
  EXPECT_EQ(groups("uniform4,0-1:k=8,3:bits=2"), Groups({0, 0, 1, 2, 1, 1}));
  EXPECT_EQ(groups("uniform4,1:k=8,4:k=8,5:k=8,5:k=4"), Groups({0, 1, 0, 0, 1, 0}));
  EXPECT_EQ(groups("uniform4,0-5:k=8,6-9:k=2"), Groups({0, 0, 0, 0, 0, 0}));
  // What packs nothing is neither rotated nor coded.
  EXPECT_EQ(groups("had4,0:bits=16,2:bits=16,2:rotate=none"), Groups({0, 1, 0, 1, 1, 1}));
}

TEST(ModelSchedule, HasRoomForTheTokensOfLayersThatPackNothing) {
  const ModelSchedule schedule = schedule_of(kShape, "uniform4,0:bits=16");
  const ScheduleSizes &raw = schedule.group(0).sizes(), &packed = schedule.group(1).sizes();
  EXPECT_EQ(raw.ring, 3072);
  EXPECT_EQ(raw.pool, size_t(kShape.n_streams) * 3072 / 32 * 2 * size_t(raw.raw));
  EXPECT_LT(packed.pool, raw.pool);
  EXPECT_EQ(schedule.record_stride(), std::max(raw.record_stride, packed.record_stride));
}

// The first layer alone would take what the others refuse.
TEST(ModelSchedule, WhatOneGroupRefusesChangesNone) {
  ScheduleShape shape = kShape;
  shape.n_blocks = 3;
  ModelSchedule schedule = schedule_of(shape, "uniform4,recent=0,0:bits=16");
  ASSERT_TRUE(schedule.begin(std::vector{300, 0, 0}).ok());
  ASSERT_EQ(schedule.group(1).packed_blocks(0), 2);
  const auto unchanged = [&] {
    for (int group = 0; group < schedule.n_groups(); ++group) {
      if (schedule.group(group).length(0) != 300 || schedule.group(group).length(1) != 0)
        return false;
    }
    return true;
  };
  EXPECT_EQ(schedule.truncate(0, 255).code(), Code::Incompatible);
  EXPECT_TRUE(unchanged());
  EXPECT_EQ(schedule.begin(std::vector{0, 256, 0}).code(), Code::OverLimit);
  EXPECT_TRUE(unchanged());
  ASSERT_TRUE(schedule.truncate(0, 299).ok());
  ASSERT_TRUE(schedule.begin(std::vector{1, 128, 0}).ok());
  EXPECT_EQ(lengths_of(schedule), (std::vector{300, 128, 0, 300, 128, 0}));
}

TEST(ModelSchedule, NamesTheLayerThatItCannotHave) {
  const auto message = [](const char* text) {
    return ModelSchedule::create(kShape, *parse_policy(text), 4).status().message();
  };
  EXPECT_NE(message("uniform4,2-3:k_axis=group48").find("layer 2: the GPU cache found k_axis"),
            std::string::npos);
  EXPECT_EQ(message("uniform4,k_axis=group48").find("layer"), std::string::npos);
}

// Tokens taken back leave more packed blocks than are due.
TEST(Schedule, BlocksOfTokensTakenBackAreCountedOnce) {
  ScheduleShape shape = kShape;
  shape.n_blocks = 8;
  auto schedule = Schedule::create(shape, *parse_policy("uniform4,recent=100"));
  ASSERT_TRUE(schedule.ok());
  ASSERT_TRUE(schedule->begin(std::vector{228, 0, 0}).ok());
  ASSERT_EQ(schedule->packed_blocks(0), 1);
  ASSERT_TRUE(schedule->truncate(0, 200).ok());
  EXPECT_EQ(schedule->begin(std::vector{0, 8 * 128 + 100, 0}).code(), Code::OverLimit);
  EXPECT_TRUE(schedule->begin(std::vector{0, 7 * 128 + 100, 0}).ok());
  EXPECT_TRUE(schedule->begin(std::vector{1, 0, 0}).ok());
}

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
