// `zipcache doctor`: does everything that the other commands need work here, and with which
// settings?
#include <dlfcn.h>
#include <fmt/format.h>

#include <cstdlib>
#include <memory>

#include "backend.hpp"
#include "commands.hpp"
#include "llama_log.hpp"
#include "model.hpp"
#include "model_file.hpp"
#include "places.hpp"
#include "table.hpp"
#include "terminal.hpp"
#include "waiting.hpp"
#include "zipcache/cache.hpp"

namespace zipcache::cli {

namespace {

struct Options {
  std::string model;
  std::string output = "md";
  bool verbose = false;
};

// One line of the report.
struct Check {
  std::string name;
  std::string found;
  Status status;  // why it does not work, when it does not
};

// The file that llama.cpp's functions were loaded from.
std::string llama_library() {
  Dl_info where{};
  const auto function = reinterpret_cast<const void*>(&llama_backend_init);
  return dladdr(function, &where) != 0 && where.dli_fname != nullptr ? where.dli_fname : "unknown";
}

Check check_kernel() {
  const Result<std::string> kernel = kernel_name();
  return {"kernel", kernel.ok() ? *kernel : "", kernel.ok() ? ok() : kernel.status()};
}

Check check_model(const std::string& model) {
  const auto path = find_model(model);
  if (!path.ok()) return {"model " + model, "", path.status()};
  const Result<ModelFile> file = read_model_file(*path);
  if (!file.ok()) return {"model " + model, path->string(), file.status()};
  const CacheShape shape{.n_streams = 1, .n_cells = kBlockTokens, .layers = file->layers};
  return {"model " + model,
          fmt::format("{} ({}, {} layers that keep keys and values)", path->string(),
                      file->architecture, file->layers.size()),
          zipcache::check(shape)};
}

// Finds and loads the backend; the settings it reports go to `settings`.
std::vector<Check> check_backend(Json& settings) {
  const auto path = find_backend();
  if (!path.ok()) return {{"backend", "", path.status()}};
  const Result<Backend> backend = Backend::load(*path);
  if (!backend.ok()) return {{"backend", path->string(), backend.status()}};
  const Result<Json> found = backend->settings();
  if (found.ok()) settings = *found;
  const std::string device = fmt::format("{}: {}", ggml_backend_dev_name(backend->device()),
                                         ggml_backend_dev_description(backend->device()));
  return {
      {"backend", path->string(), found.ok() ? ok() : found.status()},
      {"device", device, ok()},
      {"for llama.cpp programs",
       fmt::format("GGML_BACKEND_PATH={} llama-server -m MODEL --device ZipCache0 -ngl 99 -fa on",
                   path->string()),
       ok()}};
}

void print_for_people(const std::vector<Check>& checks, const Json& settings) {
  const bool colour = colours(stdout);
  for (const Check& check : checks) {
    const bool good = check.status.ok();
    fmt::print("{}{:4}{} {:22} {}\n", colour ? (good ? "\x1b[32m" : "\x1b[1;31m") : "",
               good ? "ok" : "FAIL", colour ? "\x1b[0m" : "", check.name,
               good ? check.found : one_line(check.status.message()));
  }
  if (settings.empty()) return;
  std::vector<std::vector<std::string>> lines;
  for (const Json& setting : settings) {
    const auto text = [&](const char* name) {
      const Json value = setting.value(name, Json(""));
      return value.is_string() ? value.get<std::string>() : value.dump();
    };
    lines.push_back({text("name"), text("value"), text("default"), text("help")});
  }
  fmt::print(
      "\nSettings that the backend reads from the environment:\n\n{}",
      markdown({{"variable", false}, {"value", false}, {"default", false}, {"what it does", false}},
               lines, colour));
}

Json to_json(const std::vector<Check>& checks, const Json& settings) {
  Json list = Json::array();
  for (const Check& check : checks) {
    list.push_back({{"check", check.name},
                    {"ok", check.status.ok()},
                    {"found", check.found},
                    {"error", check.status.message()},
                    {"code", info(check.status.code()).name}});
  }
  return {{"checks", list}, {"settings", settings}};
}

Status doctor(const Options& options) {
  const Result<Format> format = parse_format(options.output);
  if (!format.ok()) return format.status();
  capture_llama_log(options.verbose);
  if (!options.verbose) setenv("ZIPCACHE_LOG", "quiet", 0);
  llama_backend_init();
  Json settings = Json::array();
  std::vector<Check> checks = {
      {"zipcache", version(), ok()},
      {"llama.cpp", llama_version_text(), ok()},
      {"llama.cpp library", llama_library(), ok()},
      {"processor",
       fmt::format("{}, {} threads, idle ones wait {}", processor_name(), available_threads(),
                   wait_policy()),
       ok()},
      check_kernel(),
  };
  for (Check& check : check_backend(settings)) checks.push_back(std::move(check));
  checks.push_back(check_model(kDefaultModel));
  if (!options.model.empty()) checks.push_back(check_model(options.model));

  if (*format == Format::Md) {
    print_for_people(checks, settings);
  } else {
    fmt::print("{}", for_programs(*format, {to_json(checks, settings)}));
  }
  for (const Check& check : checks) {
    if (!check.status.ok()) return check.status;
  }
  return ok();
}

}  // namespace

void add_doctor(CLI::App& program, Action& action) {
  auto options = std::make_shared<Options>();
  CLI::App* command = program.add_subcommand(
      "doctor",
      "Checks that llama.cpp, the backend and the default model are found and fit together,\n"
      "and shows every setting of the backend. Exit code 0 when all is well, that of the first "
      "fault otherwise.");
  command->footer("Example:\n  zipcache doctor -m model.gguf");
  command->add_option("-m,--model", options->model,
                      "also check whether this model's cache can be compressed");
  command->add_option("-o,--output", options->output, "md, csv, json or jsonl")
      ->capture_default_str();
  command->add_flag("-v,--verbose", options->verbose, "show llama.cpp's messages");
  command->callback([options, &action] { action = [options] { return doctor(*options); }; });
}

}  // namespace zipcache::cli
