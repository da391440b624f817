// Pictures of results.
//
// Thread safety: pure functions.
#pragma once

#include <span>
#include <string>
#include <utility>
#include <vector>

#include "gnuplot.hpp"
#include "result_tables.hpp"

namespace zipcache::cli {

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

}  // namespace zipcache::cli
