// What the pictures of `zipcache plot` show: their rows, and what is refused.
#include "plot_kinds.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "support/files.hpp"
#include "tuning.hpp"

namespace zipcache::cli {
namespace {

bool has(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

Json attention(const std::string& policy, int depth, double ms, double ratio,
               const std::string& isa = "") {
  return {{"kind", "attention"}, {"policy", policy}, {"isa", isa},     {"cpu", "a processor"},
          {"threads", 2},        {"n_head", 32},     {"n_head_kv", 8}, {"d_head", 128},
          {"batch", 1},          {"depth", depth},   {"ms", ms},       {"ms_iqr", ms / 10},
          {"vs_ggml_f16", ratio}};
}

Json model(const std::string& policy, int n_prompt, int depth, double tps) {
  return {{"kind", "model"},
          {"policy", policy},
          {"isa", "avx2"},
          {"cpu", "a processor"},
          {"threads", 1},
          {"model", "m.gguf"},
          {"model_type", "tiny"},
          {"ubatch", 512},
          {"depth", depth},
          {"n_prompt", n_prompt},
          {"tps_mean", tps},
          {"tps_sd", 1.5},
          {"n_gen", n_prompt > 0 ? 0 : 8},
          {"vs_llama_f16", Json()},
          {"vs_llama_f16_sd", Json()}};
}

TEST(PlottedLengths, AreWholeBlocksDenserAtTheBeginning) {
  const std::vector<int> lengths = plotted_lengths(32768);
  EXPECT_EQ(lengths.front(), 128);
  EXPECT_EQ(lengths.back(), 32768);
  EXPECT_TRUE(std::is_sorted(lengths.begin(), lengths.end()));
  for (const int n : lengths) EXPECT_EQ(n % 128, 0);
  EXPECT_GT(std::count_if(lengths.begin(), lengths.end(), [](int n) { return n < 3277; }),
            int(lengths.size()) / 5);
  EXPECT_EQ(plotted_lengths(300), (std::vector<int>{128, 256, 300}));
}

TEST(SpeedPlots, OnePictureForEachShapeAndKindOfWork) {
  Json wide = attention("zip", 4096, 0.2, 10);
  wide["d_head"] = 64;
  const std::vector<Json> rows = {attention("zip", 4096, 0.1, 10), wide, model("zip", 512, 0, 150),
                                  model("zip", 0, 4096, 20)};
  const auto plots = speed_plots(rows, false);
  ASSERT_TRUE(plots.ok()) << plots.status().message();
  ASSERT_EQ(plots->size(), 4u);
  for (size_t i = 0; i < 4; ++i) {
    for (size_t j = 0; j < i; ++j) EXPECT_NE((*plots)[i].name, (*plots)[j].name);
  }
  EXPECT_TRUE(has((*plots)[2].script, "prompt of 512 tokens"));
  EXPECT_TRUE(has((*plots)[3].script, "generation"));
  // Depth 0 has no logarithm.
  EXPECT_FALSE(has((*plots)[2].script, "logscale x"));
  EXPECT_TRUE(has((*plots)[0].script, "logscale x"));
}

TEST(SpeedPlots, RatiosTakeTheSpreadOfBothCaches) {
  const std::vector<Json> rows = {attention("zip", 4096, 0.1, 10),
                                  attention("llama:f16", 4096, 1, 1),
                                  attention("zip", 1024, 0.1, 5), attention("zip", 4096, 0.2, 8)};
  const auto plots = speed_plots(rows, true);
  ASSERT_TRUE(plots.ok());
  const std::vector<Json>& drawn = plots->front().rows;
  ASSERT_EQ(drawn.size(), 3u);
  EXPECT_EQ(drawn[0]["depth"], 1024);
  EXPECT_NEAR(drawn[0]["spread"].get<double>(), 5 * 0.1, 1e-9);  // no reference beside it
  EXPECT_EQ(drawn[1]["value"], 8);                               // measured again: the last counts
  EXPECT_NEAR(drawn[1]["spread"].get<double>(), 8 * std::hypot(0.1, 0.1), 1e-9);
  EXPECT_EQ(drawn[2]["policy"], "llama:f16");
  EXPECT_EQ(drawn[2]["spread"], 0);
  // Rows without a ratio are not drawn, and nothing is not drawn either.
  EXPECT_FALSE(speed_plots(std::vector<Json>{model("zip", 0, 4096, 20)}, true).ok());
}

TEST(SpeedPlots, InstructionSetsAreNamedWhereThereAreSeveral) {
  const std::vector<Json> rows = {attention("zip", 64, 0.1, 10, "avx2"),
                                  attention("zip", 64, 0.1, 12, "avx512"),
                                  attention("llama:f16", 64, 1, 1)};
  const auto plots = speed_plots(rows, false);
  ASSERT_TRUE(plots.ok());
  for (const char* name : {"\"zip (avx2)\"", "\"zip (avx512)\"", "\"llama:f16\""})
    EXPECT_TRUE(has(plots->front().commands, name)) << plots->front().commands;
}

TEST(SpeedPlots, OtherRowsAreRefused) {
  const auto said = [](Json row) {
    const auto plots = speed_plots(std::vector<Json>{attention("zip", 64, 0.1, 10), row}, false);
    EXPECT_EQ(plots.status().code(), Code::BadData);
    return plots.status().message();
  };
  EXPECT_TRUE(has(said({{"task", "kld"}}), "row 2: found no kind"));
  EXPECT_TRUE(has(said({{"kind", "cuda"}}), "found \"cuda\""));
  Json row = attention("zip", 64, 0.1, 10);
  row.erase("ms_iqr");
  EXPECT_TRUE(has(said(row), "ms_iqr"));
  row["ms_iqr"] = "small";
  EXPECT_TRUE(has(said(row), "row 2"));
  EXPECT_FALSE(speed_plots({}, false).ok());
}

Json tuned() {
  Json group = {{"layers", "0-2"}, {"k", 0.004}, {"k_se", 0.001}, {"v", 0.002}, {"v_se", 0.0005}};
  Json other = group;
  other["layers"] = "3";
  return {{"evidence",
           {{"model", "m.gguf"},
            {"base", "zip"},
            {"search", {{"text", "t.txt"}}},
            {"sensitivity", {{"k_bits", 3}, {"v_bits", 2}, {"layers", Json{group, other}}}}}}};
}

TEST(SensitivityPlot, HasABarForEachSideOfEachGroup) {
  const auto plot = sensitivity_plot(tuned(), "my policy");
  ASSERT_TRUE(plot.ok()) << plot.status().message();
  EXPECT_EQ(plot->name, "sensitivity-my-policy");
  ASSERT_EQ(plot->rows.size(), 4u);
  EXPECT_EQ(
      plot->rows[1],
      (Json{{"side", "K"}, {"first", 3}, {"last", 3}, {"divergence", 0.004}, {"error", 0.001}}));
  EXPECT_EQ(plot->rows[2]["divergence"], 0.002);
  EXPECT_EQ(plot->rows[2]["last"], 2);
  EXPECT_TRUE(has(plot->commands, "K alone at 3 bits"));
  EXPECT_TRUE(has(plot->commands, "V alone at 2 bits"));
}

TEST(SensitivityPlot, OtherFilesAreRefused) {
  const auto said = [](const Json& file) {
    const auto plot = sensitivity_plot(file, "p");
    EXPECT_EQ(plot.status().code(), Code::BadData);
    return plot.status().message();
  };
  EXPECT_TRUE(has(said(Json()), "zipcache tune"));
  EXPECT_TRUE(has(said({{"name", "zip"}}), "evidence"));
  Json file = tuned();
  file["evidence"]["sensitivity"]["layers"][1]["layers"] = "3-";
  EXPECT_TRUE(has(said(file), "'3-'"));
  file["evidence"]["sensitivity"]["layers"] = Json::array();
  EXPECT_TRUE(has(said(file), "no layers"));
}

TEST(LayersText, ComesBack) {
  for (const LayerGroup group : {LayerGroup{0, 3}, LayerGroup{7, 7}})
    EXPECT_EQ(layers_of(layers_text(group)), group);
  for (const char* wrong : {"", "a", "3-", "-3", "3-1", "1-2x", "99999999999"})
    EXPECT_EQ(layers_of(wrong), std::nullopt) << wrong;
}

TEST(SaliencyPlot, MeansOverHeadsAndSharesOfHeads) {
  TokenScores scores;
  scores.tokens = {1, 2, 3, 4, 5};
  // Accumulated attention prefers the first tokens, normalized the last ones; nobody saw token 2.
  scores.layers = {{2, {5, 4, 0, 2, 1}, {10, 4, 0, 3, 2, 20, 8, 0, 3, 2}},
                   {1, {5, 4, 0, 2, 1}, {10, 4, 0, 3, 2}}};
  const Plot plot = saliency_plot(scores, {0}, "a title", "a-name");
  ASSERT_EQ(plot.rows.size(), 10u);
  EXPECT_EQ(plot.rows[0]["panel"], "layer 0");
  EXPECT_FLOAT_EQ(plot.rows[0]["normalized"].get<float>(), 3);
  EXPECT_FLOAT_EQ(plot.rows[0]["accumulated"].get<float>(), 15);
  EXPECT_FLOAT_EQ(plot.rows[3]["normalized"].get<float>(), 1.5);
  EXPECT_TRUE(std::isnan(plot.rows[2]["normalized"].get<float>()));
  const auto share = [&](size_t token, const char* how) {
    return plot.rows[5 + token][how].get<float>();
  };
  EXPECT_EQ(plot.rows[5]["panel"], "all heads");
  // Two of four tokens each; 1 and 3 lose to 4, which has more attention from each row.
  EXPECT_FLOAT_EQ(share(0, "accumulated"), 1);
  EXPECT_FLOAT_EQ(share(1, "accumulated"), 1);
  EXPECT_FLOAT_EQ(share(4, "accumulated"), 0);
  EXPECT_FLOAT_EQ(share(4, "normalized"), 1);
  EXPECT_TRUE(std::isnan(share(2, "normalized")) && std::isnan(share(2, "accumulated")));
}

TEST(Draw, AnyTextIsOneString) {
  EXPECT_EQ(in_quotes("a \"b\" \\ c\nd"), "\"a \\\"b\\\" \\\\ c d\"");
  EXPECT_EQ(only("policy", "zip,k=\"4\"", "column(\"value\")"),
            "(strcol(\"policy\") eq \"zip,k=\\\"4\\\"\" ? column(\"value\") : NaN)");
}

TEST(Draw, AFolderThatCannotBeMadeIsNamed) {
  const test::TemporaryFile file("", "");
  const Status status = draw({"n", "t", "", "plot 1"}, file.path() + "/pictures");
  EXPECT_EQ(status.code(), Code::Environment);
  EXPECT_TRUE(has(status.message(), file.path()));
}

}  // namespace
}  // namespace zipcache::cli
