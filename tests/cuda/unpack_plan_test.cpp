// Pieces of the past hold every record once, in order and without gaps.
#include <gtest/gtest.h>

#include "base/random.hpp"
#include "cuda/unpack.hpp"

namespace zipcache::cuda {
namespace {

using Records = std::vector<Record>;

Records records_of(const std::vector<int>& tokens) {
  Records records;
  for (const int n : tokens) records.push_back({0, 0, 0, 0, uint32_t(n)});
  return records;
}

PastPieces plan(const std::vector<Records>& streams, int n_rows) {
  return plan_past(std::vector<std::span<const Record>>(streams.begin(), streams.end()), n_rows);
}

// What the tasks of a piece say of a stream: they are taken from `next` on, which moves on.
void expect_piece(std::span<const UnpackTask> tasks, int stream, const Records& records, int n_rows,
                  int n_found, size_t& next) {
  int row = 0;
  for (const UnpackTask& task : tasks) {
    if (task.stream != stream) continue;
    while (next < records.size() && records[next].tokens == 0) ++next;
    ASSERT_LT(next, records.size());
    ASSERT_EQ(task.record, int(next));
    ASSERT_EQ(task.row, row);
    row += int(records[next].tokens);
    ++next;
  }
  EXPECT_EQ(n_found, row);
  EXPECT_LE(row, n_rows);
  while (next < records.size() && records[next].tokens == 0) ++next;
  const bool full = next == records.size() || row + int(records[next].tokens) > n_rows;
  EXPECT_TRUE(full) << "record " << next << " had room";
}

TEST(PastPieces, HoldEveryRecordOnce) {
  for (uint64_t seed = 0; seed < 200; ++seed) {
    Random random(seed);
    const int n_rows = kRecordTokens + int(random.below(400));
    std::vector<Records> streams(1 + random.below(4));
    for (Records& records : streams) {
      std::vector<int> tokens(random.below(20));
      for (int& n : tokens)
        n = int(random.below(3) == 0 ? random.below(kRecordTokens + 1) : kRecordTokens);
      records = records_of(tokens);
    }
    const PastPieces pieces = plan(streams, n_rows);
    std::vector<size_t> next(streams.size());
    ASSERT_EQ(pieces.rows.size(), pieces.ends.size() * streams.size());
    int first = 0;
    for (size_t piece = 0; piece < pieces.ends.size(); ++piece) {
      ASSERT_GT(pieces.ends[piece], first) << "an empty piece, seed " << seed;
      const auto tasks =
          std::span(pieces.tasks).subspan(size_t(first), size_t(pieces.ends[piece] - first));
      for (size_t s = 0; s < streams.size(); ++s)
        expect_piece(tasks, int(s), streams[s], n_rows, pieces.rows[piece * streams.size() + s],
                     next[s]);
      first = pieces.ends[piece];
    }
    EXPECT_EQ(size_t(first), pieces.tasks.size());
    for (size_t s = 0; s < streams.size(); ++s) EXPECT_EQ(next[s], streams[s].size()) << seed;
  }
}

TEST(PastPieces, Edges) {
  EXPECT_TRUE(plan({}, 128).ends.empty());
  EXPECT_TRUE(plan({{}, {}}, 128).ends.empty());
  EXPECT_TRUE(plan({records_of({0, 0})}, 128).ends.empty());
  EXPECT_EQ(plan({records_of({128, 128})}, 256).ends, std::vector<int>{2});
  EXPECT_EQ(plan({records_of({128, 128, 1})}, 256).rows, (std::vector<int32_t>{256, 1}));
  const PastPieces ragged = plan({records_of({32}), records_of({128, 128, 60})}, 128);
  EXPECT_EQ(ragged.ends, (std::vector<int>{2, 3, 4}));
  EXPECT_EQ(ragged.rows, (std::vector<int32_t>{32, 128, 0, 128, 0, 60}));
}

}  // namespace
}  // namespace zipcache::cuda
