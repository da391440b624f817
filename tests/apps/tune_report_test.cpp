// What `zipcache tune` tells: the evidence inside a policy file, the report and the picture.
#include "tune_report.hpp"

#include <gtest/gtest.h>

#include "zipcache/policy.hpp"

namespace zipcache::cli {
namespace {

Json measured(double kld, double same_top = 0.94) {
  return {{"bits_resident", 4.2},    {"kld_mean", kld},    {"kld_mean_se", kld / 20},
          {"same_top", same_top},    {"ppl_ratio", 1.013}, {"n_scored", 1022},
          {"something_else", "more"}};
}

SearchResult result() {
  SearchResult found;
  found.tried = {{"q4_0", measured(0.064), 4.5, Role::Shown},
                 {"zip", measured(0.008), 3.375, Role::Candidate},
                 {"zip,0-3:k=8", measured(0.004), 3.38, Role::Candidate},
                 {"zip4", measured(0.005), 3.875, Role::Candidate},
                 {"zip,recent=256", measured(0.001), 3.375, Role::Window},
                 {"zip,v=16", measured(0.002), 10.1, Role::Alone},
                 {"zip,k=16,v=2,0-1:v=16", measured(0.001), 9.0, Role::Alone}};
  found.base = "zip";
  found.layers = {{{0, 3}, 0.006, 0.0001, 0.001, 0.0001}, {{4, 7}, 0.002, 0.0001, 0.003, 0.0001}};
  found.k_alone = 0.006;
  found.v_alone = 0.002;
  found.chosen = "zip,0-3:k=8";
  found.fallback = "zip";
  return found;
}

Json evidence() {
  Json out = {{"model", "m.gguf"},
              {"chosen", "zip,0-3:k=8"},
              {"target", {{"bits", 3.375}}},
              {"search", {{"text", "a.txt (search)"}}}};
  out.update(search_evidence(result()));
  out["held_out"] = {{"text", "b.txt (held out)"},
                     {"rows",
                      {evidence_row("zip,0-3:k=8", 3.38, measured(0.005)),
                       evidence_row("q4_0", 4.5, measured(0.05))}}};
  return out;
}

bool has(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

TEST(TuneEvidence, HoldsTheMeasuredRowsAndTheLayers) {
  const Json found = search_evidence(result());
  ASSERT_EQ(found["rows"].size(), 4u);  // none of those that measure a part of the cache
  EXPECT_EQ(found["rows"][1], (Json{{"policy", "zip"},
                                    {"bits", 3.375},
                                    {"bits_resident", 4.2},
                                    {"kld", 0.008},
                                    {"kld_se", 0.0004},
                                    {"same_top", 0.94},
                                    {"ppl_ratio", 1.013},
                                    {"n_scored", 1022}}));
  EXPECT_EQ(found["windows"].size(), 1u);
  EXPECT_EQ(found["sensitivity"]["layers"][1]["layers"], "4-7");
  EXPECT_EQ(found["sensitivity"]["layers"][1]["v"], 0.003);
  EXPECT_EQ(found["best_of_search"], "zip,0-3:k=8");
}

TEST(TuneEvidence, APolicyFileWithItLoadsAsThePolicy) {
  Policy policy = *parse_policy("zip,recent=64,0-3:k=8,0-3:v=3,7:v=4");
  policy.name = "tuned";
  const std::string file = policy_file(policy_to_json(policy), evidence());
  const auto back = policy_from_json(file);
  ASSERT_TRUE(back.ok()) << back.status().message();
  EXPECT_EQ(*back, policy);
  EXPECT_EQ(Json::parse(file)["evidence"], evidence());
}

TEST(TuneReport, SaysWhatIsSensitiveWhatIsBestAndWhatItCosts) {
  const auto report = tune_report(evidence(), false);
  ASSERT_TRUE(report.ok()) << report.status().message();
  EXPECT_TRUE(has(*report, "K is the problem")) << *report;
  EXPECT_TRUE(has(*report, "K in layers 0-3, V in layers 4-7")) << *report;
  EXPECT_TRUE(has(*report, "| 75 % |")) << *report;
  EXPECT_TRUE(has(*report, "of 100 next tokens 6.0 are others")) << *report;
  EXPECT_TRUE(has(*report, "perplexity changes by +1.3 %")) << *report;
  EXPECT_TRUE(has(*report, "q4_0 at 4.50 bits costs 10.0 times")) << *report;
  EXPECT_TRUE(has(*report, "Policy: zip,0-3:k=8")) << *report;
  EXPECT_FALSE(has(*report, "stays")) << *report;
}

TEST(TuneReport, TheTableMarksWhatNoOtherBeats) {
  const std::string report = *tune_report(evidence(), false);
  const auto line = [&](const std::string& end) {
    const size_t at = report.find("| " + end);
    return report.substr(report.rfind('\n', at) + 1, at - report.rfind('\n', at));
  };
  EXPECT_TRUE(has(line("zip,0-3:k=8 <- chosen"), "*")) << report;
  EXPECT_TRUE(has(line("zip  "), "*")) << report;  // a wider window does not count against it
  EXPECT_TRUE(has(report, "zip,recent=256 0.001000 ± 0.000050 with 4.20 bits in all")) << report;
  EXPECT_FALSE(has(line("zip4"), "*")) << report;  // zip,0-3:k=8 has fewer bits and less divergence
  EXPECT_FALSE(has(line("q4_0"), "*")) << report;
}

TEST(TuneReport, SaysWhenTheDefaultStays) {
  Json found = evidence();
  found["chosen"] = "zip";
  found["held_out"]["rows"].push_back(evidence_row("zip", 3.375, measured(0.005)));
  const std::string report = *tune_report(found, false);
  EXPECT_TRUE(has(report, "zip,0-3:k=8 was the best of the search, but no better than zip"))
      << report;
  EXPECT_TRUE(has(report, "Policy: zip\n")) << report;
}

TEST(TuneReport, SaysWhenUnseenTextMissesTheTarget) {
  Json found = evidence();
  found["target"] = {{"kld", 0.005}};
  EXPECT_TRUE(has(*tune_report(found, false), "misses the target of 0.00500"));
  found["target"] = {{"kld", 0.01}};
  EXPECT_FALSE(has(*tune_report(found, false), "misses"));
}

TEST(TuneReport, EvidenceThatLacksAFieldIsRefused) {
  Json found = evidence();
  found.erase("sensitivity");
  const auto report = tune_report(found, false);
  ASSERT_FALSE(report.ok());
  EXPECT_EQ(report.status().code(), Code::BadData);
  EXPECT_TRUE(has(report.status().message(), "sensitivity")) << report.status().message();
}

TEST(TunePlot, NamesBuiltInPoliciesAndTheChosenOne) {
  const Plot plot = tune_plot(evidence(), "policy");
  EXPECT_EQ(plot.name, "policy");
  for (const char* name : {"\"zip\"", "\"q4_0\"", "\"chosen\"", "coded bits per element", "m.gguf"})
    EXPECT_TRUE(has(plot.script + plot.commands, name)) << plot.script;
  EXPECT_FALSE(has(plot.script + plot.commands, "0-3:k=8")) << plot.script;
}

}  // namespace
}  // namespace zipcache::cli
