// Statistics of long generation.
#include "drift.hpp"

#include <algorithm>
#include <cmath>
#include <set>
#include <vector>

namespace zipcache::cli {

double repeated_share(TokenStream stream, size_t n) {
  if (n == 0 || stream.size() < n) return 0;
  std::set<std::vector<int32_t>> seen;
  size_t repeated = 0;
  for (size_t at = 0; at + n <= stream.size(); ++at) {
    const TokenStream part = stream.subspan(at, n);
    repeated += seen.insert({part.begin(), part.end()}).second ? 0 : 1;
  }
  return static_cast<double>(repeated) / static_cast<double>(stream.size());
}

StreamDifference compare_streams(TokenStream reference, TokenStream stream) {
  const size_t n = std::min(reference.size(), stream.size());
  StreamDifference out;
  size_t equal = 0;
  for (size_t i = 0; i < n; ++i) {
    const bool same = reference[i] == stream[i];
    if (!same && !out.first) out.first = i;
    if (out.first && same) ++equal;
  }
  const size_t after = out.first ? n - *out.first - 1 : 0;
  if (out.first)
    out.equal_after = after == 0 ? 0 : static_cast<double>(equal) / static_cast<double>(after);
  return out;
}

size_t TokenChoice::operator()(std::span<const float> logits) {
  const size_t top = std::max_element(logits.begin(), logits.end()) - logits.begin();
  if (temperature_ <= 0) return top;
  // 53 bits of the engine, whose numbers the standard fixes, as a number from 0 to 1.
  const double drawn = static_cast<double>(engine_() >> 11) * 0x1p-53;
  double sum = 0;
  for (const float logit : logits) sum += std::exp((logit - logits[top]) / temperature_);
  double below = 0;
  for (size_t i = 0; i < logits.size(); ++i) {
    below += std::exp((logits[i] - logits[top]) / temperature_);
    if (below > drawn * sum) return i;
  }
  return top;
}

}  // namespace zipcache::cli
