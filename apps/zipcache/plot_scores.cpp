// Saliency of tokens over positions, from token scores.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <iterator>
#include <limits>

#include "plot_kinds.hpp"
#include "zipcache/policy.hpp"

namespace zipcache::cli {

namespace {

// The share of tokens that the paper's ablations take for salient.
constexpr int kSalientPermille = 400;
constexpr const char* kAllHeads = "all heads";

using Scores = std::vector<float>;

// One head's scores; a token that no row saw has none.
Scores scores_of(const TokenScores& all, const TokenScores::Layer& layer, int head,
                 bool normalized) {
  const size_t n = all.tokens.size();
  Scores out(n);
  for (size_t i = 0; i < n; ++i) {
    const float sum = layer.sums[static_cast<size_t>(head) * n + i];
    const auto seen = static_cast<float>(layer.seen[i]);
    out[i] = seen == 0 ? std::numeric_limits<float>::quiet_NaN() : normalized ? sum / seen : sum;
  }
  return out;
}

Scores mean_over_heads(const TokenScores& all, const TokenScores::Layer& layer, bool normalized) {
  Scores mean(all.tokens.size());
  for (int head = 0; head < layer.n_heads; ++head) {
    const Scores one = scores_of(all, layer, head, normalized);
    for (size_t i = 0; i < mean.size(); ++i) mean[i] += one[i] / static_cast<float>(layer.n_heads);
  }
  return mean;
}

// Whether a head has each token among the salient ones of those that it has a score of: 1 or 0.
Scores chosen(const Scores& scores) {
  Scores known;
  std::copy_if(scores.begin(), scores.end(), std::back_inserter(known),
               [](float score) { return !std::isnan(score); });
  const int n_high = high_share(static_cast<int>(known.size()), kSalientPermille);
  const std::vector<uint8_t> tiers = allocate(known, std::span(&n_high, 1));
  auto tier = tiers.begin();
  Scores out = scores;
  for (float& value : out) {
    if (!std::isnan(value)) value = *tier++ == 0 ? 1.0f : 0.0f;
  }
  return out;
}

// For each token, the share of all heads that choose it.
Scores chosen_share(const TokenScores& all, bool normalized) {
  Scores share(all.tokens.size());
  int n_heads = 0;
  for (const TokenScores::Layer& layer : all.layers) n_heads += layer.n_heads;
  for (const TokenScores::Layer& layer : all.layers) {
    for (int head = 0; head < layer.n_heads; ++head) {
      const Scores one = chosen(scores_of(all, layer, head, normalized));
      for (size_t i = 0; i < share.size(); ++i) share[i] += one[i] / static_cast<float>(n_heads);
    }
  }
  return share;
}

void add_rows(const std::string& panel, const Scores& normalized, const Scores& accumulated,
              std::vector<Json>& rows) {
  for (size_t i = 0; i < normalized.size(); ++i) {
    rows.push_back({{"panel", panel},
                    {"position", i},
                    {"normalized", normalized[i]},
                    {"accumulated", accumulated[i]}});
  }
}

// Dots for tokens, and a line through the means of `bin` of them.
std::string panel_text(const std::string& panel, const char* column, int colour, int bin) {
  const std::string value = only("panel", panel, fmt::format("column(\"{}\")", column));
  return fmt::format(
      "plot data using (column(\"position\")):{0} with points pointtype 7 pointsize 0.2 {1}, "
      "data using (({3}+0.5)*{4}):{2} smooth unique with lines linewidth 2 linecolor \"black\"\n",
      value, line_style(static_cast<size_t>(colour)), value,
      fmt::format("floor(column(\"position\")/{})", bin), bin);
}

}  // namespace

Plot saliency_plot(const TokenScores& scores, const std::vector<int>& layers,
                   const std::string& title, const std::string& name) {
  Plot plot;
  std::vector<std::string> panels;
  for (const int layer : layers) {
    panels.push_back(fmt::format("layer {}", layer));
    const TokenScores::Layer& one = scores.layers[static_cast<size_t>(layer)];
    add_rows(panels.back(), mean_over_heads(scores, one, true), mean_over_heads(scores, one, false),
             plot.rows);
  }
  panels.push_back(kAllHeads);
  add_rows(kAllHeads, chosen_share(scores, true), chosen_share(scores, false), plot.rows);

  const int bin = std::max(1, scores.n_tokens() / 32);
  plot.height = 100 + 180 * static_cast<int>(panels.size());
  plot.commands = fmt::format(
      "set multiplot layout {},2 title {} noenhanced margins 0.1,0.98,{},{} spacing 0.1,{}\n",
      panels.size(), in_quotes(title), 55.0 / plot.height, 1 - 60.0 / plot.height,
      65.0 / plot.height);
  for (const std::string& panel : panels) {
    const bool first = &panel == &panels.front(), last = &panel == &panels.back();
    plot.commands += last ? "unset logscale y\nset yrange [0:1.02]\n"
                            "set xlabel \"position of the token\"\n"
                          : "set logscale y\nset yrange [*:*]\nunset xlabel\n";
    const std::string share = fmt::format(
        "share of all heads that choose the token, {} % of tokens each", kSalientPermille / 10);
    plot.commands +=
        fmt::format("set title \"{}\"\nset ylabel \"{}\"\n{}set title \"{}\"\nunset ylabel\n{}",
                    first  ? "normalized: attention of a query row"
                    : last ? share
                           : "",
                    panel, panel_text(panel, "normalized", 0, bin),
                    first  ? "accumulated: of all query rows together"
                    : last ? share
                           : "",
                    panel_text(panel, "accumulated", 1, bin));
  }
  plot.commands += "unset multiplot\n";
  plot.name = name;
  plot.title = "saliency of tokens over positions";
  plot.script = fmt::format(
      "set border 3\nset tics nomirror\nunset key\nset format y \"%g\"\nset xrange [0:{}]\n",
      scores.n_tokens());
  plot.width = 1000;
  return plot;
}

}  // namespace zipcache::cli
