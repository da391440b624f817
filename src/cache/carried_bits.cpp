#include "cache/carried_bits.hpp"

#include <algorithm>

namespace zipcache {
namespace {

constexpr unsigned kSign = 0x8000, kInfinity = 0x7C00;

bool carries(half number, int n_bits) { return (number & ~kSign) >> n_bits != 0; }

size_t carried_bits(std::span<const half> numbers, int n_bits) {
  size_t bits = 0;
  for (const half number : numbers) bits += carries(number, n_bits) ? size_t(n_bits) : 0;
  return bits;
}

// The number nearest to `number` that ends in `payload`, and still carries.
half with_payload(half number, unsigned payload, int n_bits) {
  const unsigned size = number & ~kSign, unit = 1u << n_bits;
  unsigned best = (size & ~(unit - 1)) | payload;
  if (best > size + unit / 2 && best >= 2 * unit) best -= unit;
  if (best + unit / 2 < size && best + unit < kInfinity) best += unit;
  return half((number & kSign) | best);
}

// Reads what numbers carry in `n_bits` each, one byte after another.
class Reader {
 public:
  Reader(std::span<const half> numbers, int n_bits) : numbers_(numbers), n_bits_(n_bits) {}

  bool next(char& byte) {
    while (n_held_ < 8) {
      if (numbers_.empty()) return false;
      const half number = numbers_.front();
      numbers_ = numbers_.subspan(1);
      if (!carries(number, n_bits_)) continue;
      held_ |= (number & ((1u << n_bits_) - 1)) << n_held_;
      n_held_ += n_bits_;
    }
    byte = char(held_ & 0xFF);
    held_ >>= 8;
    n_held_ -= 8;
    return true;
  }

 private:
  std::span<const half> numbers_;
  int n_bits_;
  unsigned held_ = 0;
  int n_held_ = 0;
};

std::optional<std::string> read(std::span<const half> numbers, int n_bits, std::string_view begin,
                                size_t n_bytes) {
  Reader reader(numbers, n_bits);
  std::string bytes;
  for (size_t i = 0; i < n_bytes; ++i) {
    char byte = 0;
    if (!reader.next(byte) || (i < begin.size() && byte != begin[i])) return {};
    bytes += byte;
  }
  return bytes;
}

}  // namespace

size_t most_carried(std::span<const half> numbers) {
  size_t bits = 0;
  for (int n_bits = 1; n_bits <= kMostCarriedBits; ++n_bits)
    bits = std::max(bits, carried_bits(numbers, n_bits));
  return bits / 8;
}

bool carry(std::string_view bytes, std::span<half> numbers) {
  for (int n_bits = 1; n_bits <= kMostCarriedBits; ++n_bits) {
    if (carried_bits(numbers, n_bits) < 8 * bytes.size()) continue;
    unsigned held = 0;
    int n_held = 0;
    for (half& number : numbers) {
      if (!carries(number, n_bits)) continue;
      if (n_held < n_bits && !bytes.empty()) {
        held |= unsigned(uint8_t(bytes.front())) << n_held;
        n_held += 8;
        bytes.remove_prefix(1);
      }
      if (n_held <= 0) break;
      number = with_payload(number, held & ((1u << n_bits) - 1), n_bits);
      held >>= n_bits;
      n_held -= n_bits;
    }
    return true;
  }
  return false;
}

std::optional<std::string> carried(std::span<const half> numbers, std::string_view begin,
                                   size_t n_bytes) {
  for (int n_bits = 1; n_bits <= kMostCarriedBits; ++n_bits) {
    auto bytes = read(numbers, n_bits, begin, n_bytes);
    if (bytes) return bytes;
  }
  return {};
}

}  // namespace zipcache
