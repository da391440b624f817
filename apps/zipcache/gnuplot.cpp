// Pictures by gnuplot.
#include "gnuplot.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <fstream>

#include "child.hpp"

namespace zipcache::cli {

namespace fs = std::filesystem;

namespace {

constexpr const char* kColours[] = {"#0072B2", "#D55E00", "#009E73", "#CC79A7",
                                    "#E69F00", "#56B4E9", "#000000", "#999999"};

Status write_text(const std::string& path, const std::string& text) {
  std::ofstream file(path, std::ios::binary);
  file << text << std::flush;
  if (file) return ok();
  return {Code::Environment,
          fmt::format("pictures: cannot write '{}': {}", path, std::strerror(errno))};
}

Status run_gnuplot(const std::string& script) {
  const Result<int> status = run_program({"gnuplot", script});
  if (!status.ok()) {
    return {Code::Environment, status.status().message() +
                                   "; expected it to draw pictures: install the package "
                                   "gnuplot-nox or ask for none"};
  }
  if (*status == 0) return ok();
  return {Code::Environment, "gnuplot failed; its message stands above"};
}

// The rows as gnuplot reads them: it ends a text at a comma, in quotes or not.
std::string by_tabs(const std::vector<Json>& rows) {
  std::string out;
  const auto line = [&](const Json& row, auto&& cell) {
    std::string sign;
    for (const auto& [name, value] : row.items()) {
      std::string text = cell(name, value);
      std::replace(text.begin(), text.end(), '\t', ' ');
      out += sign + text;
      sign = "\t";
    }
    out += '\n';
  };
  line(rows.front(), [](const std::string& name, const Json&) { return name; });
  for (const Json& row : rows) {
    line(row, [](const std::string&, const Json& value) {
      return value.is_string() ? value.get<std::string>()
             : value.is_null() ? std::string()
                               : value.dump();
    });
  }
  return out;
}

// The script with its data file, which is drawn once as SVG and once as PNG.
std::string whole_script(const Plot& plot, const std::string& file) {
  std::string data;
  if (!plot.rows.empty()) {
    data = fmt::format("set datafile separator '\\t'\nset datafile columnheaders\ndata = {}\n",
                       in_quotes(file + ".tsv"));
  }
  return fmt::format(
      "{}{}set terminal svg size {},{} noenhanced font \"sans,13\" background rgb \"white\"\n"
      "set output {}\n{}\n"
      "set terminal pngcairo size {},{} noenhanced font \"sans,15\"\nset output {}\n{}\n",
      data, plot.script, plot.width, plot.height, in_quotes(file + ".svg"), plot.commands,
      plot.width * 3 / 2, plot.height * 3 / 2, in_quotes(file + ".png"), plot.commands);
}

}  // namespace

std::string in_quotes(std::string_view text) {
  std::string out = "\"";
  for (const char c : text) {
    if (c == '"' || c == '\\') out += '\\';
    out += c == '\n' ? ' ' : c;
  }
  return out + "\"";
}

std::string data_block(const std::string& name, const std::string& lines) {
  return fmt::format("${} << END\n{}END\n", name, lines);
}

std::string beginning(const std::string& title, const std::string& x, const std::string& y) {
  return fmt::format(
      "set title {} noenhanced\nset xlabel {}\nset ylabel {}\nset border 3\nset tics nomirror\n"
      "set grid ytics linecolor \"#dddddd\"\n",
      in_quotes(title), in_quotes(x), in_quotes(y));
}

std::string line_style(size_t i) {
  return fmt::format("linecolor \"{}\" dashtype {}", kColours[i % std::size(kColours)],
                     1 + i / std::size(kColours));
}

std::string only(const std::string& where, const std::string& value, const std::string& y) {
  return fmt::format("(strcol({}) eq {} ? {} : NaN)", in_quotes(where), in_quotes(value), y);
}

Status make_folder(const fs::path& folder) {
  std::error_code error;
  fs::create_directories(folder, error);
  if (!error) return ok();
  return {Code::Environment,
          fmt::format("pictures: cannot make folder '{}': {}", folder.string(), error.message())};
}

Status draw(const Plot& plot, const fs::path& folder) {
  ZC_TRY(make_folder(folder));
  const std::string file = (folder / plot.name).string();
  const std::string script = file + ".gnuplot", data = file + ".tsv";
  if (!plot.rows.empty()) {
    ZC_TRY(write_text(file + ".csv", csv(plot.rows)));
    ZC_TRY(write_text(data, by_tabs(plot.rows)));
  }
  ZC_TRY(write_text(script, whole_script(plot, file)));
  const Status drawn = run_gnuplot(script);
  fs::remove(script);
  fs::remove(data);
  return drawn;
}

Status draw_all(const std::vector<Plot>& plots, const std::string& folder) {
  for (const Plot& plot : plots) {
    ZC_TRY(draw(plot, folder));
    fmt::print("{}: {}.svg, .png and .csv\n", plot.title, (fs::path(folder) / plot.name).string());
  }
  return ok();
}

}  // namespace zipcache::cli
