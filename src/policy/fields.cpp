#include "policy/fields.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <nlohmann/json.hpp>
#include <numeric>
#include <optional>

namespace zipcache {
namespace {

template <class T>
struct Word {
  std::string_view word;
  T value;
};

constexpr Word<Fit> kFits[] = {{"endpoint", Fit::Endpoint},
                               {"midpoint", Fit::Midpoint},
                               {"unbiased", Fit::Unbiased},
                               {"mse", Fit::Mse}};
constexpr Word<Allocation> kAllocations[] = {{"fraction", Allocation::Fraction},
                                             {"knapsack", Allocation::Knapsack},
                                             {"knapsack_squares", Allocation::KnapsackSquares}};
constexpr Word<Rotation> kRotations[] = {
    {"none", Rotation::None}, {"hadamard", Rotation::Hadamard}, {"file", Rotation::File}};
constexpr Word<Codec> kCodecs[] = {{"affine", Codec::Affine},
                                   {"sym", Codec::Symmetric},
                                   {"lloyd", Codec::Lloyd},
                                   {"e4m3", Codec::E4m3},
                                   {"e2m1", Codec::E2m1}};
constexpr Word<Rounding> kRoundings[] = {{"nearest", Rounding::Nearest},
                                         {"query", Rounding::Query}};
constexpr Word<Statistic> kStatistics[] = {
    {"mean", Statistic::Mean}, {"random", Statistic::Random},    {"recency", Statistic::Recency},
    {"last", Statistic::Last}, {"mean_std", Statistic::MeanStd}, {"max", Statistic::Max},
    {"file", Statistic::File}};
constexpr Word<Norm> kNorms[] = {
    {"probe_nnz", Norm::ProbeNnz}, {"full_causal", Norm::FullCausal}, {"none", Norm::None}};
constexpr Word<DecodeProbes> kDecodeProbes[] = {{"spread", DecodeProbes::Spread},
                                                {"last", DecodeProbes::Last}};
constexpr Word<Scope> kScopes[] = {{"head", Scope::Head}, {"layer", Scope::Layer}};
constexpr Word<Cadence> kCadences[] = {{"stream", Cadence::Stream}, {"prompt", Cadence::Prompt}};
constexpr Word<Precision> kPrecisions[] = {{"auto", Precision::Auto},
                                           {"exact", Precision::Exact},
                                           {"k2", Precision::K2},
                                           {"fast", Precision::Fast}};

template <class T, size_t N>
bool parse_word(const Word<T> (&words)[N], std::string_view text, T& value) {
  for (const auto& entry : words) {
    if (entry.word == text) return value = entry.value, true;
  }
  return false;
}

template <class T, size_t N>
std::string word_of(const Word<T> (&words)[N], T value) {
  for (const auto& entry : words) {
    if (entry.value == value) return std::string(entry.word);
  }
  return "?";
}

template <class T>
bool parse_number(std::string_view text, T& value) {
  T parsed{};
  const auto end = text.data() + text.size();
  const auto result = std::from_chars(text.data(), end, parsed);
  if (result.ec != std::errc() || result.ptr != end) return false;
  value = parsed;
  return true;
}

bool parse_int(std::string_view text, int lo, int hi, int& value) {
  int parsed = 0;
  if (!parse_number(text, parsed) || parsed < lo || parsed > hi) return false;
  value = parsed;
  return true;
}

// A decimal number of units in [0, most] times 1000, exact for up to three decimals.
bool parse_thousandths(std::string_view text, double unit, double most, int& value) {
  double parsed = 0;
  if (!parse_number(text, parsed)) return false;
  const double thousandths = parsed * 1000 / unit;
  if (!(thousandths >= 0 && thousandths <= 1000 * most)) return false;
  const int rounded = static_cast<int>(thousandths + 0.5);
  if (std::abs(thousandths - rounded) > 1e-6) return false;
  value = rounded;
  return true;
}

bool parse_permille(std::string_view text, double unit, int& value) {
  return parse_thousandths(text, unit, 1, value);
}

// Items of "4/2/0", one at least; empty when there are more than `most`.
std::vector<std::string_view> split(std::string_view text, size_t most) {
  std::vector<std::string_view> items;
  for (size_t slash = 0; slash != std::string_view::npos;) {
    slash = text.find('/');
    items.push_back(text.substr(0, slash));
    if (items.size() > most) return {};
    text.remove_prefix(slash == std::string_view::npos ? text.size() : slash + 1);
  }
  return items;
}

// One item or more, joined as split() takes them apart.
template <class T, class Text>
std::string joined(const std::vector<T>& items, Text&& text_of) {
  std::string text;
  for (const T& item : items) {
    if (!text.empty()) text += '/';
    text += text_of(item);
  }
  return text;
}

std::string permille_text(int permille, int unit) {
  return fmt::format("{:g}", static_cast<double>(permille) * unit / 1000.0);
}

bool code_width(std::string_view text, int& bits) {
  int parsed = 0;
  if (!parse_number(text, parsed)) return false;
  if (parsed != 0 && parsed != 2 && parsed != 3 && parsed != 4 && parsed != 8 && parsed != 16)
    return false;
  bits = parsed;
  return true;
}

// "4" or "16/4/2" for one side, best tier first. The side with fewer widths repeats its last one,
// so one width keeps the other side's tiers apart; tiers that only repeat the last one are none.
bool parse_bits(Policy& policy, std::string_view text, int Tier::*side) {
  std::vector<int> widths;
  for (const std::string_view item : split(text, kMaxTiers)) {
    if (!code_width(item, widths.emplace_back())) return false;
    if (widths.size() > 1 && widths.back() > widths[widths.size() - 2]) return false;
  }
  if (widths.empty()) return false;
  std::vector<Tier>& tiers = policy.tiers;
  tiers.resize(std::max(tiers.size(), widths.size()), tiers.back());
  for (size_t t = 0; t < tiers.size(); ++t) tiers[t].*side = widths[std::min(t, widths.size() - 1)];
  while (tiers.size() > 1 && tiers.back() == tiers[tiers.size() - 2]) tiers.pop_back();
  return true;
}

std::string bits_text(const Policy& policy, int Tier::*side) {
  std::vector<Tier> tiers = policy.tiers;
  while (tiers.size() > 1 && tiers.back().*side == tiers[tiers.size() - 2].*side) tiers.pop_back();
  return joined(tiers, [&](const Tier& tier) { return fmt::format("{}", tier.*side); });
}

// "0.6", or one share for each tier but the last: "0.1/0.3".
bool parse_shares(std::string_view text, std::vector<int>& shares) {
  std::vector<int> parsed;
  for (const std::string_view item : split(text, kMaxTiers - 1)) {
    if (!parse_permille(item, 1, parsed.emplace_back())) return false;
  }
  if (parsed.empty() || std::accumulate(parsed.begin(), parsed.end(), 0) > 1000) return false;
  shares = std::move(parsed);
  return true;
}

bool parse_axis(std::string_view text, Side& side) {
  if (text.starts_with("group")) {
    side.axis = Axis::Group;
    return parse_int(text.substr(5), 16, 256, side.group);
  }
  if (text.starts_with("channel") && text != "channel") {
    side.axis = Axis::ChannelGroup;
    return parse_int(text.substr(7), 16, kBlockTokens, side.group);
  }
  side.group = Side{}.group;
  if (text == "channel") return side.axis = Axis::Channel, true;
  if (text == "token") return side.axis = Axis::Token, true;
  if (text == "cst") return side.axis = Axis::Cst, true;
  if (text == "none") return side.axis = Axis::None, true;
  return false;
}

std::string axis_text(const Side& side) {
  switch (side.axis) {
    case Axis::Channel:
      return "channel";
    case Axis::Token:
      return "token";
    case Axis::Cst:
      return "cst";
    case Axis::None:
      return "none";
    case Axis::ChannelGroup:
      return fmt::format("channel{}", side.group);
    case Axis::Group:
      break;
  }
  return fmt::format("group{}", side.group);
}

constexpr std::string_view kFileScore = "file:";

bool parse_score(std::string_view text, Saliency& saliency) {
  if (!text.starts_with(kFileScore)) {
    saliency.file.clear();
    return parse_word(kStatistics, text, saliency.statistic);
  }
  text.remove_prefix(kFileScore.size());
  saliency.statistic = Statistic::File;
  saliency.file = text;
  return writable_path(text);
}

std::string score_text(const Saliency& saliency) {
  if (saliency.file.empty()) return word_of(kStatistics, saliency.statistic);
  return fmt::format("{}{}", kFileScore, saliency.file);
}

// "0.95" of a range, or "q0.96" between quantiles.
bool parse_clip(std::string_view text, Clip& clip) {
  Clip parsed;
  parsed.quantile = text.starts_with("q");
  if (parsed.quantile) text.remove_prefix(1);
  if (!parse_permille(text, 1, parsed.permille) || !valid_clip(parsed)) return false;
  clip = parsed;
  return true;
}

std::string clip_text(const Clip& clip) {
  return (clip.quantile ? "q" : "") + permille_text(clip.permille, 1);
}

bool parse_pool(std::string_view text, Saliency& saliency) {
  saliency.pool = text.starts_with("max") ? Pool::Max : Pool::Average;
  if (saliency.pool == Pool::Max) text.remove_prefix(3);
  return parse_int(text, 1, kMaxPool, saliency.pool_width) && saliency.pool_width % 2 == 1;
}

std::string pool_text(const Saliency& saliency) {
  return fmt::format("{}{}", saliency.pool == Pool::Max ? "max" : "", saliency.pool_width);
}

bool parse_probes(std::string_view text, Saliency& saliency) {
  const size_t plus = text.find('+');
  if (plus == std::string_view::npos) return false;
  return parse_permille(text.substr(0, plus), 100, saliency.recent_permille) &&
         parse_permille(text.substr(plus + 1), 100, saliency.random_permille);
}

constexpr std::string_view kBits =
    "2, 3, 4, 8 or 16, 0 to evict, or up to four of them, best tier first, such as 4/2 or 16/4/2/0";
constexpr std::string_view kAxes =
    "channel, token, cst, groupN (channels, N from 16 to 256), channelN (tokens, N from 16 to 128) "
    "or none";
constexpr std::string_view kFitWords = "endpoint, midpoint, unbiased or mse";
constexpr std::string_view kClipWords =
    "a share of the range above 0 such as 0.95, 1 for all of it, or a quantile above 0.5 such as "
    "q0.96, with at most three decimals";
constexpr std::string_view kRotationWords = "none, hadamard, or file with rotations=FILE";
constexpr std::string_view kCodecWords = "affine, sym, lloyd, e4m3 or e2m1";
constexpr std::string_view kDualWords = "a number of rounds from 0 to 64";
constexpr std::string_view kRankWords = "a rank from 0 to 16";

using P = Policy;
using V = std::string_view;

const Field kFields[] = {
    {"bits", kBits,
     [](P& p, V v) { return parse_bits(p, v, &Tier::k_bits) && parse_bits(p, v, &Tier::v_bits); },
     nullptr, true},
    {"k", kBits, [](P& p, V v) { return parse_bits(p, v, &Tier::k_bits); },
     [](const P& p) { return bits_text(p, &Tier::k_bits); }, true},
    {"v", kBits, [](P& p, V v) { return parse_bits(p, v, &Tier::v_bits); },
     [](const P& p) { return bits_text(p, &Tier::v_bits); }, true},
    {"ratio",
     "a share from 0 to 1 with at most three decimals, or the shares of all tiers but the last, "
     "together at most 1, such as 0.1/0.3",
     [](P& p, V v) { return parse_shares(v, p.shares); },
     [](const P& p) { return joined(p.shares, [](int share) { return permille_text(share, 1); }); },
     true},
    {"alloc", "fraction, knapsack or knapsack_squares",
     [](P& p, V v) { return parse_word(kAllocations, v, p.allocation); },
     [](const P& p) { return word_of(kAllocations, p.allocation); }, true},
    {"target_bits", "bits of a code from 0 to 16 with at most three decimals, such as 2.5",
     [](P& p, V v) { return parse_thousandths(v, 1, 16, p.target_millibits); },
     [](const P& p) { return permille_text(p.target_millibits, 1); }, true},
    {"k_axis", kAxes, [](P& p, V v) { return parse_axis(v, p.k); },
     [](const P& p) { return axis_text(p.k); }, true},
    {"v_axis", kAxes, [](P& p, V v) { return parse_axis(v, p.v); },
     [](const P& p) { return axis_text(p.v); }, true},
    {"codec", kCodecWords,
     [](P& p, V v) {
       return parse_word(kCodecs, v, p.k.codec) && parse_word(kCodecs, v, p.v.codec);
     },
     nullptr, true},
    {"k_codec", kCodecWords, [](P& p, V v) { return parse_word(kCodecs, v, p.k.codec); },
     [](const P& p) { return word_of(kCodecs, p.k.codec); }, true},
    {"v_codec", kCodecWords, [](P& p, V v) { return parse_word(kCodecs, v, p.v.codec); },
     [](const P& p) { return word_of(kCodecs, p.v.codec); }, true},
    {"fit", kFitWords,
     [](P& p, V v) { return parse_word(kFits, v, p.k.fit) && parse_word(kFits, v, p.v.fit); },
     nullptr, true},
    {"k_fit", kFitWords, [](P& p, V v) { return parse_word(kFits, v, p.k.fit); },
     [](const P& p) { return word_of(kFits, p.k.fit); }, true},
    {"v_fit", kFitWords, [](P& p, V v) { return parse_word(kFits, v, p.v.fit); },
     [](const P& p) { return word_of(kFits, p.v.fit); }, true},
    {"clip", kClipWords,
     [](P& p, V v) { return parse_clip(v, p.k.clip) && parse_clip(v, p.v.clip); }, nullptr, true},
    {"k_clip", kClipWords, [](P& p, V v) { return parse_clip(v, p.k.clip); },
     [](const P& p) { return clip_text(p.k.clip); }, true},
    {"v_clip", kClipWords, [](P& p, V v) { return parse_clip(v, p.v.clip); },
     [](const P& p) { return clip_text(p.v.clip); }, true},
    {"k_round", "nearest or query",
     [](P& p, V v) { return parse_word(kRoundings, v, p.k_rounding); },
     [](const P& p) { return word_of(kRoundings, p.k_rounding); }, true},
    {"rotate", kRotationWords,
     [](P& p, V v) {
       return parse_word(kRotations, v, p.k.rotation) && parse_word(kRotations, v, p.v.rotation);
     },
     nullptr, true},
    {"k_rotate", kRotationWords, [](P& p, V v) { return parse_word(kRotations, v, p.k.rotation); },
     [](const P& p) { return word_of(kRotations, p.k.rotation); }, true},
    {"v_rotate", kRotationWords, [](P& p, V v) { return parse_word(kRotations, v, p.v.rotation); },
     [](const P& p) { return word_of(kRotations, p.v.rotation); }, true},
    {"dual", kDualWords,
     [](P& p, V v) {
       return parse_int(v, 0, kMaxDual, p.k.dual) && parse_int(v, 0, kMaxDual, p.v.dual);
     },
     nullptr, true},
    {"k_dual", kDualWords, [](P& p, V v) { return parse_int(v, 0, kMaxDual, p.k.dual); },
     [](const P& p) { return fmt::format("{}", p.k.dual); }, true},
    {"v_dual", kDualWords, [](P& p, V v) { return parse_int(v, 0, kMaxDual, p.v.dual); },
     [](const P& p) { return fmt::format("{}", p.v.dual); }, true},
    {"rank", kRankWords,
     [](P& p, V v) {
       return parse_int(v, 0, kMaxRank, p.k.rank) && parse_int(v, 0, kMaxRank, p.v.rank);
     },
     nullptr, true},
    {"k_rank", kRankWords, [](P& p, V v) { return parse_int(v, 0, kMaxRank, p.k.rank); },
     [](const P& p) { return fmt::format("{}", p.k.rank); }, true},
    {"v_rank", kRankWords, [](P& p, V v) { return parse_int(v, 0, kMaxRank, p.v.rank); },
     [](const P& p) { return fmt::format("{}", p.v.rank); }, true},
    {"score",
     "mean, mean_std, max, last, random, recency, or file: and a path without commas, semicolons, "
     "quotes, backslashes or a space at its ends",
     [](P& p, V v) { return parse_score(v, p.saliency); },
     [](const P& p) { return score_text(p.saliency); }, false},
    {"norm", "probe_nnz, full_causal or none",
     [](P& p, V v) { return parse_word(kNorms, v, p.saliency.norm); },
     [](const P& p) { return word_of(kNorms, p.saliency.norm); }, false},
    {"probes", "two percentages such as 5+5 (newest + random)",
     [](P& p, V v) { return parse_probes(v, p.saliency); },
     [](const P& p) {
       return fmt::format("{}+{}", permille_text(p.saliency.recent_permille, 100),
                          permille_text(p.saliency.random_permille, 100));
     },
     false},
    {"replacement", "0 or 1",
     [](P& p, V v) {
       int flag = 0;
       return parse_int(v, 0, 1, flag) && (p.saliency.replacement = flag == 1, true);
     },
     [](const P& p) { return std::string(p.saliency.replacement ? "1" : "0"); }, false},
    {"decode_probes", "spread or last",
     [](P& p, V v) { return parse_word(kDecodeProbes, v, p.saliency.decode); },
     [](const P& p) { return word_of(kDecodeProbes, p.saliency.decode); }, false},
    {"scope", "head or layer", [](P& p, V v) { return parse_word(kScopes, v, p.saliency.scope); },
     [](const P& p) { return word_of(kScopes, p.saliency.scope); }, false},
    {"pool", "an odd width from 1 to 31, averaged such as 5 or the largest such as max7",
     [](P& p, V v) { return parse_pool(v, p.saliency); },
     [](const P& p) { return pool_text(p.saliency); }, false},
    {"sinks", "a count from 0 to 128",
     [](P& p, V v) { return parse_int(v, 0, 128, p.window.sinks); },
     [](const P& p) { return fmt::format("{}", p.window.sinks); }, false},
    {"recent", "a count from 0 to 1048576",
     [](P& p, V v) { return parse_int(v, 0, 1 << 20, p.window.recent); },
     [](const P& p) { return fmt::format("{}", p.window.recent); }, false},
    {"cadence", "stream or prompt", [](P& p, V v) { return parse_word(kCadences, v, p.cadence); },
     [](const P& p) { return word_of(kCadences, p.cadence); }, false},
    {"precision", "auto, exact, k2 or fast",
     [](P& p, V v) { return parse_word(kPrecisions, v, p.precision); },
     [](const P& p) { return word_of(kPrecisions, p.precision); }, false},
    {"rotations",
     "the path of a file that zipcache fit-rotations wrote, without commas, semicolons, quotes, "
     "backslashes and control characters",
     [](P& p, V v) { return (v.empty() || writable_path(v)) && (p.rotations = v, true); },
     [](const P& p) { return p.rotations; }, false},
    {"seed", "a whole number from 0 to 2^64 - 1", [](P& p, V v) { return parse_number(v, p.seed); },
     [](const P& p) { return fmt::format("{}", p.seed); }, false},
};

std::string field_names(bool per_layer_only) {
  std::string names;
  for (const Field& field : kFields) {
    if (per_layer_only && !field.per_layer) continue;
    names += names.empty() ? std::string(field.name) : fmt::format(", {}", field.name);
  }
  return names;
}

// The layers before the colon of "0-3:k=8"; empty when there is no colon before the '='.
std::string_view layers_of(std::string_view item) {
  const size_t colon = item.find(':');
  return colon < item.find('=') ? item.substr(0, colon) : std::string_view();
}

// Adds `field`, such as "k=8", for the layers of `change`; neighbouring ones make one override.
void add_override(Policy& policy, LayerOverride change, std::string_view field) {
  std::vector<LayerOverride>& all = policy.overrides;
  if (!all.empty() && all.back().first == change.first && all.back().last == change.last) {
    all.back().fields += fmt::format(",{}", field);
    return;
  }
  change.fields = field;
  all.push_back(std::move(change));
}

}  // namespace

bool valid_clip(const Clip& clip) {
  return clip.permille > (clip.quantile ? 500 : 0) && clip.permille <= 1000;
}

std::string codec_name(Codec codec) { return word_of(kCodecs, codec); }

std::string precision_name(Precision precision) { return word_of(kPrecisions, precision); }

std::span<const Field> policy_fields() { return kFields; }

bool writable_path(std::string_view path) {
  constexpr size_t kMost = 1024;
  if (path.empty() || path.size() > kMost || path.front() == ' ' || path.back() == ' ')
    return false;
  if (path.find_first_of(",;\"\\") != std::string_view::npos) return false;
  // Refuses control characters and broken UTF-8.
  return nlohmann::json::accept(fmt::format("\"{}\"", path));
}

std::string quote_text(std::string_view text) {
  std::string out = "\"";
  for (const char c : text.substr(0, 60)) {
    const auto byte = static_cast<unsigned char>(c);
    out += byte < 0x20 || byte >= 0x7F || c == '"' ? fmt::format("\\x{:02x}", byte)
                                                   : std::string(1, c);
  }
  return out + (text.size() > 60 ? "...\"" : "\"");
}

bool parse_layers(std::string_view text, LayerOverride& change) {
  constexpr int kMost = 999'999'999;
  const size_t dash = text.find('-');
  if (!parse_int(text.substr(0, dash), 0, kMost, change.first)) return false;
  change.last = change.first;
  return dash == std::string_view::npos || parse_int(text.substr(dash + 1), 0, kMost, change.last);
}

std::string layers_text(const LayerOverride& change) {
  return change.first == change.last ? fmt::format("{}", change.first)
                                     : fmt::format("{}-{}", change.first, change.last);
}

Status apply_field(Policy& policy, std::string_view name, std::string_view value,
                   std::string_view where, bool per_layer_only) {
  for (const Field& field : kFields) {
    if (field.name != name || (per_layer_only && !field.per_layer)) continue;
    if (field.set(policy, value)) return ok();
    return {Code::BadPolicy, fmt::format("{}, field {}: found {}, expected {}", where, name,
                                         quote_text(value), field.accepts)};
  }
  return {
      Code::BadPolicy,
      fmt::format("{}: unknown field {}; the fields {}are {}", where, quote_text(name),
                  per_layer_only ? "that layers may override " : "", field_names(per_layer_only))};
}

Status apply_fields(Policy& policy, std::string_view text, std::string_view where,
                    bool per_layer_only) {
  while (!text.empty()) {
    const size_t comma = text.find(',');
    const std::string_view item = text.substr(0, comma);
    text = comma == std::string_view::npos ? std::string_view() : text.substr(comma + 1);
    const size_t equals = item.find('=');
    LayerOverride change;
    if (const std::string_view layers = layers_of(item);
        !per_layer_only && item.size() > layers.size() + 1 && parse_layers(layers, change)) {
      add_override(policy, change, item.substr(layers.size() + 1));
      continue;
    }
    if (equals == std::string_view::npos) {
      return {Code::BadPolicy,
              fmt::format("{}: found {}, expected field=value such as ratio=0.6, or "
                          "layers:field=value such as 0-3:k=8",
                          where, quote_text(item))};
    }
    ZC_TRY(apply_field(policy, item.substr(0, equals), item.substr(equals + 1), where,
                       per_layer_only));
  }
  return ok();
}

}  // namespace zipcache
