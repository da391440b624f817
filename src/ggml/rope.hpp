// Rotary position embedding of keys, for context shift: what ggml's ROPE does, with the YaRN
// corrections (Su et al. 2021; Peng et al. 2023), for the normal and the NeoX order of pairs.
#pragma once

#include <ggml.h>

#include "zipcache/cache.hpp"

namespace zipcache {

// How a ROPE node turns keys, of which it sees the channels from `first_channel` of a head on.
// What the node multiplies them with is left out: keys have it from when they were written.
// Incompatible for orders of pairs that are not served.
Result<KeyTurn> key_turn(const ggml_tensor* node, int first_channel);

}  // namespace zipcache
