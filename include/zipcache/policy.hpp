// A policy is one complete setting of the cache: how K and V become codes, which tokens get more
// bits, what stays at 16 bits, and when packing happens. Every method is a value of this struct,
// not code.
//
//   auto policy = zipcache::parse_policy("zipcache,recent=64,ratio=0.6");   // a row, fields
//   changed auto other  = zipcache::load_policy("policy.json");                     // a file
//
// Words: docs/glossary.md. Sources: ZipCache (He et al., NeurIPS 2024) and the decisions A1 to A19
// that docs/method.md lists. Thread safety: plain values and pure functions.
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "zipcache/status.hpp"

namespace zipcache {

// Which values of a tile share one (step, floor) pair.
enum class Axis : uint8_t {
  Channel,       // one channel over all tokens of the tile             (paper: channelwise)
  Token,         // all channels of one token                           (paper: tokenwise)
  Group,         // `group` neighbouring channels of one token          (paper: groupwise)
  ChannelGroup,  // one channel over `group` neighbouring tokens of the tile         (KIVI)
  Cst,  // tokenwise after dividing channel c by sqrt(max|x_c|) (paper: channel-separable tokenwise)
  None,  // no parameters: codes stand for the values themselves (Codec::E4m3)
};

// A set lies along a channel: its parameters belong to channels.
constexpr bool by_channel(Axis axis) { return axis == Axis::Channel || axis == Axis::ChannelGroup; }

// How the (step, floor) pair of a set is chosen. All cost the same bits.
enum class Fit : uint8_t {
  Endpoint,  // outermost levels on the smallest and largest value (the paper)
  Midpoint,  // 2^bits equal bins, reconstructed at their centres
  Unbiased,  // clipped range, then refitted so that reconstruction on original has regression slope
             // 1
  Mse,       // the clipped range with the least squared error
};

// The range is searched for, and may be clipped.
constexpr bool clips(Fit fit) { return fit == Fit::Unbiased || fit == Fit::Mse; }

// What the codes of a set stand for. Those beside Affine have a step and no floor.
enum class Codec : uint8_t {
  Affine,     // floor + step * code
  Symmetric,  // step * (code - 2^(bits - 1)): q4_0 and q8_0 of llama.cpp, in groups of 32 channels
  Lloyd,      // step * a level of the best quantizer of normal numbers (Lloyd-Max); the step keeps
              // the set's norm (TurboQuant)
  E4m3,       // 8-bit floating point numbers, with a step or without
  E2m1,       // 4-bit floating point numbers, with a step of 8 bits (NVFP4)
};

enum class Rotation : uint8_t {
  None,
  Hadamard,
  File,  // an orthogonal matrix for each head, from the policy's file of rotations
};

// How much of a set's range is coded; what lies outside is moved to its ends.
struct Clip {
  int permille = 1000;    // of the range, about its middle; in 1/1000
  bool quantile = false;  // instead the range from the quantile 1 - permille/1000 to permille/1000
  constexpr bool clips() const { return permille < 1000; }
  bool operator==(const Clip&) const = default;
};

// How key values become codes on the grid that their fit chose. Both cost the same bits.
enum class Rounding : uint8_t {
  Nearest,
  Query,  // errors of a key's channels cancel where the prompts' queries look; not in the paper
};

// What ranks the tokens of a block.
enum class Statistic : uint8_t {
  Mean,     // attention received from probe rows (Eq. 8 and 9)
  Random,   // control: a seeded draw
  Recency,  // control: the newest tokens of the block
  Last,     // attention received from the newest query row alone (TOVA)
  MeanStd,  // Mean, but first the tokens whose attention varies most (RoCo)
  Max,      // the most attention that one probe row gave with one query head (KVzip's rule)
  File,  // control: attention over the whole text, the future included (zipcache/token_scores.hpp)
};

// Divisor of a token's summed probe attention (decision A1).
enum class Norm : uint8_t {
  ProbeNnz,    // number of probe rows that can see the token (Eq. 8 with Eq. 9)
  FullCausal,  // number of all rows that can see it (what the official code does)
  None,        // no division: accumulated attention (Eq. 7)
};

// Which rows score in steps shorter than kShortStep tokens (decision A9).
enum class DecodeProbes : uint8_t {
  Spread,  // of each 128 rows the newest 5 % and a seeded 5 % of the others
  Last,    // only the row that fills the block (official code)
};

// How the scores of neighbouring tokens are merged before they are ranked (SnapKV, section 4.2).
enum class Pool : uint8_t { Average, Max };

enum class Scope : uint8_t {
  Head,   // each KV head ranks for itself
  Layer,  // one ranking per layer, scores summed over its KV heads
};

enum class Cadence : uint8_t {
  Stream,  // a block is ranked and packed when it leaves the window
  Prompt,  // all stays 16-bit until the prompt ends, then one ranking and one shared K parameter
           // set
};

// How queries and probabilities meet packed codes while decoding (docs/method.md).
enum class Precision : uint8_t {
  Auto,   // what the instruction set in use does best: k2 with AVX2, exact otherwise
  Exact,  // both at 16 bits
  K2,     // queries at 16 bits, probabilities at 8
  Fast,   // both at 8 bits: 1 to 8 % error of the output; for keys without outlier channels only
};

std::string precision_name(Precision precision);

// How scores become tiers.
enum class Allocation : uint8_t {
  Fraction,         // each tier has its share of the ranked tokens (the paper)
  Knapsack,         // as many tokens of each tier as make the least sum of score times error of the
                    // tier's widths within a budget of bits (RDKV, section 3)
  KnapsackSquares,  // the same with squared scores
};

// Most tiers of a policy.
inline constexpr int kMaxTiers = 4;
// Tokens of each tier.
using TierCounts = std::array<int, kMaxTiers>;

// Tokens of one block, the unit that is packed.
inline constexpr int kBlockTokens = 128;
// A step with fewer query rows than this is a decode step (decision A3).
inline constexpr int kShortStep = 20;

// How one side, K or V, is coded.
struct Side {
  Axis axis = Axis::Channel;
  int group = 32;  // channels per set when axis is Group, tokens when it is ChannelGroup
  Fit fit = Fit::Endpoint;
  Rotation rotation = Rotation::None;
  // Rounds of dual scaling (KVarN): channels and tokens divided by their standard deviations in
  // turn before they are coded; 0 for none.
  int dual = 0;
  Codec codec = Codec::Affine;
  Clip clip = {};  // of the range that an endpoint or midpoint fit takes
  // Columns of the two factors whose product is added to the decoded values of each tier of a
  // head's block (GEAR's low rank); 0 for none.
  int rank = 0;
  bool operator==(const Side&) const = default;

