// What fuzz targets share: input bytes as numbers, and the claim that a find breaks.
//
// A target defines LLVMFuzzerTestOneInput(); libFuzzer calls it with inputs of its own making,
// replay.cpp with those of files.
#pragma once

#include <fmt/format.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <string_view>

#include "zipcache/status.hpp"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);

namespace zipcache::fuzz {

// Takes numbers from the front of an input; behind its end there are zeros.
class Input {
 public:
  Input(const uint8_t* data, size_t size) : data_(data), left_(size) {}

  bool empty() const { return left_ == 0; }
  template <class T>
  T take() {
    T value{};
    const size_t n = std::min(left_, sizeof(T));
    if (n > 0) std::memcpy(&value, data_, n);
    data_ += n, left_ -= n;
    return value;
  }
  // 0 .. n - 1, n at most 256.
  int below(int n) { return take<uint8_t>() % n; }
  std::string_view rest() {
    const std::string_view all(reinterpret_cast<const char*>(data_), left_);
    left_ = 0;
    return all;
  }

 private:
  const uint8_t* data_;
  size_t left_;
};

// Ends the program unless `holds`: a find, as a crash is.
template <class... Args>
void require(bool holds, fmt::format_string<Args...> what, Args&&... args) {
  if (holds) return;
  fmt::print(stderr, "fuzz: found: {}\n", fmt::format(what, std::forward<Args>(args)...));
  std::abort();
}

// An error is one line that a C caller's 1024 bytes hold, without control characters.
inline void require_good_message(const Status& status) {
  const std::string& text = status.message();
  require(!text.empty() && text.size() < 1024, "an error of {} bytes: {:.200}", text.size(), text);
  require(
      std::none_of(text.begin(), text.end(), [](unsigned char c) { return c < 32 || c == 127; }),
      "an error with control characters");
}

}  // namespace zipcache::fuzz
