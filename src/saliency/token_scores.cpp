// Files of token scores.
#include "zipcache/token_scores.hpp"

#define XXH_INLINE_ALL
#include <fmt/format.h>
#include <xxhash.h>

#include <cerrno>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <fstream>

#include "base/number_reader.hpp"

namespace zipcache {
namespace {

constexpr char kMagic[8] = {'Z', 'C', 'S', 'C', 'O', 'R', 'E', 'S'};
constexpr uint32_t kVersion = 1;
constexpr uint32_t kMostLayers = 4096, kMostHeads = 1024, kMostTokens = 1 << 24;

Status damaged(const std::string& what) {
  return {Code::BadData, what + "; measure the scores again with zipcache plot saliency"};
}

Status check_layer(const TokenScores& scores, size_t index) {
  const TokenScores::Layer& layer = scores.layers[index];
  const size_t n = scores.tokens.size();
  if (layer.n_heads < 1 || layer.n_heads > int(kMostHeads))
    return damaged(fmt::format("layer {}: found {} heads, expected 1 to {}", index, layer.n_heads,
                               kMostHeads));
  if (layer.seen.size() != n || layer.sums.size() != n * size_t(layer.n_heads)) {
    return damaged(fmt::format("layer {}: found {} counts and {} sums, expected {} and {}", index,
                               layer.seen.size(), layer.sums.size(), n, n * size_t(layer.n_heads)));
  }
  for (size_t i = 0; i < layer.sums.size(); ++i) {
    const float sum = layer.sums[i];
    if (std::isfinite(sum) && sum >= 0 && (sum == 0 || layer.seen[i % n] > 0)) continue;
    return damaged(fmt::format("layer {}, head {}, token {}: found attention {} from {} rows",
                               index, i / n, i % n, sum, layer.seen[i % n]));
  }
  return ok();
}

Status check(const TokenScores& scores) {
  if (scores.tokens.empty() || scores.tokens.size() > kMostTokens)
    return damaged(
        fmt::format("found {} tokens, expected 1 to {}", scores.tokens.size(), kMostTokens));
  if (scores.layers.empty() || scores.layers.size() > kMostLayers)
    return damaged(
        fmt::format("found {} layers, expected 1 to {}", scores.layers.size(), kMostLayers));
  for (size_t i = 0; i < scores.layers.size(); ++i) ZC_TRY(check_layer(scores, i));
  return ok();
}

Status parse_header(NumberReader& reader, uint32_t& n_layers, uint32_t& n_tokens) {
  char magic[sizeof(kMagic)];
  uint32_t version = 0;
  if (!reader.take(magic, sizeof(magic)) || std::memcmp(magic, kMagic, sizeof(magic)) != 0)
    return {Code::BadData, "found another kind of file, expected token scores (ZCSCORES)"};
  if (!reader.take(&version, 1) || version != kVersion) {
    return damaged(fmt::format("found version {} of token scores, expected {}", version, kVersion));
  }
  if (!reader.take(&n_layers, 1) || !reader.take(&n_tokens, 1))
    return damaged("found the end of the file in its header");
  if (n_layers > kMostLayers || n_tokens > kMostTokens)
    return damaged(fmt::format("found {} layers and {} tokens, expected at most {} and {}",
                               n_layers, n_tokens, kMostLayers, kMostTokens));
  return ok();
}

bool parse_layer(NumberReader& reader, size_t n_tokens, TokenScores::Layer& layer) {
  return reader.take(layer.seen, n_tokens) &&
         reader.take(layer.sums, n_tokens * size_t(layer.n_heads));
}

Result<TokenScores> parse(std::string_view content) {
  NumberReader reader(
      content.substr(0, content.size() - std::min(content.size(), sizeof(XXH64_hash_t))));
  uint32_t n_layers = 0, n_tokens = 0;
  ZC_TRY(parse_header(reader, n_layers, n_tokens));
  TokenScores scores;
  std::vector<uint32_t> heads;
  bool complete = reader.take(heads, n_layers) && reader.take(scores.tokens, n_tokens);
  for (size_t i = 0; complete && i < n_layers; ++i) {
    TokenScores::Layer layer;
    if (heads[i] > kMostHeads)
      return damaged(
          fmt::format("layer {}: found {} heads, expected 1 to {}", i, heads[i], kMostHeads));
    layer.n_heads = int(heads[i]);
    complete = parse_layer(reader, n_tokens, layer);
    scores.layers.push_back(std::move(layer));
  }
  if (!complete || reader.left() > 0) {
    return damaged(fmt::format("found {} bytes, which is {} than {} layers and {} tokens take",
                               content.size(), complete ? "more" : "less", n_layers, n_tokens));
  }
  XXH64_hash_t stored = 0;
  std::memcpy(&stored, content.data() + content.size() - sizeof(stored), sizeof(stored));
  if (stored != XXH3_64bits(content.data(), content.size() - sizeof(stored)))
    return damaged("found bytes that do not agree with their checksum");
  ZC_TRY(check(scores));
  return scores;
}

}  // namespace

Result<TokenScores> load_token_scores(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::error_code error;
  const auto size = std::filesystem::file_size(path, error);
  std::string content(file && !error ? size : 0, '\0');
  if (error || !file.read(content.data(), std::streamsize(content.size()))) {
    return Status{Code::Environment, fmt::format("token scores '{}': cannot be read: {}", path,
                                                 error ? error.message() : std::strerror(errno))};
  }
  Result<TokenScores> scores = parse(content);
  if (scores.ok()) return scores;
  return Status{scores.status().code(),
                fmt::format("token scores '{}': {}", path, scores.status().message())};
}

Status save_token_scores(const std::string& path, const TokenScores& scores) {
  ZC_TRY(check(scores));
  const uint32_t header[] = {kVersion, uint32_t(scores.layers.size()),
                             uint32_t(scores.tokens.size())};
  std::string out(kMagic, sizeof(kMagic));
  append_numbers(out, header, std::size(header));
  for (const TokenScores::Layer& layer : scores.layers) {
    const auto n_heads = uint32_t(layer.n_heads);
    append_numbers(out, &n_heads, 1);
  }
  append_numbers(out, scores.tokens.data(), scores.tokens.size());
  for (const TokenScores::Layer& layer : scores.layers) {
    append_numbers(out, layer.seen.data(), layer.seen.size());
    append_numbers(out, layer.sums.data(), layer.sums.size());
  }
  const XXH64_hash_t sum = XXH3_64bits(out.data(), out.size());
  append_numbers(out, &sum, 1);
  std::ofstream file(path, std::ios::binary);
  file << out << std::flush;
  if (file) return ok();
  return {Code::Environment,
          fmt::format("token scores '{}': cannot be written: {}", path, std::strerror(errno))};
}

Status check_scores_named(const Policy& policy) {
  if (policy.saliency.statistic != Statistic::File || !policy.saliency.file.empty()) return ok();
  return {
      Code::BadPolicy,
      fmt::format("policy {0}: found score=file without a path, expected the scores of the text; "
                  "measure them with zipcache plot saliency -m MODEL -f TEXT -c TOKENS{1} --scores "
                  "FILE.zcs -o FOLDER, then use {0},score=file:FILE.zcs",
                  to_text(policy), policy.name == "kvzip" ? " --replay" : "")};
}

Status check_fit(const TokenScores& scores, const std::vector<LayerShape>& layers) {
  if (scores.layers.size() != layers.size()) {
    return {
        Code::Incompatible,
        fmt::format("found token scores of {} layers, expected {}; measure them with this model",
                    scores.layers.size(), layers.size())};
  }
  for (size_t i = 0; i < layers.size(); ++i) {
    if (scores.layers[i].n_heads == layers[i].n_heads) continue;
    return {Code::Incompatible,
            fmt::format("found token scores of {} heads in layer {}, expected {}; measure them "
                        "with this model",
                        scores.layers[i].n_heads, i, layers[i].n_heads)};
  }
  return ok();
}

Status check_text(const TokenScores& scores, std::span<const int32_t> tokens) {
  if (tokens.size() > scores.tokens.size()) {
    return {Code::Incompatible,
            fmt::format("found token scores of {} tokens, expected at least the {} of the text; "
                        "measure them over as many",
                        scores.tokens.size(), tokens.size())};
  }
  for (size_t i = 0; i < tokens.size(); ++i) {
    if (tokens[i] == scores.tokens[i]) continue;
    return {Code::Incompatible,
            fmt::format("token scores are of another text: found token {} at position {}, expected "
                        "{}; measure them over this one",
                        scores.tokens[i], i, tokens[i])};
  }
  return ok();
}

}  // namespace zipcache
