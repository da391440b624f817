// Tables of results.
#include "result_tables.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cctype>
#include <cmath>
#include <set>
#include <span>

#include "report.hpp"

namespace zipcache::cli {

namespace {

// What a task's rows must have, and which of it must agree within a group.
struct Task {
  std::string_view name;
  std::vector<const char*> group;    // fields that rows of a group share
  std::vector<const char*> row;      // fields that tell rows of a group apart
  std::vector<const char*> numbers;  // fields that are shown
};

const std::array<Task, 2>& tasks() {
  static const std::array<Task, 2> all = {
      Task{"kld",
           {"model", "f32_weights", "ubatch", "text", "ctx", "chunks", "depth_bin"},
           {"policy"},
           {"bits_resident", "kld_mean", "kld_mean_se", "kld_p50", "kld_p99", "kld_p999",
            "same_top", "same_top_se", "ppl_ratio", "ppl_ratio_se", "n_scored"}},
      Task{"retrieval",
           {"model", "f32_weights", "ubatch", "records"},
           {"policy", "lines"},
           {"bits_resident", "accuracy", "low95", "high95", "samples", "tokens"}}};
  return all;
}

Status check_row(const Json& row, const Task& task, size_t number) {
  const auto lacks = [&](const char* field, const char* expected) {
    return Status{Code::BadData, fmt::format("result row {}: found no field '{}', expected {}",
                                             number + 1, field, expected)};
  };
  for (const auto* fields : {&task.group, &task.row}) {
    for (const char* field : *fields) {
      if (!row.contains(field)) return lacks(field, "what zipcache eval writes");
    }
  }
  for (const char* field : task.numbers) {
    if (!row.contains(field) || !row[field].is_number()) return lacks(field, "a number");
  }
  return ok();
}

Result<const Task*> task_of(const Json& row, size_t number) {
  const std::string name = row.contains("task") ? row["task"].dump() : "nothing";
  for (const Task& task : tasks()) {
    if (name != fmt::format("\"{}\"", task.name)) continue;
    ZC_TRY(check_row(row, task, number));
    return &task;
  }
  return Status{Code::BadData,
                fmt::format("result row {}: found task {}, expected \"kld\" or \"retrieval\"; give "
                            "files that zipcache eval wrote",
                            number + 1, name)};
}

Json picked(const Json& row, const std::vector<const char*>& fields) {
  Json out = Json::object();
  for (const char* field : fields) out[field] = row[field];
  return out;
}

std::string words(const Json& value) {
  return value.is_string() ? value.get<std::string>() : value.dump();
}

std::string with_commas(int64_t number) {
  std::string out = fmt::format("{}", number);
  for (int at = static_cast<int>(out.size()) - 3; at > 0; at -= 3) out.insert(at, ",");
  return out;
}

std::string title_of(const Json& row, const Task& task) {
  const std::string model = words(row["model"]);
  if (task.name == "retrieval") return fmt::format("{} · {}", model, words(row["records"]));
  return fmt::format("{} · {} · {} tokens", model, words(row["text"]),
                     with_commas(row["ctx"].get<int64_t>()));
}

double number(const Json& row, const char* field) { return row[field].get<double>(); }

std::string coded_bits(const Json& row) {
  const bool known = row.contains("bits_coded") && row["bits_coded"].is_number();
  return known ? fmt::format("{:.2f}", number(row, "bits_coded")) : "-";
}

// Different values of `field` among rows, separated by commas.
std::string all_of(std::span<const Json> rows, const char* field) {
  std::set<std::string> values;
  for (const Json& row : rows) {
    if (row.contains(field)) values.insert(words(row[field]));
  }
  std::string out;
  for (const std::string& value : values) out += (out.empty() ? "" : ", ") + value;
  return out;
}

std::string measured_with(const ResultGroup& group) {
  const std::span<const Json> rows(group.rows);
  return fmt::format("Micro-batch {}, weights {}, kernels {}, {}, {}, build {}.\n",
                     all_of(rows, "ubatch"), all_of(rows, "weights"), all_of(rows, "kernel"),
                     all_of(rows, "cpu"), all_of(rows, "date"), all_of(rows, "build"));
}

std::string kld_table(const ResultGroup& group, bool bold) {
  std::vector<std::vector<std::string>> lines;
  for (const Json& row : group.rows) {
    lines.push_back(
        {words(row["policy"]), fmt::format("{:.2f}", number(row, "bits_resident")), coded_bits(row),
         with_error(number(row, "kld_mean"), number(row, "kld_mean_se")),
         divergence_text(number(row, "kld_p50")), divergence_text(number(row, "kld_p99")),
         divergence_text(number(row, "kld_p999")),
         fmt::format("{:.1f} ± {:.1f}", 100 * number(row, "same_top"),
                     100 * number(row, "same_top_se")),
         fmt::format("{:.4f} ± {:.4f}", number(row, "ppl_ratio"), number(row, "ppl_ratio_se"))});
  }
  return markdown({{"policy", false},
                   {"bits"},
                   {"coded"},
                   {"KLD"},
                   {"50 %"},
                   {"99 %"},
                   {"99.9 %"},
                   {"same top %"},
                   {"PPL ratio"}},
                  lines, bold);
}

// A policy's bin that begins at `from`, as a cell.
std::string depth_cell(const Json& row, const Json& from) {
  for (const Json& bin : row.value("by_depth", Json::array())) {
    if (bin["from"] == from) return with_error(number(bin, "kld_mean"), number(bin, "kld_mean_se"));
  }
  return "-";
}

std::string depth_table(const ResultGroup& group, bool bold) {
  std::vector<Column> columns = {{"KLD at tokens", false}};
  for (const Json& row : group.rows) columns.push_back({words(row["policy"])});
  std::vector<std::vector<std::string>> lines;
  for (const Json& bin : group.rows.front().value("by_depth", Json::array())) {
    std::vector<std::string> line = {fmt::format("{} to {}", bin["from"].dump(), bin["to"].dump())};
    for (const Json& row : group.rows) line.push_back(depth_cell(row, bin["from"]));
    lines.push_back(std::move(line));
  }
  return lines.empty() ? "" : "\n" + markdown(columns, lines, bold);
}

const Json* retrieval_row(const ResultGroup& group, const std::string& policy, int lines) {
  for (const Json& row : group.rows) {
    if (row["policy"] == policy && row["lines"] == lines) return &row;
  }
  return nullptr;
}

std::string accuracy_cell(const Json* row) {
  if (row == nullptr) return "-";
  return fmt::format("{:.0f} % ({:.0f} to {:.0f})", 100 * number(*row, "accuracy"),
                     100 * number(*row, "low95"), 100 * number(*row, "high95"));
}

std::string retrieval_table(const ResultGroup& group, bool bold) {
  const std::vector<int> counts = lines_of(group);
  std::vector<Column> columns = {
      {"policy", false}, {fmt::format("bits at {} lines", counts.back())}, {"coded"}};
  for (const int count : counts) columns.push_back({fmt::format("{} lines", count)});
  std::vector<std::vector<std::string>> lines;
  for (const std::string& policy : policies_of(group)) {
    const Json* longest = retrieval_row(group, policy, counts.back());
    std::vector<std::string> line = {
        policy, longest ? fmt::format("{:.2f}", number(*longest, "bits_resident")) : "-",
        longest ? coded_bits(*longest) : "-"};
    for (const int count : counts)
      line.push_back(accuracy_cell(retrieval_row(group, policy, count)));
    lines.push_back(std::move(line));
  }
  return markdown(columns, lines, bold);
}

// Letters, digits, points and dashes.
std::string slug(const std::string& text) {
  std::string out;
  for (const char c : text) {
    const bool plain = std::isalnum(static_cast<unsigned char>(c)) != 0 || c == '.';
    out += plain ? c : '-';
  }
  return out;
}

std::string name_of(const Json& row, const Task& task) {
  std::string out = words(row["model"]);
  out += row["f32_weights"] == true ? "-f32" : "";
  for (const char* field : task.group) {
    if (std::string_view(field) == "model" || std::string_view(field) == "f32_weights") continue;
    out += "-" + (row[field].is_string() ? words(row[field]) : field + words(row[field]));
  }
  return slug(out);
}

}  // namespace

std::string with_error(double value, double error) {
  if (error <= 0) return fmt::format("{} ± 0", divergence_text(value));
  const int decimals = std::clamp(static_cast<int>(1 - std::floor(std::log10(error))), 0, 9);
  return fmt::format("{:.{}f} ± {:.{}f}", value, decimals, error, decimals);
}

Result<std::vector<ResultGroup>> group_results(const std::vector<Json>& rows) {
  std::vector<ResultGroup> groups;
  std::vector<Json> keys;  // of the groups
  for (size_t i = 0; i < rows.size(); ++i) {
    const Result<const Task*> task = task_of(rows[i], i);
    if (!task.ok()) return task.status();
    Json key = picked(rows[i], (*task)->group);
    key["task"] = (*task)->name;
    const size_t place = std::find(keys.begin(), keys.end(), key) - keys.begin();
    if (place == groups.size()) {
      groups.push_back(
          {std::string((*task)->name), title_of(rows[i], **task), name_of(rows[i], **task), {}});
      keys.push_back(std::move(key));
    }
    std::vector<Json>& members = groups[place].rows;
    const Json own = picked(rows[i], (*task)->row);
    std::erase_if(members, [&](const Json& row) { return picked(row, (*task)->row) == own; });
    members.push_back(rows[i]);
  }
  for (ResultGroup& group : groups) {
    std::stable_sort(group.rows.begin(), group.rows.end(), [](const Json& a, const Json& b) {
      return number(a, "bits_resident") < number(b, "bits_resident");
    });
  }
  return groups;
}

std::vector<int> lines_of(const ResultGroup& group) {
  std::set<int> counts;
  for (const Json& row : group.rows) counts.insert(row["lines"].get<int>());
  return {counts.begin(), counts.end()};
}

std::vector<std::string> policies_of(const ResultGroup& group) {
  // Bits depend on the length: the longest record decides.
  std::vector<Json> rows = group.rows;
  std::stable_sort(rows.begin(), rows.end(),
                   [](const Json& a, const Json& b) { return a["lines"] > b["lines"]; });
  std::vector<std::string> policies;
  for (const Json& row : rows) {
    const std::string policy = words(row["policy"]);
    if (std::find(policies.begin(), policies.end(), policy) == policies.end())
      policies.push_back(policy);
  }
  return policies;
}

std::string group_tables(const ResultGroup& group, bool bold) {
  const bool kld = group.task == "kld";
  std::string out = fmt::format("### {}\n\n", group.title);
  out += kld ? kld_table(group, bold) + depth_table(group, bold) : retrieval_table(group, bold);
  const Json& any = group.rows.front();
  out += kld ? fmt::format("\n{} tokens scored. ", with_commas(any["n_scored"].get<int64_t>()))
             : fmt::format("\n{} records for each number of lines, 95 % intervals. ",
                           all_of(group.rows, "samples"));
  return out + measured_with(group);
}

Result<std::string> result_tables(const std::vector<Json>& rows, bool bold) {
  const Result<std::vector<ResultGroup>> groups = group_results(rows);
  if (!groups.ok()) return groups.status();
  std::string out;
  for (const ResultGroup& group : *groups)
    out += (out.empty() ? "" : "\n") + group_tables(group, bold);
  return out;
}

}  // namespace zipcache::cli
