// Records, haystacks, word problems, long questions, tool calls and programs: readers and scorers.
#include "record_task.hpp"

#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>

#include "drift.hpp"
#include "gsm8k.hpp"
#include "haystack.hpp"
#include "humaneval.hpp"
#include "longbench.hpp"
#include "tool_calls.hpp"

namespace zipcache::cli {
namespace {

namespace fs = std::filesystem;

// A file with `content`, gone after the test.
class File {
 public:
  explicit File(const std::string& content) {
    static int number = 0;
    path_ = fs::temp_directory_path() / ("zipcache-test-" + std::to_string(getpid()) + "-" +
                                         std::to_string(number++) + ".jsonl");
    std::ofstream(path_, std::ios::binary) << content;
  }
  ~File() { fs::remove(path_); }
  const fs::path& path() const { return path_; }

 private:
  fs::path path_;
};

// A token is a word here, or a line's end.
size_t words(const std::string& text) {
  size_t count = 0;
  bool inside = false;
  for (const char c : text) {
    const bool letter = c != ' ' && c != '\n';
    count += (letter && !inside ? 1 : 0) + (c == '\n' ? 1 : 0);
    inside = letter;
  }
  return count;
}

fs::path project_file(const std::string& name) { return fs::path(ZIPCACHE_EVAL_FOLDER) / name; }

bool says(const Status& status, const std::string& part) {
  return status.message().find(part) != std::string::npos;
}

// ---------------------------------------------------------------- records

TEST(Records, ARowWithoutAFieldIsNamed) {
  const File file("{\"a\": \"x\", \"b\": \"y\"}\n{\"a\": \"x\", \"b\": 1}\n");
  const auto rows = read_records("--records", file.path(), {"a", "b"}, "write it again");
  ASSERT_FALSE(rows.ok());
  EXPECT_EQ(rows.status().code(), Code::BadData);
  EXPECT_TRUE(says(rows.status(), "row 2: found no text 'b'")) << rows.status().message();
  EXPECT_TRUE(says(rows.status(), "write it again"));
}

TEST(Records, AnEmptyFileIsNoTask) {
  const File file("\n\n");
  EXPECT_EQ(read_records("--records", file.path(), {"a"}, "").status().code(), Code::BadData);
}

TEST(Records, DeepJsonIsRefusedBeforeItIsRead) {
  const std::string deep = "{\"tools\": " + std::string(300000, '[') + std::string(300000, ']');
  const File file(deep + "}\n");
  const auto rows = read_records("--records", file.path(), {"request"}, "");
  EXPECT_EQ(rows.status().code(), Code::OverLimit);
  EXPECT_TRUE(says(rows.status(), "300001 levels")) << rows.status().message();
  // Brackets in a text are no levels.
  const File text("{\"request\": \"\\\"" + std::string(300, '[') + "\"}\n");
  EXPECT_TRUE(read_records("--records", text.path(), {"request"}, "").ok());
}

TEST(Records, AnAnswerEndsBeforeItsFirstStop) {
  for (const auto& stops : {std::vector<std::string>{"\n\n", "\n"}, {"\n", "\n\n"}})
    EXPECT_EQ(cut_at_stop("one\ntwo\n\nthree", stops), std::pair(std::string("one"), true));
  EXPECT_EQ(cut_at_stop("one", {"\n"}), std::pair(std::string("one"), false));
}

// ---------------------------------------------------------------- haystack

HaystackWords some_words() {
  const auto found = read_words(project_file("retrieval_model/words.json"));
  return found.ok() ? *found : HaystackWords{};
}

TEST(Haystack, ARecordHasItsLengthAndItsNumberOnce) {
  for (const int length : {100, 1000}) {
    const auto record = make_haystack(some_words(), {length, 50, 4, 7}, 0, words);
    ASSERT_TRUE(record.ok()) << record.status().message();
    // Shorter by less than a sentence of 9 words and ends.
    EXPECT_LE(words(record->prompt), static_cast<size_t>(length));
    EXPECT_GT(words(record->prompt), static_cast<size_t>(length) - 10);
    const size_t at = record->prompt.find(" is " + record->reference + ".\n");
    ASSERT_NE(at, std::string::npos);
    EXPECT_EQ(record->prompt.find(record->reference, at + 10), std::string::npos);
    EXPECT_EQ(record->reference.size(), 5u);
  }
}

TEST(Haystack, DepthIsWhereTheWantedNumberStands) {
  double before = -1;
  for (const int depth : {0, 50, 100}) {
    const auto record = make_haystack(some_words(), {2000, depth, 1, 7}, 0, words);
    ASSERT_TRUE(record.ok()) << record.status().message();
    const double place = static_cast<double>(record->prompt.find(record->reference)) /
                         static_cast<double>(record->prompt.size());
    EXPECT_NEAR(place, depth / 100.0, 0.03);
    EXPECT_GT(place, before);
    before = place;
  }
}

TEST(Haystack, EverySeedAndIndexHasItsOwnText) {
  const HaystackPlan plan{200, 50, 2, 1};
  HaystackPlan other = plan;
  other.seed = 2;
  const auto text = [&](const HaystackPlan& p, int index) {
    return make_haystack(some_words(), p, index, words)->prompt;
  };
  EXPECT_EQ(text(plan, 0), text(plan, 0));
  EXPECT_NE(text(plan, 0), text(plan, 1));
  EXPECT_NE(text(plan, 0), text(other, 0));
}

TEST(Haystack, TooManyKeysForALengthAreRefused) {
  const auto record = make_haystack(some_words(), {60, 50, 8, 1}, 0, words);
  ASSERT_FALSE(record.ok());
  EXPECT_TRUE(says(record.status(), "--lengths: found 60")) << record.status().message();
  EXPECT_FALSE(make_haystack({{"a", "b"}, {"c", "d"}, {"e"}}, {100, 50, 3, 1}, 0, words).ok());
}

TEST(Haystack, AFileOfWordsNeedsItsLists) {
  const File broken("{\"adjectives\": [\"a\", \"b\"], \"nouns\": [\"c\"]}");
  EXPECT_TRUE(says(read_words(broken.path()).status(), "found 1 words in the list 'nouns'"));
  EXPECT_EQ(read_words("no-such-file.json").status().code(), Code::Environment);
  const File list("[1]");
  EXPECT_EQ(read_words(list.path()).status().code(), Code::BadData);
}

// ---------------------------------------------------------------- word problems

TEST(Gsm8k, TheNumberBehindTheLastSentenceCounts) {
  EXPECT_EQ(final_number("3 + 4 = 7. The answer is 7. Q: 9"), 7);
  EXPECT_EQ(final_number("so it is $1,234.50 in all."), 1234.5);
  EXPECT_EQ(final_number("The answer is -$12"), -12);
  EXPECT_EQ(final_number("12 eggs, then 15"), 15);
  EXPECT_EQ(final_number("1,200,000"), 1200000);
  EXPECT_EQ(final_number("none"), std::nullopt);
  EXPECT_EQ(final_number("The answer is unknown, 5 is not"), 5);
  EXPECT_TRUE(final_number(std::string(100000, '9')));
}

TEST(Gsm8k, PromptsHaveTheExamplesAndReferencesTheirForm) {
  const File problems(
      "{\"question\": \"How many?\", \"answer\": \"2 and 3 are <<2+3=5>>5.\\nYes.\\n#### 5\"}\n");
  const File examples("{\"question\": \"One?\", \"answer\": \"One.\\n#### 1\"}\n");
  const auto task = gsm8k_task(problems.path(), examples.path(), 1);
  ASSERT_TRUE(task.ok()) << task.status().message();
  EXPECT_EQ(task->records[0].prompt, "Q: One?\nA: One. The answer is 1.\n\nQ: How many?\nA:");
  EXPECT_EQ(task->records[0].reference, " 2 and 3 are 5. Yes. The answer is 5.");
  const std::vector<std::string> said = {" It is 5.0"};
  EXPECT_EQ((*task->score(task->records, said))[0]["score"], 1);
  EXPECT_EQ((*task->score(task->records, std::vector<std::string>{" 6"}))[0]["score"], 0);
  EXPECT_TRUE(says(gsm8k_task(problems.path(), examples.path(), 2).status(), "--shots: found 2"));
}

TEST(Gsm8k, AnAnswerWithoutItsNumberIsNamed) {
  const File file("{\"question\": \"?\", \"answer\": \"5\"}\n");
  EXPECT_TRUE(says(gsm8k_task(file.path(), "", 0).status(), "row 1: found the answer '5'"));
  const File notes("{\"question\": \"?\", \"answer\": \"" + std::string(200000, '<') +
                   "#### 5\"}\n");
  EXPECT_TRUE(gsm8k_task(notes.path(), "", 0).ok());
}

TEST(Gsm8k, TheCarriedProblemsAreRead) {
  const auto task =
      gsm8k_task(project_file("tasks/gsm8k.jsonl"), project_file("tasks/gsm8k_examples.jsonl"), 8);
  ASSERT_TRUE(task.ok()) << task.status().message();
  EXPECT_EQ(task->records.size(), 30u);
  std::vector<std::string> said;
  for (const TaskRecord& record : task->records) said.push_back(record.reference);
  const auto marks = task->score(task->records, said);
  for (const Json& mark : *marks) EXPECT_EQ(mark["score"], 1);
}

// ---------------------------------------------------------------- questions about long texts

TEST(LongBench, F1IsOfWordsWithoutCasePunctuationAndArticles) {
  const std::vector<std::string> answers = {"the Red Kite", "a bird"};
  EXPECT_EQ(f1_score("red kite.", answers), 1);
  EXPECT_EQ(f1_score("A bird!", answers), 1);
  // 2 of 3 words said are among the 2 wanted: precision 2/3, recall 1.
  EXPECT_NEAR(f1_score("red kite flies", answers), 0.8, 1e-12);
  // A word said twice counts once.
  EXPECT_NEAR(f1_score("red red", answers), 0.5, 1e-12);
  EXPECT_EQ(f1_score("", answers), 0);
  EXPECT_EQ(exact_score("Red kite", answers), 1);
  EXPECT_EQ(exact_score("red kite flies", answers), 0);
}

TEST(LongBench, TheMiddleIsLeftOut) {
  std::string text;
  for (int i = 0; i < 1000; ++i) text += std::to_string(i) + " ";
  const std::string cut = without_middle(text, 100, words);
  EXPECT_LE(words(cut), 100u);
  EXPECT_GT(words(cut), 60u);
  EXPECT_EQ(cut.find("0 1 2"), 0u);
  EXPECT_NE(cut.find("998 999"), std::string::npos);
  EXPECT_EQ(cut.find("500"), std::string::npos);
  EXPECT_EQ(without_middle("short", 100, words), "short");
  // Characters of several bytes stay whole, and no length hangs.
  const auto bytes = [](const std::string& s) { return s.size(); };
  for (size_t most = 0; most < 40; ++most) {
    const std::string ends = without_middle("äöüäöüäöüäöüäöüäöüäöü", most, bytes);
    const size_t gap = ends.find("\n...\n");
    ASSERT_NE(gap, std::string::npos);
    EXPECT_EQ(gap % 2, 0u) << most;
    EXPECT_EQ((ends.size() - gap - 5) % 2, 0u) << most;
  }
}

TEST(LongBench, OnlySetsOfQuestionsAreScored) {
  const auto error = [](const std::string& rest) {
    const File file("{\"context\": \"c\", \"input\": \"i\", " + rest + "}\n");
    return longbench_task(file.path(), "f1", 0, words).status();
  };
  EXPECT_TRUE(says(error(R"("dataset": "trec", "answers": ["x"])"), "found the set 'trec'"));
  EXPECT_TRUE(says(error(R"("dataset": "q", "answers": ["x"], "all_classes": ["x"])"), "set 'q'"));
  EXPECT_TRUE(says(error(R"("dataset": "q", "answers": [])"), "no list of texts 'answers'"));
  EXPECT_TRUE(says(error(R"("dataset": "q", "answers": [1])"), "no list of texts 'answers'"));
  EXPECT_TRUE(error(R"("dataset": "q", "answers": ["x"], "all_classes": null)").ok());
}

TEST(LongBench, APromptKeepsToItsTokens) {
  const auto task = longbench_task(project_file("tasks/longbench.jsonl"), "f1", 300, words);
  ASSERT_TRUE(task.ok()) << task.status().message();
  EXPECT_EQ(task->records.size(), 20u);
  for (const TaskRecord& record : task->records) EXPECT_LE(words(record.prompt), 300u);
}

// ---------------------------------------------------------------- tool calls

const Json kTools = Json::parse(R"([{"name": "light", "parameters": {"type": "object",
  "properties": {"room": {"type": "string", "enum": ["hall", "loft"]},
                 "percent": {"type": "integer", "minimum": 0, "maximum": 100},
                 "steps": {"type": "array", "items": {"type": ["number", "null"]}}},
  "required": ["room"]}}])");
