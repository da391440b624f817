// Parsing and checking of policies: text form, files, fields that must fit together, layer
// overrides.
#include "zipcache/policy.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <climits>
#include <fstream>
#include <numeric>
#include <sstream>

#include "codec/levels.hpp"
#include "policy/fields.hpp"

namespace zipcache {
namespace {

constexpr size_t kMaxText = 64 * 1024;

std::string row_names() {
  std::string names;
  for (const PolicyRow& row : policy_rows()) {
    names += names.empty() ? std::string(row.name) : fmt::format(", {}", row.name);
  }
  return names;
}

Result<Policy> named_row(std::string_view name) {
  for (const PolicyRow& row : policy_rows()) {
    if (row.name != name) continue;
    Policy policy;
    policy.name = std::string(name);
    ZC_TRY(apply_fields(policy, row.text, fmt::format("row {}", name), false));
    return policy;
  }
  return Status{Code::BadPolicy,
                fmt::format("policy {}: no such row; the rows are {}; a policy file ends in .json",
                            quote_text(name), row_names())};
}

Status check_range(const char* field, int value, int lo, int hi) {
  if (value >= lo && value <= hi) return ok();
  return {Code::BadPolicy,
          fmt::format("policy, {}: found {}, expected {} to {}", field, value, lo, hi)};
}

Status check_group(const Side& side, bool three_bits, const char* which) {
  if (side.axis != Axis::Group && side.axis != Axis::ChannelGroup) return ok();
  // Whole steps of a packed tile: 32 columns at 3 bits, at most 16 otherwise.
  const int unit = three_bits ? 32 : 16, most = side.axis == Axis::Group ? 256 : kBlockTokens;
  if (side.group >= unit && side.group <= most && side.group % unit == 0) return ok();
  if (side.axis == Axis::ChannelGroup) {
    return {Code::BadPolicy,
            fmt::format("policy, {}_axis: found channel{}, expected groups of {} to {} tokens, a "
                        "multiple of {}",
                        which, side.group, unit, most, unit)};
  }
  return {Code::BadPolicy,
          fmt::format("policy, {}_axis: found group{}, expected a group from {} to 256 that "
                      "is a multiple of {} and divides the head size",
                      which, side.group, unit, unit)};
}

Status check_dual(const Side& side, const char* which) {
  ZC_TRY(check_range(fmt::format("{}_dual", which).c_str(), side.dual, 0, kMaxDual));
  if (side.dual == 0 || side.axis != Axis::Cst) return ok();
  return {Code::BadPolicy,
          fmt::format("policy, {0}_dual: found {1} with {0}_axis=cst, which has channel factors of "
                      "its own; use {0}_axis=token",
                      which, side.dual)};
}

// Widths, parameters and fits that a side's codec has.
Status check_codec(const Policy& policy, const Side& side, int Tier::*bits, const char* which) {
  const auto wrong = [&](const std::string& what) {
    return Status{Code::BadPolicy,
                  fmt::format("policy, {}_codec={}: {}", which, codec_name(side.codec), what)};
  };
  for (const Tier& tier : policy.tiers) {
    const int width = tier.*bits;
    if (width == 0 || width == 16 || has_width(side.codec, width)) continue;
    std::string widths;
    for (const int other : {2, 3, 4, 8}) {
      if (has_width(side.codec, other)) widths += fmt::format("{}, ", other);
    }
    return wrong(fmt::format("found {} bits, expected {}16 or 0", width, widths));
  }
  if (side.axis == Axis::None && side.codec != Codec::E4m3) {
    return wrong(
        fmt::format("found {0}_axis=none, which leaves codes without a step; use "
                    "{0}_axis=token or {0}_codec=e4m3",
                    which));
  }
  if (side.codec == Codec::Affine) return ok();
  if (side.axis == Axis::Channel) {
    return wrong(
        fmt::format("found {0}_axis=channel, expected a set inside one block: use "
                    "{0}_axis=channel128, token, groupN or cst",
                    which));
  }
  if (side.fit == Fit::Endpoint) return ok();
  return wrong(fmt::format("its step needs no fit; add {}_fit=endpoint", which));
}

Status check_clip(const Side& side, const char* which) {
  if (!valid_clip(side.clip)) {
    return {Code::BadPolicy,
            fmt::format("policy, {}_clip: found {}/1000 of a {}, expected a share above 0 or a "
                        "quantile above 0.5",
                        which, side.clip.permille, side.clip.quantile ? "quantile" : "range")};
  }
  if (!side.clip.clips()) return ok();
  if (side.codec == Codec::Affine && !clips(side.fit)) return ok();
  return {Code::BadPolicy,
          fmt::format("policy, {0}_clip: needs {0}_codec=affine and {0}_fit=endpoint or midpoint, "
                      "since other fits look for the range themselves; set them, or {0}_clip=1",
                      which)};
}

// ",0-3:k=8,0-3:v=4" for the fields "k=8,v=4".
std::string override_text(const LayerOverride& change) {
  const std::string before = fmt::format(",{}:", layers_text(change));
  std::string text = change.fields.empty() ? "" : before;
  for (const char c : change.fields) text += c == ',' ? before : std::string(1, c);
  return text;
}

bool is_width(int bits) { return bits == 2 || bits == 3 || bits == 4 || bits == 8 || bits == 16; }

Status check_tiers(const Policy& policy) {
  if (policy.tiers.empty() || policy.tiers.size() > kMaxTiers) {
    return {Code::BadPolicy, fmt::format("policy {}: {} tiers, expected 1 to {}", policy.name,
                                         policy.tiers.size(), kMaxTiers)};
  }
  for (const Tier& tier : policy.tiers) {
    if (is_width(tier.k_bits) && is_width(tier.v_bits)) continue;
    if (tier.k_bits == 0 && tier.v_bits == 0) continue;
    return {Code::BadPolicy,
            fmt::format(
                "policy {}: a tier of {} and {} bits for K and V, expected 2, 3, 4, 8 or 16, or 0 "
                "for both, which evicts its tokens",
                policy.name, tier.k_bits, tier.v_bits)};
  }
  for (size_t t = 1; t < policy.tiers.size(); ++t) {
    const Tier &better = policy.tiers[t - 1], &worse = policy.tiers[t];
    if (better.k_bits >= worse.k_bits && better.v_bits >= worse.v_bits && better != worse) continue;
    return {
        Code::BadPolicy,
        fmt::format("policy {}: tier {} has {} and {} bits for K and V after one of {} and {}, "
                    "expected fewer from tier to tier",
                    policy.name, t + 1, worse.k_bits, worse.v_bits, better.k_bits, better.v_bits)};
  }
  return ok();
}

// Shares of Allocation::Fraction; one tier needs none.
Status check_shares(const Policy& policy) {
  for (const int share : policy.shares) ZC_TRY(check_range("ratio in 1/1000", share, 0, 1000));
  const int sum = std::accumulate(policy.shares.begin(), policy.shares.end(), 0);
  ZC_TRY(check_range("sum of ratios in 1/1000", sum, 0, 1000));
  if (policy.tiers.size() == 1 || policy.fills_budget() ||
      policy.shares.size() + 1 == policy.tiers.size())
    return ok();
  return {
      Code::BadPolicy,
      fmt::format("policy {}: found {} shares in ratio for {} tiers, expected one for each tier "
                  "but the last, such as ratio=0.1/0.3 for three; or alloc=knapsack with "
                  "target_bits",
                  policy.name, policy.shares.size(), policy.tiers.size())};
}

// A budget must pay for the last tier, and what the first one costs is more than enough.
Status check_budget(const Policy& policy) {
  ZC_TRY(check_range("target_bits in 1/1000", policy.target_millibits, 0, 16000));
  if (!policy.fills_budget()) return ok();
  const auto mean = [](const Tier& tier) { return (tier.k_bits + tier.v_bits) / 2.0; };
  const double least = mean(policy.tiers.back()), most = mean(policy.tiers.front());
  if (policy.target_millibits < 1000 * least || policy.target_millibits > 1000 * most) {
    return {Code::BadPolicy,
            fmt::format("policy {}: found target_bits={:g}, expected {:g} to {:g}, the mean of K's "
                        "and V's bits in the last and in the first tier",
                        policy.name, policy.target_millibits / 1000.0, least, most)};
  }
  if (policy.saliency.statistic != Statistic::MeanStd) return ok();
  return {Code::BadPolicy,
          fmt::format("policy {}: score=mean_std ranks tokens and gives them no weight, which "
                      "alloc=knapsack needs; use score=mean, or alloc=fraction",
                      policy.name)};
}

// All fields but the overrides.
Status check_fields(const Policy& policy) {
  ZC_TRY(check_tiers(policy));
  ZC_TRY(check_shares(policy));
  ZC_TRY(check_budget(policy));
  const auto has_three = [&](int Tier::*bits) {
    return std::any_of(policy.tiers.begin(), policy.tiers.end(),
                       [&](const Tier& tier) { return tier.*bits == 3; });
  };
  ZC_TRY(check_group(policy.k, has_three(&Tier::k_bits), "k"));
  ZC_TRY(check_group(policy.v, has_three(&Tier::v_bits), "v"));
  ZC_TRY(check_codec(policy, policy.k, &Tier::k_bits, "k"));
  ZC_TRY(check_codec(policy, policy.v, &Tier::v_bits, "v"));
  ZC_TRY(check_dual(policy.k, "k"));
  ZC_TRY(check_dual(policy.v, "v"));
  ZC_TRY(check_range("k_rank", policy.k.rank, 0, kMaxRank));
  ZC_TRY(check_range("v_rank", policy.v.rank, 0, kMaxRank));
  ZC_TRY(check_clip(policy.k, "k"));
  ZC_TRY(check_clip(policy.v, "v"));
  if (policy.k_rounding == Rounding::Query &&
      (policy.k.axis != Axis::Channel || policy.k.codec != Codec::Affine)) {
    return {
        Code::BadPolicy,
        fmt::format("policy {}: k_round=query needs k_axis=channel and codec=affine; set them, or "
                    "k_round=nearest",
                    policy.name)};
  }
  ZC_TRY(check_range("sinks", policy.window.sinks, 0, kBlockTokens));
  ZC_TRY(check_range("recent", policy.window.recent, 0, 1 << 20));
  ZC_TRY(check_range("newest probes in 1/1000", policy.saliency.recent_permille, 0, 1000));
  ZC_TRY(check_range("random probes in 1/1000", policy.saliency.random_permille, 0, 1000));
  ZC_TRY(check_range("pool", policy.saliency.pool_width, 1, kMaxPool));
  if (!policy.saliency.file.empty() &&
      (policy.saliency.statistic != Statistic::File || !writable_path(policy.saliency.file))) {
    return {Code::BadPolicy,
            fmt::format("policy, score: found the path {}, expected one where score=file:PATH, and "
                        "none elsewhere",
                        quote_text(policy.saliency.file))};
  }
  if (policy.saliency.pool_width % 2 == 0) {
    return {Code::BadPolicy, fmt::format("policy, pool: found {}, expected an odd width such as 5",
                                         policy.saliency.pool_width)};
  }
  return ok();
}

// A file that no side reads would change nothing without a word.
Status check_rotations_used(const Policy& policy) {
  if (!policy.rotations.empty() && !writable_path(policy.rotations)) {
    return {Code::BadPolicy,
            fmt::format("policy, rotations: found {}, expected a path without commas, semicolons, "
                        "quotes, backslashes and control characters",
                        quote_text(policy.rotations))};
  }
  if (policy.rotations.empty() || needs_rotations(policy)) return ok();
  return {Code::BadPolicy,
          fmt::format("policy, rotations: found {}, but neither K nor V is rotated by it; add "
                      "rotate=file, k_rotate=file or v_rotate=file",
                      quote_text(policy.rotations))};
}

}  // namespace

Result<Policy> parse_policy(std::string_view text) {
  if (text.size() > kMaxText) {
    return Status{Code::BadPolicy,
                  fmt::format("policy: text of {} bytes, at most {} are read; put it in "
                              "a .json file",
                              text.size(), kMaxText)};
  }
  const size_t comma = text.find(',');
  const std::string_view head = text.substr(0, comma);
  Result<Policy> policy =
      head.ends_with(".json") ? load_policy(std::string(head)) : named_row(head);
  if (!policy.ok()) return policy;
  if (comma != std::string_view::npos) {
    ZC_TRY(apply_fields(*policy, text.substr(comma + 1), fmt::format("policy {}", quote_text(text)),
                        false));
  }
  ZC_TRY(check(*policy));
  return policy;
}

Result<Policy> load_policy(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) {
    return Status{
        Code::Environment,
        fmt::format("policy file {}: cannot be read; give the path of a .json file or one of "
                    "the rows {}",
                    quote_text(path), row_names())};
  }
  std::string json(kMaxText + 1, '\0');
  file.read(json.data(), static_cast<std::streamsize>(json.size()));
  json.resize(static_cast<size_t>(file.gcount()));
  if (json.size() > kMaxText) {
    return Status{Code::BadPolicy,
                  fmt::format("policy file {}: larger than {} bytes, which no policy "
                              "needs",
                              quote_text(path), kMaxText)};
  }
  Result<Policy> policy = policy_from_json(json);
  if (policy.ok()) return policy;
  return Status{policy.status().code(),
                fmt::format("policy file {}: {}", quote_text(path), policy.status().message())};
}

