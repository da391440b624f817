// llama.cpp's spelling of options, and help for misspelt ones.
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

}  // namespace
}  // namespace zipcache::cli
