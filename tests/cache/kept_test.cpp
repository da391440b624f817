// States that stay in the process: what they take, and what comes back.
#include <gtest/gtest.h>

#include <algorithm>

#include "base/random.hpp"
#include "support/text.hpp"

namespace zipcache {
namespace {

using test::cache_of;
using test::expect_same;
using test::kSides;
using test::read;
using test::State;
using test::Text;
using test::turn_of;

// Also those whose blocks are too large for the low bits of 16-bit rows, and one without any.
const char* const kPolicies[] = {"zip",
                                 "zipcache",
                                 "uniform,bits=2,recent=0",
                                 "zip,rotate=file",
                                 "roco,bits=4/0,ratio=0.5,recent=40,sinks=3",
                                 "zip2,score=last,probes=5+5",
                                 "uniform,bits=2,rank=2",
                                 "uniform,bits=8",
                                 "h2o,bits=16/0,ratio=0.5,recent=40",
                                 "zip,k=16/8,v=16/8,ratio=0.3",
                                 "f16"};
constexpr int kTokens = 450;

using Kept = std::vector<std::unique_ptr<KeptRows>>;  // K of all layers, then V

Kept keep(const Cache& cache, int stream, int first, int n) {
  Kept kept;
  for (const SideId side : kSides) {
    for (const int layer : {0, 1}) {
      const KeptRows* other = side == SideId::V ? kept[size_t(layer)].get() : nullptr;
      auto rows = cache.keep(layer, stream, side, first, n, other);
      EXPECT_TRUE(rows.ok());
      kept.push_back(std::move(*rows));
    }
  }
  return kept;
}

// Rows from .. + n of all layers to cells first .. of a stream.
void restore(Cache& cache, const Kept& kept, int stream, int first, int from = 0, int n = kTokens) {
  for (const SideId side : kSides) {
    for (const int layer : {0, 1}) {
      const KeptRows& rows = *kept[size_t(layer + 2 * (side == SideId::V))];
      const Status status = cache.restore(layer, stream, side, first, n, rows, from);
      ASSERT_TRUE(status.ok()) << status.message();
    }
  }
}

State rows_of(const Kept& kept) {
  State state;
  for (size_t i = 0; i < kept.size(); ++i) {
    auto& rows = state.emplace_back(size_t(kTokens) * test::width(int(i % 2), kSides[i / 2]));
    kept[i]->read(0, kTokens, rows.data());
  }
  return state;
}

size_t bytes(const Kept& kept) {
  size_t n = 0;
  for (const auto& rows : kept) n += rows->bytes();
  return n;
}

class KeptStateOf : public testing::TestWithParam<const char*> {
 protected:
  // A text, kept, and what it says when it goes on.
  void SetUp() override {
    cache = cache_of(GetParam(), 2, 2048);
    Text text(*cache, 0, 0);
    text.go_on(kTokens, 128);
    before = cache->stats();
    kept = keep(*cache, 0, 0, kTokens);
    rows = read(*cache, 0, 0, kTokens);
    expected = text.go_on(300);
  }
  std::unique_ptr<Cache> cache;
  CacheStats before;
  Kept kept;
  State rows;
  std::vector<float> expected;
};
INSTANTIATE_TEST_SUITE_P(Policies, KeptStateOf, testing::ValuesIn(kPolicies),
                         [](const auto& info) { return "policy" + std::to_string(info.index); });

TEST_P(KeptStateOf, GoesOnAsIfNothingHadHappened) {
  for (const auto& [stream, first] : {std::pair{0, 0}, {0, 0}, {1, 0}, {1, 700}, {0, 1100}}) {
    SCOPED_TRACE(testing::Message() << "stream " << stream << ", cell " << first);
    restore(*cache, kept, stream, first);
    EXPECT_EQ(read(*cache, stream, first, kTokens), rows);
    expect_same(Text(*cache, stream, first, kTokens).go_on(300), expected);
  }
}

TEST_P(KeptStateOf, GoesOnInAnotherCacheAfterItsOwnIsGone) {
  cache.reset();
  const auto other = cache_of(GetParam(), 2, 1024);
  restore(*other, kept, 1, 100);
  expect_same(Text(*other, 1, 100, kTokens).go_on(300), expected);
  EXPECT_EQ(rows_of(kept), rows);
}

TEST_P(KeptStateOf, TakesWhatTheCacheTakes) {
  // Beside the rows their scores, what queries are like, and a struct for each part and block.
  const Bytes& b = before.bytes;
  const double held = double(b.codes + b.params + b.tags + b.raw);
  EXPECT_NEAR(double(bytes(kept)), held, 0.1 * held);
  // Nothing of it moves when the cache goes on, turns its keys or is cleared.
  const std::vector<int32_t> all(2048, 5);
  for (const int layer : {0, 1})
    ASSERT_TRUE(
        cache->rotate_keys(layer, 0, all, turn_of(test::kTextLayers[size_t(layer)].k_dim)).ok());
  EXPECT_EQ(rows_of(kept), rows);
  cache->clear();
  EXPECT_EQ(rows_of(kept), rows);
}

// As llama.cpp does where cells are not one behind the other: the state in pieces.
TEST_P(KeptStateOf, ComesBackInPiecesAsTheSameRows) {
  const auto other = cache_of(GetParam(), 1, 1024);
  int from = 0;
  for (const int n : {128, 1, 60, 200, 61}) {
    restore(*other, kept, 0, 10 + from + 7 * (from > 0), from, n);
    from += n;
  }
  State found = read(*other, 0, 10, kTokens + 7);
  for (size_t part = 0; part < found.size(); ++part) {
    const auto gap = found[part].begin() + ptrdiff_t(128 * (found[part].size() / (kTokens + 7)));
    found[part].erase(gap, gap + ptrdiff_t(7 * (found[part].size() / (kTokens + 7))));
  }
  for (size_t part = 0; part < found.size(); ++part) EXPECT_EQ(found[part], rows[part]) << part;
  // A token that nothing is left of is not there.
  if (other->policy().evicts()) return;
  EXPECT_EQ(other->stats().rows_live, uint64_t(kTokens));
}

TEST_P(KeptStateOf, TheFirstRowsOfATextKeepTheirScores) {
  const auto one = cache_of(GetParam(), 1, 1024), other = cache_of(GetParam(), 1, 1024);
  Text text(*one, 0, 0);
  text.go_on(100, 50);
  const Kept start = keep(*one, 0, 0, 100);
  const auto outputs = text.go_on(300);
  restore(*other, start, 0, 0, 0, 100);
  EXPECT_EQ(Text(*other, 0, 0, 100).go_on(300), outputs);
}

// Cells first .. of a run, and the rows of the kept state that they get.
struct Piece {
  int first, from, n;
};

// As llama.cpp does it: all pieces of one layer, then those of the next.
void restore_in_pieces(Cache& cache, int stream, const Kept& kept,
                       std::initializer_list<Piece> pieces) {
  for (size_t part = 0; part < kept.size(); ++part) {
    for (const Piece& piece : pieces) {
      const Status status = cache.restore(int(part % 2), stream, kSides[part / 2], piece.first,
                                          piece.n, *kept[part], piece.from);
      ASSERT_TRUE(status.ok()) << status.message();
    }
  }
}

// The rows of two pieces are those of the kept state.
void expect_pieces(const Kept& kept, const State& start, const State& end) {
  const State all = rows_of(kept);
  for (size_t part = 0; part < all.size(); ++part) {
    State::value_type found = start[part];
    found.insert(found.end(), end[part].begin(), end[part].end());
    EXPECT_EQ(found, all[part]) << part;
  }
}

// What is written after pieces is a step of its own: else its block would close between two layers,
// and rows be lost.
TEST(KeptState, ATextGoesOnAfterPieces) {
  const char* policy = "uniform,bits=8,k_axis=token,v_axis=token,recent=0";
  const auto cache = cache_of(policy, 1, 1024), other = cache_of(policy, 1, 1024);
  Text text(*cache, 0, 0);
  text.go_on(kTokens, 128);
  const Kept kept = keep(*cache, 0, 0, kTokens);
  restore_in_pieces(*other, 0, kept, {{0, 0, 300}, {300, 300, kTokens - 300}});
  EXPECT_EQ(read(*other, 0, 0, kTokens), rows_of(kept));
  // Fills a block, which is packed in the first layer before the second one is written.
  constexpr int kMore = 512 - kTokens;
  text.go_on(kMore, kMore);
  Text(*other, 0, 0, kTokens).go_on(kMore, kMore);
  EXPECT_EQ(read(*other, 0, kTokens, kMore), read(*cache, 0, kTokens, kMore));
}

// Where each sequence has a stream of its own, restoring one frees the stream, but not the pieces
// that came before the one with the text's beginning.
TEST(KeptState, PiecesMayComeInAnyOrder) {
  const auto cache = cache_of("zip", 2, 1024);
  Text(*cache, 0, 0).go_on(kTokens, 128);
  Text(*cache, 1, 0).go_on(700, 128);
  const Kept kept = keep(*cache, 0, 0, kTokens);
  constexpr int kEnd = kTokens - 200;
  restore_in_pieces(*cache, 1, kept, {{0, 200, kEnd}, {kEnd, 0, 200}});
  expect_pieces(kept, read(*cache, 1, kEnd, 200), read(*cache, 1, 0, kEnd));
}

// A block of a later layer alone takes no place from the rows of the first.
TEST(KeptState, LayersMayBePackedOrNot) {
  const char* policy = "zip,recent=0,0:k=16,0:v=16";
  const auto cache = cache_of(policy, 1, 1024), other = cache_of(policy, 1, 1024);
  Text text(*cache, 0, 0);
  text.go_on(kTokens, 128);
  const Kept kept = keep(*cache, 0, 0, kTokens);
  restore_in_pieces(*other, 0, kept, {{0, 0, 100}, {107, 100, kTokens - 100}});
  expect_pieces(kept, read(*other, 0, 0, 100), read(*other, 0, 107, kTokens - 100));
  const auto outputs = text.go_on(100);
  const auto whole = cache_of(policy, 1, 1024);
  restore(*whole, kept, 0, 0);
  EXPECT_EQ(Text(*whole, 0, 0, kTokens).go_on(100), outputs);
}

TEST(KeptState, OfAnotherSidePolicyOrPlaceIsRefused) {
  const auto cache = cache_of("zip", 1, 1024), other = cache_of("zip,seed=5", 1, 1024);
  Text(*cache, 0, 0).go_on(kTokens, 128);
  const Kept kept = keep(*cache, 0, 0, kTokens);
  EXPECT_EQ(cache->restore(0, 0, SideId::V, 0, 10, *kept[0], 0).code(), Code::BadArgument);
  EXPECT_EQ(cache->restore(1, 0, SideId::K, 0, 10, *kept[0], 0).code(), Code::BadArgument);
  EXPECT_EQ(other->restore(0, 0, SideId::K, 0, 10, *kept[0], 0).code(), Code::BadArgument);
  EXPECT_EQ(cache->restore(0, 0, SideId::K, 0, 10, *kept[0], -1).code(), Code::BadArgument);
  EXPECT_EQ(cache->restore(0, 0, SideId::K, 0, 10, *kept[0], kTokens - 9).code(),
            Code::BadArgument);
  EXPECT_EQ(cache->restore(0, 0, SideId::K, 1020, 10, *kept[0], 0).code(), Code::BadArgument);
  EXPECT_EQ(cache->keep(0, 0, SideId::K, 1020, 10, nullptr).status().code(), Code::BadArgument);
  EXPECT_EQ(cache->keep(2, 0, SideId::K, 0, 10, nullptr).status().code(), Code::BadArgument);
}

TEST(KeptState, OfTextsThatTookTurnsIsRows) {
  const auto cache = cache_of("zip", 1, 1024);
  Text a(*cache, 0, 0), b(*cache, 0, 512);
  for (int i = 0; i < 20; ++i) {
    a.go_on(20, 20);
    b.go_on(20, 20);
  }
  const Kept kept = keep(*cache, 0, 0, 400);
  const State rows = read(*cache, 0, 0, 400);
  EXPECT_GT(bytes(kept), 400 * 2 * (4 * 64 + 80 + 96));
  const auto other = cache_of("zip", 1, 1024);
  restore(*other, kept, 0, 0, 0, 400);
  EXPECT_EQ(read(*other, 0, 0, 400), rows);
}

TEST(KeptState, RestoringAgainAndAgainElsewhereStaysBounded) {
  const auto cache = cache_of("zip", 1, 2048);
  Text(*cache, 0, 0).go_on(kTokens, 128);
  const Kept kept = keep(*cache, 0, 0, kTokens);
  Random random(3);
  for (int round = 0; round < 200; ++round) {
    const int first = int(random.below(2048 - kTokens - 20)), from = int(random.below(200));
    if (round % 4 == 1)
      restore(*cache, kept, 0, first, from, kTokens - from);
    else
      restore(*cache, kept, 0, first);
    if (round % 3 == 0) Text(*cache, 0, first, kTokens).go_on(2);
    ASSERT_LE(cache->stats().rows_live, 2048u);
    ASSERT_LE(cache->stats().rows_dead, 2048u / 8 + 2048) << round;
  }
}

}  // namespace
}  // namespace zipcache
