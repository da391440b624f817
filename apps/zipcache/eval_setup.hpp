// What the tasks of `zipcache eval` share: options, what is found and checked before a model is
// loaded, and the fields that every row has.
//
// Thread safety: one thread at a time.
#pragma once

#include <CLI/CLI.hpp>
#include <optional>
#include <string>
#include <vector>

#include "engines.hpp"
#include "result_file.hpp"
#include "table.hpp"

namespace zipcache::cli {

struct EvalOptions {
  std::string task;  // as rows name it
  std::string model;
  std::string policies = "f16,q8_0,q4_0,zipcache,zip";
  int ubatch = 128;
  int threads = 1;
  bool f32_weights = false;
  std::string output = "md";
  std::string out;  // the file of results; empty: none
  bool verbose = false;
};

// Adds the options that all tasks have.
void add_eval_options(CLI::App& command, EvalOptions& options);

// Of these only the micro-batch, threads and messages.
void add_engine_options(CLI::App& command, EvalOptions& options);

struct EvalSetup {
  Format format = Format::Md;
  std::vector<PolicyChoice> choices;
  EngineFiles files;
  ResultFile kept;
  Json key;  // the fields that tell rows of this model, program and setting from others
};

// A text that is read, with a print of its content; `tokens` once a model is there.
struct EvalText {
  std::string name, content, print;
  std::vector<llama_token> tokens = {};
};

Result<std::vector<EvalText>> read_texts(const std::vector<std::string>& paths);

Result<EvalSetup> set_up_eval(const EvalOptions& options);

// The model on the engines that `choices` need.
Result<Engines> open_eval_engines(const EvalOptions& options, const EvalSetup& setup,
                                  std::span<const PolicyChoice> choices);

// `key` with the policy of `choice`; a row that matches it need not be measured again.
Json with_policy(Json key, const PolicyChoice& choice);

// The policies that have no row of `key` yet, and the rows that there are, in the user's order.
std::vector<PolicyChoice> missing_policies(const EvalSetup& setup, const Json& key);
std::vector<Json> rows_of(const EvalSetup& setup, const Json& key);

// Fields that do not decide whether a row is measured again: machine, date, how attention reads.
Json eval_facts(const EvalOptions& options, const Engines& engines, const PolicyChoice& choice);

// The row of one policy in a run against the 16-bit cache; `key` as with_policy() takes it.
Json kld_row(const Json& key, const EvalOptions& options, const Engines& engines,
             const PolicyChoice& choice, const CompareRow& measured);

// Bits per element, all bytes (resident) and of packed rows alone (coded); kernel.
Json bits_json(const CacheFigures& figures);

// Prints `rows`; the answer is an Aborted status after an interrupt, which says how to go on.
Status finish_eval(const EvalOptions& options, Format format, const std::vector<Json>& rows);

}  // namespace zipcache::cli
