#include "codec/clip.hpp"

#include <algorithm>
#include <cmath>

namespace zipcache {
namespace {

struct Ends {
  float lo, hi;
};

// Value at the share p of sorted values, between neighbours in proportion.
float quantile(const std::vector<float>& sorted, double p) {
  const double at = p * double(sorted.size() - 1);
  const size_t below = size_t(at), above = std::min(below + 1, sorted.size() - 1);
  return float(sorted[below] + (at - double(below)) * (double(sorted[above]) - sorted[below]));
}

Ends ends_of(std::vector<float>& values, const Clip& clip) {
  const double p = clip.permille / 1000.0;
  if (clip.quantile) {
    std::sort(values.begin(), values.end());
    return {quantile(values, 1 - p), quantile(values, p)};
  }
  const auto [lo, hi] = std::minmax_element(values.begin(), values.end());
  const double centre = 0.5 * (double(*lo) + *hi), reach = 0.5 * p * (double(*hi) - *lo);
  return {float(centre - reach), float(centre + reach)};
}

// Every set of rows [n, dim] holds `tokens` by `channels` values, the last ones fewer.
void clip_rectangles(const Clip& clip, int n, int dim, int tokens, int channels, float* rows) {
  std::vector<float> values;
  const auto each = [&](int token, int channel, auto&& visit) {
    for (int t = token; t < std::min(n, token + tokens); ++t) {
      for (int c = channel; c < std::min(dim, channel + channels); ++c) visit(rows[t * dim + c]);
    }
  };
  for (int token = 0; token < n; token += tokens) {
    for (int channel = 0; channel < dim; channel += channels) {
      values.clear();
      each(token, channel, [&](float x) { values.push_back(x); });
      const Ends ends = ends_of(values, clip);
      each(token, channel, [&](float& x) { x = std::clamp(x, ends.lo, ends.hi); });
    }
  }
}

}  // namespace

void clip_sets(const Side& side, int dim, std::vector<float>& rows) {
  const int n = int(rows.size()) / dim;
  if (n == 0 || !side.clip.clips()) return;
  switch (side.axis) {
    case Axis::Channel:
      return clip_rectangles(side.clip, n, dim, n, 1, rows.data());
    case Axis::ChannelGroup:
      return clip_rectangles(side.clip, n, dim, side.group, 1, rows.data());
    case Axis::Group:
      return clip_rectangles(side.clip, n, dim, 1, side.group, rows.data());
    case Axis::Token:
    case Axis::Cst:
      return clip_rectangles(side.clip, n, dim, 1, dim, rows.data());
    case Axis::None:
      return;
  }
}

}  // namespace zipcache