  // What a value is multiplied with beside the parameters of its set: a factor of its channel, or
  // of its token. What runs along a set needs none, since the set's parameters hold it.
  bool channel_factors() const { return axis == Axis::Cst || (dual > 0 && !by_channel(axis)); }
  bool token_factors() const { return dual > 0 && by_channel(axis); }
};

// Code widths of one tier; each is 2, 3, 4, 8 or 16 (raw), or both are 0: the tier keeps nothing,
// its tokens are evicted.
struct Tier {
  int k_bits = 16;
  int v_bits = 16;
  bool evicts() const { return k_bits == 0; }
  bool operator==(const Tier&) const = default;
};

struct Saliency {
  Statistic statistic = Statistic::Mean;
  std::string file;  // of token scores, for Statistic::File, where it is named; else empty
  Norm norm = Norm::ProbeNnz;
  int recent_permille = 50;  // probe rows: newest share of a chunk, in 1/1000
  int random_permille = 50;  // and a random share of its other rows
  bool replacement = false;  // draw random probes with replacement (official code)
  DecodeProbes decode = DecodeProbes::Spread;
  Scope scope = Scope::Head;
  Pool pool = Pool::Average;
  int pool_width = 1;  // neighbouring tokens that are pooled, odd; 1 for none
  bool operator==(const Saliency&) const = default;
};

struct Window {
  int sinks = 0;   // first tokens of each sequence that stay 16-bit
  int recent = 0;  // newest written tokens that stay 16-bit
  bool operator==(const Window&) const = default;
};

// Fields replaced for a range of layers, in the short text form ("k=8,v=4").
struct LayerOverride {
  int first = 0;
  int last = 0;  // inclusive
  std::string fields;
  bool operator==(const LayerOverride&) const = default;
};

struct Policy {
  std::string name = "f16";
  Side k, v;
  Rounding k_rounding = Rounding::Nearest;
  std::vector<Tier> tiers = {{16, 16}};  // best first; one to four
  std::vector<int> shares = {1000};      // of tokens in each tier but the last, in 1/1000; for
                                         // Allocation::Fraction and more than one tier
  Allocation allocation = Allocation::Fraction;
  int target_millibits = 0;  // mean bits of a code, in 1/1000; for the other allocations
  Saliency saliency;
  Window window;
  Cadence cadence = Cadence::Stream;
  Precision precision = Precision::Auto;
  uint64_t seed = 1;
  std::string rotations;  // path of the file for Rotation::File (zipcache/rotations.hpp)
  std::vector<LayerOverride> overrides;
  bool operator==(const Policy&) const = default;

