#include "codec/clip.hpp"

#include <algorithm>

namespace zipcache {
namespace {

Ends ends_of(std::vector<float>& values, const Clip& clip) {
  if (clip.quantile) {
    std::sort(values.begin(), values.end());
    return quantiles_of(int(values.size()), clip, [&](int i) { return values[size_t(i)]; });
  }
  const auto [lo, hi] = std::minmax_element(values.begin(), values.end());
  return middle_of(*lo, *hi, clip);
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
      each(token, channel, [&](float& x) { x = ends.clip(x); });
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
