#include "base/arena.hpp"

#include <fmt/format.h>
#include <sys/mman.h>

#include <iterator>

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
  if (reserved_ - top_ < size) return take_merged(size);
  uint8_t* piece = base_ + top_;
  top_ += size;
  used_ += size;
  return piece;
}

// Neighbours among the waiting pieces become one, and the smallest that is large enough is cut.
uint8_t* Arena::take_merged(size_t size) {
  std::map<uint8_t*, size_t> runs;  // bytes of each, by where it begins
  for (const auto& [bytes, waiting] : free_) {
    for (uint8_t* piece : waiting) runs[piece] = bytes;
  }
  for (auto run = runs.begin(); run != runs.end(); ++run) {
    for (auto next = std::next(run); next != runs.end() && run->first + run->second == next->first;
         next = runs.erase(next))
      run->second += next->second;
  }
  std::map<size_t, std::vector<uint8_t*>> merged;
  for (const auto& [piece, bytes] : runs) merged[bytes].push_back(piece);
  const auto fitting = merged.lower_bound(size);
  if (fitting == merged.end()) return nullptr;
  uint8_t* piece = fitting->second.back();
  const size_t left = fitting->first - size;
  fitting->second.pop_back();
  if (fitting->second.empty()) merged.erase(fitting);
  if (left > 0) merged[left].push_back(piece + size);
  free_ = std::move(merged);
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
