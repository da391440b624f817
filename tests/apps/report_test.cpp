// The rows of `zipcache compare`: every promised field, and a table that says what it shows.
#include "report.hpp"

#include <gtest/gtest.h>

namespace zipcache::cli {
namespace {

CompareRow zip_row() {
  CompareRow row;
  row.policy = "zip";
  row.summary = {
      .tokens = 1023, .ppl = 20.5, .kld_mean = 0.0051, .kld_mean_se = 0.0003, .same_top = 0.963};
  row.cache_tokens = 2048;
  row.kv_bytes_f16 = 47185920;
  row.bytes = {.now = 11796480, .peak = 12000000, .planned = 13000000, .by_kind = {{"codes", 9}}};
  row.ratio_resident = 4;
  row.bits_per_element = 4;
  row.kernel = "avx2";
  return row;
}

RunFacts facts() {
  RunFacts f;
  f.model = "m.gguf";
  f.text = "t.txt";
  f.ctx = 2048;
  f.chunks = 1;
  f.ubatch = 128;
  f.decode_tokens = 32;
  f.threads = 2;
  return f;
}

TEST(Report, JsonHasEveryPromisedField) {
  const Json row = to_json(zip_row(), facts());
  for (const char* name : {"policy",       "model",          "text",
                           "ctx",          "tokens_scored",  "bits_per_element",
                           "kv_bytes",     "kv_bytes_f16",   "ratio_paper",
                           "ratio_params", "ratio_resident", "ppl",
                           "kld_mean",     "kld_mean_se",    "kld_p999",
                           "same_top",     "same_top_se",    "prompt_tps",
                           "decode_tps",   "decode_depth",   "kernel",
                           "threads",      "seed",           "llama_cpp",
                           "cpu",          "kv_bytes_peak",  "kv_bytes_planned",
                           "bytes"}) {
    EXPECT_TRUE(row.contains(name)) << name;
  }
  EXPECT_EQ(row["kv_bytes"], 11796480);
  EXPECT_EQ(row["bytes"]["codes"], 9);
}

TEST(Report, DecodeSpeedIsNullUntilMeasured) {
  CompareRow row = zip_row();
  EXPECT_TRUE(to_json(row, facts())["decode_tps"].is_null());
  EXPECT_TRUE(to_json(row, facts())["decode_depth"].is_null());
  row.decode_tps = 12.5;
  EXPECT_EQ(to_json(row, facts())["decode_tps"], 12.5);
  EXPECT_EQ(to_json(row, facts())["decode_depth"], 2048);
}

TEST(Report, TableShowsSizesInMiBAndSharesInPercent) {
  const std::string table = for_people({zip_row()}, facts(), false);
  EXPECT_NE(table.find("| zip "), std::string::npos);
  EXPECT_NE(table.find(" 11.25 |"), std::string::npos);
  EXPECT_NE(table.find("0.00510 ± 0.00030"), std::string::npos);
  EXPECT_NE(table.find("96.3 ± 0.0"), std::string::npos);
  EXPECT_NE(table.find("1023 tokens scored"), std::string::npos);
  EXPECT_NE(table.find("micro-batch 128"), std::string::npos);
}

TEST(Report, PartialAndReferenceRowsAreMarked) {
  CompareRow row = zip_row();
  row.reference = true;
  EXPECT_NE(for_people({row}, facts(), false).find("zip (reference)"), std::string::npos);
  row.partial = true;
  EXPECT_NE(for_people({row}, facts(), false).find("zip (partial)"), std::string::npos);
}

TEST(Report, SmallDivergencesAreScientific) {
  EXPECT_EQ(divergence_text(0), "0");
  EXPECT_EQ(divergence_text(3.14e-6), "3.1e-06");
  EXPECT_EQ(divergence_text(0.00512), "0.00512");
  EXPECT_EQ(divergence_text(2.5), "2.500");
}

}  // namespace
}  // namespace zipcache::cli
