// The program `zipcache`: reads the command line, runs one command, turns its status into an exit
// code.
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <exception>

#include "arguments.hpp"
#include "commands.hpp"
#include "interrupt.hpp"
#include "model.hpp"
#include "terminal.hpp"
#include "waiting.hpp"
#include "zipcache/cache.hpp"

namespace zipcache::cli {

namespace {

constexpr int kUsage = 2;

std::string version_text() {
  const Result<std::string> kernel = kernel_name();
  return fmt::format("zipcache {}\ncompiler {}\nkernel {}\nllama.cpp {}", version(), __VERSION__,
                     kernel.ok() ? *kernel : "none: " + kernel.status().message(),
                     llama_version_text());
}

void set_up(CLI::App& program, Action& action) {
  program.name("zipcache");
  program.description(
      "ZipCache: a key-value cache under 4 bits for llama.cpp, and the proof of what it costs on "
      "your model.");
  program.footer(
      "Examples:\n"
      "  zipcache doctor\n"
      "  zipcache compare -m smollm2 -f book.txt\n"
      "  zipcache run -m model.gguf --policy zip -p \"What is a cache?\"\n\n"
      "`zipcache COMMAND --help` explains a command. Exit codes: 0 done, 1 a bug, 2 wrong usage or "
      "policy,\n"
      "3 bad data, 4 incompatible, 5 a limit, 6 environment, 130 interrupted.");
  program.set_version_flag("--version", version_text);
  program.require_subcommand(1);
  add_compare(program, action);
  add_run(program, action);
  add_inspect(program, action);
  add_policies(program, action);
  add_doctor(program, action);
  add_bench(program, action);
  add_eval(program, action);
  add_tune(program, action);
  add_plot(program, action);
  add_fit_rotations(program, action);
}

void print_error(const std::string& message) {
  const bool colour = colours(stderr);
  fmt::print(stderr, "{}zipcache: error:{} {}\n", colour ? "\x1b[1;31m" : "",
             colour ? "\x1b[0m" : "", one_line(message));
}

// Names of all options of a command, or of all commands.
std::vector<std::string> names_of(const CLI::App& app) {
  std::vector<std::string> names;
  for (const CLI::Option* option : app.get_options()) {
    for (const std::string& name : option->get_lnames()) names.push_back("--" + name);
  }
  for (const CLI::App* command : app.get_subcommands([](const CLI::App*) { return true; })) {
    names.push_back(command->get_name());
  }
  return names;
}

// The command that was asked for, innermost as in `bench model`, and how it is called.
struct Chosen {
  const CLI::App* app;
  std::string call;
};

Chosen chosen_command(const CLI::App& program) {
  Chosen chosen{&program, program.get_name()};
  for (auto inner = program.get_subcommands(); !inner.empty();
       inner = chosen.app->get_subcommands()) {
    chosen.app = inner.front();
    chosen.call += " " + chosen.app->get_name();
  }
  return chosen;
}

// The first word that no option or command of `app` explains, with the nearest that one does.
std::string suggestion(const CLI::App& program, const CLI::App& app) {
  for (const std::string& word : program.remaining(true)) {
    const std::string near = nearest(word, names_of(app));
    if (!near.empty()) return fmt::format(" (found {}, did you mean {}?)", word, near);
  }
  return "";
}

int usage_error(const CLI::App& program, const CLI::ParseError& error) {
  const Chosen chosen = chosen_command(program);
  print_error(fmt::format("{}{}; see {} --help", error.what(), suggestion(program, *chosen.app),
                          chosen.call));
  return kUsage;
}

// Exit code of a command that ended with `status`, which is told to the user.
int finish(const Status& status) {
  if (status.ok() && std::fflush(stdout) == 0 && std::ferror(stdout) == 0) return 0;
  if (status.ok()) {
    print_error(fmt::format("writing to standard output failed: {}", std::strerror(errno)));
    return info(Code::Environment).exit_status;
  }
  std::fflush(stdout);
  if (status.code() == Code::Aborted && interrupted()) {
    fmt::print(stderr, "zipcache: {}\n", one_line(status.message()));
    return interrupt_exit_status();
  }
  print_error(status.message());
  return info(status.code()).exit_status;
}

int run(int argc, char** argv) {
  CLI::App program;
  Action action;
  set_up(program, action);
  std::vector<std::string> arguments = long_forms({argv + 1, argv + argc});
  // The parser takes them from the back.
  std::reverse(arguments.begin(), arguments.end());
  try {
    program.parse(arguments);
  } catch (const CLI::Success& wanted) {  // --help, --version
    return program.exit(wanted);
  } catch (const CLI::ParseError& error) {
    return usage_error(program, error);
  }
  return finish(action());
}

}  // namespace

}  // namespace zipcache::cli

int main(int argc, char** argv) {
  zipcache::cli::wait_shortly(argv);
  // Exceptions come only from third-party code and from exhausted memory; this is their one edge.
  try {
    return zipcache::cli::run(argc, argv);
  } catch (const std::bad_alloc&) {
    std::fputs("zipcache: error: out of memory; use a smaller context or fewer policies\n", stderr);
    return zipcache::info(zipcache::Code::OverLimit).exit_status;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "zipcache: internal error: %s; please report it with the command line\n",
                 error.what());
    return zipcache::info(zipcache::Code::Internal).exit_status;
  }
}
