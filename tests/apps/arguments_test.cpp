// llama.cpp's spelling of options, help for misspelt ones, and ranges.
#include "arguments.hpp"

#include <gtest/gtest.h>

namespace zipcache::cli {
namespace {

using Words = std::vector<std::string>;

TEST(Arguments, ShortFormsOfSeveralLettersBecomeLong) {
  EXPECT_EQ(long_forms({"run", "-ub", "64", "-sys", "x", "-u"}),
            (Words{"run", "--ubatch-size", "64", "--system-prompt", "x", "-u"}));
}

TEST(Arguments, NothingChangesAfterTwoDashes) {
  EXPECT_EQ(long_forms({"--", "-ub"}), (Words{"--", "-ub"}));
}

TEST(Arguments, NearestHasTheFewestEdits) {
  const Words names = {"--model", "--chunks", "--policies"};
  EXPECT_EQ(nearest("--modle", names), "--model");
  EXPECT_EQ(nearest("--policy", names), "--policies");
  EXPECT_EQ(nearest("--xyzxyzxyz", names), "");
  EXPECT_EQ(nearest("x", {}), "");
}

TEST(Arguments, TheFirstValueOutsideTheRangeIsTold) {
  EXPECT_TRUE(check_range("--depth", {0, 5, 10}, 0, 10).ok());
  const Status status = check_range("--depth", {3, 11, -1}, 0, 10);
  EXPECT_EQ(status.code(), Code::BadArgument);
  EXPECT_EQ(status.message(), "--depth: found 11, expected 0 to 10");
  EXPECT_FALSE(check_range("--depth", {-1}, 0, 10).ok());
}

}  // namespace
}  // namespace zipcache::cli
