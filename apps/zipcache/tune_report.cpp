// What `zipcache tune` found.
#include "tune_report.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "report.hpp"
#include "result_tables.hpp"

namespace zipcache::cli {

namespace {

double number(const Json& row, const char* field) { return row.at(field).get<double>(); }

std::string text(const Json& row, const char* field) { return row.at(field).get<std::string>(); }

const Json* find(const Json& rows, const std::string& policy) {
  for (const Json& row : rows) {
    if (row.at("policy") == policy) return &row;
  }
  return nullptr;
}

std::string kld_text(const Json& row) {
  return with_error(number(row, "kld"), number(row, "kld_se"));
}

// Rows of the table, fewest bits first.
std::vector<Json> by_bits(const Json& rows) {
  std::vector<Json> sorted(rows.begin(), rows.end());
  std::stable_sort(sorted.begin(), sorted.end(), [](const Json& a, const Json& b) {
    return number(a, "bits") < number(b, "bits");
  });
  return sorted;
}

std::vector<size_t> front_of(const std::vector<Json>& rows) {
  std::vector<std::pair<double, double>> points;
  for (const Json& row : rows) points.emplace_back(number(row, "bits"), number(row, "kld"));
  return pareto(points);
}

std::string layers_table(const Json& sensitivity, bool bold) {
  const Json& layers = sensitivity.at("layers");
  double k = 0, v = 0;
  for (const Json& row : layers) {
    k += number(row, "k");
    v += number(row, "v");
  }
  std::vector<std::vector<std::string>> lines;
  for (const Json& row : layers) {
    lines.push_back({text(row, "layers"), with_error(number(row, "k"), number(row, "k_se")),
                     fmt::format("{:.0f} %", 100 * number(row, "k") / std::max(k, 1e-12)),
                     with_error(number(row, "v"), number(row, "v_se")),
                     fmt::format("{:.0f} %", 100 * number(row, "v") / std::max(v, 1e-12))});
  }
  return markdown({{"layers", false},
                   {fmt::format("K alone at {} bits", sensitivity.at("k_bits").get<int>())},
                   {"of K"},
                   {fmt::format("V alone at {} bits", sensitivity.at("v_bits").get<int>())},
                   {"of V"}},
                  lines, bold);
}

std::string most_sensitive(const Json& layers, const char* side) {
  const Json& row = *std::max_element(
      layers.begin(), layers.end(),
      [&](const Json& a, const Json& b) { return number(a, side) < number(b, side); });
  return text(row, "layers");
}

std::string layers_words(const Json& sensitivity) {
  const double k = number(sensitivity, "k_alone"), v = number(sensitivity, "v_alone");
  const std::string problem = k > 2 * v   ? "K is the problem"
                              : v > 2 * k ? "V is the problem"
                                          : "K and V have about equal parts in it";
  return fmt::format(
      "{}: with the base setting's bits K alone brings a divergence of {}, V alone {}.\n"
      "Most sensitive: K in layers {}, V in layers {}.\n",
      problem, divergence_text(k), divergence_text(v),
      most_sensitive(sensitivity.at("layers"), "k"), most_sensitive(sensitivity.at("layers"), "v"));
}

std::string policies_table(const Json& evidence, bool bold) {
  const std::vector<Json> rows = by_bits(evidence.at("rows"));
  const std::vector<size_t> front = front_of(rows);
  std::vector<std::vector<std::string>> lines;
  for (size_t i = 0; i < rows.size(); ++i) {
    const Json& row = rows[i];
    const std::string policy = text(row, "policy");
    const bool best = std::find(front.begin(), front.end(), i) != front.end();
    lines.push_back({fmt::format("{:.2f}", number(row, "bits")),
                     fmt::format("{:.2f}", number(row, "bits_resident")), kld_text(row),
                     fmt::format("{:.1f}", 100 * number(row, "same_top")), best ? "*" : "",
                     policy == text(evidence, "chosen") ? policy + " <- chosen" : policy});
  }
  return markdown(
      {{"coded bits"}, {"all bytes"}, {"KLD"}, {"same top %"}, {"best", false}, {"policy", false}},
      lines, bold);
}

// What other windows do, as one line each.
std::string windows_words(const Json& windows) {
  std::string out;
  for (const Json& row : windows) {
    out += fmt::format("{}{} {} with {:.2f} bits in all",
                       out.empty() ? "Windows are yours to choose: " : "; ", text(row, "policy"),
                       kld_text(row), number(row, "bits_resident"));
  }
  return out.empty() ? "" : out + ".\n";
}

// How often `row`'s divergence is that of `chosen`.
std::string times(const Json& row, const Json& chosen) {
  return fmt::format("{:.1f} times", number(row, "kld") / std::max(number(chosen, "kld"), 1e-12));
}

std::string costs_words(const Json& evidence) {
  const Json& held_out = evidence.at("held_out");
  const Json& rows = held_out.at("rows");
  const std::string policy = text(evidence, "chosen");
  const Json* chosen = find(rows, policy);
  if (chosen == nullptr) return "";
  std::string out = fmt::format(
      "On text that the search has not seen ({}, {} tokens scored), at {:.2f} coded bits instead "
      "of "
      "16:\nof 100 next tokens {:.1f} are others than with the 16-bit cache, perplexity changes by "
      "{:+.1f} %, divergence is {}.\n",
      text(held_out, "text"), chosen->at("n_scored").get<int>(), number(*chosen, "bits"),
      100 * (1 - number(*chosen, "same_top")), 100 * (number(*chosen, "ppl_ratio") - 1),
      kld_text(*chosen));
  for (const Json& row : rows) {
    if (text(row, "policy") == policy) continue;
    out += fmt::format("{} at {:.2f} bits costs {} that divergence ({}).\n", text(row, "policy"),
                       number(row, "bits"), times(row, *chosen), kld_text(row));
  }
  return out;
}

std::string choice_words(const Json& evidence) {
  const std::string chosen = text(evidence, "chosen"), searched = text(evidence, "best_of_search");
  std::string out;
  if (searched != chosen) {
    out = fmt::format(
        "{} was the best of the search, but no better than {} on text that it has not seen: {} "
        "stays.\n",
        searched, chosen, chosen);
  }
  const Json& target = evidence.at("target");
  const Json* held_out = find(evidence.at("held_out").at("rows"), chosen);
  if (held_out != nullptr && target.contains("kld") &&
      number(*held_out, "kld") + number(*held_out, "kld_se") >= number(target, "kld")) {
    out += fmt::format("There it misses the target of {}: ask for less, or tune on more text.\n",
                       divergence_text(number(target, "kld")));
  }
  return out + fmt::format("Policy: {}\n", chosen);
}

}  // namespace

Json evidence_row(const std::string& policy, double bits, const Json& row) {
  return {{"policy", policy},
          {"bits", bits},
          {"bits_resident", row.at("bits_resident")},
          {"kld", row.at("kld_mean")},
          {"kld_se", row.at("kld_mean_se")},
          {"same_top", row.at("same_top")},
          {"ppl_ratio", row.at("ppl_ratio")},
          {"n_scored", row.at("n_scored")}};
}

Json search_evidence(const SearchResult& result) {
  Json rows = Json::array(), windows = Json::array(), layers = Json::array();
  for (const Tried& tried : result.tried) {
    // What measures a part of the cache alone stands among the layers.
    if (tried.role == Role::Alone) continue;
    (tried.role == Role::Window ? windows : rows)
        .push_back(evidence_row(tried.policy, tried.bits, tried.row));
  }
  for (const Sensitivity& s : result.layers) {
    layers.push_back({{"layers", layers_text(s.group)},
                      {"k", s.k},
                      {"k_se", s.k_error},
                      {"v", s.v},
                      {"v_se", s.v_error}});
  }
  return {{"base", result.base},
          {"best_of_search", result.chosen},
          {"rows", rows},
          {"windows", windows},
          {"sensitivity",
           {{"k_bits", kProbeBitsK},
            {"v_bits", kProbeBitsV},
            {"k_alone", result.k_alone},
            {"v_alone", result.v_alone},
            {"layers", layers}}}};
}

std::string policy_file(const std::string& policy_json, const Json& evidence) {
  Json file = Json::parse(policy_json);
  file["evidence"] = evidence;
  return file.dump(1) + "\n";
}

Result<std::string> tune_report(const Json& evidence, bool bold) {
  try {
    const Json& sensitivity = evidence.at("sensitivity");
    return fmt::format(
        "{}\n{}\n{}\n* no other has less divergence with as few bits; {}, {} "
        "tokens scored.\n{}\n{}{}",
        layers_table(sensitivity, bold), layers_words(sensitivity), policies_table(evidence, bold),
        text(evidence.at("search"), "text"), evidence.at("rows").at(0).at("n_scored").get<int>(),
        windows_words(evidence.at("windows")), costs_words(evidence), choice_words(evidence));
  } catch (const Json::exception& error) {
    return Status{Code::BadData,
                  fmt::format("evidence: {}; make it again with zipcache tune", error.what())};
  }
}

Plot tune_plot(const Json& evidence, const std::string& name) {
  const std::string chosen = text(evidence, "chosen");
  std::vector<PlotPoint> points;
  for (const Json& row : evidence.at("rows")) {
    const std::string policy = text(row, "policy");
    if (number(row, "kld") <= 0) continue;
    // Names of one word are built in; others would cover each other.
    const bool built_in = policy.find(',') == std::string::npos;
    const std::string shown = policy == chosen ? (built_in ? policy + ", chosen" : "chosen")
                              : built_in       ? policy
                                               : "";
    points.push_back({shown, number(row, "bits"), number(row, "kld"), number(row, "kld_se")});
  }
  return divergence_plot(
      name, fmt::format("{} · {}", text(evidence, "model"), text(evidence.at("search"), "text")),
      "coded bits per element", points);
}

}  // namespace zipcache::cli
