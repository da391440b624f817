#include "ggml/state_buffer.hpp"

#include <algorithm>
#include <cstring>
#include <mutex>
#include <vector>

namespace zipcache {
namespace {

std::mutex g_lock;
std::vector<StateBuffer*> g_live;

}  // namespace

StateBuffer::StateBuffer(uint8_t* base) : base_(base) {
  const std::lock_guard<std::mutex> guard(g_lock);
  g_live.push_back(this);
}

StateBuffer::~StateBuffer() {
  const std::lock_guard<std::mutex> guard(g_lock);
  std::erase(g_live, this);
}

// The tensor that holds rows and has the byte at `offset`, or the end.
StateBuffer::Tensors::const_iterator StateBuffer::at(size_t offset) const {
  auto found = held_.upper_bound(offset);
  if (found == held_.begin()) return held_.end();
  --found;
  return offset < found->first + found->second.size ? found : held_.end();
}

void StateBuffer::place(size_t offset, size_t size) {
  std::erase_if(held_, [&](const auto& entry) {
    return entry.first < offset + size && offset < entry.first + entry.second.size;
  });
}

void StateBuffer::hold(size_t offset, size_t size, const Origin& origin,
                       std::unique_ptr<KeptRows> rows) {
  place(offset, size);
  held_[offset] = {size, origin, std::move(rows)};
}

const KeptRows* StateBuffer::other_side(const Origin& origin) const {
  Origin other = origin;
  other.side = origin.side == SideId::K ? SideId::V : SideId::K;
  const auto found = std::find_if(held_.begin(), held_.end(),
                                  [&](const auto& entry) { return entry.second.origin == other; });
  return found == held_.end() ? nullptr : found->second.rows.get();
}

std::optional<StateBuffer::Rows> StateBuffer::find(size_t offset, size_t size) const {
  const auto found = at(offset);
  if (found == held_.end()) return {};
  const Held& held = found->second;
  const size_t within = offset - found->first, row = held.row_bytes();
  if (within + size > held.size || within % row != 0 || size % row != 0) return {};
  return Rows{held.origin, held.rows.get(), int(within / row)};
}

void StateBuffer::read(size_t offset, size_t size, void* data) const {
  const auto found = at(offset);
  if (found == held_.end()) {
    std::memcpy(data, base_ + offset, size);
    return;
  }
  const Held& held = found->second;
  const size_t row = held.row_bytes(), within = offset - found->first;
  const size_t first = within / row, end = (within + size + row - 1) / row;
  std::vector<uint16_t> rows((end - first) * row / sizeof(uint16_t));
  held.rows->read(int(first), int(end - first), rows.data());
  std::memcpy(data, reinterpret_cast<const uint8_t*>(rows.data()) + (within - first * row), size);
}

uint8_t* StateBuffer::to_write(size_t offset, size_t size) {
  for (auto entry = held_.begin(); entry != held_.end();) {
    const auto& [begin, held] = *entry;
    if (begin >= offset + size || offset >= begin + held.size) {
      ++entry;
      continue;
    }
    read(begin, held.size, base_ + begin);
    entry = held_.erase(entry);
  }
  return base_ + offset;
}

size_t state_bytes(int cache) {
  const std::lock_guard<std::mutex> guard(g_lock);
  size_t bytes = 0;
  for (const StateBuffer* buffer : g_live) {
    for (const auto& [offset, held] : buffer->held_)
      if (held.origin.cache == cache) bytes += held.rows->bytes();
  }
  return bytes;
}

}  // namespace zipcache
