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

// Places of the points (bits, divergence) that no other point beats in one without losing in the
// other, fewest bits first.
std::vector<size_t> pareto(std::span<const std::pair<double, double>> points);

// Writes `folder`/NAME.svg and NAME.png. Environment when gnuplot is missing or fails.
Status draw(const Plot& plot, const std::filesystem::path& folder);

}  // namespace zipcache::cli
