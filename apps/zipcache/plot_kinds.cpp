// The pictures of `zipcache plot`.
#include "plot_kinds.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>
#include <set>

namespace zipcache::cli {

namespace {

constexpr int kBlock = 128;

// kByteKinds for people.
constexpr const char* kKindWords[] = {"codes",      "parameters", "tags",   "sinks",
                                      "raw window", "scores",     "tables", "padding"};
static_assert(std::size(kKindWords) == std::size(kByteKinds));

double number(const Json& row, const char* field) { return row.at(field).get<double>(); }

// A unit in which `bytes` is a number of few digits.
struct Unit {
  const char* name;
  double bytes;
};

Unit unit_of(double bytes) {
  constexpr Unit kUnits[] = {{"GiB", 0x1p30}, {"MiB", 0x1p20}, {"KiB", 0x1p10}};
  for (const Unit& unit : kUnits) {
    if (bytes >= unit.bytes) return unit;
  }
  return {"bytes", 1};
}

// The areas of all kinds on top of each other for one policy, the highest drawn first; values are
// multiplied with `scale`.
std::string stacked(const std::string& policy, const std::string& scale) {
  std::vector<std::string> areas;
  std::string sum;
  for (size_t i = 0; i < std::size(kByteKinds); ++i) {
    sum += fmt::format("{}column(\"{}\")", i == 0 ? "" : "+", kByteKinds[i]);
    areas.push_back(fmt::format(
        "data using (column(\"tokens\")):{} with filledcurves y1=0 {} "
        "title \"{}\"",
        only("policy", policy, fmt::format("({})*{}", sum, scale)), line_style(i), kKindWords[i]));
  }
  std::reverse(areas.begin(), areas.end());
  return fmt::format("plot {}\n", fmt::join(areas, ", "));
}

// Places of ticks: even ones, and every fourth power of 2.
std::vector<int> quarters(int most) { return {0, most / 4, most / 2, most / 4 * 3, most}; }

std::vector<int> powers(int most) {
  std::vector<int> out;
  for (int at = kBlock; at <= most; at *= 4) out.push_back(at);
  return out;
}

int width_of(size_t n_policies) { return 200 + 260 * static_cast<int>(n_policies); }

double total(const Json& row) {
  double sum = 0;
  for (const char* kind : kByteKinds) sum += number(row, kind);
  return sum;
}

}  // namespace

std::vector<int> plotted_lengths(int most) {
  constexpr int kPoints = 48;
  std::set<int> lengths = {most};
  const auto add = [&](double tokens) {
    const int whole = static_cast<int>(std::lround(tokens / kBlock)) * kBlock;
    if (whole > 0 && whole < most) lengths.insert(whole);
  };
  for (int i = 0; i < kPoints; ++i) {
    const double share = static_cast<double>(i) / kPoints;
    add(share * most);
    add(kBlock * std::pow(static_cast<double>(most) / kBlock, share));
  }
  return {lengths.begin(), lengths.end()};
}

Plot bytes_plot(const std::string& subject, const std::vector<std::string>& policies,
                const std::vector<Json>& rows) {
  double most = 0, most_bits = 16;
  int longest = 0;
  for (const Json& row : rows) {
    longest = std::max(longest, row.at("tokens").get<int>());
    most = std::max(most, total(row));
    most_bits = std::max(most_bits, 8 * total(row) / number(row, "elements"));
  }
  const Unit unit = unit_of(most);
  const double width = width_of(policies.size());
  std::string commands = fmt::format(
      "set multiplot layout 2,{} columnsfirst title {} noenhanced margins {},{},0.12,0.86 "
      "spacing {},0.13\nset key at screen 0.99,0.5 right center invert reverse Left samplen 1\n",
      policies.size(), in_quotes(subject), 70 / width, 1 - 150 / width, 50 / width);
  for (size_t i = 0; i < policies.size(); ++i) {
    const bool first = i == 0;
    commands += fmt::format(
        "set title {} noenhanced\nunset logscale x\nunset xlabel\nset xtics ({})\n"
        "set xrange [0:{}]\nset yrange [0:{}]\nset ylabel \"{}\"\n{}unset key\nunset title\n",
        in_quotes(policies[i]), fmt::join(quarters(longest), ","), longest,
        1.05 * most / unit.bytes, first ? unit.name : "",
        stacked(policies[i], fmt::format("{:g}", 1 / unit.bytes)));
    commands += fmt::format(
        "set logscale x\nset xlabel \"tokens\"\nset xtics ({})\nset xrange [{}:{}]\n"
        "set yrange [0:{}]\nset ylabel \"{}\"\n{}",
        fmt::join(powers(longest), ","), kBlock, longest, std::min(most_bits, 20.0),
        first ? "bits per element" : "", stacked(policies[i], "8/column(\"elements\")"));
  }
  Plot plot;
  plot.name = "bytes-" + slug(fmt::format("{}-{}", subject, fmt::join(policies, "-")));
  plot.title = "bytes by kind over the length of the text";
  plot.script = "set border 3\nset tics nomirror\nset style fill solid 0.8 noborder\n";
  plot.commands = commands + "unset multiplot\n";
  plot.rows = rows;
  plot.width = width_of(policies.size());
  plot.height = 560;
  return plot;
}

}  // namespace zipcache::cli
