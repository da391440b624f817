// Numbers hidden in filler text.
#include "haystack.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <random>
#include <set>

namespace zipcache::cli {

namespace {

constexpr const char* kHead = "Remember the numbers in the text.\n";

// The standard fixes every number of this engine and of its seeds, unlike those of distributions.
class Dice {
 public:
  Dice(const HaystackPlan& plan, int index) {
    std::seed_seq seed{static_cast<uint32_t>(plan.seed),   static_cast<uint32_t>(plan.seed >> 32),
                       static_cast<uint32_t>(plan.length), static_cast<uint32_t>(plan.depth),
                       static_cast<uint32_t>(plan.keys),   static_cast<uint32_t>(index)};
    engine_.seed(seed);
  }
  // One of 0 to n - 1; n is small against 2^64.
  size_t below(size_t n) { return engine_() % n; }
  const std::string& pick(const std::vector<std::string>& words) {
    return words[below(words.size())];
  }

 private:
  std::mt19937_64 engine_;
};

struct Needle {
  std::string name, number;
  std::string sentence() const {
    return fmt::format("The number of the {} is {}.\n", name, number);
  }
};

std::string question(const Needle& needle) {
  return fmt::format("What is it? The number of the {} is ", needle.name);
}

std::vector<Needle> draw_needles(const HaystackWords& words, int count, Dice& dice) {
  std::vector<Needle> needles;
  std::set<std::string> names;
  while (static_cast<int>(needles.size()) < count) {
    const std::string adjective = dice.pick(words.adjectives);
    const std::string name = adjective + "-" + dice.pick(words.nouns);
    if (!names.insert(name).second) continue;
    needles.push_back({name, fmt::format("{}", 10000 + dice.below(90000))});
  }
  return needles;
}

std::string draw_filler(const HaystackWords& words, Dice& dice) {
  // One statement for each draw: the order of evaluation of arguments is not fixed.
  const std::string& a = dice.pick(words.adjectives);
  const std::string& b = dice.pick(words.nouns);
  const std::string& verb = dice.pick(words.verbs);
  const std::string& c = dice.pick(words.adjectives);
  const std::string& d = dice.pick(words.nouns);
  return fmt::format("The {} {} {} the {} {}.\n", a, b, verb, c, d);
}

// As many sentences as have at most `tokens`.
std::vector<std::string> draw_fillers(const HaystackWords& words, size_t tokens, Dice& dice,
                                      const TokenCount& count) {
  std::vector<std::string> out;
  for (size_t used = 0;;) {
    std::string sentence = draw_filler(words, dice);
    used += std::max<size_t>(1, count(sentence));
    if (used > tokens) return out;
    out.push_back(std::move(sentence));
  }
}

Result<std::vector<std::string>> word_list(const Json& file, const char* name,
                                           const std::filesystem::path& path) {
  std::vector<std::string> words;
  for (const Json& word : file.value(name, Json::array())) {
    if (word.is_string() && !word.get<std::string>().empty()) words.push_back(word);
  }
  if (words.size() >= 2) return words;
  return Status{Code::BadData,
                fmt::format("'{}': found {} words in the list '{}', expected at least 2; take "
                            "eval/retrieval_model/words.json as it is in the project",
                            path.string(), words.size(), name)};
}

}  // namespace

Result<HaystackWords> read_words(const std::filesystem::path& path) {
  const Result<std::string> content = read_file(path);
  if (!content.ok()) return content.status();
  const Json file = Json::parse(*content, nullptr, false);
  if (!file.is_object()) {
    return Status{Code::BadData,
                  fmt::format("'{}': expected a JSON object with lists of words; take "
                              "eval/retrieval_model/words.json as it is in the project",
                              path.string())};
  }
  HaystackWords words;
  for (const auto& [name, list] :
       {std::pair{"adjectives", &words.adjectives}, std::pair{"nouns", &words.nouns},
        std::pair{"verbs", &words.verbs}}) {
    Result<std::vector<std::string>> found = word_list(file, name, path);
    if (!found.ok()) return found.status();
    *list = std::move(*found);
  }
  return words;
}

Result<TaskRecord> make_haystack(const HaystackWords& words, const HaystackPlan& plan, int index,
                                 const TokenCount& count) {
  const size_t names = words.adjectives.size() * words.nouns.size();
  if (plan.keys < 1 || static_cast<size_t>(plan.keys) > names / 2) {
    return Status{Code::BadArgument, fmt::format("--keys: found {}, expected 1 to {}, half of the "
                                                 "names that the words make",
                                                 plan.keys, names / 2)};
  }
  Dice dice(plan, index);
  const std::vector<Needle> needles = draw_needles(words, plan.keys, dice);
  const std::string end = question(needles.front());
  size_t fixed = count(kHead) + count(end);
  for (const Needle& needle : needles) fixed += count(needle.sentence());
  if (fixed > static_cast<size_t>(plan.length)) {
    return Status{
        Code::BadArgument,
        fmt::format("--lengths: found {}, but {} numbers and the question have {} tokens; "
                    "use a greater length or fewer --keys",
                    plan.length, plan.keys, fixed)};
  }
  const std::vector<std::string> filler =
      draw_fillers(words, static_cast<size_t>(plan.length) - fixed, dice, count);
  std::vector<std::string> before(filler.size() + 1);  // needles before each sentence of filler
  before[(filler.size() * static_cast<size_t>(plan.depth) + 50) / 100] +=
      needles.front().sentence();
  for (size_t i = 1; i < needles.size(); ++i)
    before[dice.below(before.size())] += needles[i].sentence();

  std::string text = kHead;
  for (size_t i = 0; i < filler.size(); ++i) text += before[i] + filler[i];
  text += before.back() + end;
  const std::string& number = needles.front().number;
  return TaskRecord{.row = {{"length", plan.length},
                            {"depth", plan.depth},
                            {"keys", plan.keys},
                            {"records_seed", plan.seed}},
                    .prompt = text,
                    .reference = number,
                    .most_characters = number.size()};
}

}  // namespace zipcache::cli
