// Rows of results in files of JSON lines, which grow row by row so that a run can be taken up
// again.
//
// Thread safety: one thread at a time, and one process at a time per file.
#pragma once

#include <filesystem>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "table.hpp"
#include "zipcache/status.hpp"

namespace zipcache::cli {

// The whole of a file; Environment when it cannot be read.
Result<std::string> read_file(const std::filesystem::path& path);

// The rows of one file; BadData, with the line, for a line that is not a JSON object.
Result<std::vector<Json>> read_rows(const std::filesystem::path& path);

// The rows of `paths` in order; a folder stands for its files *.jsonl, sorted by name.
Result<std::vector<Json>> read_all_rows(const std::vector<std::string>& paths);

// `row` has every field of `key`, with the same value.
bool matches(const Json& row, const Json& key);

// 16 hexadecimal digits that another content has not (XXH3, 64 bits).
std::string fingerprint(std::string_view content);
Result<std::string> fingerprint_of_file(const std::filesystem::path& path);

class ResultFile {
 public:
  // Reads the rows that `path` has already; a missing file is made with the first row. Without a
  // path rows are kept in memory only.
  static Result<ResultFile> open(const std::filesystem::path& path);

  // The newest row that matches `key`.
  std::optional<Json> find(const Json& key) const;

  // Appends a row, which is in the file when this returns.
  Status add(const Json& row);

 private:
  std::filesystem::path path_;
  std::vector<Json> rows_;
};

}  // namespace zipcache::cli
