// `zipcache bench`: speeds on this machine.
#include "commands.hpp"

namespace zipcache::cli {

void add_bench(CLI::App& program, Action& action) {
  CLI::App* command = program.add_subcommand(
      "bench",
      "Speed on this machine: of attention over a compressed cache alone, on the CPU or a GPU, and of a whole model.");
  command->require_subcommand(1);
  add_bench_attention(*command, action);
  add_bench_model(*command, action);
  add_bench_cuda(*command, action);
}

}  // namespace zipcache::cli
