// Statistics of one run against its reference.
#include "statistics.hpp"

#include <algorithm>
#include <cmath>

namespace zipcache::cli {

namespace {

// ln of the sum of exp(logits), without overflow.
double log_sum_exp(std::span<const float> logits, double largest) {
  double sum = 0;
  for (const float logit : logits) sum += std::exp(logit - largest);
  return largest + std::log(sum);
}

size_t largest_of(std::span<const float> logits) {
  return std::max_element(logits.begin(), logits.end()) - logits.begin();
}

}  // namespace

void softmax(std::span<const float> logits, Distribution& out) {
  const size_t n = logits.size();
  out.probability.resize(n);
  out.log_probability.resize(n);
  out.top = largest_of(logits);
  const double largest = logits[out.top];
  double sum = 0;
  for (size_t i = 0; i < n; ++i) {
    out.probability[i] = std::exp(logits[i] - largest);
    sum += out.probability[i];
  }
  const double log_mass = largest + std::log(sum);
  for (size_t i = 0; i < n; ++i) {
    out.probability[i] /= sum;
    out.log_probability[i] = logits[i] - log_mass;
  }
}

TokenScore score(const Distribution& reference, std::span<const float> logits, size_t next_token) {
  const size_t top = largest_of(logits);
  const double log_mass = log_sum_exp(logits, logits[top]);
  double kld = 0;
  for (size_t i = 0; i < logits.size(); ++i) {
    const double p = reference.probability[i];
    // A probability of 0 contributes 0, also where a logit is -inf.
    if (p > 0) kld += p * (reference.log_probability[i] - (logits[i] - log_mass));
  }
  const double surprise = log_mass - logits[next_token];
  return {kld, surprise, top == reference.top, surprise + reference.log_probability[next_token]};
}

void Divergence::add(const TokenScore& token) {
  kld_.push_back(token.kld);
  kld_sum_ += token.kld;
  kld_squares_ += token.kld * token.kld;
  surprise_sum_ += token.surprise;
  surprise_squares_ += token.surprise * token.surprise;
  excess_sum_ += token.excess;
  excess_squares_ += token.excess * token.excess;
  same_top_ += token.same_top ? 1 : 0;
}

Summary Divergence::summary() const {
  Summary s;
  s.tokens = kld_.size();
  if (s.tokens == 0) return s;
  const double n = static_cast<double>(s.tokens);
  s.ppl = std::exp(surprise_sum_ / n);
  s.ppl_se = s.ppl * standard_error(surprise_sum_, surprise_squares_, s.tokens);
  s.ppl_ratio = std::exp(excess_sum_ / n);
  s.ppl_ratio_se = s.ppl_ratio * standard_error(excess_sum_, excess_squares_, s.tokens);
  s.kld_mean = kld_sum_ / n;
  s.kld_mean_se = standard_error(kld_sum_, kld_squares_, s.tokens);
  std::vector<double> sorted = kld_;
  std::sort(sorted.begin(), sorted.end());
  s.kld_p50 = percentile(sorted, 0.5);
  s.kld_p99 = percentile(sorted, 0.99);
  s.kld_p999 = percentile(sorted, 0.999);
  s.kld_max = sorted.back();
  s.same_top = static_cast<double>(same_top_) / n;
  s.same_top_se = s.tokens < 2 ? 0 : std::sqrt(s.same_top * (1 - s.same_top) / (n - 1));
  return s;
}

void DivergenceByDepth::add(int position, const TokenScore& token) {
  const size_t bin = static_cast<size_t>(position / width_);
  if (bin >= bins_.size()) bins_.resize(bin + 1);
  bins_[bin].add(token);
}

std::vector<DepthSummary> DivergenceByDepth::summary() const {
  std::vector<DepthSummary> out;
  int begin = 0;
  for (const Divergence& bin : bins_) {
    out.push_back({begin, begin + width_, bin.summary()});
    begin += width_;
  }
  return out;
}

double percentile(std::span<const double> sorted, double fraction) {
  if (sorted.empty()) return 0;
  const double place = std::clamp(fraction, 0.0, 1.0) * static_cast<double>(sorted.size() - 1);
  const size_t below = static_cast<size_t>(place);
  const size_t above = std::min(below + 1, sorted.size() - 1);
  const double share = place - static_cast<double>(below);
  return (1 - share) * sorted[below] + share * sorted[above];
}

double standard_error(double sum, double squares, size_t n) {
  if (n < 2) return 0;
  const double count = static_cast<double>(n);
  const double mean = sum / count;
  // Rounding can push the difference of two equal numbers below zero.
  const double variance = std::max(0.0, squares / count - mean * mean);
  return std::sqrt(variance / (count - 1));
}

Mean mean_of(std::span<const double> values) {
  if (values.empty()) return {};
  double sum = 0, squares = 0;
  for (const double value : values) {
    sum += value;
    squares += value * value;
  }
  const size_t n = values.size();
  return {sum / static_cast<double>(n), standard_error(sum, squares, n)};
}

double log_probability_of(std::span<const float> logits, size_t token) {
  return logits[token] - log_sum_exp(logits, logits[largest_of(logits)]);
}

Interval wilson(size_t right, size_t n) {
  if (n == 0) return {};
  constexpr double z = 1.959963984540054;  // 97.5 % of a normal distribution lie below it
  const double count = static_cast<double>(n);
  const double share = static_cast<double>(right) / count;
  const double extra = z * z / count;
  const double middle = (share + extra / 2) / (1 + extra);
  const double half =
      z / (1 + extra) * std::sqrt(share * (1 - share) / count + extra / (4 * count));
  return {std::max(0.0, middle - half), std::min(1.0, middle + half)};
}

}  // namespace zipcache::cli
