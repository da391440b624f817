// Reading out what tokens received, and policies that rank by a file of it.
#include <gtest/gtest.h>

#include <algorithm>
#include <string>

#include "support/files.hpp"
#include "support/harness.hpp"
#include "support/scores.hpp"
#include "zipcache/token_scores.hpp"

namespace zipcache {
namespace {

using test::Harness;
using test::random_scores;
using test::TemporaryFile;

constexpr int kTokens = 3 * kBlockTokens;

CacheShape two_layers(int n_cells) { return {1, n_cells, {{2, 32, 32}, {1, 16, 32}}}; }

// Tokens of the high tier stay as they were written.
std::string by_file(const std::string& path, const std::string& more = "") {
  return "zipcache,bits=16/2,ratio=0.25,score=file:" + path + more;
}

class SavedScores {
 public:
  explicit SavedScores(const TokenScores& scores) : file_(".zcs", "") {
    EXPECT_TRUE(save_token_scores(file_.path(), scores).ok());
  }
  const std::string& path() const { return file_.path(); }

 private:
  TemporaryFile file_;
};

// Which tokens of a head came back unchanged.
std::vector<bool> exact_tokens(const Harness& harness, int layer, int head,
                               const LayerShape& shape) {
  const auto read = harness.read(layer, SideId::V), written = harness.written(layer, SideId::V);
  std::vector<bool> exact;
  for (int i = 0; i < harness.tokens(); ++i) {
    const auto at = ptrdiff_t(i * shape.n_heads + head) * shape.v_dim;
    exact.push_back(
        std::equal(read.begin() + at, read.begin() + at + shape.v_dim, written.begin() + at));
  }
  return exact;
}

TEST(ScoreFile, ARowWithoutItsFileSaysHowToMakeOne) {
  for (const auto& [row, how] :
       {std::pair{"kvzip", "--replay --scores"}, {"zip,score=file", "-c"}}) {
    const Policy policy = *parse_policy(row);
    for (const Status& refused :
         {Cache::create(two_layers(kTokens), policy).status(), check_scores_named(policy)}) {
      EXPECT_EQ(refused.code(), Code::BadPolicy);
      for (const char* part : {row, "zipcache plot saliency", how, ",score=file:FILE"})
        EXPECT_NE(refused.message().find(part), std::string::npos) << refused.message();
    }
  }
  EXPECT_TRUE(check_scores_named(*parse_policy("kvzip,score=file:a.zcs")).ok());
  EXPECT_TRUE(check_scores_named(*parse_policy("zip")).ok());
}

TEST(ScoreFile, EachHeadKeepsTheTokensThatTheFileRanksHighest) {
  const TokenScores scores = random_scores(kTokens + 5, {2, 1});
  const SavedScores saved(scores);
  for (const char* norm : {"probe_nnz", "none"}) {
    Harness harness(two_layers(kTokens), by_file(saved.path(), std::string(",norm=") + norm));
    ASSERT_TRUE(harness.prompt(kTokens, 100).ok());
    for (int layer = 0; layer < 2; ++layer) {
      const TokenScores::Layer& of = scores.layers[size_t(layer)];
      for (int head = 0; head < of.n_heads; ++head) {
        const auto exact =
            exact_tokens(harness, layer, head, harness.cache().shape().layers[size_t(layer)]);
        for (int block = 0; block < 3; ++block) {
          std::vector<std::pair<float, int>> ranked;
          for (int i = block * kBlockTokens; i < (block + 1) * kBlockTokens; ++i) {
            const float sum = of.sums[size_t(head * (kTokens + 5) + i)];
            const bool mean = std::string_view(norm) == "probe_nnz";
            ranked.emplace_back(mean ? sum / float(of.seen[size_t(i)]) : sum, i);
          }
          std::sort(ranked.rbegin(), ranked.rend());
          for (int i = 0; i < kBlockTokens; ++i)
            ASSERT_EQ(exact[size_t(ranked[size_t(i)].second)], i < 32)
                << norm << " layer " << layer << " head " << head << " token "
                << ranked[size_t(i)].second;
        }
      }
    }
  }
}

TEST(ScoreFile, WhatTokensReceivedIsReadFromRawRows) {
  Harness harness(two_layers(kTokens), "zipcache,probes=100+0,recent=" + std::to_string(kTokens),
                  /*group=*/3);
  ASSERT_TRUE(harness.prompt(kTokens - 10, 100).ok());
  ASSERT_TRUE(harness.feed(10).ok());  // a short step scores too
  for (int layer = 0; layer < 2; ++layer) {
    const int n_heads = layer == 0 ? 2 : 1;
    std::vector<float> sums(size_t(kTokens * n_heads));
    std::vector<uint32_t> seen(kTokens);
    ASSERT_TRUE(harness.cache().read_scores(layer, 0, 0, kTokens, sums.data(), seen.data()).ok());
    for (int i = 0; i < kTokens; ++i) ASSERT_EQ(seen[size_t(i)], uint32_t(kTokens - i));
    for (int head = 0; head < n_heads; ++head) {
      double mass = 0;
      for (int i = 0; i < kTokens; ++i) mass += sums[size_t(head * kTokens + i)];
      // Each row of three query heads gives away 1 in all.
      EXPECT_NEAR(mass, 3.0 * kTokens, 1e-4 * kTokens);
    }
    // The newest token was seen by its own row alone, which is one of the last step's outputs.
    std::vector<float> one(2);
    uint32_t rows = 0;
    ASSERT_TRUE(harness.cache().read_scores(layer, 0, kTokens - 1, 1, one.data(), &rows).ok());
    EXPECT_EQ(rows, 1u);
    for (int head = 0; head < n_heads; ++head)
      EXPECT_EQ(one[size_t(head)], sums[size_t(head * kTokens + kTokens - 1)]);
  }
}

TEST(ScoreFile, ScoresThatAreGoneAreNotMadeUp) {
  std::vector<float> sums(kTokens * 2);
  std::vector<uint32_t> seen(kTokens);
  const auto said = [&](Harness& harness, int layer, int first, int n) {
    const Status status = harness.cache().read_scores(layer, 0, first, n, sums.data(), seen.data());
    EXPECT_EQ(status.code(), Code::BadArgument);
    return status.message();
  };
  Harness packed(two_layers(kTokens), "zipcache,recent=100");
  ASSERT_TRUE(packed.prompt(300, 100).ok());
  EXPECT_NE(said(packed, 0, 0, 300).find("cell 0 is packed"), std::string::npos);
  EXPECT_NE(said(packed, 0, 256, 45).find("cell 300 is empty"), std::string::npos);
  EXPECT_NE(said(packed, 0, 0, kTokens + 1).find("cells 0 to"), std::string::npos);
  EXPECT_NE(said(packed, 2, 0, 1).find("layer 2"), std::string::npos);
  EXPECT_TRUE(packed.cache().read_scores(0, 0, 256, 44, sums.data(), seen.data()).ok());
  Harness plain(two_layers(kTokens), "f16");
  ASSERT_TRUE(plain.prompt(300, 100).ok());
  EXPECT_NE(said(plain, 0, 0, 1).find("keeps no scores"), std::string::npos);
}

TEST(ScoreFile, AFileThatDoesNotFitIsRefusedWhenTheCacheIsMade) {
  const auto made = [](const std::string& path) {
    return Cache::create(two_layers(256), *parse_policy(by_file(path))).status();
  };
  const SavedScores layers(random_scores(256, {2})), heads(random_scores(256, {2, 2}));
  EXPECT_EQ(made(layers.path()).code(), Code::Incompatible);
  EXPECT_NE(made(layers.path()).message().find("1 layers, expected 2"), std::string::npos);
  EXPECT_EQ(made(heads.path()).code(), Code::Incompatible);
  EXPECT_NE(made(heads.path()).message().find(heads.path()), std::string::npos);
  EXPECT_EQ(made("/nowhere/a.zcs").code(), Code::Environment);
  const TemporaryFile damaged(".zcs", "ZCSCORES");
  EXPECT_EQ(made(damaged.path()).code(), Code::BadData);
}

TEST(ScoreFile, MoreTokensThanTheFileHasAreRefused) {
  const SavedScores saved(random_scores(200, {2, 1}));
  Harness harness(two_layers(kTokens), by_file(saved.path()));
  ASSERT_TRUE(harness.prompt(200, 100).ok());
  const Status status = harness.feed(1);
  EXPECT_EQ(status.code(), Code::Incompatible);
  EXPECT_NE(status.message().find("201 tokens"), std::string::npos) << status.message();
  // A new text may begin.
  harness.cache().clear();
  harness.forget();
  EXPECT_TRUE(harness.prompt(200, 50).ok());
}

TEST(ScoreFile, RowsOutOfOrderAreRefused) {
  const SavedScores saved(random_scores(kTokens, {2, 1}));
  Harness harness(two_layers(kTokens), by_file(saved.path()));
  ASSERT_TRUE(harness.prompt(200, 100).ok());
  // In the block that is still open a token may be taken back and another one come.
  EXPECT_TRUE(harness.step(0, 0, 199, {199}).ok());
  const Status status = harness.step(0, 0, 200, {5});
  EXPECT_EQ(status.code(), Code::Incompatible);
  EXPECT_NE(status.message().find("cell 5 is written again"), std::string::npos);
}

}  // namespace
}  // namespace zipcache
