// Rows of `zipcache compare`.
#include "report.hpp"

#include <fmt/format.h>

#include <algorithm>

namespace zipcache::cli {

namespace {

constexpr double kMiB = 1024.0 * 1024.0;

std::string with_error(double value, double error, int decimals) {
  return fmt::format("{:.{}f} ± {:.{}f}", value, decimals, error, decimals);
}

std::vector<std::string> cells(const CompareRow& row) {
  const Summary& s = row.summary;
  const std::string mark = row.partial ? " (partial)" : row.reference ? " (reference)" : "";
  return {
      row.policy + mark,
      fmt::format("{:.2f}", row.bits_per_element),
      fmt::format("{:.2f}", static_cast<double>(row.bytes.now) / kMiB),
      fmt::format("{:.2f}x", row.ratio_resident),
      fmt::format("{:.3f}", s.ppl),
      fmt::format("{} ± {}", divergence_text(s.kld_mean), divergence_text(s.kld_mean_se)),
      divergence_text(s.kld_p999),
      with_error(100 * s.same_top, 100 * s.same_top_se, 1),
      fmt::format("{:.1f}", row.prompt_tps),
      row.decode_tps ? fmt::format("{:.1f}", *row.decode_tps) : "-",
  };
}

std::string kernels(const std::vector<CompareRow>& rows) {
  std::vector<std::string> names;
  for (const CompareRow& row : rows) {
    if (std::find(names.begin(), names.end(), row.kernel) == names.end())
      names.push_back(row.kernel);
  }
  std::string out;
  for (const std::string& name : names) out += (out.empty() ? "" : ", ") + name;
  return out;
}

std::string footer(const std::vector<CompareRow>& rows, const RunFacts& facts) {
  size_t tokens = 0;
  int depth = 0;
  for (const CompareRow& row : rows) {
    tokens = std::max(tokens, row.summary.tokens);
    depth = std::max(depth, row.cache_tokens);
  }
  std::string out = fmt::format(
      "\nmodel {} · text {} · context {} · {} chunk{} · {} tokens scored · micro-batch {}\n",
      facts.model, facts.text, facts.ctx, facts.chunks, facts.chunks == 1 ? "" : "s", tokens,
      facts.ubatch);
  out += fmt::format("weights {} · {} · {} threads · kernels {} · llama.cpp {}\n\n", facts.weights,
                     facts.cpu, facts.threads, kernels(rows), facts.llama_cpp);
  out += fmt::format(
      "bits/element, KV MiB, ratio: every byte that the cache holds at {} tokens, raw rows, "
      "parameters and\n"
      "  tables included, against 16 bits per element.\n"
      "PPL: perplexity. KLD: divergence from the 16-bit cache with 32-bit accumulation, in nats (0 "
      "is equal).\n"
      "same top: how often both predict the same token. ±: standard error over tokens.\n"
      "Tokens are scored against the compressed cache: a micro-batch reads itself and what is "
      "still raw\n"
      "  exactly, everything older in packed form.\n",
      depth);
  if (facts.rounds_activations) {
    out +=
        "These weights make llama.cpp round activations to 8 bits, a noise that lies under every "
        "KLD here; with\n"
        "  --f32-weights it is gone and the cache stands alone.\n";
  }
  if (facts.decode_tokens > 0) {
    out += fmt::format("decode t/s: {} tokens, one at a time, after {} tokens.\n",
                       facts.decode_tokens, depth);
  }
  return out;
}

}  // namespace

std::string divergence_text(double value) {
  const double size = value < 0 ? -value : value;
  if (size == 0) return "0";
  if (size < 1e-4) return fmt::format("{:.1e}", value);
  return fmt::format("{:.{}f}", value, size < 0.1 ? 5 : 3);
}

Json to_json(const Summary& s) {
  return {{"ppl", s.ppl},
          {"ppl_se", s.ppl_se},
          {"ppl_ratio", s.ppl_ratio},
          {"ppl_ratio_se", s.ppl_ratio_se},
          {"kld_mean", s.kld_mean},
          {"kld_mean_se", s.kld_mean_se},
          {"kld_p50", s.kld_p50},
          {"kld_p99", s.kld_p99},
          {"kld_p999", s.kld_p999},
          {"kld_max", s.kld_max},
          {"same_top", s.same_top},
          {"same_top_se", s.same_top_se}};
}

Json to_json(const CompareRow& row, const RunFacts& facts) {
  const Summary& s = row.summary;
  Json out = {
      {"policy", row.policy},
      {"model", facts.model},
      {"text", facts.text},
      {"ctx", facts.ctx},
      {"chunks", facts.chunks},
      {"ubatch", facts.ubatch},
      {"tokens_scored", s.tokens},
      {"reference", row.reference},
      {"partial", row.partial},
      {"bits_per_element", row.bits_per_element},
      {"kv_tokens", row.cache_tokens},
      {"kv_bytes", row.bytes.now},
      {"kv_bytes_f16", row.kv_bytes_f16},
      {"kv_bytes_peak", row.bytes.peak},
      {"kv_bytes_planned", row.bytes.planned},
      {"bytes", row.bytes.by_kind},
      {"ratio_paper", row.ratio_paper},
      {"ratio_params", row.ratio_params},
      {"ratio_resident", row.ratio_resident},
  };
  out.update(to_json(s));
  out.update(Json{
      {"prompt_tps", row.prompt_tps},
      {"decode_tps", row.decode_tps ? Json(*row.decode_tps) : Json()},
      {"decode_depth", row.decode_tps ? Json(row.cache_tokens) : Json()},
      {"kernel", row.kernel},
      {"weights", facts.weights},
      {"threads", facts.threads},
      {"wait_policy", facts.wait_policy},
      {"seed", facts.seed},
      {"llama_cpp", facts.llama_cpp},
      {"cpu", facts.cpu},
  });
  return out;
}

std::string for_people(const std::vector<CompareRow>& rows, const RunFacts& facts, bool bold) {
  const std::vector<Column> columns = {
      {"policy", false}, {"bits/element"}, {"KV MiB"},     {"ratio"},      {"PPL"},
      {"KLD mean"},      {"KLD 99.9 %"},   {"same top %"}, {"prompt t/s"}, {"decode t/s"},
  };
  std::vector<std::vector<std::string>> lines;
  for (const CompareRow& row : rows) lines.push_back(cells(row));
  return markdown(columns, lines, bold) + footer(rows, facts);
}

}  // namespace zipcache::cli
