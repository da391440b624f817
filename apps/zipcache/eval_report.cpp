// `zipcache eval report`: Markdown tables and pictures from files of results.
#include <fmt/format.h>

#include <filesystem>
#include <memory>

#include "commands.hpp"
#include "result_file.hpp"
#include "result_overview.hpp"
#include "result_plots.hpp"
#include "result_tables.hpp"

namespace zipcache::cli {

namespace {

namespace fs = std::filesystem;

struct Options {
  std::vector<std::string> paths;
  std::string plots;
};

Status report(const Options& options) {
  const Result<std::vector<Json>> rows = read_all_rows(options.paths);
  if (!rows.ok()) return rows.status();
  const Result<std::vector<ResultGroup>> groups = group_results(*rows);
  if (!groups.ok()) return groups.status();
  std::string text = overviews(*groups);
  for (const ResultGroup& group : *groups) {
    text += (text.empty() ? "" : "\n") + group_tables(group, false);
    if (options.plots.empty()) continue;
    for (const Plot& plot : plots_of(group)) {
      ZC_TRY(draw(plot, options.plots));
      text += fmt::format("\n![{}]({})\n", plot.title,
                          (fs::path(options.plots) / (plot.name + ".svg")).string());
    }
  }
  fmt::print("{}", text);
  return ok();
}

}  // namespace

void add_eval_report(CLI::App& eval, Action& action) {
  auto options = std::make_shared<Options>();
  CLI::App* command = eval.add_subcommand(
      "report",
      "Markdown tables of result rows, one for each model, text and length, with pictures by\n"
      "gnuplot on request.");
  command->footer(
      "Example:\n"
      "  zipcache eval report rows.jsonl --plots pictures > report.md");
  command->add_option("paths", options->paths, "files of results, or folders of files *.jsonl")
      ->required();
  command->add_option("--plots", options->plots,
                      "folder for pictures (PNG and SVG), which the tables then refer to");
  command->callback([options, &action] { action = [options] { return report(*options); }; });
}

}  // namespace zipcache::cli
