// Pictures of results.
#include "result_plots.hpp"

#include <fmt/format.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <fstream>
#include <map>
#include <numeric>

namespace zipcache::cli {

namespace {

// Colours that people with any colour vision tell apart (Okabe and Ito).
constexpr const char* kColours[] = {"#0072B2", "#D55E00", "#009E73", "#CC79A7",
                                    "#E69F00", "#56B4E9", "#000000", "#999999"};

// A 16-bit cache has no place on an axis of a few bits and of logarithms.
constexpr double kMostBits = 15;

std::string quoted(const std::string& text) {
  std::string out = "\"";
  for (const char c : text)
    out += c == '"' || c == '\\' ? std::string("\\") + c : std::string(1, c);
  return out + "\"";
}

std::string block(const std::string& name, const std::string& lines) {
  return fmt::format("${} << END\n{}END\n", name, lines);
}

double number(const Json& row, const char* field) { return row[field].get<double>(); }

std::string policy_of(const Json& row) { return row["policy"].get<std::string>(); }

std::string beginning(const std::string& title, const std::string& x, const std::string& y) {
  return fmt::format(
      "set title {} noenhanced\nset xlabel {}\nset ylabel {}\nset border 3\nset tics nomirror\n"
      "set grid ytics linecolor \"#dddddd\"\n",
      quoted(title), quoted(x), quoted(y));
}

// Rows whose divergence has a logarithm and whose bits fit on the axis.
std::vector<Json> shown(const ResultGroup& group) {
  std::vector<Json> rows;
  for (const Json& row : group.rows) {
    if (number(row, "kld_mean") > 0 && number(row, "bits_resident") < kMostBits)
      rows.push_back(row);
  }
  return rows;
}

Plot over_bits(const ResultGroup& group, const std::vector<Json>& rows) {
  std::vector<std::pair<double, double>> points;
  std::string data, line;
  for (const Json& row : rows) {
    points.emplace_back(number(row, "bits_resident"), number(row, "kld_mean"));
    data += fmt::format("{} {} {} {}\n", points.back().first, points.back().second,
                        1.96 * number(row, "kld_mean_se"), quoted(policy_of(row)));
  }
  for (const size_t at : pareto(points))
    line += fmt::format("{} {}\n", points[at].first, points[at].second);
  const auto [least, most] = std::minmax_element(points.begin(), points.end());
  const double room = std::max(0.5, 0.35 * (most->first - least->first));  // for the last name
  std::string script = beginning(group.title, "bits per element, all bytes",
                                 "divergence from the 16-bit cache (KLD, nats)");
  script += block("points", data) + block("best", line);
  script += fmt::format(
      "set logscale y\nset format y \"%g\"\nset xrange [{:.2f}:{:.2f}]\nunset key\n"
      "draw = 'plot $best using 1:2 with lines linewidth 2 linecolor \"#999999\", "
      "$points using 1:2:3 with yerrorbars pointtype 7 linecolor \"{}\", "
      "$points using 1:2:4 with labels left offset 0.8,0.4 noenhanced'\n",
      least->first - 0.3, most->first + room, kColours[0]);
  return {"bits-" + group.name, "divergence over bits", script};
}

Plot by_depth(const ResultGroup& group, const std::vector<Json>& rows) {
  std::string data, commands;
  for (size_t i = 0; i < rows.size(); ++i) {
    std::string lines;
    for (const Json& bin : rows[i].value("by_depth", Json::array())) {
      const double mean = number(bin, "kld_mean");
      const double middle = (number(bin, "from") + number(bin, "to")) / 2;
      if (mean > 0)
        lines += fmt::format("{} {} {}\n", middle, mean, 1.96 * number(bin, "kld_mean_se"));
    }
    data += block(fmt::format("policy{}", i), lines);
    commands += fmt::format(
        "{}$policy{} using 1:2:3 with yerrorlines linewidth 1.5 pointtype 7 pointsize 0.6 "
        "linecolor \"{}\" dashtype {} title {} noenhanced",
        i == 0 ? "" : ", ", i, kColours[i % std::size(kColours)], 1 + i / std::size(kColours),
        quoted(policy_of(rows[i])));
  }
  std::string script = beginning(group.title, "position of the token",
                                 "divergence from the 16-bit cache (KLD, nats)");
  script += data + "set logscale y\nset format y \"%g\"\nset key outside right top\n";
  script += fmt::format("draw = 'plot {}'\n", commands);
  return {"depth-" + group.name, "divergence by position", script};
}

Plot over_lines(const ResultGroup& group) {
  const std::vector<std::string> policies = policies_of(group);
  std::string data, commands;
  for (size_t i = 0; i < policies.size(); ++i) {
    std::map<int, std::string> lines;
    for (const Json& row : group.rows) {
      if (policy_of(row) != policies[i]) continue;
      const int count = row["lines"].get<int>();
      lines[count] = fmt::format("{} {} {} {}\n", count, 100 * number(row, "accuracy"),
                                 100 * number(row, "low95"), 100 * number(row, "high95"));
    }
    const std::string joined =
        std::accumulate(lines.begin(), lines.end(), std::string(),
                        [](std::string all, const auto& entry) { return all + entry.second; });
    data += block(fmt::format("policy{}", i), joined);
    commands += fmt::format(
        "{}$policy{} using 1:2:3:4 with yerrorlines linewidth 1.5 pointtype 7 pointsize 0.6 "
        "linecolor \"{}\" dashtype {} title {} noenhanced",
        i == 0 ? "" : ", ", i, kColours[i % std::size(kColours)], 1 + i / std::size(kColours),
        quoted(policies[i]));
  }
  std::string script = beginning(group.title, "lines of the record", "right answers (%)");
  script +=
      data + "set yrange [0:103]\nset key outside right top\nset offsets graph 0.05, graph 0.05\n";
  script += fmt::format("draw = 'plot {}'\n", commands);
  return {"retrieval-" + group.name, "right answers over lines", script};
}

// Runs gnuplot on the file `script`.
Status run_gnuplot(const std::string& script) {
  std::string program = "gnuplot", argument = script;
  char* arguments[] = {program.data(), argument.data(), nullptr};
  pid_t process = 0;
  const int error = posix_spawnp(&process, program.c_str(), nullptr, nullptr, arguments, environ);
  if (error != 0) {
    return {Code::Environment,
            fmt::format("gnuplot: {}; expected it for --plots: install the package gnuplot-nox or "
                        "leave --plots out",
                        std::strerror(error))};
  }
  int status = 0;
  waitpid(process, &status, 0);
  if (status == 0) return ok();
  return {Code::Environment, "gnuplot failed; its message stands above"};
}

}  // namespace

std::vector<Plot> plots_of(const ResultGroup& group) {
  if (group.task == "retrieval") return {over_lines(group)};
  const std::vector<Json> rows = shown(group);
  if (rows.empty()) return {};
  return {over_bits(group, rows), by_depth(group, rows)};
}

std::vector<size_t> pareto(std::span<const std::pair<double, double>> points) {
  std::vector<size_t> order(points.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::sort(order.begin(), order.end(), [&](size_t a, size_t b) { return points[a] < points[b]; });
  std::vector<size_t> best;
  for (const size_t at : order) {
    if (best.empty() || points[at].second < points[best.back()].second) best.push_back(at);
  }
  return best;
}

Status draw(const Plot& plot, const std::filesystem::path& folder) {
  const std::string file = (folder / plot.name).string();
  const std::string script_file = file + ".gnuplot";
  {
    std::ofstream script(script_file);
    script << fmt::format(
        "{}set terminal svg size 760,460 noenhanced font \"sans,13\" background rgb \"white\"\n"
        "set output {}\neval draw\n"
        "set terminal pngcairo size 1140,690 noenhanced font \"sans,15\"\nset output {}\n"
        "eval draw\n",
        plot.script, quoted(file + ".svg"), quoted(file + ".png"));
    if (!script) {
      return {Code::Environment,
              fmt::format("--plots: cannot write '{}': {}", script_file, std::strerror(errno))};
    }
  }
  const Status drawn = run_gnuplot(script_file);
  std::filesystem::remove(script_file);
  return drawn;
}

}  // namespace zipcache::cli
