// Markdown, CSV and JSON as other programs read them.
#include "table.hpp"

#include <gtest/gtest.h>

#include <cmath>

namespace zipcache::cli {
namespace {

TEST(Table, MarkdownColumnsAreAsWideAsTheirWidestCell) {
  EXPECT_EQ(markdown({{"policy", false}, {"x"}}, {{"zipcache", "1"}, {"f16", "12.5"}}),
            "| policy   |    x |\n"
            "|:---------|-----:|\n"
            "| zipcache |    1 |\n"
            "| f16      | 12.5 |\n");
}

TEST(Table, AWideCharacterCountsOnce) {
  EXPECT_EQ(width("1 ± 2"), 5u);
  EXPECT_EQ(markdown({{"a"}}, {{"±"}, {"x"}}), "| a |\n|--:|\n| ± |\n| x |\n");
}

TEST(Table, BarsAndLineBreaksDoNotEndACell) {
  EXPECT_EQ(markdown({{"a", false}}, {{"x|y\nz"}}), "| a       |\n|:--------|\n| x\\|y  z |\n");
}

TEST(Table, CsvQuotesWhatNeedsIt) {
  const std::vector<Json> rows = {{{"policy", "zip,recent=64"}, {"note", "say \"so\""}, {"n", 2}}};
  EXPECT_EQ(csv(rows), "policy,note,n\n\"zip,recent=64\",\"say \"\"so\"\"\",2\n");
}

TEST(Table, CsvFlattensObjectsAndTakesNamesFromAllRows) {
  const std::vector<Json> rows = {{{"p", "a"}, {"bytes", {{"codes", 1}}}},
                                  {{"p", "b"}, {"bytes", {{"rows", 2}}}}};
  EXPECT_EQ(csv(rows), "p,bytes_codes,bytes_rows\na,1,\nb,,2\n");
}

TEST(Table, WhatIsNoNumberIsEmptyInCsvAndNullInJson) {
  const std::vector<Json> rows = {{{"a", std::nan("")}, {"b", nullptr}, {"c", 1.5}}};
  EXPECT_EQ(csv(rows), "a,b,c\n,,1.5\n");
  EXPECT_EQ(jsonl(rows), "{\"a\":null,\"b\":null,\"c\":1.5}\n");
}

TEST(Table, JsonlIsOneObjectALine) {
  const std::vector<Json> rows = {{{"a", 1}}, {{"a", 2}}};
  EXPECT_EQ(for_programs(Format::Jsonl, rows), "{\"a\":1}\n{\"a\":2}\n");
  EXPECT_EQ(Json::parse(for_programs(Format::Json, rows)), Json(rows));
}

TEST(Table, BrokenTextDoesNotBreakTheOutput) {
  const std::vector<Json> rows = {{{"a", "\xff"}}};
  EXPECT_TRUE(Json::accept(jsonl(rows)));
}

TEST(Table, FormatsAreKnownByName) {
  for (const std::string_view name : kFormatNames) EXPECT_TRUE(parse_format(name).ok()) << name;
  EXPECT_EQ(*parse_format("jsonl"), Format::Jsonl);
  EXPECT_EQ(parse_format("xml").status().code(), Code::BadArgument);
}

}  // namespace
}  // namespace zipcache::cli
