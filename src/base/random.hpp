// Counter-based random numbers: the n-th number of a stream is a pure function of (key, n), so that
// a result depends on its seed and place only, never on the order of calls.
#pragma once

#include <cstdint>
#include <vector>

namespace zipcache {

// Mixes 64 bits so that each input bit changes about half of the output bits (Stafford's variant 13
// of the MurmurHash3 finaliser).
constexpr uint64_t mix(uint64_t x) {
  x += 0x9E3779B97F4A7C15ull;
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9ull;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EBull;
  return x ^ (x >> 31);
}

class Random {
 public:
  // The stream named by up to four numbers, such as (seed, stream, layer, round).
  constexpr explicit Random(uint64_t a, uint64_t b = 0, uint64_t c = 0, uint64_t d = 0)
      : key_(mix(mix(mix(mix(a) ^ b) ^ c) ^ d)) {}

  constexpr uint64_t next() { return mix(key_ ^ mix(counter_++)); }
  // Passes over n numbers.
  constexpr void skip(uint64_t n) { counter_ += n; }
  // Uniform in [0, n), n > 0, without modulo bias worth mentioning for n far below 2^32.
  uint32_t below(uint32_t n) {
    return static_cast<uint32_t>((static_cast<unsigned __int128>(next()) * n) >> 64);
  }
  // Uniform in [0, 1).
  constexpr float unit() { return static_cast<float>(next() >> 40) * 0x1p-24f; }

  // `count` different numbers of [0, n), ascending (Floyd's algorithm; count <= n).
  std::vector<int> sample(int n, int count);

 private:
  uint64_t key_;
  uint64_t counter_ = 0;
};

}  // namespace zipcache
