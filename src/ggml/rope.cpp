#include "ggml/rope.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstring>

namespace zipcache {
namespace {

constexpr float kPi = 3.14159265358979f;

// A ROPE node's parameters, as ggml orders them in its words from the second on.
struct RopeParameters {
  int32_t n_dims, mode, n_ctx, n_ctx_orig;
  float freq_base, freq_scale, ext_factor, attn_factor, beta_fast, beta_slow;
};

// Pair index at which a frequency turns `rotations` times over the original context (YaRN, eq. 17).
float correction_pair(const RopeParameters& r, float rotations) {
  return float(r.n_dims) * std::log(float(r.n_ctx_orig) / (rotations * 2 * kPi)) /
         (2 * std::log(r.freq_base));
}

// Radians a position; `factor` divides the pair's frequency.
float angle_of(const RopeParameters& r, int pair, float factor) {
  const float plain = std::pow(r.freq_base, -2.0f * float(pair) / float(r.n_dims)) / factor;
  if (r.ext_factor == 0) return r.freq_scale * plain;
  const float low = std::max(0.0f, std::floor(correction_pair(r, r.beta_fast)));
  const float high = std::min(float(r.n_dims - 1), std::ceil(correction_pair(r, r.beta_slow)));
  const float ramp = std::clamp((float(pair) - low) / std::max(0.001f, high - low), 0.0f, 1.0f);
  const float mix = (1 - ramp) * r.ext_factor;
  return r.freq_scale * plain * (1 - mix) + plain * mix;
}

}  // namespace

Result<KeyTurn> key_turn(const ggml_tensor* node, int first_channel) {
  RopeParameters r;
  std::memcpy(&r, reinterpret_cast<const int32_t*>(node->op_params) + 1, sizeof r);
  const bool neox = r.mode == GGML_ROPE_TYPE_NEOX;
  if ((r.mode != GGML_ROPE_TYPE_NORMAL && !neox) || r.n_dims % 2 != 0 || r.n_dims > node->ne[0]) {
    return Status{
        Code::Incompatible,
        fmt::format("context shift: rotation of kind {} over {} channels is not served; start "
                    "without context shift (--no-context-shift)",
                    r.mode, r.n_dims)};
  }
  const ggml_tensor* factors = node->src[2];
  KeyTurn turn;
  for (int pair = 0; pair < r.n_dims / 2; ++pair) {
    const float factor = factors ? static_cast<const float*>(factors->data)[pair] : 1.0f;
    const int a = first_channel + (neox ? pair : 2 * pair);
    turn.pairs.push_back({a, a + (neox ? r.n_dims / 2 : 1), angle_of(r, pair, factor)});
  }
  return turn;
}

}  // namespace zipcache
