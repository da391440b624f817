// Roofline of attention on a GPU, from rows of `zipcache bench cuda` or bench/cuda_peers.py.
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>

#include "plot_kinds.hpp"

namespace zipcache::cli {

namespace {

constexpr const char* kHalf = "16 bits";  // the fastest of PyTorch's kernels in the same run

struct Picture {
  std::string name, title;
  double copy_gbps = 0;
  std::vector<Json> rows;
};

double number(const Json& row, const char* field) { return row.at(field).get<double>(); }

// Scores and sums: 4 operations for each query head, token and channel.
double operations_of(const Json& row) {
  return 4 * number(row, "depth") * number(row, "batch") * number(row, "n_head") *
         number(row, "d_head") * row.value("n_queries", 1.0);
}

double half_bytes_of(const Json& row) {
  return 4 * number(row, "depth") * number(row, "batch") * number(row, "n_head_kv") *
         number(row, "d_head");
}

Json point(const Json& row, const std::string& series, double bytes, double us) {
  const double operations = operations_of(row);
  return {{"policy", series},
          {"depth", row.at("depth")},
          {"batch", row.at("batch")},
          {"operations_per_byte", operations / bytes},
          {"tflops", operations / us / 1e6},
          {"roof", operations / bytes * number(row, "copy_gbps") / 1e3}};
}

void add_row(const Json& row, std::vector<Picture>& pictures) {
  const std::string title =
      fmt::format("attention of {} query token{} · {} query and {} KV heads of {} · {}",
                  row.value("n_queries", 1), row.value("n_queries", 1) == 1 ? "" : "s",
                  row.at("n_head").get<int>(), row.at("n_head_kv").get<int>(),
                  row.at("d_head").get<int>(), row.at("gpu").get<std::string>());
  auto found = std::find_if(pictures.begin(), pictures.end(),
                            [&](const Picture& picture) { return picture.title == title; });
  if (found == pictures.end()) {
    const std::string name = fmt::format(
        "roofline-{}-{}-{}-{}-{}", row.at("n_head").get<int>(), row.at("n_head_kv").get<int>(),
        row.at("d_head").get<int>(), row.value("n_queries", 1), row.at("gpu").get<std::string>());
    pictures.push_back({slug(name), title, 0, {}});
    found = pictures.end() - 1;
  }
  found->copy_gbps = std::max(found->copy_gbps, number(row, "copy_gbps"));
  found->rows.push_back(
      point(row, row.at("policy").get<std::string>(), number(row, "bytes"), number(row, "us")));
  if (!row.contains("sdpa_us")) return;
  const bool known = std::any_of(found->rows.begin(), found->rows.end(), [&](const Json& other) {
    return other["policy"] == kHalf && other["depth"] == row["depth"] &&
           other["batch"] == row["batch"];
  });
  if (!known) found->rows.push_back(point(row, kHalf, half_bytes_of(row), number(row, "sdpa_us")));
}

Plot plot_of(const Picture& picture) {
  std::vector<std::string> series;
  double least = picture.rows.front()["operations_per_byte"], most = least;
  for (const Json& row : picture.rows) {
    const std::string name = row["policy"];
    if (std::find(series.begin(), series.end(), name) == series.end()) series.push_back(name);
    least = std::min(least, row["operations_per_byte"].get<double>());
    most = std::max(most, row["operations_per_byte"].get<double>());
  }
  Plot plot;
  plot.name = picture.name;
  plot.title = "roofline: " + picture.title;
  plot.script = beginning(picture.title, "operations for each byte of the cache", "TFLOP/s") +
                fmt::format(
                    "set logscale xy\nset xrange [{:.4g}:{:.4g}]\nset key outside right "
                    "top\n",
                    least / 1.5, most * 1.5);
  std::vector<std::string> curves = {
      fmt::format("x*{:.6g} with lines linewidth 1.5 linecolor \"black\" title \"copy, {:.0f} "
                  "GB/s\"",
                  picture.copy_gbps / 1e3, picture.copy_gbps)};
  for (size_t i = 0; i < series.size(); ++i) {
    curves.push_back(fmt::format(
        "data using (column(\"operations_per_byte\")):{} with points pointtype 7 "
        "pointsize 0.9 {} title {} noenhanced",
        only("policy", series[i], "column(\"tflops\")"), line_style(i), in_quotes(series[i])));
  }
  plot.rows = picture.rows;
  plot.commands = fmt::format("plot {}", fmt::join(curves, ", "));
  plot.width = 900;
  return plot;
}

}  // namespace

Result<std::vector<Plot>> roofline_plots(std::span<const Json> rows) {
  std::vector<Picture> pictures;
  for (size_t i = 0; i < rows.size(); ++i) {
    const Json kind = rows[i].value("kind", Json());
    if (kind != "gpu_attention") {
      return Status{Code::BadData,
                    fmt::format("row {}: found {}, expected \"kind\" gpu_attention, as zipcache "
                                "bench cuda writes it with -o jsonl",
                                i + 1, kind.is_null() ? "no kind" : kind.dump())};
    }
    try {
      add_row(rows[i], pictures);
    } catch (const Json::exception& error) {
      return Status{Code::BadData, fmt::format("row {}: {}; expected a row of zipcache bench cuda",
                                               i + 1, error.what())};
    }
  }
  if (pictures.empty())
    return Status{Code::BadData, "found no row, expected those of zipcache bench cuda"};
  std::vector<Plot> plots;
  for (const Picture& picture : pictures) plots.push_back(plot_of(picture));
  return plots;
}

}  // namespace zipcache::cli
