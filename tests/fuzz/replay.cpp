// Stands in for libFuzzer where there is none: runs a target once on every file that is named, and
// on every file of a folder that is named.
#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

#include "fuzz.hpp"

namespace {

std::vector<std::filesystem::path> files_of(const std::filesystem::path& path) {
  if (!std::filesystem::is_directory(path)) return {path};
  std::vector<std::filesystem::path> files;
  for (const auto& entry : std::filesystem::directory_iterator(path)) files.push_back(entry.path());
  std::sort(files.begin(), files.end());
  return files;
}

// A copy of exactly the input's size, so that a sanitizer sees the first byte beyond it read.
void run(const std::string& input) {
  const std::vector<uint8_t> bytes(input.begin(), input.end());
  LLVMFuzzerTestOneInput(bytes.data(), bytes.size());
}

}  // namespace

int main(int argc, char** argv) {
  int n = 0;
  for (int i = 1; i < argc; ++i) {
    for (const auto& path : files_of(argv[i])) {
      std::ifstream file(path, std::ios::binary);
      if (!file) {
        std::fprintf(stderr, "replay: cannot read '%s'\n", path.c_str());
        return 6;
      }
      std::fprintf(stderr, "%s\n",
                   path.c_str());  // names the culprit when the next line is a crash
      run(std::string(std::istreambuf_iterator<char>(file), {}));
      ++n;
    }
  }
  if (n == 0) {
    std::fprintf(stderr, "replay: found no inputs, expected files or folders of them\n");
    return 2;
  }
  std::printf("%d inputs, no finds\n", n);
}
