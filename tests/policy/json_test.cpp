// The JSON form and policy files.
#include <gtest/gtest.h>

#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <string>

#include "support/files.hpp"
#include "zipcache/policy.hpp"

namespace zipcache {
namespace {

using test::TemporaryFile;

TEST(PolicyJson, EveryRowComesBackFromItsJson) {
  for (const PolicyRow& row : policy_rows()) {
    const Policy policy = *parse_policy(row.name);
    const auto back = policy_from_json(policy_to_json(policy));
    ASSERT_TRUE(back.ok()) << back.status().message();
    EXPECT_EQ(*back, policy);
  }
}

TEST(PolicyJson, RotationsAndClipsComeBack) {
  const Policy policy = *parse_policy("oscar2,rotations=models/my \xc3\xbc.rot,v_clip=0.9");
  const auto back = policy_from_json(policy_to_json(policy));
  ASSERT_TRUE(back.ok()) << back.status().message();
  EXPECT_EQ(*back, policy);
  EXPECT_FALSE(policy_from_json(R"({"base": "oscar2", "rotations": "a,k=8"})").ok());
}

TEST(PolicyJson, OverridesNameAndNumbersComeBack) {
  Policy policy = *parse_policy("zipcache,ratio=0.75,seed=18446744073709551615,probes=1.5+0");
  policy.name = "mine \"quoted\" \xc3\xbc";
  policy.overrides = {{0, 3, "k=8,v=4"}, {29, 29, "v_axis=token"}};
  const auto back = policy_from_json(policy_to_json(policy));
  ASSERT_TRUE(back.ok()) << back.status().message();
  EXPECT_EQ(*back, policy);
}

TEST(PolicyJson, AScoreByFileComesBackAndKeepsToTheTextForm) {
  const Policy policy = *parse_policy("zip,score=file:b\xc3\xbc/alice.zcs");
  const auto back = policy_from_json(policy_to_json(policy));
  ASSERT_TRUE(back.ok()) << back.status().message();
  EXPECT_EQ(*back, policy);
  EXPECT_EQ(*policy_from_json(R"({"base": "zip", "score": "file:a.zcs"})"),
            *parse_policy("zip,score=file:a.zcs"));
  const auto comma = policy_from_json(R"({"base": "zip", "score": "file:a,b.zcs"})");
  EXPECT_NE(comma.status().message().find("without commas"), std::string::npos);
}

TEST(PolicyJson, AbsentFieldsKeepTheBaseRow) {
  EXPECT_EQ(*policy_from_json("{}"), Policy{});
  const auto policy =
      policy_from_json(R"({"base": "zipcache", "ratio": 0.7, "k": "8/4", "replacement": true,
      "recent": 64, "layers": [{"layers": "0-3", "set": "k=8,v=4"}, {"layers": "7", "set": "v=3"}]})");
  ASSERT_TRUE(policy.ok()) << policy.status().message();
  Policy expected = *parse_policy("zipcache,ratio=0.7,k=8/4,replacement=1,recent=64");
  expected.overrides = {{0, 3, "k=8,v=4"}, {7, 7, "v=3"}};
  EXPECT_EQ(*policy, expected);
}

TEST(PolicyJson, EvidenceIsPassedOver) {
  const auto policy = policy_from_json(
      R"({"base": "zip", "evidence": {"k": 3, "rows": [{"policy": "zip", "kld": 0.1}]}, "k": 8})");
  ASSERT_TRUE(policy.ok()) << policy.status().message();
  EXPECT_EQ(*policy, *parse_policy("zip,k=8"));
}

TEST(PolicyJson, WrongDocumentsAreRefusedWithTheFieldNamed) {
  const std::pair<const char*, const char*> wrong[] = {
      {"", "JSON"},
      {"{", "JSON"},
      {"nonsense", "JSON"},
      {"{\"k\": 4,}", "JSON"},
      {"{'k': 4}", "JSON"},
      {"{\"k\": 4} x", "JSON"},
      {"{\"k\": \"\xff\"}", "JSON"},
      {"{\"seed\": 1e999}", "JSON"},
      {"[]", "object"},
      {"null", "object"},
      {"4", "object"},
      {"\"zipcache\"", "object"},
      {R"({"base": 4})", "base"},
      {R"({"base": "nothing"})", "nothing"},
      {R"({"base": "a.json"})", "base"},
      {R"({"base": "zip,k=4"})", "base"},
      {R"({"base": null})", "base"},
      {R"({"bitz": 4})", "bitz"},
      {R"({"K": 4})", "\"K\""},
      {R"({"k": 5})", "field k"},
      {R"({"k": null})", "field k"},
      {R"({"k": [4]})", "field k"},
      {R"({"k": {}})", "field k"},
      {R"({"k": 4.5})", "field k"},
      {R"({"ratio": 2})", "field ratio"},
      {R"({"ratio": "1e9"})", "field ratio"},
      {R"({"sinks": -1})", "field sinks"},
      {R"({"seed": -1})", "field seed"},
      {R"({"seed": 1.5})", "field seed"},
      {R"({"cadence": true})", "field cadence"},
      {R"({"name": 4})", "name"},
      {R"({"evidence": "much"})", "evidence"},
      {R"({"layers": [{"layers": "0", "set": "evidence={}"}]})", "evidence"},
      {R"({"k_axis": "group12", "k": 4})", "k_axis"},
      {R"({"base": "zipcache", "probes": "0+0"})", "probes"},
      {R"({"layers": {}})", "layers"},
      {R"({"layers": [1]})", "layers[0]"},
      {R"({"layers": [{"layers": "0-3"}]})", "layers[0]"},
      {R"({"layers": [{"layers": "0-3", "set": "k=4", "more": 1}]})", "layers[0]"},
      {R"({"layers": [{"layers": 3, "set": "k=4"}]})", "layers[0]"},
      {R"({"layers": [{"layers": "a", "set": "k=4"}]})", "layers[0]"},
      {R"({"layers": [{"layers": "0-", "set": "k=4"}]})", "layers[0]"},
      {R"({"layers": [{"layers": "0-3x", "set": "k=4"}]})", "layers[0]"},
      {R"({"layers": [{"layers": "3-0", "set": "k=4"}]})", "layers 3-0"},
      {R"({"layers": [{"layers": "-1-3", "set": "k=4"}]})", "layers"},
      {R"({"layers": [{"layers": "99999999999-3", "set": "k=4"}]})", "layers"},
      {R"({"layers": [{"layers": "0-3", "set": "k=5"}]})", "field k"},
      {R"({"layers": [{"layers": "0-3", "set": "recent=5"}]})", "recent"},
  };
  for (const auto& [text, names] : wrong) {
    const auto policy = policy_from_json(text);
    if (policy.ok()) {
      ADD_FAILURE() << "accepted " << text;
      continue;
    }
    EXPECT_EQ(policy.status().code(), Code::BadPolicy) << text;
    EXPECT_NE(policy.status().message().find(names), std::string::npos)
        << text << " said: " << policy.status().message();
  }
  EXPECT_TRUE(policy_from_json(R"({"base": "zip"})").ok());
}

TEST(PolicyJson, DeepNestingIsRefusedWithoutOverflow) {
  const std::string open(100000, '['), close(100000, ']');
  EXPECT_EQ(policy_from_json(open).status().code(), Code::BadPolicy);
  EXPECT_EQ(policy_from_json(open + close).status().code(), Code::BadPolicy);
  EXPECT_EQ(policy_from_json("{\"k\": " + open + close + "}").status().code(), Code::BadPolicy);
  EXPECT_EQ(policy_from_json("{\"layers\": " + open + close + "}").status().code(),
            Code::BadPolicy);
}

TEST(PolicyFile, AFileIsABaseThatTextMayChange) {
  const TemporaryFile file(".json", R"({"base": "zipcache", "ratio": 0.7})");
  const auto policy = parse_policy(file.path() + ",recent=32");
  ASSERT_TRUE(policy.ok()) << policy.status().message();
  EXPECT_EQ(policy->shares, std::vector{700});
  EXPECT_EQ(policy->window.recent, 32);
}

TEST(PolicyFile, MissingOversizedAndWrongFilesAreRefusedByName) {
  const auto missing = load_policy("/nowhere/policy.json");
  EXPECT_EQ(missing.status().code(), Code::Environment);
  EXPECT_NE(missing.status().message().find("/nowhere/policy.json"), std::string::npos);
  const TemporaryFile large(".json", "{" + std::string(70000, ' ') + "}");
  EXPECT_EQ(load_policy(large.path()).status().code(), Code::BadPolicy);
  EXPECT_NE(load_policy(large.path()).status().message().find("larger"), std::string::npos);
  const TemporaryFile wrong(".json", "{\"k\": 7}");
  EXPECT_EQ(parse_policy(wrong.path()).status().code(), Code::BadPolicy);
  EXPECT_NE(parse_policy(wrong.path()).status().message().find("field k"), std::string::npos);
  EXPECT_FALSE(load_policy("/").ok());
  EXPECT_FALSE(load_policy("").ok());
}

}  // namespace
}  // namespace zipcache
