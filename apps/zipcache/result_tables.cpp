// Tables of results.
#include "result_tables.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cctype>
#include <cmath>
#include <set>
#include <span>

#include "report.hpp"
#include "statistics.hpp"

namespace zipcache::cli {

namespace {

// What a task's rows must have, and which of it must agree within a group.
struct Task {
  enum Kind { Divergence, Records, Drift };
  std::string_view name;
  Kind kind;
  std::vector<const char*> group;    // fields that rows of a group share
  std::vector<const char*> numbers;  // fields that are shown
  std::vector<const char*> titles;   // fields of the group that its title has, with what they count
  const char* axis;  // the field that a record task's columns stand for; null: there is one column
  const char* axis_title;                // of a column, with {} for the field's value
  std::vector<const char*> shares = {};  // further shares that a record task may have
};

// A task with records. Rows of a group differ in policy and in the field of the axis.
Task record_task(std::string_view name, std::vector<const char*> group, const char* axis,
                 const char* axis_title, std::vector<const char*> shares = {}) {
  std::vector<const char*> all = {"model", "f32_weights", "ubatch", "records"};
  all.insert(all.end(), group.begin(), group.end());
  return {name,  Task::Records, all,        {"bits_resident", "samples", "tokens"},
          group, axis,          axis_title, shares};
}

const std::vector<Task>& tasks() {
  static const std::vector<Task> all = {
      {"kld",
       Task::Divergence,
       {"model", "f32_weights", "ubatch", "text", "ctx", "chunks", "depth_bin"},
       {"bits_resident", "kld_mean", "kld_mean_se", "kld_p50", "kld_p99", "kld_p999", "same_top",
        "same_top_se", "ppl_ratio", "ppl_ratio_se", "n_scored"},
       {},
       nullptr,
       nullptr},
      {"drift",
       Task::Drift,
       {"model", "f32_weights", "ubatch", "text", "prompt_tokens", "generated", "mode",
        "temperature", "sampling_seed", "depth_bin"},
       {"bits_resident", "repeated", "n_scored"},
       {},
       nullptr,
       nullptr},
      record_task("retrieval", {}, "lines", "{} lines"),
      record_task("passkey", {"length"}, "depth", "depth {} %"),
      record_task("needle", {"length", "keys"}, "depth", "depth {} %"),
      record_task("gsm8k", {"shots"}, nullptr, "right numbers"),
      record_task("humaneval", {}, nullptr, "passed"),
      record_task("longbench", {"metric"}, "dataset", "{}"),
      record_task("tools", {}, "distance", "after {} tokens", {"parsed", "valid"}),
  };
  return all;
}

const Task& task_named(std::string_view name) {
  return *std::find_if(tasks().begin(), tasks().end(),
                       [&](const Task& task) { return task.name == name; });
}

// Fields that tell rows of a group apart.
std::vector<const char*> row_fields(const Task& task) {
  return task.axis == nullptr ? std::vector<const char*>{"policy"}
                              : std::vector<const char*>{"policy", task.axis};
}

bool has_number(const Json& row, const char* field) {
  return row.contains(field) && row[field].is_number();
}

Status check_row(const Json& row, const Task& task, size_t number) {
  const auto lacks = [&](const char* field, const char* expected) {
    return Status{Code::BadData, fmt::format("result row {}: found no field '{}', expected {}",
                                             number + 1, field, expected)};
  };
  std::vector<const char*> fields = task.group;
  for (const char* field : row_fields(task)) fields.push_back(field);
  for (const char* field : fields) {
    if (!row.contains(field)) return lacks(field, "what zipcache eval writes");
  }
  std::vector<const char*> numbers = task.numbers;
  if (task.kind == Task::Drift && row["mode"] == "forced")
    numbers.insert(numbers.end(),
                   {"kld_mean", "kld_mean_se", "kld_p99", "same_top", "same_top_se"});
  for (const char* field : numbers) {
    if (!has_number(row, field)) return lacks(field, "a number");
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
  std::string known;
  for (const Task& task : tasks())
    known += fmt::format("{}{}", known.empty() ? "" : ", ", task.name);
  return Status{Code::BadData,
                fmt::format("result row {}: found task {}, expected one of {}; give files that "
                            "zipcache eval wrote",
                            number + 1, name, known)};
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
  if (task.kind == Task::Records) {
    std::string title = fmt::format("{} · {} · {}", model, task.name, words(row["records"]));
    for (const char* field : task.titles)
      title += fmt::format(" · {} {}", field, words(row[field]));
    return title;
  }
  if (task.kind == Task::Drift) {
    return fmt::format("{} · {} · {} tokens generated after {}, {}", model, words(row["text"]),
                       with_commas(row["generated"].get<int64_t>()),
                       with_commas(row["prompt_tokens"].get<int64_t>()), words(row["mode"]));
  }
  return fmt::format("{} · {} · {} tokens", model, words(row["text"]),
                     with_commas(row["ctx"].get<int64_t>()));
}

double number(const Json& row, const char* field) { return row[field].get<double>(); }

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

// The stream that the 16-bit cache chose, read by all.
std::string forced_table(const ResultGroup& group, bool bold) {
  std::vector<std::vector<std::string>> lines;
  for (const Json& row : group.rows) {
    lines.push_back({words(row["policy"]), fmt::format("{:.2f}", number(row, "bits_resident")),
                     coded_bits(row),
                     with_error(number(row, "kld_mean"), number(row, "kld_mean_se")),
                     divergence_text(number(row, "kld_p99")),
                     fmt::format("{:.1f} ± {:.1f}", 100 * number(row, "same_top"),
                                 100 * number(row, "same_top_se"))});
  }
  return markdown({{"policy", false}, {"bits"}, {"coded"}, {"KLD"}, {"99 %"}, {"same top %"}},
                  lines, bold);
}

// Streams of their own.
std::string free_table(const ResultGroup& group, bool bold) {
  std::vector<std::vector<std::string>> lines;
  for (const Json& row : group.rows) {
    const bool differs = has_number(row, "first_difference");
    lines.push_back({words(row["policy"]), fmt::format("{:.2f}", number(row, "bits_resident")),
                     coded_bits(row),
                     differs ? with_commas(row["first_difference"].get<int64_t>() + 1) : "none",
                     differs ? fmt::format("{:.1f}", 100 * number(row, "equal_after")) : "-",
                     fmt::format("{:.0f}", 100 * number(row, "repeated"))});
  }
  return markdown({{"policy", false},
                   {"bits"},
                   {"coded"},
                   {"first other token"},
                   {"same behind it %"},
                   {"repeated %"}},
                  lines, bold);
}

std::string depth_table(const ResultGroup& group, bool bold) {
  const Json bins = group.rows.front().value("by_depth", Json::array());
  std::vector<Column> columns = {{"KLD at tokens", false}};
  for (const Json& bin : bins)
    columns.push_back({fmt::format("{} to {}", bin["from"].dump(), bin["to"].dump())});
  std::vector<std::vector<std::string>> lines;
  for (const Json& row : group.rows) {
    std::vector<std::string> line = {words(row["policy"])};
    for (const Json& bin : bins) line.push_back(depth_cell(row, bin["from"]));
    lines.push_back(std::move(line));
  }
  return bins.empty() ? "" : "\n" + markdown(columns, lines, bold);
}

std::string drift_tables(const ResultGroup& group, bool bold) {
  const Json& any = group.rows.front();
  if (any["mode"] == "free") return free_table(group, bold) + "\n";
  return forced_table(group, bold) + depth_table(group, bold) +
         fmt::format(
             "\n{:.0f} % of the tokens stand in a repetition of at least 8, where all caches "
             "agree. ",
             100 * number(any, "repeated"));
}

const Json* row_at(const ResultGroup& group, const std::string& policy, const Json& value) {
  for (const Json& row : group.rows) {
    if (row["policy"] == policy && axis_value(group, row) == value) return &row;
  }
  return nullptr;
}

std::string accuracy_cell(const Json& row) {
  if (!has_number(row, "accuracy")) return "-";
  return fmt::format("{:.0f} % ({:.0f} to {:.0f})", 100 * number(row, "accuracy"),
                     100 * number(row, "low95"), 100 * number(row, "high95"));
}

std::string log_probability_cell(const Json& row) {
  if (!has_number(row, "logprob_diff")) return "-";
  if (row["policy"] == "f16") return fmt::format("{:.3f} in all", number(row, "logprob"));
  return with_error(number(row, "logprob_diff"), number(row, "logprob_diff_se"));
}

std::vector<std::string> axis_titles(const ResultGroup& group) {
  const Task& task = task_named(group.task);
  std::vector<std::string> titles;
  for (const Json& value : axis_values(group))
    titles.push_back(fmt::format(fmt::runtime(task.axis_title), words(value)));
  return titles;
}

// Policies down, values of the axis across; `first` is the title of the policies' column.
template <class Cell>
std::string axis_table(const ResultGroup& group, const std::string& first, bool bold,
                       const Cell& cell) {
  std::vector<Column> columns = {{first, false}};
  for (const std::string& title : axis_titles(group)) columns.push_back({title});
  std::vector<std::vector<std::string>> lines;
  for (const std::string& policy : policies_of(group)) {
    std::vector<std::string> line = {policy};
    for (const Json& value : axis_values(group)) {
      const Json* row = row_at(group, policy, value);
      line.push_back(row == nullptr ? "-" : cell(*row));
    }
    lines.push_back(std::move(line));
  }
  return markdown(columns, lines, bold);
}

// Bits and right answers.
std::string accuracy_table(const ResultGroup& group, bool bold) {
  std::vector<Column> columns = {
      {"policy", false},
      {fmt::format("bits at {:.0f} tokens", number(longest_row(group), "tokens"))},
      {"coded"}};
  for (const std::string& title : axis_titles(group)) columns.push_back({title});
  std::vector<std::vector<std::string>> lines;
  for (const std::string& policy : policies_of(group)) {
    const Json* longest = row_at(group, policy, axis_value(group, longest_row(group)));
    std::vector<std::string> line = {
        policy, longest ? fmt::format("{:.2f}", number(*longest, "bits_resident")) : "-",
        longest ? coded_bits(*longest) : "-"};
    for (const Json& value : axis_values(group)) {
      const Json* row = row_at(group, policy, value);
      line.push_back(row == nullptr ? "-" : accuracy_cell(*row));
    }
    lines.push_back(std::move(line));
  }
  return markdown(columns, lines, bold);
}

bool any_has(const ResultGroup& group, const char* field) {
  return std::any_of(group.rows.begin(), group.rows.end(),
                     [&](const Json& row) { return has_number(row, field); });
}

// Where the 16-bit cache's interval meets that of a cache which answers nothing right, no cache
// could be told from it.
std::string weak_reference(const ResultGroup& group) {
  std::string values;
  for (const Json& row : group.rows) {
    if (row["policy"] != "f16" || !has_number(row, "low95")) continue;
    if (number(row, "low95") > wilson(0, row["samples"].get<size_t>()).high) continue;
    const std::string value =
        fmt::format(fmt::runtime(task_named(group.task).axis_title), words(axis_value(group, row)));
    values += (values.empty() ? "" : ", ") + value;
  }
  if (values.empty()) return "";
  return fmt::format(
      "\n**Too few right answers of the 16-bit cache for these shares to compare caches: {}. A "
      "cache that answers nothing could not be told from it.** "
      "{}\n",
      values,
      any_has(group, "logprob_diff") ? "The log-probabilities below still compare them."
                                     : "Take more records or a model that knows the task.");
}

std::string record_tables(const ResultGroup& group, bool bold) {
  const Task& task = task_named(group.task);
  std::string out = accuracy_table(group, bold) + weak_reference(group);
  for (const char* share : task.shares) {
    if (!any_has(group, share)) continue;
    out +=
        "\n" + axis_table(group, share, bold, [&](const Json& row) {
          return has_number(row, share) ? fmt::format("{:.0f} %", 100 * number(row, share)) : "-";
        });
  }
  if (!any_has(group, "logprob_diff")) return out;
  return out +
         "\nMean log-probability of a token of the right answer, against the 16-bit cache's:\n\n" +
         axis_table(group, "policy", bold, log_probability_cell);
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

std::string coded_bits(const Json& row) {
  return has_number(row, "bits_coded") ? fmt::format("{:.2f}", number(row, "bits_coded")) : "-";
}

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
    const Json own = picked(rows[i], row_fields(**task));
    std::erase_if(members, [&](const Json& row) { return picked(row, row_fields(**task)) == own; });
    members.push_back(rows[i]);
  }
  for (ResultGroup& group : groups) {
    std::stable_sort(group.rows.begin(), group.rows.end(), [](const Json& a, const Json& b) {
      return number(a, "bits_resident") < number(b, "bits_resident");
    });
  }
  return groups;
}

Json axis_value(const ResultGroup& group, const Json& row) {
  const char* axis = task_named(group.task).axis;
  return axis == nullptr ? Json("") : row[axis];
}

std::vector<Json> axis_values(const ResultGroup& group) {
  std::set<Json> values;
  for (const Json& row : group.rows) values.insert(axis_value(group, row));
  return {values.begin(), values.end()};
}

std::string axis_name(const ResultGroup& group) {
  const char* axis = task_named(group.task).axis;
  return axis == nullptr ? "" : axis;
}

const Json& longest_row(const ResultGroup& group) {
  return *std::max_element(group.rows.begin(), group.rows.end(), [](const Json& a, const Json& b) {
    return number(a, "tokens") < number(b, "tokens");
  });
}

std::vector<std::string> policies_of(const ResultGroup& group) {
  // Bits depend on the length: the longest records decide.
  std::vector<Json> rows = group.rows;
  std::stable_sort(rows.begin(), rows.end(), [](const Json& a, const Json& b) {
    return number(a, "tokens") > number(b, "tokens");
  });
  std::vector<std::string> policies;
  for (const Json& row : rows) {
    const std::string policy = words(row["policy"]);
    if (std::find(policies.begin(), policies.end(), policy) == policies.end())
      policies.push_back(policy);
  }
  return policies;
}

std::string group_tables(const ResultGroup& group, bool bold) {
  const Json& any = group.rows.front();
  std::string out = fmt::format("### {}\n\n", group.title);
  switch (task_named(group.task).kind) {
    case Task::Divergence:
      out += kld_table(group, bold) + depth_table(group, bold) +
             fmt::format("\n{} tokens scored. ", with_commas(any["n_scored"].get<int64_t>()));
      break;
    case Task::Records:
      out +=
          record_tables(group, bold) + fmt::format("\n{} records for each column, 95 % intervals. ",
                                                   all_of(group.rows, "samples"));
      break;
    case Task::Drift:
      out += drift_tables(group, bold);
      break;
  }
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
