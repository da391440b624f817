// The C interface: the same answers as the C++ one, errors as codes, and no crash on null.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <string>
#include <vector>

#include "support/oracle.hpp"
#include "support/random_rows.hpp"
#include "zipcache/status.hpp"
#include "zipcache/zipcache.h"

extern "C" int run_from_c(const char* policy_text, int n, const float* rows, float* out,
                          zipcache_stats* stats);

namespace zipcache {
namespace {

TEST(CInterface, ACProgramStoresPacksAndAttends) {
  const int n = 300;
  const std::vector<float> rows = test::random_rows(n, 16, 1, 1.0f);
  test::OracleStep oracle{1,
                          1,
                          1,
                          16,
                          16,
                          n,
                          {rows.begin(), rows.begin() + 16},
                          test::to_doubles(rows),
                          test::to_doubles(rows),
                          {},
                          0.25,
                          0,
                          0,
                          {}};
  const auto expected = test::attention(oracle);
  for (const char* policy : {"f16", "uniform,bits=8"}) {
    std::vector<float> out(16);
    zipcache_stats stats;
    ASSERT_EQ(run_from_c(policy, n, rows.data(), out.data(), &stats), 0);
    // One attention, before anything is packed: the rows are exact.
    for (size_t c = 0; c < 16; ++c)
      EXPECT_NEAR(out[c], expected.out[c], 1e-5 * (1 + expected.largest_score) * 5);
    EXPECT_EQ(stats.rows_live, 300u);
    EXPECT_EQ(stats.rows_packed, std::strcmp(policy, "f16") ? 256u : 0u);
    EXPECT_EQ(stats.elements, 300u * 32);
    EXPECT_GT(stats.codes + stats.raw, 0u);
    EXPECT_NEAR(stats.bits_per_element * stats.ratio_resident, 16.0, 1e-9);
  }
}

TEST(CInterface, CodesAreThoseOfTheLibrary) {
  for (const CodeInfo& row : kCodes) {
    EXPECT_STREQ(zipcache_code_name(static_cast<zipcache_code>(row.code)), row.name);
  }
  EXPECT_EQ(int(ZC_BAD_POLICY), int(Code::BadPolicy));
  EXPECT_EQ(int(ZC_BAD_ARGUMENT), int(Code::BadArgument));
  EXPECT_EQ(int(ZC_BAD_DATA), int(Code::BadData));
  EXPECT_EQ(int(ZC_INCOMPATIBLE), int(Code::Incompatible));
  EXPECT_EQ(int(ZC_OVER_LIMIT), int(Code::OverLimit));
  EXPECT_EQ(int(ZC_ENVIRONMENT), int(Code::Environment));
  EXPECT_EQ(int(ZC_ABORTED), int(Code::Aborted));
  EXPECT_STREQ(zipcache_code_name(static_cast<zipcache_code>(99)), "unknown");
  EXPECT_STRNE(zipcache_version(), "");
  EXPECT_NE(zipcache_kernel_name(), nullptr);
}

TEST(CInterface, PolicyTextIsCopiedAsSnprintfDoes) {
  zipcache_policy* policy = zipcache_policy_parse("zipcache,ratio=0.7", nullptr);
  ASSERT_NE(policy, nullptr);
  const std::string expected = "zipcache,ratio=0.7";
  char text[64], cut[9] = "????????";
  EXPECT_EQ(zipcache_policy_text(policy, text, sizeof text), expected.size());
  EXPECT_EQ(text, expected);
  EXPECT_EQ(zipcache_policy_text(policy, cut, 5), expected.size());
  EXPECT_STREQ(cut, "zipc");
  EXPECT_EQ(cut[5], '?');
  EXPECT_EQ(zipcache_policy_text(policy, nullptr, 0), expected.size());
  std::vector<char> json(zipcache_policy_json(policy, nullptr, 0) + 1);
  zipcache_policy_json(policy, json.data(), json.size());
  EXPECT_NE(std::string(json.data()).find("\"ratio\": \"0.7\""), std::string::npos);
  zipcache_policy_free(policy);
}

TEST(CInterface, ErrorsCarryTheirCodeAndOneLine) {
  zipcache_error error;
  EXPECT_EQ(zipcache_policy_parse("zipcache,ratio=2", &error), nullptr);
  EXPECT_EQ(error.code, ZC_BAD_POLICY);
  EXPECT_NE(std::string(error.message).find("field ratio"), std::string::npos);
  zipcache_policy* policy = zipcache_policy_parse("zipcache", &error);
  ASSERT_NE(policy, nullptr);
  EXPECT_EQ(error.code, ZC_OK);
  EXPECT_STREQ(error.message, "");
  const zipcache_layer layers[] = {{1, 20, 64}};
  const zipcache_shape wrong = {1, 128, 1, layers};
  EXPECT_EQ(zipcache_cache_create(&wrong, policy, &error), nullptr);
  EXPECT_EQ(error.code, ZC_INCOMPATIBLE);
  const zipcache_layer good_layer = {1, 64, 64};
  const zipcache_shape good = {1, 128, 1, &good_layer};
  zipcache_cache* cache = zipcache_cache_create(&good, policy, &error);
  ASSERT_NE(cache, nullptr);
  std::vector<float> rows(64, NAN);
  const int64_t cells[] = {0}, far[] = {128};
  EXPECT_EQ(zipcache_cache_write(cache, 0, 0, ZC_SIDE_K, cells, 1, rows.data(), 64, &error),
            ZC_BAD_DATA);
  EXPECT_EQ(error.code, ZC_BAD_DATA);
  EXPECT_NE(std::string(error.message).find("K channel 0"), std::string::npos) << error.message;
  EXPECT_EQ(zipcache_cache_write(cache, 0, 0, ZC_SIDE_K, far, 1, rows.data(), 64, nullptr),
            ZC_BAD_ARGUMENT);
  rows.assign(64, 1.0f);
  EXPECT_EQ(zipcache_cache_write(cache, 0, 0, ZC_SIDE_K, cells, 1, rows.data(), 64, &error), ZC_OK);
  std::vector<uint16_t> half_rows(64);
  EXPECT_EQ(zipcache_cache_read_half(cache, 0, 0, ZC_SIDE_K, 0, 1, half_rows.data(), nullptr),
            ZC_OK);
  EXPECT_EQ(half_rows[63], 0x3C00);
  EXPECT_EQ(zipcache_cache_write_half(cache, 0, 0, ZC_SIDE_V, 0, 1, half_rows.data(), nullptr),
            ZC_OK);
  zipcache_cache_clear(cache);
  zipcache_stats stats;
  EXPECT_EQ(zipcache_cache_stats(cache, &stats, nullptr), ZC_OK);
  EXPECT_EQ(stats.rows_live, 0u);
  zipcache_cache_free(cache);
  zipcache_policy_free(policy);
}

TEST(CInterface, NullPointersAreBadArgumentsOrNothing) {
  zipcache_error error;
  EXPECT_EQ(zipcache_policy_parse(nullptr, &error), nullptr);
  EXPECT_EQ(error.code, ZC_BAD_ARGUMENT);
  EXPECT_EQ(zipcache_policy_parse(nullptr, nullptr), nullptr);
  EXPECT_EQ(zipcache_policy_text(nullptr, nullptr, 0), 0u);
  EXPECT_EQ(zipcache_cache_create(nullptr, nullptr, &error), nullptr);
  EXPECT_EQ(error.code, ZC_BAD_ARGUMENT);
  EXPECT_EQ(zipcache_cache_write(nullptr, 0, 0, ZC_SIDE_K, nullptr, 0, nullptr, 0, nullptr),
            ZC_BAD_ARGUMENT);
  EXPECT_EQ(zipcache_cache_read_half(nullptr, 0, 0, ZC_SIDE_K, 0, 0, nullptr, nullptr),
            ZC_BAD_ARGUMENT);
  EXPECT_EQ(zipcache_cache_write_half(nullptr, 0, 0, ZC_SIDE_K, 0, 0, nullptr, nullptr),
            ZC_BAD_ARGUMENT);
  EXPECT_EQ(zipcache_cache_attend(nullptr, nullptr, nullptr), ZC_BAD_ARGUMENT);
  EXPECT_EQ(zipcache_cache_stats(nullptr, nullptr, nullptr), ZC_BAD_ARGUMENT);
  zipcache_cache_clear(nullptr);
  zipcache_cache_free(nullptr);
  zipcache_policy_free(nullptr);
}

}  // namespace
}  // namespace zipcache
