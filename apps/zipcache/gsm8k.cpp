// Word problems in the form of GSM8K.
#include "gsm8k.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cstdlib>
#include <sstream>

namespace zipcache::cli {

namespace {

constexpr const char* kEnd = "The answer is";
constexpr const char* kCure =
    "give JSON lines in the form of GSM8K, whose answers end with #### and a number";

struct Problem {
  std::string question, worked;  // the reasoning in one paragraph, with its last sentence
  double number = 0;
};

bool is_digit(char c) { return c >= '0' && c <= '9'; }

// The number that begins with the digit at `at`, with commas between thousands and a fraction, and
// a minus before it or before its $; `at` is behind it then.
double number_at(const std::string& text, size_t& at) {
  const size_t sign = at > 0 && text[at - 1] == '$' ? at - 1 : at;
  std::string digits = sign > 0 && text[sign - 1] == '-' ? "-" : "";
  const auto digit = [&](size_t i) { return i < text.size() && is_digit(text[i]); };
  bool fraction = false;
  for (; at < text.size(); ++at) {
    const char c = text[at];
    if (c == ',' && !fraction && digit(at + 1)) continue;
    if (c == '.' && !fraction && digit(at + 1))
      fraction = true;
    else if (!is_digit(c))
      break;
    digits += c;
  }
  return std::strtod(digits.c_str(), nullptr);
}

// The data set notes its arithmetic as <<48/2=24>>, which is not meant to be read.
std::string without_notes(const std::string& text) {
  std::string out;
  for (size_t at = 0; at < text.size();) {
    const size_t begin = std::min(text.find("<<", at), text.size());
    out += text.substr(at, begin - at);
    const size_t end = text.find(">>", begin);
    at = end == std::string::npos ? text.size() : end + 2;
  }
  return out;
}

// Words with one blank between them.
std::string one_paragraph(const std::string& text) {
  std::istringstream stream(text);
  std::string out;
  for (std::string word; stream >> word;) out += (out.empty() ? "" : " ") + word;
  return out;
}

Result<Problem> read_problem(const Json& row) {
  const std::string answer = row["answer"];
  const size_t mark = answer.rfind("####");
  const std::optional<double> number =
      mark == std::string::npos ? std::nullopt : final_number(answer.substr(mark));
  if (!number) {
    return Status{Code::BadData, fmt::format("found the answer '{}', expected #### and a number "
                                             "at its end",
                                             answer.substr(0, 60))};
  }
  const std::string reasoning = one_paragraph(without_notes(answer.substr(0, mark)));
  const std::string digits = one_paragraph(answer.substr(mark + 4));
  return Problem{row["question"],
                 fmt::format("{}{}{} {}.", reasoning, reasoning.empty() ? "" : " ", kEnd, digits),
                 *number};
}

Result<std::vector<Problem>> read_problems(const std::string& option,
                                           const std::filesystem::path& path) {
  const Result<std::vector<Json>> rows = read_records(option, path, {"question", "answer"}, kCure);
  if (!rows.ok()) return rows.status();
  std::vector<Problem> problems;
  for (const Json& row : *rows) {
    Result<Problem> problem = read_problem(row);
    if (!problem.ok()) {
      return Status{Code::BadData, fmt::format("{}: '{}', row {}: {}", option, path.string(),
                                               problems.size() + 1, problem.status().message())};
    }
    problems.push_back(std::move(*problem));
  }
  return problems;
}

std::string asked(const Problem& problem) { return fmt::format("Q: {}\nA:", problem.question); }

}  // namespace

std::optional<double> final_number(const std::string& text) {
  const size_t end = text.find(kEnd);
  std::optional<double> last;
  for (size_t at = end == std::string::npos ? 0 : end; at < text.size(); ++at) {
    if (!is_digit(text[at])) continue;
    last = number_at(text, at);
    if (end != std::string::npos) break;
  }
  return last;
}

Result<RecordTask> gsm8k_task(const std::filesystem::path& records,
                              const std::filesystem::path& examples, int shots) {
  const Result<std::vector<Problem>> problems = read_problems("--records", records);
  if (!problems.ok()) return problems.status();
  std::string worked;
  if (shots > 0) {
    const Result<std::vector<Problem>> known = read_problems("--examples", examples);
    if (!known.ok()) return known.status();
    if (known->size() < static_cast<size_t>(shots)) {
      return Status{Code::BadArgument, fmt::format("--shots: found {}, but '{}' has {} problems",
                                                   shots, examples.string(), known->size())};
    }
    for (int i = 0; i < shots; ++i)
      worked += fmt::format("{} {}\n\n", asked((*known)[i]), (*known)[i].worked);
  }
  RecordTask task{.source = records.filename().string(),
                  .metric = "number",
                  .records = {},
                  .stops = {"\n\n", "\nQ:"},
                  .score = score_each([](const TaskRecord& record, const std::string& said) {
                    const std::optional<double> number = final_number(said);
                    return Json{{"score", number && *number == record.facts["number"] ? 1 : 0}};
                  })};
  for (const Problem& problem : *problems) {
    task.records.push_back({.row = {{"shots", shots}},
                            .prompt = worked + asked(problem),
                            .reference = " " + problem.worked,
                            .facts = {{"number", problem.number}}});
  }
  return task;
}

}  // namespace zipcache::cli
