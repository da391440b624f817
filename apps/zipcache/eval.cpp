// `zipcache eval`: what policies cost a model, task by task.
#include "commands.hpp"

namespace zipcache::cli {

void add_eval(CLI::App& program, Action& action) {
  CLI::App* command = program.add_subcommand(
      "eval",
      "What policies cost your model, task by task, in files of results that grow; and reports of "
      "them.");
  command->require_subcommand(1);
  add_eval_kld(*command, action);
  add_eval_drift(*command, action);
  add_eval_retrieval(*command, action);
  add_eval_passkey(*command, action);
  add_eval_needle(*command, action);
  add_eval_gsm8k(*command, action);
  add_eval_humaneval(*command, action);
  add_eval_longbench(*command, action);
  add_eval_tools(*command, action);
  add_eval_report(*command, action);
}

}  // namespace zipcache::cli
