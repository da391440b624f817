// Files of token scores: what comes back, the bytes of the format, and every damage refused.
#include "zipcache/token_scores.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <sstream>

#include "support/files.hpp"
#include "support/scores.hpp"

namespace zipcache {
namespace {

using test::random_scores;
using test::TemporaryFile;

std::string bytes_of(const TokenScores& scores) {
  const TemporaryFile file(".zcs", "");
  EXPECT_TRUE(save_token_scores(file.path(), scores).ok());
  std::ostringstream out;
  out << std::ifstream(file.path(), std::ios::binary).rdbuf();
  return out.str();
}

Status load(const std::string& bytes) {
  const TemporaryFile file(".zcs", bytes);
  return load_token_scores(file.path()).status();
}

TEST(TokenScores, ComeBackFromTheirFile) {
  const TokenScores scores = random_scores(37, {3, 1, 8});
  const TemporaryFile file(".zcs", "");
  ASSERT_TRUE(save_token_scores(file.path(), scores).ok());
  const auto back = load_token_scores(file.path());
  ASSERT_TRUE(back.ok()) << back.status().message();
  EXPECT_EQ(*back, scores);
}

TEST(TokenScores, BytesAreThoseOfTheFormat) {
  TokenScores scores;
  scores.tokens = {7, 258};
  scores.layers = {{1, {2, 1}, {1.5f, 0.25f}}};
  const std::string bytes = bytes_of(scores);
  const unsigned char expected[] = {'Z', 'C', 'S', 'C',  'O', 'R', 'E', 'S',  //
                                    1,   0,   0,   0,                         // version
                                    1,   0,   0,   0,                         // layers
                                    2,   0,   0,   0,                         // tokens
                                    1,   0,   0,   0,                         // heads of layer 0
                                    7,   0,   0,   0,    2,   1,   0,   0,    // the text
                                    2,   0,   0,   0,    1,   0,   0,   0,    // rows that saw it
                                    0,   0,   192, 0x3F, 0,   0,   128, 0x3E};
  ASSERT_EQ(bytes.size(), sizeof(expected) + 8);
  for (size_t i = 0; i < sizeof(expected); ++i)
    EXPECT_EQ(static_cast<unsigned char>(bytes[i]), expected[i]) << i;
}

TEST(TokenScores, EveryCutAndEveryChangedByteIsRefused) {
  const std::string bytes = bytes_of(random_scores(5, {2, 1}));
  for (size_t n = 0; n < bytes.size(); ++n)
    EXPECT_EQ(load(bytes.substr(0, n)).code(), Code::BadData) << n;
  EXPECT_EQ(load(bytes + '\0').code(), Code::BadData);
  for (size_t i = 0; i < bytes.size(); ++i) {
    for (const int bit : {0, 3, 7}) {
      std::string changed = bytes;
      changed[i] = char(changed[i] ^ (1 << bit));
      EXPECT_EQ(load(changed).code(), Code::BadData) << i;
    }
  }
  EXPECT_TRUE(load(bytes).ok());
}

TEST(TokenScores, RefusalsSayWhatWasFound) {
  const auto said = [](const std::string& bytes) { return load(bytes).message(); };
  std::string bytes = bytes_of(random_scores(5, {2}));
  EXPECT_NE(said("GGUF" + bytes).find("another kind of file"), std::string::npos);
  EXPECT_NE(said("").find("another kind of file"), std::string::npos);
  EXPECT_NE(said(bytes + "more").find("more than"), std::string::npos) << said(bytes + "more");
  bytes[8] = 2;
  EXPECT_NE(said(bytes).find("version 2"), std::string::npos);
  bytes[8] = 1;
  bytes[40] = char(bytes[40] + 1);
  EXPECT_NE(said(bytes).find("checksum"), std::string::npos);
  // Sizes that would not fit in any memory are refused before they are used.
  for (size_t i = 12; i < 24; ++i) bytes[i] = '\xFF';
  EXPECT_NE(said(bytes).find("4294967295"), std::string::npos);
  const auto missing = load_token_scores("/nowhere/a.zcs").status();
  EXPECT_EQ(missing.code(), Code::Environment);
  EXPECT_NE(missing.message().find("/nowhere/a.zcs"), std::string::npos);
  EXPECT_EQ(load_token_scores("/").status().code(), Code::Environment);
  EXPECT_EQ(save_token_scores("/nowhere/a.zcs", random_scores(2, {1})).code(), Code::Environment);
}

TEST(TokenScores, ScoresThatContradictThemselvesAreNotWritten) {
  const TemporaryFile file(".zcs", "");
  const auto refused = [&](auto&& change) {
    TokenScores scores = random_scores(4, {2});
    change(scores);
    return save_token_scores(file.path(), scores).code() == Code::BadData;
  };
  EXPECT_TRUE(refused([](TokenScores& s) { s.layers[0].sums[1] = -1e-6f; }));
  EXPECT_TRUE(refused([](TokenScores& s) { s.layers[0].sums[1] = NAN; }));
  EXPECT_TRUE(refused([](TokenScores& s) { s.layers[0].sums[1] = INFINITY; }));
  EXPECT_TRUE(refused([](TokenScores& s) { s.layers[0].seen[3] = 0; }));
  EXPECT_TRUE(refused([](TokenScores& s) { s.layers[0].sums.pop_back(); }));
  EXPECT_TRUE(refused([](TokenScores& s) { s.layers[0].seen.push_back(1); }));
  EXPECT_TRUE(refused([](TokenScores& s) { s.layers[0].n_heads = 0; }));
  EXPECT_TRUE(refused([](TokenScores& s) { s.layers.clear(); }));
  EXPECT_TRUE(refused([](TokenScores& s) { s = {}; }));
  EXPECT_FALSE(refused([](TokenScores&) {}));
}

TEST(TokenScores, FitOneShapeAndOneText) {
  const TokenScores scores = random_scores(4, {2, 3});
  EXPECT_TRUE(check_fit(scores, {{2, 64, 64}, {3, 128, 64}}).ok());
  EXPECT_EQ(check_fit(scores, {{2, 64, 64}}).code(), Code::Incompatible);
  const Status heads = check_fit(scores, {{2, 64, 64}, {2, 64, 64}});
  EXPECT_EQ(heads.code(), Code::Incompatible);
  EXPECT_NE(heads.message().find("3 heads in layer 1, expected 2"), std::string::npos);

  const std::vector<int32_t> text = {100, 101, 102, 103, 104}, other = {100, 7};
  EXPECT_TRUE(check_text(scores, std::span(text).first(4)).ok());
  EXPECT_TRUE(check_text(scores, std::span(text).first(2)).ok());
  EXPECT_NE(check_text(scores, text).message().find("at least the 5"), std::string::npos);
  EXPECT_NE(check_text(scores, other).message().find("position 1"), std::string::npos);
}

}  // namespace
}  // namespace zipcache
