// What `zipcache tune` decides, apart from measuring: which layers get which widths, and which of
// the measured policies is the answer.
//
// Thread safety: pure functions.
#pragma once

#include <cstdint>
#include <limits>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "table.hpp"

namespace zipcache::cli {

// Neighbouring layers that are measured, and get their widths, together.
struct LayerGroup {
  int first = 0;
  int last = 0;  // inclusive
  bool operator==(const LayerGroup&) const = default;
};

// "0-3", or "7" for one layer.
std::string layers_text(const LayerGroup& group);
// The same, read; none when `text` is neither.
std::optional<LayerGroup> layers_of(std::string_view text);

// `n_layers` in at most `most` groups whose sizes differ by one at most.
std::vector<LayerGroup> group_layers(int n_layers, int most);

// One way to code K or V of a group: its bits, as a share of the whole cache's bits per element,
// and the divergence that it alone brings.
struct WidthOption {
  double bits = 0;
  double divergence = 0;
};

// Where to stop.
struct Limits {
  double bits = std::numeric_limits<double>::infinity();  // most that may be spent
  double divergence = 0;                                  // as little is good enough
};

struct Assignment {
  std::vector<size_t> chosen;  // [units], a place among each unit's options
  double bits = 0;
  double divergence = 0;  // sums over units
};

// Greedy: from every unit's cheapest option on, the change that takes away most divergence per bit,
// as long as one fits. `units` hold their options with bits that rise.
Assignment assign(const std::vector<std::vector<WidthOption>>& units, const Limits& limits);

// `base` with the widths `k` and `v` [groups], such as 4, as the text of one policy: the most
// common width of each side for all layers, ranges of layers for the others.
std::string with_widths(const std::string& base, std::span<const LayerGroup> groups,
                        std::span<const int> k, std::span<const int> v);

// `base` with K (or V) of layers `group` at `width` bits and everything else of its `n_layers`
// layers at 16.
std::string alone(const std::string& base, char side, int width, const LayerGroup& group,
                  int n_layers);

// What was asked for. Neither: as few bits as the default policy.
struct Target {
  std::optional<double> bits = {};        // coded, at most
  std::optional<double> divergence = {};  // mean and its standard error together, below
};

// A policy with what it costs.
struct Candidate {
  double bits = 0;  // coded
  double divergence = 0, error = 0;
};

// With a target of bits (`most_bits` when there is none) the least divergence, with one of
// divergence the fewest bits; none when no candidate meets it.
std::optional<size_t> choose(std::span<const Candidate> candidates, const Target& target,
                             double most_bits);

enum class Role : unsigned char {
  Candidate,  // may be chosen
  Shown,      // stands beside the candidates
  Window,     // the same with other sinks or another window
  Alone,      // measures a part of the cache
};

// A policy that the search measured.
struct Tried {
  std::string policy;
  Json row;
  double bits = 0;  // coded, in the long run
  Role role = Role::Candidate;
};

// What one side of a group of layers brings alone, everything else at 16 bits.
struct Sensitivity {
  LayerGroup group;
  double k = 0, k_error = 0;
  double v = 0, v_error = 0;
};

// Widths at which the sensitivities are measured: low enough that the divergence stands out.
inline constexpr int kProbeBitsK = 3;
inline constexpr int kProbeBitsV = 2;

struct SearchResult {
  std::vector<Tried> tried;  // on the search part, in the order in which they were measured
  std::string base;          // the default policy with what helped at no more bits
  std::vector<Sensitivity> layers;
  double k_alone = 0, v_alone = 0;  // divergence of base's own K and V, each alone
  double most_bits = 0;             // the default policy's
  std::string chosen;               // the best on the search part
  std::string fallback;             // the best built-in policy that meets the target
};

// Whether `chosen` may stay: on the part that the search has not seen it must not lose to
// `fallback` where that one meets the target too, which is to say has no more bits or, for a target
// of divergence, beats it in both.
bool confirmed(const Candidate& chosen, const Candidate& fallback, const Target& target);

// A policy has collapsed when its mean divergence is above the first or the share of equal top
// tokens below the second. Of the methods that work, the ones with the fewest bits (2 for K and V)
// were measured up to 0.3 nats and down to 72 %, on small models and difficult texts; under a
// policy that does not suit the model both are far beyond: several nats, and next to no equal
// tokens.
inline constexpr double kCollapseKld = 0.7;
inline constexpr double kCollapseSameTop = 0.6;

inline bool collapsed(double kld, double same_top) {
  return kld > kCollapseKld || same_top < kCollapseSameTop;
}

// Tokens of a chunk where none are asked for: fewer where a thread has many weights to multiply, so
// that the search of some fifty policies takes minutes. By size and not by time: the same command
// finds the same rows again.
int usual_ctx(uint64_t n_weights, int n_threads);

}  // namespace zipcache::cli
