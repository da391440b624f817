// Speed over depth, from rows of `zipcache bench`.
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>

#include "plot_kinds.hpp"

namespace zipcache::cli {

namespace {

// What two rows must share to stand in one picture.
constexpr const char* kAttentionKey[] = {"cpu",       "threads", "n_head",
                                         "n_head_kv", "d_head",  "batch"};
constexpr const char* kModelKey[] = {"cpu", "threads", "model", "model_type", "ubatch"};

constexpr const char* kReference = "llama:f16";

struct Point {
  std::string series, isa;
  double depth = 0, value = 0, spread = 0;
};

struct Picture {
  std::string kind, title, name;
  std::vector<Point> points;
};

double number(const Json& row, const char* field) { return row.at(field).get<double>(); }

std::string words(const Json& value) {
  return value.is_string() ? value.get<std::string>() : value.dump();
}

std::string threads_text(const Json& row) {
  const int n = row.at("threads").get<int>();
  return fmt::format("{} thread{}", n, n == 1 ? "" : "s");
}

std::string title_of(const Json& row, bool attention) {
  if (attention) {
    return fmt::format("attention of one token · {} query and {} KV heads of {} · {} · {}",
                       words(row.at("n_head")), words(row.at("n_head_kv")), words(row.at("d_head")),
                       threads_text(row), words(row.at("cpu")));
  }
  const int n_prompt = row.at("n_prompt").get<int>();
  return fmt::format("{} · {} · {} · {}",
                     n_prompt > 0 ? fmt::format("prompt of {} tokens", n_prompt) : "generation",
                     words(row.at("model")), threads_text(row), words(row.at("cpu")));
}

std::string name_of(const Json& row, bool attention) {
  std::string name = attention ? "speed-attention" : "speed-model";
  if (attention) {
    for (const char* field : kAttentionKey) name += "-" + words(row.at(field));
    return slug(name);
  }
  const int n_prompt = row.at("n_prompt").get<int>();
  name += n_prompt > 0 ? fmt::format("-pp{}", n_prompt) : "-tg";
  for (const char* field : kModelKey) name += "-" + words(row.at(field));
  return slug(name);
}

// The row of llama.cpp's 16-bit cache that rows[at] was measured beside: of several the nearest.
const Json* reference_of(std::span<const Json> rows, size_t at) {
  const auto same = [&](const Json& other) {
    return other.value("policy", "") == kReference &&
           other.value("depth", -1) == rows[at]["depth"] &&
           std::all_of(std::begin(kAttentionKey), std::end(kAttentionKey),
                       [&](const char* f) { return other.value(f, Json()) == rows[at][f]; });
  };
  for (size_t away = 0; away < rows.size(); ++away) {
    if (away <= at && same(rows[at - away])) return &rows[at - away];
    if (at + away < rows.size() && same(rows[at + away])) return &rows[at + away];
  }
  return nullptr;
}

// Half the width of the middle half, as a share of the median.
double relative_spread(const Json& row) { return number(row, "ms_iqr") / number(row, "ms"); }

// A ratio's spread takes in both caches', which vary independently.
Point attention_point(std::span<const Json> rows, size_t at, bool ratio) {
  const Json& row = rows[at];
  Point point{words(row.at("policy")), words(row.at("isa")), number(row, "depth"),
              number(row, "ms"), number(row, "ms_iqr")};
  if (!ratio) return point;
  point.value = number(row, "vs_ggml_f16");
  const Json* reference = reference_of(rows, at);
  if (reference == &row) return point.spread = 0, point;
  const double theirs = reference ? relative_spread(*reference) : 0;
  point.spread = point.value * std::hypot(relative_spread(row), theirs);
  return point;
}

Point model_point(const Json& row, bool ratio) {
  return {words(row.at("policy")), words(row.at("isa")), number(row, "depth"),
          number(row, ratio ? "vs_llama_f16" : "tps_mean"),
          number(row, ratio ? "vs_llama_f16_sd" : "tps_sd")};
}

// The last of several measurements of one point counts.
void add(std::vector<Point>& points, const Point& point) {
  const auto old = std::find_if(points.begin(), points.end(), [&](const Point& other) {
    return other.series == point.series && other.isa == point.isa && other.depth == point.depth;
  });
  if (old == points.end())
    points.push_back(point);
  else
    *old = point;
}

// Where a policy was measured with several instruction sets its name says which.
void name_sets(std::vector<Point>& points) {
  std::vector<Point> named = points;
  for (Point& point : named) {
    const bool several = std::any_of(points.begin(), points.end(), [&](const Point& other) {
      return other.series == point.series && other.isa != point.isa;
    });
    if (several) point.series += fmt::format(" ({})", point.isa);
  }
  points = named;
}

std::string y_axis(const Picture& picture, bool ratio) {
  if (ratio) return "times as fast as llama.cpp's 16-bit cache";
  return picture.kind == "attention" ? "milliseconds (median, middle half)"
                                     : "tokens per second (mean, standard deviation)";
}

Plot plot_of(Picture& picture, bool ratio) {
  name_sets(picture.points);
  std::vector<std::string> series;
  std::vector<double> depths;
  for (const Point& p : picture.points) {
    if (std::find(series.begin(), series.end(), p.series) == series.end())
      series.push_back(p.series);
    if (std::find(depths.begin(), depths.end(), p.depth) == depths.end()) depths.push_back(p.depth);
  }
  std::sort(depths.begin(), depths.end());
  std::stable_sort(picture.points.begin(), picture.points.end(),
                   [](const Point& a, const Point& b) { return a.depth < b.depth; });
  Plot plot;
  plot.name = picture.name + (ratio ? "-ratio" : "");
  plot.title =
      (ratio ? "ratio to the 16-bit cache over depth: " : "speed over depth: ") + picture.title;
  // An empty cache has no place on an axis of logarithms.
  const bool logarithms = depths.front() > 0;
  plot.script = beginning(picture.title, "tokens in the cache", y_axis(picture, ratio)) +
                fmt::format("set xtics ({})\nset key outside right top\n", fmt::join(depths, ","));
  if (logarithms) {
    plot.script += fmt::format("set logscale x\nset xrange [{}:{}]\n", depths.front() / 1.25,
                               depths.back() * 1.25);
  } else {
    plot.script +=
        fmt::format("set xrange [{}:{}]\n", -0.05 * depths.back() - 1, 1.05 * depths.back() + 1);
  }
  if (picture.kind == "attention" && !ratio)
    plot.script += "set logscale y\n";
  else
    plot.script += "set yrange [0:*]\n";
  // Side by side, since several may have the same value.
  const double step =
      logarithms ? std::pow(1.5 * depths.back() / depths.front(), 0.008) : 0.008 * depths.back();
  std::vector<std::string> curves;
  for (size_t i = 0; i < series.size(); ++i) {
    curves.push_back(fmt::format(
        "data using (column(\"depth\"){}{:.5g}):{}:(column(\"spread\")) with yerrorlines linewidth "
        "1.5 "
        "pointtype 7 pointsize 0.6 {} title {} noenhanced",
        logarithms ? '*' : '+', logarithms ? std::pow(step, i) : step * static_cast<double>(i),
        only("policy", series[i], "column(\"value\")"), line_style(i), in_quotes(series[i])));
    for (const Point& p : picture.points) {
      if (p.series != series[i]) continue;
      plot.rows.push_back(
          {{"policy", p.series}, {"depth", p.depth}, {"value", p.value}, {"spread", p.spread}});
    }
  }
  plot.commands = fmt::format("plot {}", fmt::join(curves, ", "));
  plot.width = 900;
  return plot;
}

void add_row(std::span<const Json> rows, size_t at, bool ratio, std::vector<Picture>& pictures) {
  const Json& row = rows[at];
  const bool attention = row.at("kind") == "attention";
  const char* needed = attention ? "vs_ggml_f16" : "vs_llama_f16";
  if (ratio && !row.at(needed).is_number()) return;
  const std::string name = name_of(row, attention);
  auto found = std::find_if(pictures.begin(), pictures.end(),
                            [&](const Picture& picture) { return picture.name == name; });
  if (found == pictures.end()) {
    pictures.push_back({words(row["kind"]), title_of(row, attention), name, {}});
    found = pictures.end() - 1;
  }
  add(found->points, attention ? attention_point(rows, at, ratio) : model_point(row, ratio));
}

}  // namespace

Result<std::vector<Plot>> speed_plots(std::span<const Json> rows, bool ratio) {
  std::vector<Picture> pictures;
  for (size_t i = 0; i < rows.size(); ++i) {
    const Json kind = rows[i].value("kind", Json());
    if (kind != "attention" && kind != "model") {
      return Status{Code::BadData,
                    fmt::format("row {}: found {}, expected \"kind\" attention or model, as "
                                "zipcache bench attention and bench model write them with -o jsonl",
                                i + 1, kind.is_null() ? "no kind" : kind.dump())};
    }
    try {
      add_row(rows, i, ratio, pictures);
    } catch (const Json::exception& error) {
      return Status{Code::BadData, fmt::format("row {}: {}; expected a row of zipcache bench {}",
                                               i + 1, error.what(), words(kind))};
    }
  }
  if (pictures.empty()) {
    return Status{Code::BadData,
                  ratio ? "found no row with a ratio to llama.cpp's 16-bit cache, expected some; "
                          "measure llama:f16 in the same run"
                        : "found no row, expected those of zipcache bench"};
  }
  std::vector<Plot> plots;
  for (Picture& picture : pictures) plots.push_back(plot_of(picture, ratio));
  return plots;
}

}  // namespace zipcache::cli
