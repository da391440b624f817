// Memory of the cache's buffer type that holds no cache: where llama.cpp keeps the state of a
// sequence on the device (LLAMA_STATE_SEQ_FLAGS_ON_DEVICE). It places tensors of 16-bit rows there
// and copies rows of cache tensors into them and back. Such rows are kept as the cache stores them,
// and the memory behind the tensor is never touched, so that it costs nothing. Whoever reads or
// writes the tensor in another way gets that memory, with the rows in it. Not thread-safe, but for
// state_bytes().
#pragma once

#include <map>
#include <memory>
#include <optional>

#include "zipcache/cache.hpp"

namespace zipcache {

class StateBuffer {
 public:
  explicit StateBuffer(uint8_t* base);
  ~StateBuffer();
  StateBuffer(const StateBuffer&) = delete;

  // Which rows a tensor has.
  struct Origin {
    int cache = 0;  // CacheBuffer::id
    int layer = 0;  // llama.cpp's number
    SideId side = SideId::K;
    bool operator==(const Origin&) const = default;
  };

  // A tensor was placed at bytes [offset, offset + size): what stood there is gone.
  void place(size_t offset, size_t size);
  void hold(size_t offset, size_t size, const Origin& origin, std::unique_ptr<KeptRows> rows);
  // What is held of the other side of the same layer, or null.
  const KeptRows* other_side(const Origin& origin) const;
  // The rows that bytes [offset, offset + size) are, when they are rows that are held.
  struct Rows {
    Origin origin;
    const KeptRows* kept = nullptr;
    int first = 0;
  };
  std::optional<Rows> find(size_t offset, size_t size) const;

  // The bytes as memory, with rows that were held in it.
  void read(size_t offset, size_t size, void* data) const;
  uint8_t* to_write(size_t offset, size_t size);

 private:
  friend size_t state_bytes(int cache);
  struct Held {
    size_t size = 0;
    Origin origin;
    std::unique_ptr<KeptRows> rows;
    size_t row_bytes() const { return size / size_t(rows->n_rows()); }
  };
  using Tensors = std::map<size_t, Held>;  // by offset
  Tensors::const_iterator at(size_t offset) const;

  uint8_t* const base_;
  Tensors held_;
};

// Memory of all rows of a cache that state buffers hold.
size_t state_bytes(int cache);

}  // namespace zipcache
