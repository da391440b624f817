// Pictures by gnuplot: what a script is made of, and gnuplot itself.
//
// Thread safety: pure functions, but for draw().
#pragma once

#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

#include "table.hpp"
#include "zipcache/status.hpp"

namespace zipcache::cli {

struct Plot {
  std::string name;      // of the files, without folder and ending
  std::string title;     // what it shows
  std::string script;    // settings and data blocks
  std::string commands;  // that draw; run once for each form of the picture
  // What is drawn, flat and kept as NAME.csv beside the pictures, and `data` in the commands; none
  // where the script holds its data itself.
  std::vector<Json> rows = {};
  int width = 760, height = 460;  // of the SVG; the PNG has half as many again
};

// Text in the script's quotes.
std::string in_quotes(std::string_view text);

// A named block of data inside a script.
std::string data_block(const std::string& name, const std::string& lines);

// Title and axes as all pictures have them.
std::string beginning(const std::string& title, const std::string& x, const std::string& y);

// "linecolor ... dashtype ..." of the `i`-th of several series: colours that people with any colour
// vision tell apart (Okabe and Ito), then the same with dashes.
std::string line_style(size_t i);

// Of the file that is drawn, the values of column `y` in rows whose column `where` is `value`.
std::string only(const std::string& where, const std::string& value, const std::string& y);

// Makes `folder` if need be.
Status make_folder(const std::filesystem::path& folder);

// Writes `folder`/NAME.svg and NAME.png, with rows NAME.csv too, and makes the folder if need be.
// Environment when gnuplot is missing or fails.
Status draw(const Plot& plot, const std::filesystem::path& folder);

// Draws `plots` and prints what they show and where they are.
Status draw_all(const std::vector<Plot>& plots, const std::string& folder);

}  // namespace zipcache::cli