const Json kCall = Json::parse(R"({"name": "light", "arguments": {"room": "hall", "percent": 5}})");

TEST(ToolCalls, RightValidAndParsedAreThreeThings) {
  const auto mark = [](const std::string& said) {
    const Json m = score_call(kTools, kCall, said);
    return m["score"].get<int>() * 100 + m["valid"].get<int>() * 10 + m["parsed"].get<int>();
  };
  EXPECT_EQ(mark(R"( {"name": "light", "arguments": {"room": "hall", "percent": 5}})"), 111);
  EXPECT_EQ(mark(R"({"arguments": {"percent": 5, "room": "hall"}, "name": "light"})"), 111);
  EXPECT_EQ(mark(R"({"name": "light", "arguments": {"room": "loft"}})"), 11);
  EXPECT_EQ(mark(R"({"name": "light", "arguments": {"room": "cave"}})"), 1);
  EXPECT_EQ(mark(R"({"name": "light", "arguments": {"room": "hall", "percent": 101}})"), 1);
  EXPECT_EQ(mark(R"({"name": "light", "arguments": {"room": "hall", "colour": 1}})"), 1);
  EXPECT_EQ(mark(R"({"name": "light", "arguments": {"percent": 5}})"), 1);
  EXPECT_EQ(mark(R"({"name": "light", "arguments": {"room": "hall", "steps": [1, "x"]}})"), 1);
  EXPECT_EQ(mark(R"({"name": "lamp", "arguments": {"room": "hall"}})"), 1);
  EXPECT_EQ(mark(R"({"name": 3})"), 1);
  EXPECT_EQ(mark(R"({"name": "light", "arguments": {"room": "hall")"), 0);
  EXPECT_EQ(mark("[1]"), 0);
  EXPECT_EQ(mark(""), 0);
}

