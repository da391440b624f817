// Files of result rows.
#include "result_file.hpp"

#define XXH_INLINE_ALL
#include <fmt/format.h>
#include <xxhash.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <fstream>
#include <sstream>

namespace zipcache::cli {

namespace fs = std::filesystem;

namespace {

// Objects and lists inside one another. Values are copied and destroyed level by level, on the
// stack.
constexpr int kMostLevels = 200;

int levels_of(const std::string& line) {
  int level = 0, most = 0;
  bool text = false;
  for (size_t i = 0; i < line.size(); ++i) {
    const char c = line[i];
    if (text && c == '\\')
      ++i;
    else if (c == '"')
      text = !text;
    else if (!text && (c == '{' || c == '['))
      most = std::max(most, ++level);
    else if (!text && (c == '}' || c == ']'))
      --level;
  }
  return most;
}

Result<std::vector<fs::path>> files_of(const fs::path& path) {
  std::error_code error;
  if (!fs::is_directory(path, error)) return std::vector<fs::path>{path};
  std::vector<fs::path> files;
  for (const auto& entry : fs::directory_iterator(path, error)) {
    if (entry.path().extension() == ".jsonl") files.push_back(entry.path());
  }
  if (files.empty()) {
    return Status{Code::Environment,
                  fmt::format("'{}' has no file *.jsonl, expected results of zipcache eval in it",
                              path.string())};
  }
  std::sort(files.begin(), files.end());
  return files;
}

}  // namespace

Result<std::string> read_file(const fs::path& path) {
  std::ifstream file(path, std::ios::binary);
  std::ostringstream content;
  if (file) content << file.rdbuf();
  if (!file) {
    return Status{Code::Environment,
                  fmt::format("cannot read '{}': {}", path.string(), std::strerror(errno))};
  }
  return content.str();
}

Result<std::vector<Json>> read_rows(const fs::path& path) {
  Result<std::string> content = read_file(path);
  if (!content.ok()) return content.status();
  std::vector<Json> rows;
  std::istringstream lines(*content);
  int number = 0;
  for (std::string line; std::getline(lines, line);) {
    ++number;
    if (line.empty()) continue;
    if (levels_of(line) > kMostLevels) {
      return Status{Code::OverLimit,
                    fmt::format("'{}', line {}: found JSON of {} levels, the limit is {}",
                                path.string(), number, levels_of(line), kMostLevels)};
    }
    Json row = Json::parse(line, nullptr, false);
    if (!row.is_object()) {
      return Status{Code::BadData,
                    fmt::format("'{}', line {}: found '{}', expected a JSON object; correct or "
                                "remove the line",
                                path.string(), number, line.substr(0, 40))};
    }
    rows.push_back(std::move(row));
  }
  return rows;
}

Result<std::vector<Json>> read_all_rows(const std::vector<std::string>& paths) {
  std::vector<Json> all;
  for (const std::string& path : paths) {
    const Result<std::vector<fs::path>> files = files_of(path);
    if (!files.ok()) return files.status();
    for (const fs::path& file : *files) {
      const Result<std::vector<Json>> rows = read_rows(file);
      if (!rows.ok()) return rows.status();
      all.insert(all.end(), rows->begin(), rows->end());
    }
  }
  return all;
}

bool matches(const Json& row, const Json& key) {
  return std::all_of(key.items().begin(), key.items().end(), [&](const auto& field) {
    const auto found = row.find(field.key());
    return found != row.end() && *found == field.value();
  });
}

std::string fingerprint(std::string_view content) {
  return fmt::format("{:016x}", XXH3_64bits(content.data(), content.size()));
}

Result<std::string> fingerprint_of_file(const fs::path& path) {
  const Result<std::string> content = read_file(path);
  if (!content.ok()) return content.status();
  return fingerprint(*content);
}

Result<ResultFile> ResultFile::open(const fs::path& path) {
  ResultFile file;
  file.path_ = path;
  std::error_code error;
  if (path.empty() || !fs::exists(path, error)) return file;
  Result<std::vector<Json>> rows = read_rows(path);
  if (!rows.ok()) return rows.status();
  file.rows_ = std::move(*rows);
  return file;
}

std::optional<Json> ResultFile::find(const Json& key) const {
  const auto found = std::find_if(rows_.rbegin(), rows_.rend(),
                                  [&](const Json& row) { return matches(row, key); });
  return found == rows_.rend() ? std::nullopt : std::optional<Json>(*found);
}

Status ResultFile::add(const Json& row) {
  rows_.push_back(row);
  if (path_.empty()) return ok();
  std::ofstream file(path_, std::ios::binary | std::ios::app);
  file << jsonl({row}) << std::flush;
  if (file) return ok();
  return {Code::Environment,
          fmt::format("--out: cannot write '{}': {}", path_.string(), std::strerror(errno))};
}

}  // namespace zipcache::cli
