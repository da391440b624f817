// The list of policies: what a comma separates, and which engine serves what.
#include "policy_list.hpp"

#include <gtest/gtest.h>

namespace zipcache::cli {
namespace {

std::vector<std::string> texts(std::string_view list) {
  std::vector<std::string> out;
  const auto choices = parse_policy_list(list);
  if (!choices.ok()) return {"error: " + choices.status().message()};
  for (const PolicyChoice& choice : *choices) out.push_back(choice.text);
  return out;
}

using List = std::vector<std::string>;

TEST(PolicyList, CommasSeparateNames) {
  EXPECT_EQ(texts("f16,q8_0,zip"), (List{"f16", "q8_0", "zip"}));
}

TEST(PolicyList, AFieldContinuesThePolicyBeforeIt) {
  EXPECT_EQ(texts("zipcache,recent=64,k=4/2,zip"), (List{"zipcache,recent=64,k=4/2", "zip"}));
}

TEST(PolicyList, SemicolonsAlwaysSeparate) {
  EXPECT_EQ(texts("zip,recent=64;zip, recent=32 ;f16"),
            (List{"zip,recent=64", "zip,recent=32", "f16"}));
}

TEST(PolicyList, EmptyPiecesAreSkipped) { EXPECT_EQ(texts(" f16,, zip;;"), (List{"f16", "zip"})); }

TEST(PolicyList, AnEmptyListIsRefused) {
  EXPECT_EQ(parse_policy_list("").status().code(), Code::BadPolicy);
  EXPECT_EQ(parse_policy_list(" ,; ").status().code(), Code::BadPolicy);
}

TEST(PolicyList, LlamaTypesRunOnLlamasOwnPath) {
  EXPECT_EQ(parse_choice("q8_0")->llama_type, "q8_0");
  EXPECT_EQ(parse_choice("llama:q8_0")->llama_type, "q8_0");
  EXPECT_EQ(parse_choice("llama:f16")->llama_type, "f16");
  EXPECT_TRUE(parse_choice("f16")->ours());
  EXPECT_TRUE(parse_choice("zip")->ours());
}

TEST(PolicyList, AnUnknownLlamaTypeIsRefusedByName) {
  const auto choice = parse_choice("llama:q9_9");
  EXPECT_EQ(choice.status().code(), Code::BadPolicy);
  EXPECT_NE(choice.status().message().find("q9_9"), std::string::npos);
}

}  // namespace
}  // namespace zipcache::cli