TEST(ToolCalls, ASchemaThatIsNotCheckedIsRefused) {
  Json row = {{"tools", kTools}, {"request", "light"}, {"call", kCall}};
  const auto error = [&] {
    const File file(row.dump() + "\n");
    return tools_task(file.path(), "", {0}, words).status();
  };
  EXPECT_TRUE(error().ok()) << error().message();
  row["tools"][0]["parameters"]["properties"]["room"]["pattern"] = "h.*";
  EXPECT_TRUE(says(error(), "its schema has 'pattern'")) << error().message();
  row["tools"] = kTools;
  row["call"]["arguments"]["percent"] = "5";
  EXPECT_TRUE(says(error(), "is not one that its tools allow"));
  row["tools"] = 7;
  EXPECT_TRUE(says(error(), "found no list 'tools'"));
  row["tools"] = Json::array({Json{{"name", "x"}, {"parameters", 3}}});
  EXPECT_EQ(error().code(), Code::BadData);
}

TEST(ToolCalls, TalkStandsBetweenToolsAndRequest) {
  const fs::path file = project_file("tasks/tools.jsonl");
  std::string talk;
  for (int i = 0; i < 100; ++i) talk += "line " + std::to_string(i) + " of it\n";
  const auto task = tools_task(file, talk, {0, 50}, words);
  ASSERT_TRUE(task.ok()) << task.status().message();
  ASSERT_EQ(task->records.size(), 48u);
  EXPECT_EQ(task->records[0].prompt.find("line 0"), std::string::npos);
  const std::string& prompt = task->records[24].prompt;
  EXPECT_LT(prompt.find("get_weather"), prompt.find("line 0"));
  EXPECT_LT(prompt.find("line 9 "), prompt.rfind("User: "));
  EXPECT_EQ(prompt.find("line 10 "), std::string::npos);
  std::vector<std::string> said;
  for (const TaskRecord& record : task->records) said.push_back(record.reference);
  const auto marks = task->score(task->records, said);
  for (const Json& mark : *marks) EXPECT_EQ(mark["score"], 1);
  EXPECT_TRUE(says(tools_task(file, talk, {5000}, words).status(), "--distances: found 5000"));
}

