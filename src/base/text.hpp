// Text across C interfaces.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <string_view>

namespace zipcache {

// Copies text the way snprintf does: at most `size` bytes with the ending zero; returns the length
// needed.
inline size_t copy_text(std::string_view text, char* out, size_t size) {
  if (out && size > 0) {
    const size_t n = std::min(text.size(), size - 1);
    std::memcpy(out, text.data(), n);
    out[n] = '\0';
  }
  return text.size();
}

}  // namespace zipcache
