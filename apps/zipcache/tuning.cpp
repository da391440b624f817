// What `zipcache tune` decides.
#include "tuning.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <map>
#include <tuple>

namespace zipcache::cli {

namespace {

// Bits are shown with two decimals; what they do not show does not decide.
constexpr double kBitsTolerance = 0.005;

struct Upgrade {
  size_t unit = 0, option = 0;
  double bits = 0, gain = 0;
};

// The change of one unit that saves most divergence per bit and costs at most `bits` more.
std::optional<Upgrade> best_upgrade(const std::vector<std::vector<WidthOption>>& units,
                                    const Assignment& now, double bits) {
  std::optional<Upgrade> best;
  for (size_t unit = 0; unit < units.size(); ++unit) {
    const WidthOption& old = units[unit][now.chosen[unit]];
    for (size_t option = now.chosen[unit] + 1; option < units[unit].size(); ++option) {
      const Upgrade found{unit, option, units[unit][option].bits - old.bits,
                          old.divergence - units[unit][option].divergence};
      if (found.gain <= 0 || found.bits > bits) continue;
      if (!best || found.gain * best->bits > best->gain * found.bits) best = found;
    }
  }
  return best;
}

int most_common(std::span<const int> values) {
  std::map<int, int> counts;
  for (const int value : values) ++counts[value];
  return std::max_element(counts.begin(), counts.end(),
                          [](const auto& a, const auto& b) { return a.second < b.second; })
      ->first;
}

// ",0-5:k=8" for each run of groups whose width is not `common`.
std::string runs(char side, std::span<const LayerGroup> groups, std::span<const int> widths,
                 int common) {
  std::string text;
  for (size_t begin = 0, end = 0; begin < groups.size(); begin = end) {
    for (end = begin; end < groups.size() && widths[end] == widths[begin];) ++end;
    if (widths[begin] == common) continue;
    text += fmt::format(",{}:{}={}", layers_text({groups[begin].first, groups[end - 1].last}), side,
                        widths[begin]);
  }
  return text;
}

}  // namespace

std::string layers_text(const LayerGroup& group) {
  return group.first == group.last ? fmt::format("{}", group.first)
                                   : fmt::format("{}-{}", group.first, group.last);
}

std::optional<LayerGroup> layers_of(std::string_view text) {
  const char *begin = text.data(), *end = begin + text.size();
  LayerGroup group;
  auto read = std::from_chars(begin, end, group.first);
  group.last = group.first;
  if (read.ec == std::errc() && read.ptr != end && *read.ptr == '-')
    read = std::from_chars(read.ptr + 1, end, group.last);
  const bool whole = read.ec == std::errc() && read.ptr == end;
  return whole && group.first >= 0 && group.first <= group.last ? std::optional(group)
                                                                : std::nullopt;
}

std::vector<LayerGroup> group_layers(int n_layers, int most) {
  const int n = std::min(n_layers, most);
  std::vector<LayerGroup> groups;
  for (int i = 0; i < n; ++i) groups.push_back({i * n_layers / n, (i + 1) * n_layers / n - 1});
  return groups;
}

Assignment assign(const std::vector<std::vector<WidthOption>>& units, const Limits& limits) {
  Assignment now;
  now.chosen.assign(units.size(), 0);
  for (const auto& options : units) {
    now.bits += options.front().bits;
    now.divergence += options.front().divergence;
  }
  while (now.divergence > limits.divergence) {
    const auto upgrade = best_upgrade(units, now, limits.bits + kBitsTolerance - now.bits);
    if (!upgrade) break;
    now.chosen[upgrade->unit] = upgrade->option;
    now.bits += upgrade->bits;
    now.divergence -= upgrade->gain;
  }
  return now;
}

std::string with_widths(const std::string& base, std::span<const LayerGroup> groups,
                        std::span<const int> k, std::span<const int> v) {
  const int common_k = most_common(k), common_v = most_common(v);
  return fmt::format("{},k={},v={}{}{}", base, common_k, common_v, runs('k', groups, k, common_k),
                     runs('v', groups, v, common_v));
}

std::string alone(const std::string& base, char side, int width, const LayerGroup& group,
                  int n_layers) {
  const char other = side == 'k' ? 'v' : 'k';
  std::string text = fmt::format("{},{}={},{}=16", base, side, width, other);
  if (group.first > 0) text += fmt::format(",{}:{}=16", layers_text({0, group.first - 1}), side);
  if (group.last < n_layers - 1)
    text += fmt::format(",{}:{}=16", layers_text({group.last + 1, n_layers - 1}), side);
  return text;
}

std::optional<size_t> choose(std::span<const Candidate> candidates, const Target& target,
                             double most_bits) {
  const auto meets = [&](const Candidate& c) {
    if (target.divergence) return c.divergence + c.error < *target.divergence;
    return c.bits <= target.bits.value_or(most_bits) + kBitsTolerance;
  };
  // What is wanted first, what breaks a tie second.
  const auto rank = [&](const Candidate& c) {
    return target.divergence ? std::tuple(c.bits, c.divergence) : std::tuple(c.divergence, c.bits);
  };
  std::optional<size_t> best;
  for (size_t i = 0; i < candidates.size(); ++i) {
    if (!meets(candidates[i])) continue;
    if (!best || rank(candidates[i]) < rank(candidates[*best])) best = i;
  }
  return best;
}

bool confirmed(const Candidate& chosen, const Candidate& fallback, const Target& target) {
  const bool fewer_bits = fallback.bits <= chosen.bits + kBitsTolerance;
  const bool fallback_wins = fallback.divergence <= chosen.divergence;
  return target.divergence ? !(fewer_bits && fallback_wins) : !fallback_wins;
}

int usual_ctx(uint64_t n_weights, int n_threads) {
  constexpr uint64_t kManyWeights = 100'000'000;  // of a thread
  return n_weights / static_cast<uint64_t>(n_threads) < kManyWeights ? 1024 : 512;
}

}  // namespace zipcache::cli
