#include "codec/clip.hpp"

#include <gtest/gtest.h>

namespace zipcache {
namespace {

Side side_of(Axis axis, Clip clip, int group = 32) {
  Side side;
  side.axis = axis, side.group = group, side.clip = clip;
  return side;
}

std::vector<float> clipped(std::vector<float> rows, int dim, const Side& side) {
  clip_sets(side, dim, rows);
  return rows;
}

TEST(Clip, AShareOfTheRangeLiesAboutItsMiddle) {
  const Side side = side_of(Axis::Token, {500, false});
  EXPECT_EQ(clipped({0, 1, 2, 8}, 4, side), (std::vector<float>{2, 2, 2, 6}));
  // Far from zero as well: only distances count.
  EXPECT_EQ(clipped({100, 101, 102, 108}, 4, side), (std::vector<float>{102, 102, 102, 106}));
}

TEST(Clip, QuantilesLieBetweenNeighboursInProportion) {
  // Five values: the quantile 0.9 is at place 3.6, the quantile 0.1 at 0.4.
  const Side side = side_of(Axis::Token, {900, true});
  const auto out = clipped({10, -4, 1, 2, 0}, 5, side);
  EXPECT_FLOAT_EQ(out[0], 2 + 0.6f * 8);
  EXPECT_FLOAT_EQ(out[1], -4 + 0.4f * 4);
  EXPECT_EQ((std::vector<float>{out[2], out[3], out[4]}), (std::vector<float>{1, 2, 0}));
}

// Each set is clipped by its own values: 4 tokens of 4 channels, value 10 * token + channel ^ 2.
TEST(Clip, SetsAreThoseOfTheAxis) {
  std::vector<float> rows;
  for (int t = 0; t < 4; ++t) {
    for (int c = 0; c < 4; ++c) rows.push_back(float(10 * t + c * c));
  }
  const Clip half{500, false};
  const auto token = clipped(rows, 4, side_of(Axis::Token, half));
  EXPECT_EQ(token[0], 2.25f);
  EXPECT_EQ(token[15], 36.75f);
  EXPECT_EQ(clipped(rows, 4, side_of(Axis::Cst, half)), token);
  const auto channel = clipped(rows, 4, side_of(Axis::Channel, half));
  EXPECT_EQ(channel[0], 7.5f);
  EXPECT_EQ(channel[15], 31.5f);
  const auto group = clipped(rows, 4, side_of(Axis::Group, half, 2));
  EXPECT_EQ(group[2], 5.25f);    // of 4 and 9
  EXPECT_EQ(group[15], 37.75f);  // of 34 and 39
  const auto tokens = clipped(rows, 4, side_of(Axis::ChannelGroup, half, 3));
  EXPECT_EQ(tokens[0], 5);    // of 0, 10 and 20
  EXPECT_EQ(tokens[12], 30);  // the last group holds one token
}

TEST(Clip, NothingIsClippedByDefault) {
  const std::vector<float> rows = {3, -1, 4, 1};
  EXPECT_EQ(clipped(rows, 2, side_of(Axis::Token, {})), rows);
  EXPECT_TRUE(clipped({}, 2, side_of(Axis::Token, {500, false})).empty());
}

}  // namespace
}  // namespace zipcache