  // Nothing is ever packed.
  bool raw() const { return tiers.size() == 1 && tiers[0].k_bits == 16 && tiers[0].v_bits == 16; }
  // Tiers fill a budget of bits.
  bool fills_budget() const { return tiers.size() > 1 && allocation != Allocation::Fraction; }
  // Scores decide something, so probe rows are worth their cost.
  bool needs_scores() const {
    return tiers.size() > 1 &&
           (saliency.statistic == Statistic::Mean || saliency.statistic == Statistic::MeanStd ||
            saliency.statistic == Statistic::Last || saliency.statistic == Statistic::Max);
  }
  // And the spread of what probes gave.
  bool needs_squares() const { return needs_scores() && saliency.statistic == Statistic::MeanStd; }
  // Some packed tokens are kept nowhere.
  bool evicts() const { return tiers.back().evicts(); }
};

// One named row of the table of methods.
struct PolicyRow {
  std::string_view name;
  std::string_view text;     // the fields that differ from row f16
  std::string_view summary;  // one line for people
};

// All built-in rows, in the order in which a table shows them.
std::span<const PolicyRow> policy_rows();

// Parses `text`: a row's name, or the path of a .json file, followed by comma-separated field=value
// changes; 0-3:field=value changes layers 0 to 3 only. The error names the field, the value found
// and the accepted values.
Result<Policy> parse_policy(std::string_view text);

// Reads and writes the JSON form. Unknown fields are errors, absent ones keep the row named by
// "base" (f16 when there is none). An object "evidence", in which a tool keeps what it measured, is
// passed over.
Result<Policy> policy_from_json(std::string_view json);
std::string policy_to_json(const Policy& policy);
Result<Policy> load_policy(const std::string& path);

// The short text form; parsing it gives the same policy again, but for the name of a policy that is
// not a row.
std::string to_text(const Policy& policy);

// Checks that fields fit together; every parser above ends with it.
Status check(const Policy& policy);

// Some layer's keys or values are rotated by matrices of a file.
bool needs_rotations(const Policy& policy);

// The policy of one layer: overrides applied. Window, cadence, seed and probes belong to the whole
// cache and cannot be overridden.
Result<Policy> policy_for_layer(const Policy& policy, int layer);

// How many of n ranked tokens get the first tier of two: all but the floor((1000 - permille) * n /
// 1000) lowest (decision A12). Integer arithmetic, so no binary fraction changes a count.
int high_share(int n, int permille);
// Tokens of each tier for the shares of all tiers but the last: of n tokens ranked together,
TierCounts tier_counts(int n, std::span<const int> shares);
// and of one packed block, the `block`-th of its log, in portions of 16 tokens: any number of
// blocks from the first on holds the first of two tiers' share to within half a portion, every tier
// of more to within two, but for sinks.
TierCounts tier_counts_of_block(uint64_t block, int n_coded, std::span<const int> shares);

// Tiers from scores [n]: the counts[0] highest get tier 0, the counts[1] highest of the others tier
// 1 and so on; what is left gets tier counts.size() (decision A19: of equal scores the later token
// is salient). Pure.
std::vector<uint8_t> allocate(std::span<const float> scores, std::span<const int> counts);

}  // namespace zipcache
