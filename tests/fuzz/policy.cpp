// Policy text and policy JSON: whatever is accepted can be written in both forms and read again,
// can be priced, and whatever is refused is refused in one printable line.
#include "fuzz.hpp"
#include "zipcache/cache.hpp"

namespace zipcache::fuzz {
namespace {

// A text whose name ends in .json is the path of a file; files are not this target's input.
bool names_a_file(std::string_view text) { return text.find(".json") != std::string_view::npos; }

Policy unnamed(Policy policy) {
  policy.name.clear();
  return policy;
}

void check_accepted(const Policy& policy) {
  require(check(policy).ok(), "accepted, but check() says: {}", check(policy).message());
  const std::string text = to_text(policy), json = policy_to_json(policy);
  if (!names_a_file(text)) {
    const Result<Policy> again = parse_policy(text);
    require(again.ok(), "its own text '{}' is refused: {}", text, again.status().message());
    require(unnamed(*again) == unnamed(policy), "its own text '{}' is another policy", text);
  }
  const Result<Policy> again = policy_from_json(json);
  require(again.ok(), "its own JSON {} is refused: {}", json, again.status().message());
  require(*again == policy, "its own JSON {} is another policy", json);
  for (const int layer : {0, 1, 4095}) {
    const Result<Policy> own = policy_for_layer(policy, layer);
    if (!own.ok()) require_good_message(own.status());
  }
  const std::vector<LayerShape> layers = {{1, 64, 64}, {2, 48, 16}};
  if (policy.window.recent > 1 << 20) return;  // its price takes long to add up
  const Result<Bytes> bytes = footprint(policy, layers, 1500, 100);
  if (!bytes.ok()) return require_good_message(bytes.status());
  require(bytes->allocated() < 64u << 20, "{} bytes for 1500 tokens", bytes->allocated());
}

}  // namespace
}  // namespace zipcache::fuzz

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace zipcache;
  fuzz::Input bytes(data, size);
  const bool json = bytes.take<uint8_t>() == 'J';
  const std::string_view text = bytes.rest();
  if (!json && fuzz::names_a_file(text)) return 0;
  const Result<Policy> policy = json ? policy_from_json(text) : parse_policy(text);
  if (policy.ok())
    fuzz::check_accepted(*policy);
  else
    fuzz::require_good_message(policy.status());
  return 0;
}
