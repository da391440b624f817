// Little-endian numbers in the bytes of a file: how they are read without ever reading beyond the
// end, and how they are written. Not thread-safe.
#pragma once

#include <bit>
#include <cstddef>
#include <cstring>
#include <string>
#include <string_view>
#include <vector>

namespace zipcache {

static_assert(std::endian::native == std::endian::little, "files hold little-endian numbers");

// Takes what is there from the front, one piece after another; false when there is not so much.
class NumberReader {
 public:
  explicit NumberReader(std::string_view bytes) : rest_(bytes) {}

  template <class T>
  bool take(T* out, size_t n) {
    if (rest_.size() / sizeof(T) < n) return false;
    if (n == 0) return true;  // `out` may be null
    std::memcpy(out, rest_.data(), n * sizeof(T));
    rest_.remove_prefix(n * sizeof(T));
    return true;
  }
  // As many numbers as `out` is to hold; no memory is taken for more than there are.
  template <class T>
  bool take(std::vector<T>& out, size_t n) {
    if (rest_.size() / sizeof(T) < n) return false;
    out.resize(n);
    return take(out.data(), n);
  }
  bool take(std::string& out, size_t n) {
    if (rest_.size() < n) return false;
    out = rest_.substr(0, n);
    rest_.remove_prefix(n);
    return true;
  }
  size_t left() const { return rest_.size(); }

 private:
  std::string_view rest_;
};

template <class T>
void append_numbers(std::string& out, const T* numbers, size_t n) {
  if (n > 0) out.append(reinterpret_cast<const char*>(numbers), n * sizeof(T));
}

}  // namespace zipcache