// ---------------------------------------------------------------- programs

TEST(HumanEval, ProgramsPassFailEndAndLeaveNothingBehind) {
  const auto task = humaneval_task(project_file("tasks/humaneval.jsonl"), "python3",
                                   project_file("tasks/run_humaneval.py"), {3, 256});
  ASSERT_TRUE(task.ok()) << task.status().message();
  ASSERT_GE(task->records.size(), 6u);
  std::vector<TaskRecord> asked;
  std::vector<std::string> said;
  const auto ask = [&](const std::string& completion) {
    asked.push_back(task->records[0]);
    said.push_back(completion);
  };
  ask(task->records[0].reference);
  ask("    return numbers\n");          // wrong
  ask("    return (\n");                // no program
  ask("    while True: pass\n");        // never ends
  ask("    raise SystemExit(0)\n");     // ends before the checks
  ask("    import os; os._exit(0)\n");  // the same without a word
  ask("    return [0] * 10**10\n");     // too much memory
  ask("    import os; os.fork() or exec('while True: pass')\n    return [2 * n for n in "
      "numbers]\n");
  const auto marks = task->score(asked, said);
  ASSERT_TRUE(marks.ok()) << marks.status().message();
  ASSERT_EQ(marks->size(), said.size());
  EXPECT_EQ((*marks)[0]["score"], 1);
  for (size_t i = 1; i < 7; ++i) EXPECT_EQ((*marks)[i]["score"], 0) << said[i];
}

