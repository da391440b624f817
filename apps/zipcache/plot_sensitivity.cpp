// What layers bring alone, from the evidence of `zipcache tune`.
#include <fmt/format.h>

#include <algorithm>
#include <optional>

#include "plot_kinds.hpp"
#include "tuning.hpp"

namespace zipcache::cli {

namespace {

Result<Json> row_of(const char* side, const Json& group) {
  const std::string text = group.at("layers").get<std::string>();
  const std::optional<LayerGroup> layers = layers_of(text);
  if (!layers) {
    return Status{Code::BadData,
                  fmt::format("evidence: found layers '{}', expected first-last", text)};
  }
  const std::string field = side[0] == 'K' ? "k" : "v";
  return Json{{"side", side},
              {"first", layers->first},
              {"last", layers->last},
              {"divergence", group.at(field)},
              {"error", group.at(field + "_se")}};
}

std::string panel(const char* side, int bits, int colour) {
  return fmt::format(
      "set title \"{0} alone at {1} bits, everything else at 16; bars are 95 % intervals\"\n"
      "plot data using ((column(\"first\")+column(\"last\"))/2):{2}:"
      "((column(\"last\")-column(\"first\")+1)*0.92) with boxes {3}, "
      "data using ((column(\"first\")+column(\"last\"))/2):{2}:(1.96*column(\"error\")) with "
      "yerrorbars pointtype 7 pointsize 0.2 linewidth 1.5 linecolor \"black\"\n",
      side, bits, only("side", side, "column(\"divergence\")"), line_style(size_t(colour)));
}

Result<Plot> plot_of(const Json& evidence, const std::string& name) {
  const Json& sensitivity = evidence.at("sensitivity");
  Plot plot;
  int last = 0;
  for (const char* side : {"K", "V"}) {
    for (const Json& group : sensitivity.at("layers")) {
      const Result<Json> row = row_of(side, group);
      if (!row.ok()) return row.status();
      plot.rows.push_back(*row);
      last = std::max(last, plot.rows.back()["last"].get<int>());
    }
  }
  plot.name = "sensitivity-" + slug(name);
  plot.title = "what groups of layers bring alone";
  plot.script =
      "set border 3\nset tics nomirror\nset grid ytics linecolor \"#dddddd\"\nunset key\n"
      "set style fill solid 0.8 noborder\nset yrange [0:*]\nset ylabel \"divergence (KLD, "
      "nats)\"\n" +
      fmt::format("set xrange [-0.7:{}.7]\nset xtics 0,{}\n", last, last > 40 ? 5 : 1);
  plot.commands = fmt::format(
      "set multiplot layout 2,1 title {} noenhanced\nunset xlabel\n{}set xlabel \"layer\"\n{}"
      "unset multiplot\n",
      in_quotes(fmt::format("{} · {} · {}", evidence.at("model").get<std::string>(),
                            evidence.at("search").at("text").get<std::string>(),
                            evidence.at("base").get<std::string>())),
      panel("K", sensitivity.at("k_bits").get<int>(), 0),
      panel("V", sensitivity.at("v_bits").get<int>(), 1));
  plot.height = 560;
  return plot;
}

}  // namespace

Result<Plot> sensitivity_plot(const Json& policy_file, const std::string& name) {
  try {
    const Json& evidence = policy_file.at("evidence");
    if (evidence.at("sensitivity").at("layers").empty())
      return Status{Code::BadData, "evidence: found no layers in sensitivity, expected some"};
    return plot_of(evidence, name);
  } catch (const Json::exception& error) {
    return Status{
        Code::BadData,
        fmt::format("evidence: {}; expected a policy file that zipcache tune wrote", error.what())};
  }
}

}  // namespace zipcache::cli
