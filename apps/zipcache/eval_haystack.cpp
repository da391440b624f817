// `zipcache eval passkey` and `zipcache eval needle`: numbers hidden in a long text, by its length
// and by where the wanted one stands.
#include <memory>

#include "arguments.hpp"
#include "commands.hpp"
#include "eval_records.hpp"
#include "haystack.hpp"
#include "places.hpp"

namespace zipcache::cli {

namespace {

struct Options : RecordOptions {
  std::vector<int> lengths = {512, 2048};
  std::vector<int> depths = {0, 25, 50, 75, 100};
  int keys = 1;
  uint64_t seed = 1;
};

Result<RecordTask> make_task(const Options& options, const TokenCount& count) {
  const Result<HaystackWords> words = read_words(default_retrieval_file("words.json"));
  if (!words.ok()) return words.status();
  RecordTask task{.source = "generated",
                  .metric = "exact",
                  .records = {},
                  .most_tokens = options.most_tokens,
                  .score = score_exact()};
  for (const int length : options.lengths) {
    for (const int depth : options.depths) {
      const HaystackPlan plan{length, depth, options.keys, options.seed};
      for (int i = 0; i < options.samples; ++i) {
        Result<TaskRecord> record = make_haystack(*words, plan, i, count);
        if (!record.ok()) return record.status();
        task.records.push_back(std::move(*record));
      }
    }
  }
  return task;
}

Status eval_haystack(const Options& options) {
  ZC_TRY(check_range("--lengths", options.lengths, 1, 1 << 24));
  ZC_TRY(check_range("--depths", options.depths, 0, 100));
  return eval_records(options, [&](const TokenCount& count) { return make_task(options, count); });
}

CLI::App* add_haystack(CLI::App& eval, Action& action, const std::shared_ptr<Options>& options,
                       const std::string& about) {
  options->model = default_retrieval_file("retrieval-8m.gguf");
  options->samples = 5;
  options->most_tokens = 16;
  CLI::App* command = eval.add_subcommand(options->task, about);
  command->add_option("-m,--model", options->model,
                      "GGUF file, or smollm2; default: the model in eval/retrieval_model, which "
                      "knows the form");
  command
      ->add_option("--lengths", options->lengths,
                   "tokens of the prompt, several with commas; reached to within a sentence")
      ->delimiter(',')
      ->capture_default_str();
  command
      ->add_option("--depths", options->depths,
                   "where the wanted number stands, with commas: 0 at the beginning, 100 right "
                   "before\nthe question")
      ->delimiter(',')
      ->capture_default_str();
  command->add_option("--samples", options->samples, "texts for each length and depth")
      ->check(CLI::Range(1, 1 << 20))
      ->capture_default_str();
  command->add_option("--seed", options->seed, "seed of the texts")->capture_default_str();
  add_record_options(*command, *options);
  command->callback([options, &action] { action = [options] { return eval_haystack(*options); }; });
  return command;
}

}  // namespace

void add_eval_passkey(CLI::App& eval, Action& action) {
  auto options = std::make_shared<Options>();
  options->task = "passkey";
  add_haystack(eval, action, options,
               "One number hidden in a long text, at a grid of lengths and depths: right answers "
               "with\nWilson's 95 % interval, and how likely the right number was.")
      ->footer(
          "Examples:\n"
          "  zipcache eval passkey --lengths 512,2048 --depths 0,50,100 --policies 'zip;q4_0'\n"
          "  zipcache eval passkey -m smollm2 --lengths 1024 --samples 20 --out rows.jsonl");
}

void add_eval_needle(CLI::App& eval, Action& action) {
  auto options = std::make_shared<Options>();
  options->task = "needle";
  options->keys = 8;
  CLI::App* command = add_haystack(
      eval, action, options,
      "One of several numbers hidden in a long text: as passkey, but other names with other\n"
      "numbers stand in the text too, so that the name has to be found and not just a number.");
  command->footer(
      "Examples:\n"
      "  zipcache eval needle --keys 8 --lengths 2048 --policies 'zip;zipcache;uniform,k=2,v=2'\n"
      "  zipcache eval needle --keys 32 --lengths 4096 --depths 10,50,90 --out rows.jsonl");
  command->add_option("--keys", options->keys, "numbers in the text, each with a name of its own")
      ->check(CLI::Range(1, 1 << 12))
      ->capture_default_str();
}

}  // namespace zipcache::cli
