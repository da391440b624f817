#include "base/arena.hpp"

#include <fmt/format.h>
#include <sys/mman.h>

namespace zipcache {

Arena::~Arena() {
  if (base_) munmap(base_, reserved_);
}

Status Arena::reserve(size_t bytes) {
  void* range = mmap(nullptr, bytes, PROT_READ | PROT_WRITE,
                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (range == MAP_FAILED) {
    return {Code::OverLimit,
            fmt::format(
                "cache storage: the system refused to reserve {} MiB of addresses; use a shorter "
                "context, or allow overcommit (vm.overcommit_memory)",
                bytes >> 20)};
  }
  // Attention walks through all of it at every token; large pages spare it the address lookups. A
  // system without them says no, and nothing is lost.
  (void)madvise(range, bytes, MADV_HUGEPAGE);
  base_ = static_cast<uint8_t*>(range);
  reserved_ = bytes;
  return ok();
}

uint8_t* Arena::take(size_t bytes) {
  const size_t size = rounded(bytes);
  auto& waiting = free_[size];
  if (!waiting.empty()) {
    uint8_t* piece = waiting.back();
    waiting.pop_back();
    used_ += size;
    return piece;
  }
  if (reserved_ - top_ < size) return nullptr;
  uint8_t* piece = base_ + top_;
  top_ += size;
  used_ += size;
  return piece;
}

void Arena::give(uint8_t* piece, size_t bytes) {
  if (!piece) return;
  const size_t size = rounded(bytes);
  free_[size].push_back(piece);
  used_ -= size;
}

void Arena::clear() {
  if (base_) madvise(base_, top_, MADV_DONTNEED);
  free_.clear();
  top_ = used_ = 0;
}

}  // namespace zipcache
