// Rounding of keys by what queries will see of it. A key's error e costs a query the score error
// q . e, so over many queries e' H e with H = sum q q', not e' e. Queries are far from equal in all
// directions: codes that let the errors of channels cancel where queries look cost no bit more and
// do less damage than the nearest codes. The rule is that of GPTQ for weights (Frantar et al. 2023)
// in the form of LDLQ (Chee et al. 2023, section 3): channels are rounded one after another, each
// after the errors before it were added with the coefficients of H = (U + I) D (U + I)'.
//
// H is learnt from the query rows of prompts, rotated as the keys are, and kept small: groups of up
// to 64 channels, whose errors are weighed together, 16-bit deviations and 8-bit correlations.
//
// Plain arithmetic in one order: the same bits on every instruction set. Not thread-safe.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "base/number_reader.hpp"
#include "codec/quantize.hpp"

namespace zipcache {

// Channels of a group.
inline constexpr int kMomentGroup = 64;
// Fewer query rows at a time say too little to be learnt from.
inline constexpr int kMomentRows = 64;
// And so many say enough; more of one step cost time and change nothing.
inline constexpr int kMomentMostRows = 256;
// Moments of so many prompts' pieces are averaged; after that old ones fade.
inline constexpr int kMomentMemory = 8;
// Share of the mean square that is added to every channel: queries to come differ from those seen.
inline constexpr double kMomentDamping = 0.1;

// What the query rows of one KV head were like.
class QueryMoment {
 public:
  explicit QueryMoment(int dim);

  // Learns from query rows [n, ld], n >= kMomentRows, of dim channels; later ones count more. Rows
  // whose squares are not finite teach nothing.
  void learn(const float* rows, int n, int ld);
  bool known() const { return n_learnt_ > 0; }
  int dim() const { return dim_; }
  // Of a group that begins at channel `first`: correlations [size, size] of its channels, each
  // times both deviations.
  std::vector<double> group(int first) const;
  void forget();
  // Its numbers in a saved state, and back; false when they are not there or make no sense.
  void save(std::string& bytes) const;
  bool load(NumberReader& reader);

  static size_t bytes(int dim);

 private:
  int dim_ = 0;
  int n_learnt_ = 0;
  std::vector<half> deviation_;      // [dim]
  std::vector<int8_t> correlation_;  // groups one after another: pairs i < j, in 1/127
};

// The coefficients of one moment, ready to round rows with.
class QueryRounding {
 public:
  QueryRounding() = default;  // knows nothing
  explicit QueryRounding(const QueryMoment& moment);
  bool known() const { return dim_ > 0; }
  // Groups one after another: the coefficients [size, size] of each channel's row with the errors
  // of the channels before it.
  std::span<const float> feedback() const { return feedback_; }

  // Moves the rows x [n, dim] onto grid points of `fits` [dim], so that any rounding finds them.
  void round(float* x, int n, std::span<const SetFit> fits, int bits) const;

 private:
  int dim_ = 0;
  std::vector<float> feedback_;  // groups one after another: U' [size, size]
};

}  // namespace zipcache
