// Pictures of results.
#include "result_plots.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <cstring>
#include <fstream>
#include <numeric>

#include "child.hpp"

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

// The name of `points[at]` would run into another point on its right.
bool crowded(std::span<const PlotPoint> points, size_t at, double width) {
  return std::any_of(points.begin(), points.end(), [&](const PlotPoint& other) {
    const double right = (other.bits - points[at].bits) / width;
    return right > 0 && right < 0.2 &&
           std::abs(std::log10(other.divergence / points[at].divergence)) < 0.2;
  });
}

Plot over_bits(const ResultGroup& group, const std::vector<Json>& rows) {
  std::vector<PlotPoint> points;
  for (const Json& row : rows) {
    points.push_back({policy_of(row), number(row, "bits_resident"), number(row, "kld_mean"),
                      number(row, "kld_mean_se")});
  }
  return divergence_plot("bits-" + group.name, group.title, "bits per element, all bytes", points);
}

// One curve with error bars for each policy, and `settings`.
std::string curves(const std::vector<std::string>& policies, const std::vector<std::string>& data,
                   const std::string& columns, const std::string& settings) {
  std::string blocks, commands;
  for (size_t i = 0; i < policies.size(); ++i) {
    blocks += block(fmt::format("policy{}", i), data[i]);
    commands += fmt::format(
        "{}$policy{} using {} with yerrorlines linewidth 1.5 pointtype 7 pointsize 0.6 "
        "linecolor \"{}\" dashtype {} title {} noenhanced",
        i == 0 ? "" : ", ", i, columns, kColours[i % std::size(kColours)],
        1 + i / std::size(kColours), quoted(policies[i]));
  }
  return fmt::format("{}{}set key outside right top\ndraw = 'plot {}'\n", blocks, settings,
                     commands);
}

Plot by_depth(const ResultGroup& group, const std::vector<Json>& rows) {
  std::vector<std::string> policies, data;
  for (const Json& row : rows) {
    std::string lines;
    for (const Json& bin : row.value("by_depth", Json::array())) {
      const double mean = number(bin, "kld_mean");
      const double middle = (number(bin, "from") + number(bin, "to")) / 2;
      // Where nothing is packed yet the divergence is 0, which has no logarithm.
      if (mean > 0)
        lines += fmt::format("{} {} {}\n", middle, mean, 1.96 * number(bin, "kld_mean_se"));
    }
    policies.push_back(policy_of(row));
    data.push_back(lines);
  }
  return {(group.task == "drift" ? "drift-" : "depth-") + group.name, "divergence by position",
          beginning(group.title, "position of the token",
                    "divergence from the 16-bit cache (KLD, nats)") +
              curves(policies, data, "1:2:3",
                     "set logscale y\nset format y \"%g\"\nset xrange [0:*]\n")};
}

// Right answers over an axis of numbers: lines, depth, distance.
Plot over_axis(const ResultGroup& group) {
  const std::vector<std::string> policies = policies_of(group);
  std::vector<double> values;
  for (const Json& value : axis_values(group)) values.push_back(value.get<double>());
  const double width = values.back() - values.front();
  std::vector<std::string> data(policies.size());
  for (size_t i = 0; i < policies.size(); ++i) {
    for (const double value : values) {
      for (const Json& row : group.rows) {
        if (policy_of(row) != policies[i] || axis_value(group, row) != value) continue;
        // Side by side, since many have the same share of right answers.
        data[i] += fmt::format("{} {} {} {}\n", value + 0.008 * width * static_cast<double>(i),
                               100 * number(row, "accuracy"), 100 * number(row, "low95"),
                               100 * number(row, "high95"));
      }
    }
  }
  return {fmt::format("{}-{}", group.task, group.name), "right answers over " + axis_name(group),
          beginning(group.title, axis_name(group), "right answers (%)") +
              curves(policies, data, "1:2:3:4",
                     fmt::format("set yrange [0:103]\nset xtics ({})\nset xrange [{}:{}]\n",
                                 fmt::join(values, ","), values.front() - 0.05 * width,
                                 values.back() + 0.1 * width))};
}

