// The commands. Each adds itself to the parser and, when it was asked for, leaves its work in
// `action`.
#pragma once

#include <CLI/CLI.hpp>
#include <functional>
#include <string>

#include "zipcache/status.hpp"

namespace zipcache::cli {

using Action = std::function<Status()>;

void add_run(CLI::App& program, Action& action);
void add_compare(CLI::App& program, Action& action);
void add_inspect(CLI::App& program, Action& action);
void add_policies(CLI::App& program, Action& action);
void add_doctor(CLI::App& program, Action& action);
void add_bench(CLI::App& program, Action& action);
void add_eval(CLI::App& program, Action& action);
void add_tune(CLI::App& program, Action& action);
void add_fit_rotations(CLI::App& program, Action& action);
void add_plot(CLI::App& program, Action& action);

// Of the commands of `plot` the one that runs a model.
void add_plot_saliency(CLI::App& plot, Action& action);

// The commands of `bench`.
void add_bench_attention(CLI::App& bench, Action& action);
void add_bench_model(CLI::App& bench, Action& action);
void add_bench_cuda(CLI::App& bench, Action& action);

// The commands of `eval`.
void add_eval_kld(CLI::App& eval, Action& action);
void add_eval_drift(CLI::App& eval, Action& action);
void add_eval_retrieval(CLI::App& eval, Action& action);
void add_eval_passkey(CLI::App& eval, Action& action);
void add_eval_needle(CLI::App& eval, Action& action);
void add_eval_gsm8k(CLI::App& eval, Action& action);
void add_eval_humaneval(CLI::App& eval, Action& action);
void add_eval_longbench(CLI::App& eval, Action& action);
void add_eval_tools(CLI::App& eval, Action& action);
void add_eval_report(CLI::App& eval, Action& action);

}  // namespace zipcache::cli
