// Rotary position embedding on single key rows, for context shift: the angles of ggml's ROPE, with
// the YaRN corrections (Su et al. 2021; Peng et al. 2023), for the normal and the NeoX order of
// pairs. Keys are turned and nothing else: the factor that ROPE lengthens keys by is in them
// already.
#pragma once

#include <ggml.h>

#include <cstdint>

#include "zipcache/status.hpp"

namespace zipcache {

struct KeyRotation {
  int n_dims = 0;
  int first_channel = 0;  // of the head, where the rotated channels begin
  bool neox = false;      // pairs are (i, i + n_dims/2) instead of (2i, 2i + 1)
  int n_ctx_orig = 0;
  float freq_base = 10000, freq_scale = 1, ext_factor = 0, beta_fast = 32, beta_slow = 1;
  const float* factors = nullptr;  // [n_dims / 2] divisors of the frequencies, or null

  // Reads a ROPE node's parameters; Incompatible for orders of pairs that are not served.
  static Result<KeyRotation> from_node(const ggml_tensor* node);

  // Rotates one key head by `positions`, in place.
  void apply(float* head, int32_t positions) const;
};

}  // namespace zipcache
