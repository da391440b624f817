// Questions about long texts in the form of LongBench.
#include "longbench.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cctype>
#include <map>
#include <sstream>

namespace zipcache::cli {

namespace {

constexpr const char* kCure = "give JSON lines in the form of LongBench";

// Sets of LongBench that are no questions in words with spaces, and are scored in other ways.
constexpr std::array kOtherSets = {"multifieldqa_zh",
                                   "dureader",
                                   "gov_report",
                                   "qmsum",
                                   "multi_news",
                                   "vcsum",
                                   "trec",
                                   "samsum",
                                   "lsht",
                                   "passage_count",
                                   "passage_retrieval_en",
                                   "passage_retrieval_zh",
                                   "lcc",
                                   "repobench-p"};

std::vector<std::string> words_of(const std::string& text) {
  std::string plain;
  for (const char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    if (std::ispunct(byte) == 0) plain += static_cast<char>(std::tolower(byte));
  }
  std::vector<std::string> words;
  std::istringstream stream(plain);
  for (std::string word; stream >> word;) {
    if (word != "a" && word != "an" && word != "the") words.push_back(word);
  }
  return words;
}

double f1_of(const std::vector<std::string>& said, const std::vector<std::string>& wanted) {
  std::map<std::string, int> left;
  for (const std::string& word : wanted) ++left[word];
  double common = 0;
  for (const std::string& word : said) common += left[word]-- > 0 ? 1 : 0;
  if (common == 0) return 0;
  const double precision = common / static_cast<double>(said.size());
  const double recall = common / static_cast<double>(wanted.size());
  return 2 * precision * recall / (precision + recall);
}

Status check_row(const Json& row) {
  const bool answers = row.contains("answers") && row["answers"].is_array() &&
                       !row["answers"].empty() &&
                       std::all_of(row["answers"].begin(), row["answers"].end(),
                                   [](const Json& answer) { return answer.is_string(); });
  if (!answers) return {Code::BadData, "found no list of texts 'answers'"};
  const std::string dataset = row["dataset"];
  const bool other = std::find(kOtherSets.begin(), kOtherSets.end(), dataset) != kOtherSets.end();
  if (other || (row.contains("all_classes") && row["all_classes"].is_array())) {
    return {Code::BadData,
            fmt::format("found the set '{}', which LongBench does not score as questions; expected "
                        "sets such as qasper, multifieldqa_en, hotpotqa, 2wikimqa, musique, "
                        "narrativeqa or triviaqa",
                        dataset)};
  }
  return ok();
}

std::string prompt_of(const std::string& context, const std::string& question) {
  return fmt::format(
      "Read the text and answer the question about it in a few words.\n\nText: {}\n\nQuestion: "
      "{}\nAnswer:",
      context, question);
}

// A byte that begins a character.
bool begins_character(char c) { return (static_cast<unsigned char>(c) & 0xC0) != 0x80; }

}  // namespace

double f1_score(const std::string& said, std::span<const std::string> answers) {
  double best = 0;
  for (const std::string& answer : answers)
    best = std::max(best, f1_of(words_of(said), words_of(answer)));
  return best;
}

double exact_score(const std::string& said, std::span<const std::string> answers) {
  return std::any_of(answers.begin(), answers.end(),
                     [&](const std::string& answer) { return words_of(said) == words_of(answer); });
}

std::string without_middle(const std::string& text, size_t most, const TokenCount& count) {
  constexpr const char* kGap = "\n...\n";
  size_t kept = text.size();  // characters
  std::string out = text;
  for (size_t tokens = count(out); tokens > most && kept > 0; tokens = count(out)) {
    // In proportion, and a little less, so that few rounds are needed.
    kept = std::min(kept - 1, kept * most / tokens);
    size_t head = kept / 2, tail = text.size() - (kept - kept / 2);
    while (head > 0 && !begins_character(text[head])) --head;
    while (tail < text.size() && !begins_character(text[tail])) ++tail;
    out = text.substr(0, head) + kGap + text.substr(tail);
  }
  return out;
}

Result<RecordTask> longbench_task(const std::filesystem::path& records, const std::string& metric,
                                  int most_tokens, const TokenCount& count) {
  const Result<std::vector<Json>> rows =
      read_records("--records", records, {"context", "input", "dataset"}, kCure);
  if (!rows.ok()) return rows.status();
  const bool exact = metric == "exact";
  RecordTask task{
      .source = records.filename().string(),
      .metric = metric,
      .records = {},
      .stops = {"\n"},
      .score = score_each([exact](const TaskRecord& record, const std::string& said) {
        const auto answers = record.facts["answers"].get<std::vector<std::string>>();
        return Json{{"score", exact ? exact_score(said, answers) : f1_score(said, answers)}};
      })};
  for (size_t i = 0; i < rows->size(); ++i) {
    const Json& row = (*rows)[i];
    const Status checked = check_row(row);
    if (!checked.ok()) {
      return Status{Code::BadData, fmt::format("--records: '{}', row {}: {}; {}", records.string(),
                                               i + 1, checked.message(), kCure)};
    }
    std::string context = row["context"];
    const std::string question = row["input"];
    if (most_tokens > 0) {
      const size_t rest = count(prompt_of("", question));
      const size_t most = static_cast<size_t>(most_tokens);
      context = without_middle(context, most > rest ? most - rest : 0, count);
    }
    task.records.push_back({.row = {{"dataset", row["dataset"]}},
                            .prompt = prompt_of(context, question),
                            .reference = " " + row["answers"][0].get<std::string>(),
                            .facts = {{"answers", row["answers"]}}});
  }
  return task;
}

}  // namespace zipcache::cli
