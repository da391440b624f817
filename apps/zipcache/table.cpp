// Writers of results.
#include "table.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cctype>

namespace zipcache::cli {

namespace {

std::string padded(const std::string& text, size_t columns, bool right) {
  const std::string space(columns - std::min(columns, width(text)), ' ');
  return right ? space + text : text + space;
}

std::string line(const std::vector<Column>& columns, const std::vector<std::string>& cells,
                 const std::vector<size_t>& widths, bool bold) {
  std::string out = "|";
  for (size_t c = 0; c < columns.size(); ++c) {
    const std::string cell = padded(cells[c], widths[c], columns[c].right);
    out += bold ? fmt::format(" \x1b[1m{}\x1b[0m |", cell) : fmt::format(" {} |", cell);
  }
  return out + "\n";
}

std::string rule(const std::vector<Column>& columns, const std::vector<size_t>& widths) {
  std::string out = "|";
  for (size_t c = 0; c < columns.size(); ++c) {
    const std::string dashes(widths[c] + 1, '-');
    out += columns[c].right ? dashes + ":|" : ":" + dashes + "|";
  }
  return out + "\n";
}

// A bar would end the cell, a line break the table.
std::string escaped(std::string cell) {
  for (size_t at = 0; (at = cell.find_first_of("|\n", at)) != std::string::npos; at += 2) {
    cell.replace(at, 1, cell[at] == '|' ? "\\|" : "  ");
  }
  return cell;
}

std::string quoted(const std::string& text) {
  if (text.find_first_of(",\"\n") == std::string::npos) return text;
  std::string out = "\"";
  for (const char c : text) out += c == '"' ? std::string("\"\"") : std::string(1, c);
  return out + "\"";
}

std::string csv_cell(const Json& value) {
  if (value.is_null() || (value.is_number_float() && value.dump() == "null")) return "";
  return quoted(value.is_string() ? value.get<std::string>() : value.dump());
}

Json flat(const Json& row) {
  Json out = Json::object();
  for (const auto& [name, value] : row.items()) {
    if (!value.is_object()) {
      out[name] = value;
      continue;
    }
    for (const auto& [inner, inner_value] : value.items()) out[name + "_" + inner] = inner_value;
  }
  return out;
}

std::string dump(const Json& value, int indent) {
  // Text from files may be broken UTF-8; it must not break the output.
  return value.dump(indent, ' ', false, Json::error_handler_t::replace);
}

}  // namespace

Result<Format> parse_format(std::string_view name) {
  const auto found = std::find(std::begin(kFormatNames), std::end(kFormatNames), name);
  if (found == std::end(kFormatNames)) {
    return Status{Code::BadArgument, fmt::format("--output: found '{}', expected {}", name,
                                                 fmt::join(kFormatNames, ", "))};
  }
  return static_cast<Format>(found - std::begin(kFormatNames));
}

std::string markdown(const std::vector<Column>& columns,
                     const std::vector<std::vector<std::string>>& rows, bool bold) {
  std::vector<std::vector<std::string>> cells = rows;
  std::vector<std::string> titles;
  std::vector<size_t> widths;
  for (const Column& column : columns) {
    titles.push_back(column.title);
    widths.push_back(width(column.title));
  }
  for (auto& row : cells) {
    for (size_t c = 0; c < columns.size(); ++c) {
      row[c] = escaped(row[c]);
      widths[c] = std::max(widths[c], width(row[c]));
    }
  }
  std::string out = line(columns, titles, widths, bold) + rule(columns, widths);
  for (const auto& row : cells) out += line(columns, row, widths, false);
  return out;
}

std::string csv(const std::vector<Json>& rows) {
  std::vector<Json> lines;
  std::vector<std::string> names;
  for (const Json& row : rows) {
    lines.push_back(flat(row));
    for (const auto& [name, value] : lines.back().items()) {
      if (std::find(names.begin(), names.end(), name) == names.end()) names.push_back(name);
    }
  }
  if (names.empty()) return "";
  std::string out = fmt::format("{}\n", fmt::join(names, ","));
  for (const Json& values : lines) {
    std::vector<std::string> cells;
    for (const std::string& name : names) cells.push_back(csv_cell(values.value(name, Json())));
    out += fmt::format("{}\n", fmt::join(cells, ","));
  }
  return out;
}

std::string json(const std::vector<Json>& rows) { return dump(Json(rows), 2) + "\n"; }

std::string jsonl(const std::vector<Json>& rows) {
  std::string out;
  for (const Json& row : rows) out += dump(row, -1) + "\n";
  return out;
}

std::string for_programs(Format format, const std::vector<Json>& rows) {
  if (format == Format::Csv) return csv(rows);
  return format == Format::Json ? json(rows) : jsonl(rows);
}

size_t width(std::string_view text) {
  return std::count_if(text.begin(), text.end(), [](char c) { return (c & 0xC0) != 0x80; });
}

std::string slug(std::string_view text) {
  std::string out;
  for (const char c : text) {
    const bool plain = std::isalnum(static_cast<unsigned char>(c)) != 0 || c == '.';
    out += plain ? c : '-';
  }
  return out;
}

}  // namespace zipcache::cli
