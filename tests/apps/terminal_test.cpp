// Lines for people: no control characters, sizes with three figures.
#include "terminal.hpp"

#include <gtest/gtest.h>

namespace zipcache::cli {
namespace {

TEST(Terminal, ErrorsAreOneLineWithoutEscapes) {
  EXPECT_EQ(one_line("a\nb\x1b[31m\n"), "a\\x0ab\\x1b[31m");
  EXPECT_EQ(one_line("± stays"), "± stays");
}

TEST(Terminal, ErrorsAreAtMostAKibibyte) {
  EXPECT_LE(one_line(std::string(5000, '\x01')).size(), 1024u);
}

TEST(Terminal, BytesHaveThreeFigures) {
  EXPECT_EQ(bytes_text(0), "0 B");
  EXPECT_EQ(bytes_text(1023), "1023 B");
  EXPECT_EQ(bytes_text(1536), "1.50 KiB");
  EXPECT_EQ(bytes_text(47185920), "45.0 MiB");
  EXPECT_EQ(bytes_text(512.0 * 1024 * 1024 * 1024), "512 GiB");
}

TEST(Terminal, NoColourWhereNobodyLooks) {
  std::FILE* file = std::tmpfile();
  ASSERT_NE(file, nullptr);
  EXPECT_FALSE(colours(file));
  std::fclose(file);
}

}  // namespace
}  // namespace zipcache::cli
