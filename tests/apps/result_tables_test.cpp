// Groups and tables of results, and what pictures show of them.
#include "result_tables.hpp"

#include <gtest/gtest.h>

#include "result_plots.hpp"

namespace zipcache::cli {
namespace {

Json kld_row(const std::string& policy, double bits, double kld, int ctx = 2048) {
  const Json bin = {{"from", 0}, {"to", 512}, {"kld_mean", kld / 2}, {"kld_mean_se", 0.001}};
  return {{"task", "kld"},         {"model", "m.gguf"},    {"f32_weights", false},
          {"ubatch", 128},         {"text", "code.txt"},   {"ctx", ctx},
          {"chunks", 1},           {"depth_bin", 512},     {"policy", policy},
          {"bits_resident", bits}, {"bits_coded", 3.38},   {"kld_mean", kld},
          {"kld_mean_se", 0.0021}, {"kld_p50", kld / 4},   {"kld_p99", 0.5},
          {"kld_p999", 1.5},       {"same_top", 0.9},      {"same_top_se", 0.01},
          {"ppl_ratio", 1.02},     {"ppl_ratio_se", 0.01}, {"n_scored", 1023},
          {"by_depth", Json{bin}}, {"weights", "Q4_1"},    {"kernel", "avx2"},
          {"cpu", "a processor"},  {"date", "2026-11-24"}, {"build", "1"}};
}

Json retrieval_row(const std::string& policy, int lines, double bits, double accuracy) {
  return {{"task", "retrieval"}, {"model", "r.gguf"},     {"f32_weights", false},
          {"ubatch", 128},       {"records", "lines"},    {"policy", policy},
          {"lines", lines},      {"bits_resident", bits}, {"accuracy", accuracy},
          {"low95", 0.5},        {"high95", 0.875},       {"samples", 30},
          {"tokens", 571}};
}

size_t place(const std::string& text, const std::string& part) { return text.find(part); }

TEST(ResultTables, OneGroupForEachTextAndLengthSortedByBits) {
  const auto groups = group_results(
      {kld_row("q4_0", 4.5, 0.04), kld_row("zip", 3.9, 0.007), kld_row("zip", 3.5, 0.009, 8192)});
  ASSERT_TRUE(groups.ok()) << groups.status().message();
  ASSERT_EQ(groups->size(), 2u);
  EXPECT_EQ((*groups)[0].title, "m.gguf · code.txt · 2,048 tokens");
  EXPECT_EQ((*groups)[0].rows[0]["policy"], "zip");
  EXPECT_EQ((*groups)[0].rows[1]["policy"], "q4_0");
  EXPECT_NE((*groups)[0].name, (*groups)[1].name);
}

TEST(ResultTables, ARowMeasuredAgainTakesThePlaceOfTheOldOne) {
  const auto groups = group_results({kld_row("zip", 3.9, 0.007), kld_row("zip", 3.9, 0.006)});
  ASSERT_EQ(groups->front().rows.size(), 1u);
  EXPECT_EQ(groups->front().rows[0]["kld_mean"], 0.006);
}

TEST(ResultTables, TablesHaveErrorsAndBinsOfDepth) {
  const auto text = result_tables({kld_row("q4_0", 4.5, 0.04), kld_row("zip", 3.9, 0.007)}, false);
  ASSERT_TRUE(text.ok());
  EXPECT_NE(place(*text, "0.0400 ± 0.0021"), std::string::npos) << *text;
  EXPECT_NE(place(*text, "90.0 ± 1.0"), std::string::npos);
  EXPECT_NE(place(*text, "0 to 512"), std::string::npos);
  EXPECT_NE(place(*text, "0.0035 ± 0.0010"), std::string::npos);
  EXPECT_NE(place(*text, "1,023 tokens scored"), std::string::npos);
  EXPECT_LT(place(*text, "| zip "), place(*text, "| q4_0 "));
}

TEST(ResultTables, RetrievalHasAColumnForEachNumberOfLines) {
  const auto text =
      result_tables({retrieval_row("f16", 50, 17, 1), retrieval_row("zip", 50, 9, 0.9),
                     retrieval_row("zip", 200, 5, 0.8), retrieval_row("f16", 200, 16.5, 1)},
                    false);
  ASSERT_TRUE(text.ok());
  EXPECT_NE(place(*text, "bits at 200 lines"), std::string::npos);
  EXPECT_LT(place(*text, "50 lines |"), place(*text, "200 lines |\n"));
  EXPECT_NE(place(*text, "80 % (50 to 88)"), std::string::npos) << *text;
  EXPECT_LT(place(*text, "| zip "), place(*text, "| f16 "));
}

TEST(ResultTables, RetrievalIsSortedByTheBitsOfTheLongestRecord) {
  const auto groups = group_results({retrieval_row("a", 50, 9, 1), retrieval_row("b", 50, 10, 1),
                                     retrieval_row("a", 200, 6, 1), retrieval_row("b", 200, 5, 1)});
  EXPECT_EQ(policies_of(groups->front()), (std::vector<std::string>{"b", "a"}));
  EXPECT_EQ(lines_of(groups->front()), (std::vector<int>{50, 200}));
}

TEST(ResultTables, AForeignRowIsNamed) {
  const auto foreign = group_results({kld_row("zip", 3.9, 0.007), {{"kind", "model"}}});
  ASSERT_FALSE(foreign.ok());
  EXPECT_NE(place(foreign.status().message(), "row 2"), std::string::npos);
  Json row = kld_row("zip", 3.9, 0.007);
  row["kld_p99"] = "0.5";
  EXPECT_NE(place(group_results({row}).status().message(), "kld_p99"), std::string::npos);
  row.erase("kld_p99");
  EXPECT_NE(place(group_results({row}).status().message(), "kld_p99"), std::string::npos);
}

TEST(ResultTables, AnErrorHasTwoFigures) {
  EXPECT_EQ(with_error(0.06306, 0.00666), "0.0631 ± 0.0067");
  EXPECT_EQ(with_error(0.1, 0.02184), "0.100 ± 0.022");
  EXPECT_EQ(with_error(12.3, 1.5), "12.3 ± 1.5");
  EXPECT_EQ(with_error(0, 0), "0 ± 0");
}

TEST(ResultPlots, TheParetoLineHasNoPointThatAnotherBeats) {
  const std::vector<std::pair<double, double>> points = {{4.5, 0.04},  {3.4, 0.05},   {3.9, 0.007},
                                                         {3.9, 0.009}, {8.5, 0.0003}, {3.4, 0.06}};
  EXPECT_EQ(pareto(points), (std::vector<size_t>{1, 2, 4}));
  EXPECT_TRUE(pareto({}).empty());
}

TEST(ResultPlots, WhatHasNoPlaceOnTheAxesIsLeftOut) {
  const auto groups = group_results({kld_row("f16", 16, 0), kld_row("zip", 3.9, 0.007)});
  const std::vector<Plot> plots = plots_of(groups->front());
  ASSERT_EQ(plots.size(), 2u);
  for (const Plot& plot : plots) {
    EXPECT_NE(place(plot.script, "\"zip\""), std::string::npos);
    EXPECT_EQ(place(plot.script, "\"f16\""), std::string::npos);
  }
  EXPECT_TRUE(plots_of(group_results({kld_row("f16", 16, 0.001)})->front()).empty());
  EXPECT_TRUE(plots_of(group_results({kld_row("exact", 8.5, 0)})->front()).empty());
}

TEST(ResultPlots, EveryGroupHasItsOwnFiles) {
  Json other = kld_row("zip", 3.9, 0.007);
  other["f32_weights"] = true;
  const auto groups = group_results({kld_row("zip", 3.9, 0.007), other});
  ASSERT_EQ(groups->size(), 2u);
  EXPECT_NE(plots_of((*groups)[0])[0].name, plots_of((*groups)[1])[0].name);
  EXPECT_NE(plots_of((*groups)[0])[0].name, plots_of((*groups)[0])[1].name);
}

}  // namespace
}  // namespace zipcache::cli
