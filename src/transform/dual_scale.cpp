#include "transform/dual_scale.hpp"

#include <cmath>

namespace zipcache {
namespace {

std::vector<float> held_by_halves(const std::vector<double>& factors) {
  std::vector<float> out;
  for (const double factor : factors) out.push_back(to_float(held_factor(factor)));
  return out;
}

}  // namespace

DualScale dual_scale(const float* x, int n, int dim, int rounds) {
  const size_t n_tokens = size_t(n), n_channels = size_t(dim);
  std::vector<double> y(x, x + n_tokens * n_channels);
  std::vector<double> channels(n_channels, 1.0), tokens(n_tokens, 1.0);
  for (int round = 0; round < rounds; ++round) {
    std::vector<Moments> over_tokens(n_channels);
    for (size_t i = 0; i < y.size(); ++i) over_tokens[i % n_channels].add(y[i]);
    std::vector<double> spreads;
    for (const Moments& moments : over_tokens) spreads.push_back(std::sqrt(moments.variance(n)));
    for (size_t c = 0; c < n_channels; ++c) channels[c] *= spreads[c];
    for (size_t t = 0; t < n_tokens; ++t) {
      double* row = &y[t * n_channels];
      Moments over_channels;
      for (size_t c = 0; c < n_channels; ++c) over_channels.add(row[c] /= spreads[c]);
      const double spread = std::sqrt(over_channels.variance(dim));
      tokens[t] *= spread;
      for (size_t c = 0; c < n_channels; ++c) row[c] /= spread;
    }
  }
  return {held_by_halves(channels), held_by_halves(tokens)};
}

}  // namespace zipcache
