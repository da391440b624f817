// Files of results: what is there is found again, and nothing else.
#include "result_file.hpp"

#include <gtest/gtest.h>

#include <fstream>

#include "support/files.hpp"

namespace zipcache::cli {
namespace {

const Json kRow = {{"model", "m.gguf"}, {"ctx", 2048}, {"policy", "zip"}, {"kld_mean", 0.25}};

TEST(ResultFile, ARowMatchesAKeyWhoseFieldsItHas) {
  EXPECT_TRUE(matches(kRow, {{"ctx", 2048}, {"policy", "zip"}}));
  EXPECT_TRUE(matches(kRow, Json::object()));
  EXPECT_FALSE(matches(kRow, {{"ctx", 2049}, {"policy", "zip"}}));
  EXPECT_FALSE(matches(kRow, {{"policy", "zip"}, {"ubatch", 128}}));
}

TEST(ResultFile, RowsAreThereWhenTheFileIsOpenedAgain) {
  const test::TemporaryFolder folder;
  const auto path = folder.path() / "rows.jsonl";
  {
    auto file = ResultFile::open(path);
    ASSERT_TRUE(file.ok());
    EXPECT_FALSE(file->find({{"policy", "zip"}}));
    ASSERT_TRUE(file->add(kRow).ok());
    ASSERT_TRUE(file->add({{"policy", "q4_0"}, {"ctx", 512}}).ok());
    EXPECT_EQ(file->find({{"policy", "q4_0"}})->at("ctx"), 512);
  }
  const auto file = ResultFile::open(path);
  ASSERT_TRUE(file.ok());
  ASSERT_TRUE(file->find({{"policy", "zip"}}));
  EXPECT_EQ(*file->find({{"policy", "zip"}}), kRow);
  EXPECT_FALSE(file->find({{"policy", "zip"}, {"ctx", 512}}));
}

TEST(ResultFile, TheNewestOfEqualRowsIsFound) {
  auto file = ResultFile::open("");
  ASSERT_TRUE(file->add({{"policy", "zip"}, {"kld_mean", 1}}).ok());
  ASSERT_TRUE(file->add({{"policy", "zip"}, {"kld_mean", 2}}).ok());
  EXPECT_EQ(file->find({{"policy", "zip"}})->at("kld_mean"), 2);
}

TEST(ResultFile, ABrokenLineIsNamed) {
  const test::TemporaryFolder folder;
  const auto path = folder.path() / "rows.jsonl";
  std::ofstream(path) << "{\"policy\":\"zip\"}\n\n{\"policy\":\n";
  const auto file = ResultFile::open(path);
  ASSERT_FALSE(file.ok());
  EXPECT_EQ(file.status().code(), Code::BadData);
  EXPECT_NE(file.status().message().find("line 3"), std::string::npos);
}

TEST(ResultFile, AFolderStandsForItsFilesInOrder) {
  const test::TemporaryFolder folder;
  std::ofstream(folder.path() / "b.jsonl") << "{\"n\":2}\n";
  std::ofstream(folder.path() / "a.jsonl") << "{\"n\":1}\n";
  std::ofstream(folder.path() / "README.md") << "no row\n";
  const auto rows = read_all_rows({folder.path().string()});
  ASSERT_TRUE(rows.ok());
  ASSERT_EQ(rows->size(), 2u);
  EXPECT_EQ((*rows)[0]["n"], 1);
  const test::TemporaryFolder empty;
  EXPECT_EQ(read_all_rows({empty.path().string()}).status().code(), Code::Environment);
}

TEST(ResultFile, FingerprintsTellContentsApart) {
  EXPECT_EQ(fingerprint("a text").size(), 16u);
  EXPECT_EQ(fingerprint("a text"), fingerprint("a text"));
  EXPECT_NE(fingerprint("a text"), fingerprint("a tex"));
  // XXH3's published value for nothing and seed 0.
  EXPECT_EQ(fingerprint(""), "2d06800538d394c2");
}

}  // namespace
}  // namespace zipcache::cli
