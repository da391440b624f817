// Policies built by hand, not by a parser, and overrides of single layers.
#include <gtest/gtest.h>

#include <functional>

#include "zipcache/cache.hpp"
#include "zipcache/policy.hpp"

namespace zipcache {
namespace {

struct Change {
  const char* name;
  std::function<void(Policy&)> apply;
};

const Change kWrong[] = {
    {"no tier", [](Policy& p) { p.tiers.clear(); }},
    {"two tiers of one kind",
     [](Policy& p) {
       p.tiers = {{4, 4}, {4, 4}};
     }},
    {"three tiers with one share",
     [](Policy& p) {
       p.tiers = {{16, 16}, {4, 4}, {2, 2}};
     }},
    {"a middle tier wider than the first",
     [](Policy& p) {
       p.tiers = {{4, 4}, {4, 8}, {2, 2}}, p.shares = {100, 100};
     }},
    {"five tiers",
     [](Policy& p) {
       p.tiers = {{16, 16}, {8, 8}, {4, 4}, {3, 3}, {2, 2}}, p.shares = {1, 1, 1, 1};
     }},
    {"no shares for two tiers", [](Policy& p) { p.shares.clear(); }},
    {"two shares for two tiers",
     [](Policy& p) {
       p.shares = {100, 100};
     }},
    {"shares of more than all",
     [](Policy& p) {
       p.tiers = {{16, 16}, {4, 4}, {2, 2}}, p.shares = {600, 500};
     }},
    {"a budget below the last tier",
     [](Policy& p) { p.allocation = Allocation::Knapsack, p.target_millibits = 1999; }},
    {"a budget above the first tier",
     [](Policy& p) { p.allocation = Allocation::Knapsack, p.target_millibits = 4001; }},
    {"no budget", [](Policy& p) { p.allocation = Allocation::KnapsackSquares; }},
    {"a negative budget", [](Policy& p) { p.target_millibits = -1; }},
    {"a budget for ranks",
     [](Policy& p) {
       p.allocation = Allocation::Knapsack, p.target_millibits = 3000;
       p.saliency.statistic = Statistic::MeanStd;
     }},
    {"a budget that a layer's tiers cannot keep",
     [](Policy& p) {
       p.allocation = Allocation::Knapsack, p.target_millibits = 3000;
       p.overrides = {{0, 1, "bits=8/4"}};
     }},
    {"5-bit keys", [](Policy& p) { p.tiers[0].k_bits = 5; }},
    {"0-bit values", [](Policy& p) { p.tiers[1].v_bits = 0; }},
    {"evicted keys of values that stay", [](Policy& p) { p.tiers[1].k_bits = 0; }},
    {"an evicting first tier",
     [](Policy& p) {
       p.tiers = {{0, 0}, {2, 2}};
     }},
    {"pool of 4", [](Policy& p) { p.saliency.pool_width = 4; }},
    {"pool of 33", [](Policy& p) { p.saliency.pool_width = 33; }},
    {"32-bit values", [](Policy& p) { p.tiers[0].v_bits = 32; }},
    {"low tier wider than the high one",
     [](Policy& p) {
       p.tiers = {{2, 2}, {4, 4}};
     }},
    {"a low tier with wider keys",
     [](Policy& p) {
       p.tiers = {{2, 4}, {4, 4}};
     }},
    {"ratio above 1", [](Policy& p) { p.shares = {1001}; }},
    {"ratio below 0", [](Policy& p) { p.shares = {-1}; }},
    {"group of 0", [](Policy& p) { p.k.axis = Axis::Group, p.k.group = 0; }},
    {"group of -8", [](Policy& p) { p.v.axis = Axis::Group, p.v.group = -8; }},
    {"token group of 256", [](Policy& p) { p.k.axis = Axis::ChannelGroup, p.k.group = 256; }},
    {"group of 12", [](Policy& p) { p.v.axis = Axis::Group, p.v.group = 12; }},
    {"a clip of nothing", [](Policy& p) { p.k.clip.permille = 0; }},
    {"a clip beyond the range", [](Policy& p) { p.v.clip.permille = 1001; }},
    {"a quantile below the middle",
     [](Policy& p) {
       p.v.clip = {500, true};
     }},
    {"a clip beside a fit that clips",
     [](Policy& p) { p.v.clip.permille = 900, p.v.fit = Fit::Mse; }},
    {"rotations that nothing reads", [](Policy& p) { p.rotations = "m.rot"; }},
    {"a path with a comma", [](Policy& p) { p.rotations = "a,b", p.k.rotation = Rotation::File; }},
    {"negative dual scaling", [](Policy& p) { p.k.dual = -1; }},
    {"65 rounds of dual scaling", [](Policy& p) { p.k.dual = 65; }},
    {"a negative rank", [](Policy& p) { p.v.rank = -1; }},
    {"a rank of 17", [](Policy& p) { p.k.rank = 17; }},
    {"dual scaling beside channel factors", [](Policy& p) { p.v.dual = 1; }},
    {"a codec of other widths", [](Policy& p) { p.v.codec = Codec::Lloyd, p.tiers[0].v_bits = 8; }},
    {"no step for codes that need one", [](Policy& p) { p.v.axis = Axis::None; }},
    {"an override that its codec has not",
     [](Policy& p) {
       p.v.codec = Codec::Lloyd, p.overrides = {{0, 1, "v=8"}};
     }},
    {"negative sinks", [](Policy& p) { p.window.sinks = -1; }},
    {"more sinks than a block has tokens", [](Policy& p) { p.window.sinks = 129; }},
    {"negative window", [](Policy& p) { p.window.recent = -1; }},
    {"negative probes", [](Policy& p) { p.saliency.recent_permille = -50; }},
    {"more probes than rows", [](Policy& p) { p.saliency.random_permille = 951; }},
    {"no probes", [](Policy& p) { p.saliency.recent_permille = p.saliency.random_permille = 0; }},
    {"override without an equals sign",
     [](Policy& p) {
       p.overrides = {{0, 1, "k"}};
     }},
    {"override of the window",
     [](Policy& p) {
       p.overrides = {{0, 1, "recent=4"}};
     }},
    {"override of the seed",
     [](Policy& p) {
       p.overrides = {{0, 1, "seed=4"}};
     }},
    {"override backwards",
     [](Policy& p) {
       p.overrides = {{3, 1, "k=4"}};
     }},
    {"override of layer -1",
     [](Policy& p) {
       p.overrides = {{-1, 1, "k=4"}};
     }},
    {"override with a group of 12",
     [](Policy& p) {
       p.overrides = {{0, 1, "k_axis=group12"}};
     }},
};

TEST(PolicyCheck, PoliciesThatDoNotFitTogetherAreRefused) {
  for (const Change& wrong : kWrong) {
    Policy policy = *parse_policy("zipcache");
    wrong.apply(policy);
    const Status status = check(policy);
    EXPECT_EQ(status.code(), Code::BadPolicy) << wrong.name;
    EXPECT_TRUE(status.ok() || !status.message().empty());
  }
}

TEST(PolicyCheck, NoCacheIsMadeOfAPolicyThatDoesNotCheck) {
  for (const Change& wrong : kWrong) {
    Policy policy = *parse_policy("zipcache");
    wrong.apply(policy);
    if (check(policy).ok()) {
      ADD_FAILURE() << "check accepted: " << wrong.name;
      continue;
    }
    EXPECT_EQ(Cache::create({1, 256, {{1, 64, 64}}}, policy).status().code(), Code::BadPolicy)
        << wrong.name;
  }
}

TEST(PolicyCheck, ControlsNeedNoProbes) {
  EXPECT_TRUE(parse_policy("random-tiers,probes=0+0").ok());
  EXPECT_TRUE(parse_policy("recency-tiers,probes=0+0").ok());
  EXPECT_TRUE(parse_policy("uniform,probes=0+0").ok());
  EXPECT_TRUE(parse_policy("tova,probes=0+0").ok());
}

TEST(PolicyCheck, OverridesChangeTheirLayersOnly) {
  Policy policy = *parse_policy("zipcache,recent=64");
  policy.overrides = {{0, 1, "k=8,v=4"}, {1, 3, "v=3,k_axis=token"}};
  ASSERT_TRUE(check(policy).ok());
  const Policy first = *policy_for_layer(policy, 0), both = *policy_for_layer(policy, 1);
  EXPECT_EQ(first.tiers, (std::vector<Tier>{{8, 4}}));
  EXPECT_EQ(both.tiers, (std::vector<Tier>{{8, 3}}));
  EXPECT_EQ(both.k.axis, Axis::Token);
  EXPECT_EQ(policy_for_layer(policy, 3)->tiers, (std::vector<Tier>{{4, 3}, {2, 3}}));
  Policy plain = policy;
  plain.overrides.clear();
  EXPECT_EQ(*policy_for_layer(policy, 4), plain);
  EXPECT_EQ(first.window, policy.window);
}

}  // namespace
}  // namespace zipcache
