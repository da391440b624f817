// Writers of results: Markdown tables for people, CSV, JSON and JSON lines for programs.
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "zipcache/status.hpp"

namespace zipcache::cli {

using Json = nlohmann::ordered_json;

enum class Format { Md, Csv, Json, Jsonl };

// Names as -o takes them, in the order of Format.
inline constexpr std::string_view kFormatNames[] = {"md", "csv", "json", "jsonl"};

Result<Format> parse_format(std::string_view name);

struct Column {
  std::string title;
  bool right = true;  // numbers stand right, words left
};

// An aligned Markdown table; `rows` have as many cells as there are columns. `bold` begins and ends
// the titles with terminal codes.
std::string markdown(const std::vector<Column>& columns,
                     const std::vector<std::vector<std::string>>& rows, bool bold = false);

// One line of names, then one a row. Objects inside a row become name_inner columns; null and names
// that a row lacks are empty.
std::string csv(const std::vector<Json>& rows);
std::string json(const std::vector<Json>& rows);   // one array
std::string jsonl(const std::vector<Json>& rows);  // one object a line

// `rows` in one of the three forms for programs.
std::string for_programs(Format format, const std::vector<Json>& rows);

// Columns that `text` takes on a terminal: bytes that do not continue a character.
size_t width(std::string_view text);

// `text` as part of a file's name: letters, digits and points; everything else is a dash.
std::string slug(std::string_view text);

}  // namespace zipcache::cli
