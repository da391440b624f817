// Bits spent where they matter most: how many tokens of a head's block each tier gets within a
// budget (RDKV, arXiv 2605.08317, section 3). Pure functions.
#pragma once

#include <cstddef>
#include <span>
#include <vector>

#include "zipcache/policy.hpp"

namespace zipcache {

// Mean squared error that coding at a width leaves of a normal number of variance 1, in sets of 128
// that share parameters; 1 for 0 bits, since nothing is left then.
double distortion(const Side& side, int bits);

// What the tiers offer, best first.
struct Knapsack {
  std::vector<double> errors;              // [tier] of a token of weight 1, rising
  std::vector<std::vector<size_t>> bytes;  // [tier][n] of n tokens
  size_t budget = 0;                       // bytes of all tiers together
  int portion = 4;                         // all tiers but the last hold a multiple of it
};

// Scores as weights, squared or not. A token that nobody could ask about weighs as much as the
// heaviest of the others; all tokens weigh alike when there is nothing to tell them apart.
std::vector<double> knapsack_weights(std::span<const float> scores, bool squared);

// The counts with the least sum of weight times error among those that the budget holds, heavier
// tokens in better tiers: exact, by trying them. All tokens are in the last tier when nothing fits.
TierCounts fill_knapsack(const Knapsack& sack, std::vector<double> weights);

}  // namespace zipcache
