// Arena and parallel_for.
#include <gtest/gtest.h>

#include <atomic>
#include <cstring>
#include <new>
#include <vector>

#include "base/arena.hpp"
#include "base/parallel.hpp"

namespace zipcache {
namespace {

TEST(Arena, PiecesAreAlignedAndDoNotOverlap) {
  Arena arena;
  ASSERT_TRUE(arena.reserve(1 << 16).ok());
  std::vector<uint8_t*> pieces;
  for (const size_t size : {1u, 63u, 64u, 65u, 1000u}) {
    uint8_t* piece = arena.take(size);
    ASSERT_NE(piece, nullptr);
    EXPECT_EQ(reinterpret_cast<uintptr_t>(piece) % 64, 0u);
    std::memset(piece, int(size % 251), size);
    pieces.push_back(piece);
  }
  EXPECT_EQ(pieces[0][0], 1);
  EXPECT_EQ(pieces[1][62], 63);
  EXPECT_EQ(pieces[3][64], 65);
  EXPECT_EQ(arena.used(), 64u + 64 + 64 + 128 + 1024);
  EXPECT_EQ(arena.committed(), arena.used());
}

TEST(Arena, FreedPiecesServeTheNextRequestOfTheirSize) {
  Arena arena;
  ASSERT_TRUE(arena.reserve(1 << 12).ok());
  uint8_t* first = arena.take(100);
  arena.give(first, 100);
  EXPECT_EQ(arena.used(), 0u);
  EXPECT_EQ(arena.committed(), 128u);
  EXPECT_NE(arena.take(64), first);   // another size
  EXPECT_EQ(arena.take(120), first);  // the same size when rounded up
  EXPECT_EQ(arena.used(), 192u);
  arena.give(nullptr, 64);
  EXPECT_EQ(arena.used(), 192u);
}

TEST(Arena, UsedUpStorageGivesNullAndClearGivesItBack) {
  Arena arena;
  ASSERT_TRUE(arena.reserve(256).ok());
  EXPECT_NE(arena.take(192), nullptr);
  EXPECT_EQ(arena.take(65), nullptr);
  EXPECT_NE(arena.take(64), nullptr);
  EXPECT_EQ(arena.take(1), nullptr);
  arena.clear();
  EXPECT_EQ(arena.committed(), 0u);
  uint8_t* piece = arena.take(256);
  ASSERT_NE(piece, nullptr);
  EXPECT_EQ(piece[255], 0);
}

// A cache whose blocks have many sizes would otherwise end with storage for none of them.
TEST(Arena, FreedPiecesServeOtherSizesOnceTheRangeIsUsedUp) {
  Arena arena;
  ASSERT_TRUE(arena.reserve(1024).ok());
  std::vector<uint8_t*> pieces;
  for (int i = 0; i < 8; ++i) pieces.push_back(arena.take(128));
  EXPECT_EQ(arena.take(64), nullptr);
  for (const int i : {1, 4, 2, 6}) arena.give(pieces[size_t(i)], 128);
  EXPECT_EQ(arena.take(320), nullptr);    // two neighbours are the most
  EXPECT_EQ(arena.take(192), pieces[1]);  // both, of which a third is left
  uint8_t* rest = arena.take(64);
  EXPECT_EQ(rest, pieces[2] + 64);
  EXPECT_EQ(arena.take(100), pieces[6]);  // its own size, as always
  EXPECT_EQ(arena.take(1), pieces[4]);
  EXPECT_EQ(arena.used(), 1024u - 64);
  EXPECT_EQ(arena.committed(), 1024u);
}

TEST(Arena, ImpossibleReservationIsOverLimitAndSaysWhatToDo) {
  Arena arena;
  const Status status = arena.reserve(size_t(1) << 60);
  EXPECT_EQ(status.code(), Code::OverLimit);
  EXPECT_NE(status.message().find("shorter context"), std::string::npos);
  EXPECT_EQ(arena.take(64), nullptr);
}

TEST(Parallel, EveryTaskRunsOnce) {
  for (const int threads : {0, 1, 2, 5}) {
    for (const int tasks : {0, 1, 2, 3, 100}) {
      std::vector<std::atomic<int>> runs(size_t(tasks) + 1);
      parallel_for(threads, tasks, [&](int i, int) { ++runs[size_t(i)]; });
      for (int i = 0; i < tasks; ++i) EXPECT_EQ(runs[size_t(i)], 1);
    }
  }
}

TEST(Parallel, WhatATaskThrowsIsThrownOn) {
  for (const int n_threads : {1, 3}) {
    EXPECT_THROW(parallel_for(n_threads, 40,
                              [](int task, int) {
                                if (task == 7) throw std::bad_alloc();
                              }),
                 std::bad_alloc);
    std::atomic<int> n{0};
    parallel_for(n_threads, 40, [&](int, int) { ++n; });
    EXPECT_EQ(n, 40) << "afterwards all run again";
  }
}

}  // namespace
}  // namespace zipcache
