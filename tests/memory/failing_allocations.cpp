#include "memory/failing_allocations.hpp"

#include <atomic>
#include <cstdlib>
#include <new>

namespace zipcache::test {
namespace {

std::atomic<size_t> g_live{0}, g_left{0};  // g_left: allocations up to the failing one, 0 for never
std::atomic<bool> g_forever{false}, g_failed{false};

bool fails_now() {
  if (g_failed && g_forever) return true;
  size_t left = g_left.load();
  while (left > 0 && !g_left.compare_exchange_weak(left, left - 1)) {
  }
  if (left != 1) return false;
  g_failed = true;
  return true;
}

void* allocate(size_t size, size_t alignment) {
  if (fails_now()) throw std::bad_alloc();
  const size_t rounded = (size + alignment - 1) / alignment * alignment;
  void* memory = std::aligned_alloc(alignment, rounded > 0 ? rounded : alignment);
  if (!memory) throw std::bad_alloc();
  ++g_live;
  return memory;
}

void release(void* memory) {
  if (!memory) return;
  --g_live;
  std::free(memory);
}

}  // namespace

void fail_allocation(size_t nth, Failing how) {
  g_failed = false;
  g_forever = how == Failing::Forever;
  g_left = nth;
}

bool stop_failing() {
  g_left = 0;
  g_forever = false;
  return g_failed.exchange(false);
}

size_t live_allocations() { return g_live; }

}  // namespace zipcache::test

using zipcache::test::allocate;
using zipcache::test::release;

void* operator new(size_t size) { return allocate(size, alignof(std::max_align_t)); }
void* operator new[](size_t size) { return allocate(size, alignof(std::max_align_t)); }
void* operator new(size_t size, std::align_val_t alignment) {
  return allocate(size, size_t(alignment));
}
void* operator new[](size_t size, std::align_val_t alignment) {
  return allocate(size, size_t(alignment));
}
void operator delete(void* memory) noexcept { release(memory); }
void operator delete[](void* memory) noexcept { release(memory); }
void operator delete(void* memory, size_t) noexcept { release(memory); }
void operator delete[](void* memory, size_t) noexcept { release(memory); }
void operator delete(void* memory, std::align_val_t) noexcept { release(memory); }
void operator delete[](void* memory, std::align_val_t) noexcept { release(memory); }
void operator delete(void* memory, size_t, std::align_val_t) noexcept { release(memory); }
void operator delete[](void* memory, size_t, std::align_val_t) noexcept { release(memory); }
