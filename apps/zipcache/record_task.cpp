// A task with records.
#include "record_task.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>

namespace zipcache::cli {

Result<std::vector<Json>> read_records(const std::string& option, const std::filesystem::path& path,
                                       const std::vector<const char*>& texts,
                                       const std::string& cure) {
  Result<std::vector<Json>> rows = read_rows(path);
  if (!rows.ok()) {
    return Status{rows.status().code(), fmt::format("{}: {}", option, rows.status().message())};
  }
  for (size_t i = 0; i < rows->size(); ++i) {
    const Json& row = (*rows)[i];
    for (const char* field : texts) {
      if (row.contains(field) && row[field].is_string()) continue;
      return Status{Code::BadData,
                    fmt::format("{}: '{}', row {}: found no text '{}', expected the fields {}; {}",
                                option, path.string(), i + 1, field, fmt::join(texts, ", "), cure)};
    }
  }
  if (!rows->empty()) return rows;
  return Status{Code::BadData, fmt::format("{}: '{}' has no rows, expected JSON lines with {}; {}",
                                           option, path.string(), fmt::join(texts, ", "), cure)};
}

Scorer score_each(std::function<Json(const TaskRecord&, const std::string&)> score) {
  return [score](std::span<const TaskRecord> records,
                 std::span<const std::string> said) -> Result<std::vector<Json>> {
    std::vector<Json> marks;
    for (size_t i = 0; i < records.size(); ++i) marks.push_back(score(records[i], said[i]));
    return marks;
  };
}

Scorer score_exact() {
  return score_each([](const TaskRecord& record, const std::string& said) {
    return Json{{"score", said == record.reference ? 1 : 0}};
  });
}

std::pair<std::string, bool> cut_at_stop(const std::string& said,
                                         const std::vector<std::string>& stops) {
  size_t end = std::string::npos;
  for (const std::string& stop : stops) end = std::min(end, said.find(stop));
  return {said.substr(0, end), end != std::string::npos};
}

}  // namespace zipcache::cli
