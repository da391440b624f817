#include "ggml/rope.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstring>

namespace zipcache {
namespace {

constexpr float kPi = 3.14159265358979f;

// Pair index at which a frequency turns `rotations` times over the original context (YaRN, eq. 17).
float correction_pair(const KeyRotation& r, float rotations) {
  return float(r.n_dims) * std::log(float(r.n_ctx_orig) / (rotations * 2 * kPi)) /
         (2 * std::log(r.freq_base));
}

}  // namespace

Result<KeyRotation> KeyRotation::from_node(const ggml_tensor* node) {
  int32_t words[11];
  std::memcpy(words, node->op_params, sizeof words);
  KeyRotation rotation;
  rotation.n_dims = words[1];
  const int mode = words[2];
  rotation.n_ctx_orig = words[4];
  const struct {
    int word;
    float* number;
  } numbers[] = {{5, &rotation.freq_base},
                 {6, &rotation.freq_scale},
                 {7, &rotation.ext_factor},
                 {9, &rotation.beta_fast},
                 {10, &rotation.beta_slow}};
  for (const auto& [word, number] : numbers) std::memcpy(number, &words[word], sizeof(float));
  rotation.neox = mode == GGML_ROPE_TYPE_NEOX;
  if ((mode != GGML_ROPE_TYPE_NORMAL && !rotation.neox) || rotation.n_dims % 2 != 0 ||
      rotation.n_dims > node->ne[0]) {
    return Status{
        Code::Incompatible,
        fmt::format("context shift: rotation of kind {} over {} channels is not served; start "
                    "without context shift (--no-context-shift)",
                    mode, rotation.n_dims)};
  }
  return rotation;
}

void KeyRotation::apply(float* head, int32_t positions) const {
  const float low = std::max(0.0f, std::floor(correction_pair(*this, beta_fast)));
  const float high = std::min(float(n_dims - 1), std::ceil(correction_pair(*this, beta_slow)));
  float* x = head + first_channel;
  for (int pair = 0; pair < n_dims / 2; ++pair) {
    const float plain = float(positions) *
                        std::pow(freq_base, -2.0f * float(pair) / float(n_dims)) /
                        (factors ? factors[pair] : 1.0f);
    float angle = freq_scale * plain;
    if (ext_factor != 0) {
      const float ramp = std::clamp((float(pair) - low) / std::max(0.001f, high - low), 0.0f, 1.0f);
      const float mix = (1 - ramp) * ext_factor;
      angle = angle * (1 - mix) + plain * mix;
    }
    const float c = std::cos(angle), s = std::sin(angle);
    float& a = neox ? x[pair] : x[2 * pair];
    float& b = neox ? x[pair + n_dims / 2] : x[2 * pair + 1];
    const float turned = a * c - b * s;
    b = a * s + b * c;
    a = turned;
  }
}

}  // namespace zipcache
