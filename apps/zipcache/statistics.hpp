// Statistics of one run against its reference: divergence, agreement and perplexity, as
// llama-perplexity defines them, in double precision; and the interval of a share.
//
// Thread safety: plain values and pure functions; one thread at a time per Divergence.
#pragma once

#include <cstddef>
#include <span>
#include <vector>

namespace zipcache::cli {

// What one scored token contributes.
struct TokenScore {
  double kld = 0;         // sum over the vocabulary of p_reference * ln(p_reference / p)
  double surprise = 0;    // -ln p(next token)
  bool same_top = false;  // both put the same token first
  double excess = 0;      // surprise minus the reference's surprise
};

// The softmax of one row of logits, kept while several policies are held against it.
struct Distribution {
  std::vector<double> probability;      // [n_vocab]
  std::vector<double> log_probability;  // [n_vocab]
  size_t top = 0;                       // most likely token, the first of equals
};

// Fills `out`, whose storage is used again from row to row.
void softmax(std::span<const float> logits, Distribution& out);

// `logits` [n_vocab] of the policy, scored where the text goes on with `next_token`.
TokenScore score(const Distribution& reference, std::span<const float> logits, size_t next_token);

struct Summary {
  size_t tokens = 0;
  double ppl = 0, ppl_se = 0;
  double ppl_ratio = 1, ppl_ratio_se = 0;  // to the reference's, over the same tokens
  double kld_mean = 0, kld_mean_se = 0;
  double kld_p50 = 0, kld_p99 = 0, kld_p999 = 0, kld_max = 0;
  double same_top = 0, same_top_se = 0;  // shares, 0 to 1
};

// Standard errors treat tokens as independent, as llama-perplexity's do.
class Divergence {
 public:
  void add(const TokenScore& token);
  size_t tokens() const { return kld_.size(); }
  Summary summary() const;

 private:
  std::vector<double> kld_;  // [tokens] for the percentiles
  double kld_sum_ = 0, kld_squares_ = 0;
  double surprise_sum_ = 0, surprise_squares_ = 0;
  double excess_sum_ = 0, excess_squares_ = 0;
  size_t same_top_ = 0;
};

// The tokens at positions from `begin` up to `end` of a chunk.
struct DepthSummary {
  int begin = 0, end = 0;
  Summary summary;
};

// The same statistics in equal bins of depth, since a cache does its damage where its older tokens
// are packed.
class DivergenceByDepth {
 public:
  // `width` in tokens, at least 1.
  explicit DivergenceByDepth(int width) : width_(width) {}
  void add(int position, const TokenScore& token);
  std::vector<DepthSummary> summary() const;  // every bin up to the deepest position

 private:
  int width_;
  std::vector<Divergence> bins_;
};

// Linear interpolation between the two neighbours of `fraction` (0 to 1) in `sorted`; 0 when empty.
double percentile(std::span<const double> sorted, double fraction);

// Standard error of a mean from the sums of n values and of their squares; 0 for fewer than two.
double standard_error(double sum, double squares, size_t n);

struct Mean {
  double value = 0, error = 0;  // standard error of the value
};

Mean mean_of(std::span<const double> values);

// The logarithm of the probability that `logits` give to `token`.
double log_probability_of(std::span<const float> logits, size_t token);

struct Interval {
  double low = 0, high = 1;
};

// Wilson's 95 % interval of the share `right` / `n`, which stays inside 0 to 1 and is honest for
// few samples and for shares near its ends (Wilson 1927); all of 0 to 1 when n is 0.
Interval wilson(size_t right, size_t n);

}  // namespace zipcache::cli
