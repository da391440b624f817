// Pictures of results: scripts for gnuplot, and gnuplot itself.
//
// Thread safety: pure functions, but for draw().
#pragma once

#include <filesystem>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "result_tables.hpp"
#include "zipcache/status.hpp"

namespace zipcache::cli {

struct Plot {
  std::string name;    // of the files, without folder and ending
  std::string title;   // what it shows
  std::string script;  // everything but the terminal: names `draw` as the plot command
};

// The pictures of a group: divergence over bits and by depth, or accuracy over lines. Pictures that
// have nothing to show are left out.
std::vector<Plot> plots_of(const ResultGroup& group);

// One policy in a picture of divergence over bits, which must have a logarithm.
struct PlotPoint {
  std::string name;  // empty: a point without its name
  double bits = 0;
  double divergence = 0, error = 0;  // and its standard error
};

// Divergence over `bits`, the title of that axis, of one or more points.
Plot divergence_plot(const std::string& name, const std::string& title, const std::string& bits,
                     std::span<const PlotPoint> points);

// Places of the points (bits, divergence) that no other point beats in one without losing in the
// other, fewest bits first.
std::vector<size_t> pareto(std::span<const std::pair<double, double>> points);

// Writes `folder`/NAME.svg and NAME.png, and makes the folder if need be. Environment when gnuplot
// is missing or fails.
Status draw(const Plot& plot, const std::filesystem::path& folder);

}  // namespace zipcache::cli
