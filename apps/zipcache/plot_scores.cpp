// Saliency of tokens over positions, from token scores.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
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
    for (size_t i = 0; i < mean.size(); ++i)
      mean[i] += one[i] / static_cast<float>(layer.n_heads);
  }
  return mean;
}

// For each token, the share of all heads that have it among their salient ones.
Scores chosen_share(const TokenScores& all, bool normalized) {
  Scores share(all.tokens.size());
  int n_heads = 0;
  for (const TokenScores::Layer& layer : all.layers) {
    for (int head = 0; head < layer.n_heads; ++head, ++n_heads) {
      Scores one = scores_of(all, layer, head, normalized);
      for (float& score : one) {
        if (std::isnan(score)) score = 0;
      }
      const auto tiers = allocate(one, high_share(static_cast<int>(one.size()), kSalientPermille));
      for (size_t i = 0; i < share.size(); ++i) share[i] += tiers[i] == 0 ? 1.0f : 0.0f;
    }
  }
  for (float& value : share) value /= static_cast<float>(n_heads);
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
    add_rows(panels.back(), mean_over_heads(scores, one, true),
             mean_over_heads(scores, one, false), plot.rows);
  }
  panels.push_back(kAllHeads);
  add_rows(kAllHeads, chosen_share(scores, true), chosen_share(scores, false), plot.rows);

  const int bin = std::max(1, scores.n_tokens() / 32);
  plot.commands = fmt::format("set multiplot layout {},2 title {} noenhanced\n", panels.size(),
                              in_quotes(title));
  for (const std::string& panel : panels) {
    const bool first = &panel == &panels.front(), last = &panel == &panels.back();
    plot.commands += last ? "unset logscale y\nset yrange [0:1.02]\nset format y \"%g\"\n"
                            "set xlabel \"position of the token\"\n"
                          : "set logscale y\nset format y \"10^{%T}\"\n";
    plot.commands += fmt::format(
        "set title \"{}\"\nset ylabel \"{}\"\n{}set title \"{}\"\nunset ylabel\n{}",
        first  ? "normalized: attention of a query row"
        : last ? "share of all heads that choose the token, 40 % of tokens each"
               : "",
        panel, panel_text(panel, "normalized", 0, bin),
        first ? "accumulated: of all query rows together" : "",
        panel_text(panel, "accumulated", 1, bin));
  }
  plot.commands += "unset multiplot\n";
  plot.name = name;
  plot.title = "saliency of tokens over positions";
  plot.script = fmt::format(
      "set border 3\nset tics nomirror\nunset key\nset xrange [0:{}]\nset encoding utf8\n",
      scores.n_tokens());
  plot.width = 1000;
  plot.height = 60 + 170 * static_cast<int>(panels.size());
  return plot;
}

}  // namespace zipcache::cli
