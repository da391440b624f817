// Storage of a cache: one reserved range of addresses, cut into pieces of a few fixed sizes.
// Reserving costs no memory; a piece costs memory from its first use on. Freed pieces wait for the
// next request of their size; only when the range is used up are they merged and cut anew. Not
// thread-safe.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <vector>

#include "zipcache/status.hpp"

namespace zipcache {

class Arena {
 public:
  Arena() = default;
  ~Arena();
  Arena(const Arena&) = delete;
  Arena& operator=(const Arena&) = delete;

  // Reserves `bytes` of addresses. OverLimit when the system refuses.
  Status reserve(size_t bytes);

  // A piece of at least `bytes`, 64-byte aligned, contents undefined; null when the range is used
  // up.
  uint8_t* take(size_t bytes);
  // Gives a piece back; `bytes` is what take() was asked for.
  void give(uint8_t* piece, size_t bytes);
  // Gives everything back, the memory to the system.
  void clear();

  size_t used() const { return used_; }          // pieces in use, rounded up to their size
  size_t committed() const { return top_; }      // pieces in use and pieces waiting
  size_t reserved() const { return reserved_; }  // addresses

  static size_t rounded(size_t bytes) { return (bytes + 63) / 64 * 64; }

 private:
  uint8_t* take_merged(size_t size);

  uint8_t* base_ = nullptr;
  size_t reserved_ = 0;
  size_t top_ = 0;
  size_t used_ = 0;
  std::map<size_t, std::vector<uint8_t*>> free_;  // by size
};

}  // namespace zipcache
