// Statistics of long generation: how a stream of tokens repeats itself, and where two streams part.
//
// Thread safety: pure functions.
#pragma once

#include <cstdint>
#include <optional>
#include <random>
#include <span>

namespace zipcache::cli {

using TokenStream = std::span<const int32_t>;

// Share of the tokens whose `n` tokens up to here stood in the stream before. Greedy text of a
// small model falls into loops, where all caches agree: a high share says that agreement means
// little.
double repeated_share(TokenStream stream, size_t n);

struct StreamDifference {
  std::optional<size_t>
      first;               // place of the first token that differs; none: the streams are equal
  double equal_after = 1;  // share of equal tokens at the same places behind it
};

// Holds `stream` against `reference` as far as both go.
StreamDifference compare_streams(TokenStream reference, TokenStream stream);

// Chooses tokens from logits: the most likely one at temperature 0, else one drawn with its
// probability. The n-th choice takes the n-th number of the seed, so that two caches with equal
// logits choose equal tokens.
class TokenChoice {
 public:
  TokenChoice(float temperature, uint64_t seed) : temperature_(temperature), engine_(seed) {}
  size_t operator()(std::span<const float> logits);

 private:
  float temperature_;
  std::mt19937_64 engine_;
};

}  // namespace zipcache::cli
