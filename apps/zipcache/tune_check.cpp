// `zipcache tune --check`.
#include "tune_check.hpp"

#include <fmt/format.h>

#include "places.hpp"
#include "report.hpp"
#include "result_tables.hpp"
#include "tuning.hpp"
#include "zipcache/policy.hpp"

namespace zipcache::cli {

namespace {

// One side of every layer at 16 bits, whatever the policy says of layers.
std::string raw_side(const std::string& policy, char side, int n_layers) {
  return fmt::format("{},0-{}:{}=16", policy, n_layers - 1, side);
}

double number(const Json& row, const char* field) { return row[field].get<double>(); }

bool has_collapsed(const Json& row) {
  return collapsed(number(row, "kld_mean"), number(row, "same_top"));
}

std::string figures(const Json& row) {
  return fmt::format("KLD {}, same top token {:.1f} %",
                     with_error(number(row, "kld_mean"), number(row, "kld_mean_se")),
                     100 * number(row, "same_top"));
}

// Which side has to be at 16 bits for the model to stand.
Result<std::string> culprit(Measurer& measurer, const Part& part, const Policy& policy) {
  if (policy.evicts()) return std::string("it evicts tokens (bits of 0)");
  const std::string text = to_text(policy);
  const int n_layers = static_cast<int>(measurer.about().layers.size());
  const auto rows =
      measurer.rows(part, {raw_side(text, 'k', n_layers), raw_side(text, 'v', n_layers)},
                    "K at 16 bits, V at 16 bits");
  if (!rows.ok()) return rows.status();
  const bool k_saves = !has_collapsed((*rows)[0]), v_saves = !has_collapsed((*rows)[1]);
  if (k_saves && !v_saves)
    return fmt::format("K is the culprit (at 16 bits: {}): look at k, k_axis, k_rotate and k_fit",
                       figures((*rows)[0]));
  if (v_saves && !k_saves)
    return fmt::format("V is the culprit (at 16 bits: {}): look at v, v_axis, v_rotate and v_fit",
                       figures((*rows)[1]));
  return std::string(k_saves ? "K and V are too much together: give one of them more bits"
                             : "K and V each are too much alone");
}

}  // namespace

Status check_policy(MeasureOptions options, const std::string& policy,
                    const std::vector<std::string>& texts) {
  options.chunks = 1;
  const Result<Policy> parsed = parse_policy(policy);
  if (!parsed.ok()) return parsed.status();
  Result<std::unique_ptr<Measurer>> opened = Measurer::open(options);
  if (!opened.ok()) return opened.status();
  Measurer& measurer = **opened;
  const Result<Part> part =
      measurer.part("check", texts.empty() ? std::vector<std::string>{default_text()} : texts, 0);
  if (!part.ok()) return part.status();
  measurer.expect(2);
  const auto rows = measurer.rows(*part, {to_text(*parsed)}, "check");
  if (!rows.ok()) return rows.status();
  const Json& row = rows->front();
  measurer.finish();
  if (!has_collapsed(row)) {
    fmt::print("{}: no collapse on {}: {}\n", policy,
               measurer.setup().files.model.filename().string(), figures(row));
    return ok();
  }
  const Result<std::string> why = culprit(measurer, *part, *parsed);
  if (!why.ok()) return why.status();
  measurer.finish();
  return {Code::Incompatible,
          fmt::format("{} collapses on this model: {}, expected at most {} and at least {:.0f} %; "
                      "{}; run zipcache tune for a policy that suits it",
                      policy, figures(row), kCollapseKld, 100 * kCollapseSameTop, *why)};
}

}  // namespace zipcache::cli
