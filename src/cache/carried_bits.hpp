// Bytes carried in the low bits of 16-bit floating point numbers, which stay what they are but for
// their last digits. A number whose upper bits are all 0 carries nothing and stays as it is, so
// that zeros remain zeros. Pure functions, thread-safe.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>

#include "base/half.hpp"

namespace zipcache {

// Most low bits of a number that may carry something: 3 bits behind the leading one are left.
inline constexpr int kMostCarriedBits = 7;

// Bytes that `numbers` can carry at the most.
size_t most_carried(std::span<const half> numbers);

// Puts `bytes` into the fewest low bits of finite `numbers` that hold them; false, and nothing has
// changed, when kMostCarriedBits are not enough. Each number moves by half of what these bits can
// say at the most, where it can.
bool carry(std::string_view bytes, std::span<half> numbers);

// The first `n_bytes` that numbers carry, of which `begin` are the first ones; none when they carry
// no bytes that begin so, or fewer.
std::optional<std::string> carried(std::span<const half> numbers, std::string_view begin,
                                   size_t n_bytes);

}  // namespace zipcache
