// Groups and tables of results, and what pictures show of them.
#include "result_tables.hpp"

#include <gtest/gtest.h>

#include "result_overview.hpp"
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
  return {{"task", "retrieval"},      {"model", "r.gguf"},
          {"f32_weights", false},     {"ubatch", 128},
          {"records", "lines"},       {"policy", policy},
          {"lines", lines},           {"bits_resident", bits},
          {"accuracy", accuracy},     {"low95", 0.5},
          {"high95", 0.875},          {"samples", 30},
          {"tokens", 11 * lines + 21}};
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

// Policies down, positions across: a page has room for more rows than columns.
TEST(ResultTables, DepthHasARowForEachPolicy) {
  const auto text = result_tables({kld_row("q4_0", 4.5, 0.04), kld_row("zip", 3.9, 0.007)}, false);
  ASSERT_TRUE(text.ok());
  EXPECT_NE(place(*text, "| KLD at tokens |"), std::string::npos) << *text;
  EXPECT_NE(place(*text, "| zip           | 0.0035 ± 0.0010 |"), std::string::npos) << *text;
}

TEST(ResultOverview, PoliciesOfAllTextsStandSideBySide) {
  const auto on = [](const std::string& text, Json row) {
    row["text"] = text;
    return row;
  };
  const auto groups =
      group_results({on("a", kld_row("zip", 4.4, 0.01)), on("a", kld_row("q4_0", 4.5, 0.04)),
                     on("b", kld_row("zip", 4.6, 0.04)), on("b", kld_row("q4_0", 4.5, 0.01)),
                     on("a", kld_row("f16", 16, 0)), on("b", kld_row("f16", 16, 0)),
                     on("a", kld_row("had4", 4.5, 0.02)), kld_row("zip", 4.4, 0.01, 8192)});
  ASSERT_TRUE(groups.ok());
  const std::string text = overviews(*groups);
  EXPECT_NE(place(text, "m.gguf · mean divergence on 2 texts of 2048 tokens"), std::string::npos);
  EXPECT_NE(
      place(text, "| zip    | 4.50 |  3.38 | 0.0100 ± 0.0021 | 0.0400 ± 0.0021 |      1.00 |"),
      std::string::npos)
      << text;
  EXPECT_EQ(place(text, "had4"), std::string::npos) << "was not measured on both";
  EXPECT_EQ(place(text, "f16"), std::string::npos) << "diverges from nothing";
  EXPECT_EQ(place(text, "8192"), std::string::npos) << "was measured on one text";
}

TEST(ResultTables, RetrievalHasAColumnForEachNumberOfLines) {
  const auto text =
      result_tables({retrieval_row("f16", 50, 17, 1), retrieval_row("zip", 50, 9, 0.9),
                     retrieval_row("zip", 200, 5, 0.8), retrieval_row("f16", 200, 16.5, 1)},
                    false);
  ASSERT_TRUE(text.ok());
  EXPECT_NE(place(*text, "bits at 2221 tokens"), std::string::npos);
  EXPECT_LT(place(*text, "50 lines |"), place(*text, "200 lines |\n"));
  EXPECT_NE(place(*text, "80 % (50 to 88)"), std::string::npos) << *text;
  EXPECT_LT(place(*text, "| zip "), place(*text, "| f16 "));
}

TEST(ResultTables, RetrievalIsSortedByTheBitsOfTheLongestRecord) {
  const auto groups = group_results({retrieval_row("a", 50, 9, 1), retrieval_row("b", 50, 10, 1),
                                     retrieval_row("a", 200, 6, 1), retrieval_row("b", 200, 5, 1)});
  EXPECT_EQ(policies_of(groups->front()), (std::vector<std::string>{"b", "a"}));
  EXPECT_EQ(axis_values(groups->front()), (std::vector<Json>{50, 200}));
}

// A row of a task without an axis, with the 16-bit cache's log-probabilities beside it.
Json problem_row(const std::string& policy, double bits, double accuracy, double difference) {
  Json row = retrieval_row(policy, 1, bits, accuracy);
  row.update(Json{{"task", "gsm8k"},
                  {"shots", 8},
                  {"low95", accuracy / 2},
                  {"logprob", -1.25},
                  {"logprob_diff", difference},
                  {"logprob_diff_se", 0.0031}});
  return row;
}

TEST(ResultTables, ProblemsHaveOneColumnAndTheLogProbabilities) {
  const auto text =
      result_tables({problem_row("f16", 16, 0.6, 0), problem_row("zip", 4, 0.5, -0.0123)}, false);
  ASSERT_TRUE(text.ok()) << text.status().message();
  EXPECT_NE(place(*text, "gsm8k · lines · shots 8"), std::string::npos) << *text;
  EXPECT_NE(place(*text, "50 % (25 to 88)"), std::string::npos);
  EXPECT_NE(place(*text, "-0.0123 ± 0.0031"), std::string::npos);
  EXPECT_NE(place(*text, "-1.250 in all"), std::string::npos);
  EXPECT_EQ(place(*text, "Too few right answers"), std::string::npos);
}

TEST(ResultTables, AReferenceThatAnswersTooLittleIsTold) {
  // Of 30 records, none right has an upper end of 11 %.
  Json weak = problem_row("f16", 16, 0.1, 0);
  const auto text = result_tables({weak, problem_row("zip", 4, 0.1, -0.01)}, false);
  EXPECT_NE(place(*text, "Too few right answers of the 16-bit cache"), std::string::npos) << *text;
  weak["low95"] = 0.12;
  EXPECT_EQ(place(*result_tables({weak}, false), "Too few"), std::string::npos);
}