std::string to_text(const Policy& policy) {
  const Result<Policy> row = named_row(policy.name);
  const Policy base = row.ok() ? *row : Policy{};
  std::string text = row.ok() ? policy.name : "f16";
  for (const Field& field : policy_fields()) {
    if (!field.get || field.get(policy) == field.get(base)) continue;
    text += fmt::format(",{}={}", field.name, field.get(policy));
  }
  for (const LayerOverride& change : policy.overrides) text += override_text(change);
  return text;
}

Status check(const Policy& policy) {
  ZC_TRY(check_fields(policy));
  ZC_TRY(check_rotations_used(policy));
  const Saliency& saliency = policy.saliency;
  if (policy.needs_scores() && saliency.statistic != Statistic::Last &&
      saliency.recent_permille + saliency.random_permille == 0) {
    return {
        Code::BadPolicy,
        "policy, probes: found 0+0, but score=mean, mean_std and max need probe rows; use 5+5, or "
        "score=last, random or recency"};
  }
  if (saliency.recent_permille + saliency.random_permille > 1000) {
    return {Code::BadPolicy,
            fmt::format("policy, probes: {} % newest and {} % random make more than all "
                        "rows; lower one of them",
                        saliency.recent_permille / 10.0, saliency.random_permille / 10.0)};
  }
  for (const LayerOverride& change : policy.overrides) {
    if (change.first < 0 || change.last < change.first) {
      return {Code::BadPolicy,
              fmt::format("policy, layers {}-{}: expected first-last with first <= last",
                          change.first, change.last)};
    }
    if (change.fields.empty()) {
      return {Code::BadPolicy, fmt::format("policy, layers {}-{}: found no field, expected one, as "
                                           "in {}-{}:k=8",
                                           change.first, change.last, change.first, change.last)};
    }
    Policy copy = policy;
    copy.overrides.clear();
    ZC_TRY(apply_fields(copy, change.fields,
                        fmt::format("policy, layers {}-{}", change.first, change.last), true));
    ZC_TRY(check_fields(copy));
  }
  return ok();
}

bool needs_rotations(const Policy& policy) {
  const auto by_file = [](const Policy& own) {
    return own.k.rotation == Rotation::File || own.v.rotation == Rotation::File;
  };
  const auto of_layer = [&](int layer) {
    const Result<Policy> own = policy_for_layer(policy, layer);
    return own.ok() && by_file(*own);
  };
  // Layers differ only where overrides begin, or end: one may hide parts of another.
  return by_file(policy) ||
         std::any_of(policy.overrides.begin(), policy.overrides.end(), [&](const auto& change) {
           return of_layer(change.first) || (change.last < INT_MAX && of_layer(change.last + 1));
         });
}

Result<Policy> policy_for_layer(const Policy& policy, int layer) {
  Policy own = policy;
  own.overrides.clear();
  for (const LayerOverride& change : policy.overrides) {
    if (layer < change.first || layer > change.last) continue;
    ZC_TRY(apply_fields(own, change.fields,
                        fmt::format("policy, layers {}-{}", change.first, change.last), true));
  }
  return own;
}

}  // namespace zipcache
