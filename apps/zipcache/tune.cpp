// `zipcache tune`: the setting for your model, found by measuring it, as a policy file.
#include <fmt/format.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <memory>

#include "commands.hpp"
#include "places.hpp"
#include "terminal.hpp"
#include "tune_check.hpp"
#include "tune_report.hpp"
#include "tune_search.hpp"
#include "zipcache/policy.hpp"

namespace zipcache::cli {

namespace {

struct Options : MeasureOptions {
  std::vector<std::string> texts, held_out;
  Target target;
  std::string policy_path = "policy.json";
  std::string plots;
  std::string check;  // the policy that is checked; empty: search
};

// Text of different kinds for the search, and of other kinds to hold the answer against.
std::vector<std::string> default_texts(bool held_out) {
  const char* const names[2][2] = {{"alice29.txt", "tools.txt"}, {"code.txt", "chat.txt"}};
  std::vector<std::string> out;
  for (const char* name : names[held_out ? 1 : 0]) out.push_back(default_text(name));
  return out;
}

Result<Part> search_part(const Options& options, Measurer& measurer) {
  return measurer.part("search", options.texts.empty() ? default_texts(false) : options.texts, 0);
}

// Other texts when there are some, else what follows in the same ones.
Result<Part> held_out_part(const Options& options, Measurer& measurer) {
  if (!options.held_out.empty()) return measurer.part("held out", options.held_out, 0);
  if (options.texts.empty()) return measurer.part("held out", default_texts(true), 0);
  const int n = static_cast<int>(options.texts.size());
  return measurer.part("held out", options.texts, (options.chunks + n - 1) / n);
}

Candidate candidate_of(const Json& row) {
  return {row["bits"].get<double>(), row["kld"].get<double>(), row["kld_se"].get<double>()};
}

// Measures the choice where the search has not been; the default takes its place if it is no
// better.
Status hold_out(const Options& options, Measurer& measurer, const Part& part,
                const SearchResult& found, Json& evidence) {
  std::vector<std::string> policies = {found.chosen};
  for (const std::string& other : {found.fallback, std::string("zip"), std::string("q4_0")}) {
    if (!other.empty() && std::find(policies.begin(), policies.end(), other) == policies.end())
      policies.push_back(other);
  }
  const Result<std::vector<Json>> rows = measurer.rows(part, policies, "held-out text");
  if (!rows.ok()) return rows.status();
  Json shown = Json::array();
  for (size_t i = 0; i < policies.size(); ++i) {
    shown.push_back(
        evidence_row(policies[i], coded_bits(policies[i], measurer.about()), (*rows)[i]));
  }
  evidence["chosen"] = found.chosen;
  if (!found.fallback.empty() && found.fallback != found.chosen &&
      !confirmed(candidate_of(shown[0]), candidate_of(shown[1]), options.target))
    evidence["chosen"] = found.fallback;
  evidence["held_out"] = {{"text", part.key["text"]}, {"rows", shown}};
  return ok();
}

Json target_json(const Target& target, double most_bits) {
  if (target.divergence) return {{"kld", *target.divergence}};
  return {{"bits", target.bits.value_or(most_bits)}};
}

// What was measured, on what, when: all but the figures.
Json about_run(const Options& options, const Measurer& measurer, const Part& part,
               const SearchResult& found) {
  const Json& key = measurer.setup().key;
  return {{"by", "zipcache tune"},
          {"model", key["model"]},
          {"model_bytes", key["model_bytes"]},
          {"f32_weights", options.f32_weights},
          {"build", key["build"]},
          {"llama_cpp", key["llama_cpp"]},
          {"cpu", processor_name()},
          {"date", date_of_today()},
          {"ubatch", options.ubatch},
          {"target", target_json(options.target, found.most_bits)},
          {"search",
           {{"text", part.key["text"]}, {"ctx", measurer.ctx()}, {"chunks", options.chunks}}}};
}

Status write_file(const std::string& path, const std::string& content) {
  std::ofstream file(path, std::ios::binary);
  file << content << std::flush;
  if (file) return ok();
  return {Code::Environment,
          fmt::format("--out: cannot write '{}': {}", path, std::strerror(errno))};
}

// Writes the policy and reads it back, as the one who uses it will.
Status write_policy(const Options& options, const Json& evidence) {
  const std::string text = evidence["chosen"].get<std::string>();
  Result<Policy> policy = parse_policy(text);
  if (!policy.ok()) return policy.status();
  if (text.find(',') != std::string::npos) policy->name = "tuned";
  ZC_TRY(write_file(options.policy_path, policy_file(policy_to_json(*policy), evidence)));
  const Result<Policy> back = load_policy(options.policy_path);
  if (!back.ok()) return back.status();
  if (*back == *policy) return ok();
  return {Code::Internal,
          fmt::format("'{}' does not read as the policy that was written", options.policy_path)};
}

Status print(const Options& options, Format format, const Json& evidence) {
  if (format != Format::Md) {
    fmt::print("{}", for_programs(format, {evidence}));
    return ok();
  }
  const Result<std::string> report = tune_report(evidence, colours(stdout));
  if (!report.ok()) return report.status();
  fmt::print("{}Written to {}; use it as ZIPCACHE_POLICY={} or wherever a policy is asked for.\n",
             *report, options.policy_path, options.policy_path);
  return ok();
}

Status check_out_path(const Options& options) {
  if (options.policy_path.ends_with(".json")) return ok();
  return {Code::BadArgument, fmt::format("--out: found '{}', expected a name that ends in .json",
                                         options.policy_path)};
}

Status tune(Options options) {
  ZC_TRY(check_out_path(options));
  if (options.out.empty()) {
    options.out = options.policy_path;
    options.out.replace(options.out.size() - 5, 5, ".rows.jsonl");
  }
  Result<std::unique_ptr<Measurer>> opened = Measurer::open(options);
  if (!opened.ok()) return opened.status();
  Measurer& measurer = **opened;
  const Result<Part> part = search_part(options, measurer);
  if (!part.ok()) return part.status();
  const Result<Part> held_out = held_out_part(options, measurer);
  if (!held_out.ok()) return held_out.status();

  measurer.expect(planned_caches(measurer.about(), options.together));
  const Result<SearchResult> found = search(measurer, *part, options.target);
  if (!found.ok()) return found.status();
  Json evidence = about_run(options, measurer, *part, *found);
  evidence.update(search_evidence(*found));
  ZC_TRY(hold_out(options, measurer, *held_out, *found, evidence));
  measurer.finish();
  ZC_TRY(write_policy(options, evidence));
  if (!options.plots.empty()) {
    const std::string name = std::filesystem::path(options.policy_path).stem().string();
    ZC_TRY(draw(tune_plot(evidence, name), options.plots));
  }
  return print(options, measurer.setup().format, evidence);
}

}  // namespace

void add_tune(CLI::App& program, Action& action) {
  auto options = std::make_shared<Options>();
  options->task = "kld";
  options->model = kDefaultModel;
  options->policies = kReference;
  options->f32_weights = true;
  CLI::App* command = program.add_subcommand(
      "tune",
      "The setting for your model: measures which layers are sensitive, searches the policies and\n"
      "writes the best one to a policy file, with the evidence inside.");
  command->footer(
      "Examples:\n"
      "  zipcache tune -m model.gguf -f chat.txt\n"
      "  zipcache tune -m model.gguf --target-bits 3 -o small.json --plots pictures\n"
      "  zipcache tune -m model.gguf --check policy.json");
  command->add_option("-m,--model", options->model, "GGUF file, or smollm2 for the default model")
      ->capture_default_str();
  command->add_option("-f,--file", options->texts,
                      "text to measure, may be given again; default: prose and tool calls of "
                      "data/text");
  command->add_option("--held-out", options->held_out,
                      "text that the answer is held against; default: what follows in the files of "
                      "-f,\nor code and chat of data/text");
  auto* bits = command
                   ->add_option("--target-bits", options->target.bits,
                                "most coded bits per element; default: those of zip")
                   ->check(CLI::Range(1.0, 16.0));
  command
      ->add_option("--target-kld", options->target.divergence,
                   "divergence to stay under, with the fewest bits")
      ->check(CLI::PositiveNumber)
      ->excludes(bits);
  command->add_option("--check", options->check,
                      "measure this policy only, and fail if the model collapses under it");
  command->add_option("-o,--out", options->policy_path, "the policy file that is written")
      ->capture_default_str();
  command->add_option("--rows", options->out,
                      "file that every measured row is appended to, so that an interrupted run can "
                      "go on;\ndefault: beside the policy file, ending in .rows.jsonl");
  command->add_option("--plots", options->plots,
                      "folder for a picture of divergence over bits (PNG and SVG)");
  command->add_option("--output", options->output, "md, csv, json or jsonl")->capture_default_str();
  command
      ->add_option("-c,--ctx-size", options->ctx,
                   "tokens of a chunk; the second half is scored; default: 1024, or 512 where a "
                   "thread\nhas more than 100 million weights to multiply")
      ->check(CLI::Range(kShortestCtx, 1 << 24));
  command
      ->add_option("--chunks", options->chunks, "chunks of each part, dealt to the files in turn")
      ->check(CLI::Range(1, 1 << 16))
      ->capture_default_str();
  command
      ->add_option("--together", options->together,
                   "policies in memory at a time, beside the reference")
      ->check(CLI::Range(1, 1 << 10))
      ->capture_default_str();
  command->add_flag("--f32-weights,!--no-f32-weights", options->f32_weights,
                    "expand the weights to 32 bits first (the default): quantized ones make "
                    "llama.cpp round\nactivations, a noise as large as what is measured here");
  add_engine_options(*command, *options);
  command->callback([options, &action] {
    action = [options] {
      return options->check.empty() ? tune(*options)
                                    : check_policy(*options, options->check, options->texts);
    };
  });
}

}  // namespace zipcache::cli