TEST(ResultTables, RowsWithLikelihoodsAloneHaveATable) {
  Json row = problem_row("zip", 4, 0.1, -0.01);
  for (const char* field : {"accuracy", "low95", "high95"}) row.erase(field);
  const auto text = result_tables({row}, false);
  ASSERT_TRUE(text.ok());
  EXPECT_NE(place(*text, "-0.0100 ± 0.0031"), std::string::npos) << *text;
  EXPECT_TRUE(plots_of(group_results({row})->front()).empty());
}

Json drift_row(const std::string& policy, const std::string& mode) {
  Json row = kld_row(policy, 4, 0.02);
  row.update(Json{{"task", "drift"},
                  {"prompt_tokens", 256},
                  {"generated", 4000},
                  {"mode", mode},
                  {"temperature", 0.0},
                  {"sampling_seed", 1},
                  {"repeated", 0.25}});
  return row;
}

TEST(ResultTables, DriftForcedHasDivergencesByPosition) {
  const auto groups = group_results({drift_row("zip", "forced"), drift_row("zip", "free")});
  ASSERT_TRUE(groups.ok()) << groups.status().message();
  ASSERT_EQ(groups->size(), 2u);
  const std::string text = group_tables(groups->front(), false);
  EXPECT_NE(place(text, "4,000 tokens generated after 256, forced"), std::string::npos) << text;
  EXPECT_NE(place(text, "0 to 512"), std::string::npos);
  EXPECT_NE(place(text, "25 % of the tokens"), std::string::npos);
  EXPECT_EQ(plots_of(groups->front()).size(), 1u);
  Json broken = drift_row("zip", "forced");
  broken.erase("kld_p99");
  EXPECT_NE(place(group_results({broken}).status().message(), "kld_p99"), std::string::npos);
}

TEST(ResultTables, DriftFreeSaysWhereStreamsPart) {
  Json row = drift_row("zip", "free");
  for (const char* field : {"kld_mean", "by_depth"}) row.erase(field);
  row["first_difference"] = 1233;
  row["equal_after"] = 0.071;
  Json full = row;
  full["policy"] = "f16";
  full["first_difference"] = nullptr;
  const auto groups = group_results({row, full});
  ASSERT_TRUE(groups.ok()) << groups.status().message();
  const std::string text = group_tables(groups->front(), false);
  EXPECT_NE(place(text, "1,234 |"), std::string::npos) << text;
  EXPECT_NE(place(text, "7.1 |"), std::string::npos);
  EXPECT_NE(place(text, "none |"), std::string::npos);
  EXPECT_TRUE(plots_of(groups->front()).empty());
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

// Names beside their points hide each other when there are many.
TEST(ResultPlots, ManyPointsHaveTheirNamesInAKey) {
  std::vector<PlotPoint> points;
  for (int i = 0; i < 12; ++i) points.push_back({"p" + std::to_string(i), 3.0 + 0.1 * i, 0.01, 0});
  const Plot few = divergence_plot("few", "t", "bits", points);
  EXPECT_NE(place(few.commands, "with labels"), std::string::npos);
  points.push_back({"one more", 5, 0.02, 0});
  points.push_back({"", 5.5, 0.03, 0});
  const Plot many = divergence_plot("many", "t", "bits", points);
  EXPECT_EQ(place(many.commands, "with labels"), std::string::npos);
  EXPECT_NE(place(many.commands, "title \"one more\""), std::string::npos) << many.commands;
  EXPECT_EQ(place(many.commands, "title \"\""), std::string::npos);
}

TEST(ResultPlots, WhatHasNoPlaceOnTheAxesIsLeftOut) {
  const auto groups = group_results({kld_row("f16", 16, 0), kld_row("zip", 3.9, 0.007)});
  const std::vector<Plot> plots = plots_of(groups->front());
  ASSERT_EQ(plots.size(), 2u);
  for (const Plot& plot : plots) {
    EXPECT_NE(place(plot.script + plot.commands, "\"zip\""), std::string::npos);
    EXPECT_EQ(place(plot.script + plot.commands, "\"f16\""), std::string::npos);
  }
  EXPECT_TRUE(plots_of(group_results({kld_row("f16", 16, 0.001)})->front()).empty());
  EXPECT_TRUE(plots_of(group_results({kld_row("exact", 8.5, 0)})->front()).empty());
}

TEST(ResultPlots, RightAnswersAreDrawnOverAnAxisOfNumbers) {
  const std::vector<Plot> plots =
      plots_of(group_results({retrieval_row("zip", 50, 9, 0.9), retrieval_row("zip", 200, 5, 0.8)})
                   ->front());
  ASSERT_EQ(plots.size(), 1u);
  EXPECT_NE(place(plots[0].script, "50 90 50 87.5"), std::string::npos) << plots[0].script;
  EXPECT_NE(place(plots[0].script, "set xtics (50,200)"), std::string::npos);
  EXPECT_TRUE(plots_of(group_results({retrieval_row("zip", 50, 9, 0.9)})->front()).empty());
  Json named = retrieval_row("zip", 50, 9, 0.9), other = named;
  named.update(Json{{"task", "longbench"}, {"metric", "f1"}, {"dataset", "qasper"}});
  other.update(Json{{"task", "longbench"}, {"metric", "f1"}, {"dataset", "hotpotqa"}});
  EXPECT_TRUE(plots_of(group_results({named, other})->front()).empty());
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
