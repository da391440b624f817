// Pictures of results.
#include "result_plots.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>
#include <numeric>

namespace zipcache::cli {

namespace {

// A 16-bit cache has no place on an axis of a few bits and of logarithms.
constexpr double kMostBits = 15;

double number(const Json& row, const char* field) { return row[field].get<double>(); }

std::string policy_of(const Json& row) { return row["policy"].get<std::string>(); }

// Rows whose divergence has a logarithm and whose bits fit on the axis.
std::vector<Json> shown(const ResultGroup& group) {
  std::vector<Json> rows;
  for (const Json& row : group.rows) {
    if (number(row, "kld_mean") > 0 && number(row, "bits_resident") < kMostBits)
      rows.push_back(row);
  }
  return rows;
}

// So many names find room beside their points; more stand in a key.
constexpr size_t kMostNames = 12;

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

// One curve with error bars for each policy.
struct Curves {
  std::string blocks, commands;
};

Curves curves(const std::vector<std::string>& policies, const std::vector<std::string>& data,
              const std::string& columns) {
  Curves out;
  for (size_t i = 0; i < policies.size(); ++i) {
    out.blocks += data_block(fmt::format("policy{}", i), data[i]);
    out.commands += fmt::format(
        "{}$policy{} using {} with yerrorlines linewidth 1.5 pointtype 7 pointsize 0.6 {} title {} "
        "noenhanced",
        i == 0 ? "plot " : ", ", i, columns, line_style(i), in_quotes(policies[i]));
  }
  out.blocks += "set key outside right top\n";
  return out;
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
  const Curves drawn = curves(policies, data, "1:2:3");
  return {(group.task == "drift" ? "drift-" : "depth-") + group.name, "divergence by position",
          beginning(group.title, "position of the token",
                    "divergence from the 16-bit cache (KLD, nats)") +
              drawn.blocks + "set logscale y\nset format y \"%g\"\nset xrange [0:*]\n",
          drawn.commands};
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
  const Curves drawn = curves(policies, data, "1:2:3:4");
  return {fmt::format("{}-{}", group.task, group.name), "right answers over " + axis_name(group),
          beginning(group.title, axis_name(group), "right answers (%)") + drawn.blocks +
              fmt::format("set yrange [0:103]\nset xtics ({})\nset xrange [{}:{}]\n",
                          fmt::join(values, ","), values.front() - 0.05 * width,
                          values.back() + 0.1 * width),
          drawn.commands};
}

// Points of a plot of divergences.
struct Marks {
  std::string blocks, commands;
};

std::string numbers_of(const PlotPoint& point) {
  return fmt::format("{} {} {}", point.bits, point.divergence, 1.96 * point.error);
}

Marks marks_with_names(std::span<const PlotPoint> points, double width) {
  std::string data, right, left;
  for (size_t i = 0; i < points.size(); ++i) {
    data += numbers_of(points[i]) + "\n";
    if (points[i].name.empty()) continue;
    (crowded(points, i, width) ? left : right) +=
        fmt::format("{} {} {}\n", points[i].bits, points[i].divergence, in_quotes(points[i].name));
  }
  Marks marks = {
      data_block("points", data) + "unset key\n",
      fmt::format(", $points using 1:2:3 with yerrorbars pointtype 7 {}", line_style(0))};
  const auto label = [&](const char* side, const std::string& lines, const char* where) {
    if (lines.empty()) return;
    marks.blocks += data_block(side, lines);
    marks.commands += fmt::format(", ${} using 1:2:3 with labels {} noenhanced", side, where);
  };
  label("right", right, "left offset 0.8,0.4");
  label("left", left, "right offset -0.8,-0.4");
  return marks;
}

// Each point with a colour and a shape of its own, in the order of bits. Points without a name look
// alike and have no line in the key.
Marks marks_in_key(std::span<const PlotPoint> points) {
  constexpr int kShapes[] = {7, 5, 9, 13};  // filled
  std::string unnamed;
  Marks marks = {"set key outside right top\n", ""};
  for (size_t i = 0; i < points.size(); ++i) {
    if (points[i].name.empty()) {
      unnamed += numbers_of(points[i]) + "\n";
      continue;
    }
    marks.blocks += data_block(fmt::format("point{}", i), numbers_of(points[i]) + "\n");
    marks.commands +=
        fmt::format(", $point{} using 1:2:3 with yerrorbars pointtype {} {} title {} noenhanced", i,
                    kShapes[i / 7 % std::size(kShapes)], line_style(i), in_quotes(points[i].name));
  }
  if (unnamed.empty()) return marks;
  marks.blocks += data_block("unnamed", unnamed);
  marks.commands +=
      ", $unnamed using 1:2:3 with yerrorbars pointtype 6 linecolor \"#999999\" notitle";
  return marks;
}

// The curves need numbers on both axes, and more than one place.
bool has_curves(const ResultGroup& group) {
  const std::vector<Json> values = axis_values(group);
  return values.size() > 1 &&
         std::all_of(values.begin(), values.end(), [](const Json& v) { return v.is_number(); }) &&
         std::all_of(group.rows.begin(), group.rows.end(),
                     [](const Json& row) { return row.contains("accuracy"); });
}

}  // namespace

Plot divergence_plot(const std::string& name, const std::string& title, const std::string& bits,
                     std::span<const PlotPoint> points) {
  std::vector<std::pair<double, double>> places;
  for (const PlotPoint& point : points) places.emplace_back(point.bits, point.divergence);
  const auto [least, most] = std::minmax_element(places.begin(), places.end());
  const double width = std::max(1.0, most->first - least->first);
  std::string line;
  for (const size_t at : pareto(places))
    line += fmt::format("{} {}\n", places[at].first, places[at].second);
  const Marks marks =
      points.size() > kMostNames ? marks_in_key(points) : marks_with_names(points, width);
  return {
      name, "divergence over bits",
      beginning(title, bits, "divergence from the 16-bit cache (KLD, nats)") +
          data_block("best", line) + marks.blocks +
          fmt::format("set logscale y\nset format y \"%g\"\nset xrange [{:.2f}:{:.2f}]\n",
                      least->first - 0.2 * width, most->first + 0.3 * width),
      "plot $best using 1:2 with lines linewidth 2 linecolor \"#999999\" notitle" + marks.commands};
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

}  // namespace zipcache::cli