// The curves need numbers on both axes, and more than one place.
bool has_curves(const ResultGroup& group) {
  const std::vector<Json> values = axis_values(group);
  return values.size() > 1 &&
         std::all_of(values.begin(), values.end(), [](const Json& v) { return v.is_number(); }) &&
         std::all_of(group.rows.begin(), group.rows.end(),
                     [](const Json& row) { return row.contains("accuracy"); });
}

// Runs gnuplot on the file `script`.
Status run_gnuplot(const std::string& script) {
  const Result<int> status = run_program({"gnuplot", script});
  if (!status.ok()) {
    return {Code::Environment, status.status().message() +
                                   "; expected it for --plots: install the package "
                                   "gnuplot-nox or leave --plots out"};
  }
  if (*status == 0) return ok();
  return {Code::Environment, "gnuplot failed; its message stands above"};
}

}  // namespace

Plot divergence_plot(const std::string& name, const std::string& title, const std::string& bits,
                     std::span<const PlotPoint> points) {
  std::vector<std::pair<double, double>> places;
  for (const PlotPoint& point : points) places.emplace_back(point.bits, point.divergence);
  const auto [least, most] = std::minmax_element(places.begin(), places.end());
  const double width = std::max(1.0, most->first - least->first);
  std::string data, right, left, line;
  for (size_t i = 0; i < points.size(); ++i) {
    const PlotPoint& point = points[i];
    data += fmt::format("{} {} {}\n", point.bits, point.divergence, 1.96 * point.error);
    if (point.name.empty()) continue;
    (crowded(points, i, width) ? left : right) +=
        fmt::format("{} {} {}\n", point.bits, point.divergence, quoted(point.name));
  }
  for (const size_t at : pareto(places))
    line += fmt::format("{} {}\n", places[at].first, places[at].second);
  std::string script = beginning(title, bits, "divergence from the 16-bit cache (KLD, nats)") +
                       block("points", data) + block("best", line);
  std::string names;
  const auto label = [&](const char* side, const std::string& lines, const char* where) {
    if (lines.empty()) return;
    script += block(side, lines);
    names += fmt::format(", ${} using 1:2:3 with labels {} noenhanced", side, where);
  };
  label("right", right, "left offset 0.8,0.4");
  label("left", left, "right offset -0.8,-0.4");
  script += fmt::format(
      "set logscale y\nset format y \"%g\"\nset xrange [{:.2f}:{:.2f}]\nunset key\n"
      "draw = 'plot $best using 1:2 with lines linewidth 2 linecolor \"#999999\", "
      "$points using 1:2:3 with yerrorbars pointtype 7 linecolor \"{}\"{}'\n",
      least->first - 0.2 * width, most->first + 0.3 * width, kColours[0], names);
  return {name, "divergence over bits", script};
}

std::vector<Plot> plots_of(const ResultGroup& group) {
  if (group.rows.front().contains("records"))
    return has_curves(group) ? std::vector<Plot>{over_axis(group)} : std::vector<Plot>{};
  // Streams of their own have no divergence.
  if (!group.rows.front().contains("kld_mean")) return {};
  const std::vector<Json> rows = shown(group);
  if (rows.empty()) return {};
  if (group.task == "drift") return {by_depth(group, rows)};
  std::vector<Plot> plots = {over_bits(group, rows)};
  if (rows.front().contains("by_depth")) plots.push_back(by_depth(group, rows));
  return plots;
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
  std::error_code error;
  std::filesystem::create_directories(folder, error);
  if (error) {
    return {Code::Environment,
            fmt::format("--plots: cannot make folder '{}': {}", folder.string(), error.message())};
  }
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
