#include <fmt/format.h>

#include <cmath>

#include "zipcache/cache.hpp"

namespace zipcache {
namespace {

constexpr float kMostRadians = 1000;  // a position; frequencies of position embeddings are below 1

}  // namespace

void KeyTurn::apply(float* rows, int n, ptrdiff_t stride, int32_t positions) const {
  for (const Pair& pair : pairs) {
    const float angle = float(positions) * pair.angle;
    const float c = std::cos(angle), s = std::sin(angle);
    for (int i = 0; i < n; ++i) {
      float& a = rows[i * stride + pair.a];
      float& b = rows[i * stride + pair.b];
      const float turned = a * c - b * s;
      b = a * s + b * c;
      a = turned;
    }
  }
}

Status check(const KeyTurn& turn, int dim) {
  for (const KeyTurn::Pair& pair : turn.pairs) {
    const auto is_channel = [&](int32_t c) { return c >= 0 && c < dim; };
    if (is_channel(pair.a) && is_channel(pair.b) && pair.a != pair.b &&
        std::fabs(pair.angle) <= kMostRadians)
      continue;
    return {
        Code::BadArgument,
        fmt::format("rotate: channels {} and {} by {} radians a position, expected two channels "
                    "from 0 to {} and an angle of at most {}",
                    pair.a, pair.b, pair.angle, dim - 1, kMostRadians)};
  }
  return ok();
}

}  // namespace zipcache
