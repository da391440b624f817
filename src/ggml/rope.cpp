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
  float* const numbers[] = {&rotation.freq_base,   &rotation.freq_scale, &rotation.ext_factor,
                            &rotation.attn_factor, &rotation.beta_fast,  &rotation.beta_slow};
  for (int i = 0; i < 6; ++i) std::memcpy(numbers[i], &words[5 + i], sizeof(float));
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
  const float magnitude =
      ext_factor != 0 ? attn_factor * (1 + 0.1f * std::log(1 / freq_scale)) : attn_factor;
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
    const float c = std::cos(angle) * magnitude, s = std::sin(angle) * magnitude;
    float& a = neox ? x[pair] : x[2 * pair];
    float& b = neox ? x[pair + n_dims / 2] : x[2 * pair + 1];
    const float turned = a * c - b * s;
    b = a * s + b * c;
    a = turned;
  }
}

}  // namespace zipcache