TEST(HumanEval, AMachineThatCannotRunProgramsIsFoundOut) {
  const fs::path problems = project_file("tasks/humaneval.jsonl");
  const fs::path script = project_file("tasks/run_humaneval.py");
  const Status missing = humaneval_task(problems, "no-python-here", script, {}).status();
  EXPECT_EQ(missing.code(), Code::Environment);
  EXPECT_TRUE(says(missing, "--python: 'no-python-here'")) << missing.message();
  EXPECT_EQ(humaneval_task(problems, "false", script, {}).status().code(), Code::Environment);
  const File wrong(
      R"({"task_id": "X/0", "prompt": "def f():\n", "entry_point": "f", "test": "def check(c):\n    assert c() == 1\n", "canonical_solution": "    return 2\n"})"
      "\n");
  const Status bad = humaneval_task(wrong.path(), "python3", script, {}).status();
  EXPECT_EQ(bad.code(), Code::BadData);
  EXPECT_TRUE(says(bad, "does not pass")) << bad.message();
}

// ---------------------------------------------------------------- drift

TEST(Drift, StreamsPartAtTheirFirstDifference) {
  const std::vector<int32_t> a = {1, 2, 3, 4, 5, 6}, b = {1, 2, 9, 4, 9, 6};
  const StreamDifference difference = compare_streams(a, b);
  EXPECT_EQ(difference.first, 2u);
  EXPECT_NEAR(difference.equal_after, 2.0 / 3, 1e-12);
  EXPECT_FALSE(compare_streams(a, a).first);
  EXPECT_EQ(compare_streams(a, std::vector<int32_t>{1, 2, 3, 4, 5, 7}).equal_after, 0);
}

TEST(Drift, ALoopIsARepetition) {
  std::vector<int32_t> stream;
  for (int i = 0; i < 100; ++i) stream.push_back(i % 10);
  // 97 runs of 4 tokens, of which the first 10 are new.
  EXPECT_NEAR(repeated_share(stream, 4), 0.87, 1e-12);
  for (int i = 0; i < 100; ++i) stream[i] = i;
  EXPECT_EQ(repeated_share(stream, 4), 0);
  EXPECT_EQ(repeated_share(std::vector<int32_t>{1}, 4), 0);
}

TEST(Drift, TokensAreDrawnWithTheirProbability) {
  const std::vector<float> logits = {0, std::log(3.0f), -INFINITY};
  TokenChoice greedy(0, 1), drawn(1, 1), again(1, 1);
  EXPECT_EQ(greedy(logits), 1u);
  int counts[3] = {};
  for (int i = 0; i < 4000; ++i) {
    const size_t token = drawn(logits);
    ++counts[token];
    EXPECT_EQ(token, again(logits));
  }
  // 3,000 expected; five standard deviations of 27.
  EXPECT_NEAR(counts[1], 3000, 137);
  EXPECT_EQ(counts[2], 0);
}

}  // namespace
}  // namespace zipcache::cli
