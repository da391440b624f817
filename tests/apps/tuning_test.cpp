// What `zipcache tune` decides: groups of layers, widths for each, and the choice under a target.
#include "tuning.hpp"

#include <gtest/gtest.h>

#include "zipcache/policy.hpp"

namespace zipcache::cli {
namespace {

using Groups = std::vector<LayerGroup>;
using Units = std::vector<std::vector<WidthOption>>;

TEST(Tuning, GroupsCoverAllLayersAndDifferByOneAtMost) {
  EXPECT_EQ(group_layers(3, 8), (Groups{{0, 0}, {1, 1}, {2, 2}}));
  EXPECT_EQ(group_layers(18, 8).size(), 8u);
  for (const int n : {1, 7, 8, 18, 30, 80}) {
    int next = 0;
    for (const LayerGroup& group : group_layers(n, 8)) {
      EXPECT_EQ(group.first, next) << n;
      const int size = group.last - group.first + 1;
      EXPECT_TRUE(size == n / 8 || size == (n + 7) / 8) << n << " has a group of " << size;
      next = group.last + 1;
    }
    EXPECT_EQ(next, n);
  }
}

TEST(Tuning, ChunksAreShortWhereAThreadHasManyWeights) {
  EXPECT_EQ(usual_ctx(134'515'008, 2), 1024);
  EXPECT_EQ(usual_ctx(268'098'176, 2), 512);
  EXPECT_EQ(usual_ctx(268'098'176, 4), 1024);
  EXPECT_EQ(usual_ctx(7'000'000'000, 16), 512);
}

TEST(Assign, BitsGoWhereTheyTakeAwayMostDivergence) {
  // The second unit's first step saves most per bit, its second step nothing worth having.
  const Units units = {{{1, 10}, {2, 6}}, {{1, 10}, {2, 3}, {3, 2.5}}, {{1, 1}, {2, 0.5}}};
  EXPECT_EQ(assign(units, {.bits = 3}).chosen, (std::vector<size_t>{0, 0, 0}));
  EXPECT_EQ(assign(units, {.bits = 4}).chosen, (std::vector<size_t>{0, 1, 0}));
  const Assignment five = assign(units, {.bits = 5});
  EXPECT_EQ(five.chosen, (std::vector<size_t>{1, 1, 0}));
  EXPECT_DOUBLE_EQ(five.bits, 5);
  EXPECT_DOUBLE_EQ(five.divergence, 6 + 3 + 1);
  EXPECT_EQ(assign(units, {}).chosen, (std::vector<size_t>{1, 2, 1}));
}

TEST(Assign, ALargeStepIsTakenWhenSmallOnesSaveLessPerBit) {
  const Units units = {{{2, 10}, {3, 9.5}, {4, 1}}};
  EXPECT_EQ(assign(units, {.bits = 4}).chosen[0], 2u);
  EXPECT_EQ(assign(units, {.bits = 3}).chosen[0], 1u);  // the large one does not fit
}

TEST(Assign, StopsAsSoonAsTheDivergenceIsLowEnough) {
  const Units units = {{{1, 10}, {2, 6}}, {{1, 10}, {2, 3}}};
  EXPECT_EQ(assign(units, {.divergence = 20}).chosen, (std::vector<size_t>{0, 0}));
  EXPECT_EQ(assign(units, {.divergence = 13}).chosen, (std::vector<size_t>{0, 1}));
  EXPECT_EQ(assign(units, {.divergence = 12.9}).chosen, (std::vector<size_t>{1, 1}));
}

TEST(Assign, AWidthThatMakesItWorseIsNotTaken) {
  const Units units = {{{2, 1}, {3, 1.5}, {4, 0.5}}};
  EXPECT_EQ(assign(units, {.bits = 3}).chosen[0], 0u);
  EXPECT_EQ(assign(units, {.bits = 4}).chosen[0], 2u);
}

TEST(Tuning, WidthsBecomeRangesOfLayers) {
  const Groups groups = {{0, 3}, {4, 7}, {8, 11}, {12, 15}};
  const std::vector<int> k = {8, 8, 4, 4}, v = {2, 3, 2, 2}, same = {4, 4, 4, 4};
  const std::string text = with_widths("zip,k_rotate=hadamard", groups, k, v);
  const auto policy = parse_policy(text);
  ASSERT_TRUE(policy.ok()) << policy.status().message();
  for (int layer = 0; layer < 16; ++layer) {
    const Tier tier = policy_for_layer(*policy, layer)->tiers.at(0);
    EXPECT_EQ(tier.k_bits, k[layer / 4]) << text << ", layer " << layer;
    EXPECT_EQ(tier.v_bits, v[layer / 4]) << text << ", layer " << layer;
  }
  EXPECT_EQ(policy->overrides.size(), 2u);  // neighbours with one width are one range
  EXPECT_EQ(with_widths("zip", groups, same, same), "zip,k=4,v=4");
}

TEST(Tuning, AGroupAloneLeavesEverythingElseAt16Bits) {
  for (const char side : {'k', 'v'}) {
    for (const LayerGroup& group : Groups{{0, 5}, {0, 1}, {2, 3}, {4, 5}}) {
      const std::string text = alone("zip", side, 3, group, 6);
      const auto policy = parse_policy(text);
      ASSERT_TRUE(policy.ok()) << text;
      EXPECT_FALSE(policy->raw()) << text;
      for (int layer = 0; layer < 6; ++layer) {
        const Tier tier = policy_for_layer(*policy, layer)->tiers.at(0);
        const int own = layer >= group.first && layer <= group.last ? 3 : 16;
        EXPECT_EQ(tier.k_bits, side == 'k' ? own : 16) << text << ", layer " << layer;
        EXPECT_EQ(tier.v_bits, side == 'v' ? own : 16) << text << ", layer " << layer;
      }
    }
  }
}

TEST(Choose, ATargetOfBitsTakesTheLeastDivergence) {
  const std::vector<Candidate> all = {{4.5, 0.01, 0}, {3.38, 0.03, 0}, {3.3, 0.02, 0}, {2, 0.5, 0}};
  EXPECT_EQ(choose(all, {}, 3.38), 2u);
  EXPECT_EQ(choose(all, {.bits = 4.5}, 3.38), 0u);
  EXPECT_EQ(choose(all, {.bits = 2.5}, 3.38), 3u);
  EXPECT_EQ(choose(all, {.bits = 1.9}, 3.38), std::nullopt);
  EXPECT_EQ(choose(all, {.bits = 3.2963}, 3.38), 2u);  // 3.30 as it is shown
}

TEST(Choose, OfEqualDivergenceTheFewerBits) {
  EXPECT_EQ(choose(std::vector<Candidate>{{3.3, 0.02, 0}, {3.1, 0.02, 0}}, {}, 4), 1u);
}

TEST(Choose, ATargetOfDivergenceCountsTheErrorAndTakesTheFewestBits) {
  const std::vector<Candidate> all = {{4.5, 0.01, 0.001}, {3.4, 0.019, 0.0005}, {3, 0.019, 0.002}};
  EXPECT_EQ(choose(all, {.divergence = 0.02}, 3.38), 1u);
  EXPECT_EQ(choose(all, {.divergence = 0.022}, 3.38), 2u);
  EXPECT_EQ(choose(all, {.divergence = 0.005}, 3.38), std::nullopt);
}

TEST(Confirmed, TheChoiceHasToBeatTheBuiltInPolicyOnUnseenText) {
  const Candidate zip{3.38, 0.02, 0.001};
  EXPECT_TRUE(confirmed({3.38, 0.019, 0.001}, zip, {}));
  EXPECT_FALSE(confirmed({3.38, 0.02, 0.001}, zip, {}));
  EXPECT_FALSE(confirmed({3.1, 0.03, 0.001}, zip, {}));
  // With a target of divergence fewer bits may cost divergence.
  EXPECT_TRUE(confirmed({3.1, 0.03, 0.001}, zip, {.divergence = 0.04}));
  EXPECT_FALSE(confirmed({3.5, 0.03, 0.001}, zip, {.divergence = 0.04}));
}

TEST(Collapse, TwoBitMethodsThatWorkHaveNotCollapsed) {
  EXPECT_FALSE(collapsed(0.306, 0.715));
  EXPECT_TRUE(collapsed(2.3, 0.36));
  EXPECT_TRUE(collapsed(0.8, 0.9));
  EXPECT_TRUE(collapsed(0.1, 0.5));
}

}  // namespace
}  // namespace zipcache::cli
