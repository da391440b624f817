// The fields of a policy by name: one table that the text form, the JSON form and every error
// message read. Not for users; they call the functions of zipcache/policy.hpp.
#pragma once

#include <span>
#include <string>
#include <string_view>

#include "zipcache/policy.hpp"

namespace zipcache {

// Most neighbouring scores that are pooled.
inline constexpr int kMaxPool = 31;
// Most rounds of dual scaling.
inline constexpr int kMaxDual = 64;
// Most columns of a low-rank correction.
inline constexpr int kMaxRank = 16;

struct Field {
  std::string_view name;
  std::string_view accepts;  // for error messages
  // Parses `value` into the policy; false when it is not acceptable.
  bool (*set)(Policy&, std::string_view value);
  // The value as text; parsing it gives the same field again. Null for a shorthand of other fields.
  std::string (*get)(const Policy&);
  bool per_layer;  // may differ between layers
};

std::span<const Field> policy_fields();

// Applies "name=value,name=value" to `policy`; `where` begins the error's text. "0-3:name=value"
// adds an override of layers 0 to 3, unless `per_layer_only`.
Status apply_fields(Policy& policy, std::string_view text, std::string_view where,
                    bool per_layer_only);
// Applies one field.
Status apply_field(Policy& policy, std::string_view name, std::string_view value,
                   std::string_view where, bool per_layer_only);

std::string codec_name(Codec codec);

// The values that the fields of clips accept.
bool valid_clip(const Clip& clip);

// Reads "0-3" or "7" into the layers of `change`; false when `text` is neither.
bool parse_layers(std::string_view text, LayerOverride& change);
// The same, written.
std::string layers_text(const LayerOverride& change);

// `path` can stand in both forms of a policy, and in a list of policies.
bool writable_path(std::string_view path);

// At most 60 characters of hostile text, control characters escaped, in quotes.
std::string quote_text(std::string_view text);

}  // namespace zipcache
