// The records of many streams in host memory, as they are copied to a GPU: one pool of bytes and a
// block table. Not thread-safe.
#pragma once

#include <span>
#include <vector>

#include "cuda/decode.hpp"
#include "cuda/fragments.hpp"

namespace zipcache::cuda {

class RecordSet {
 public:
  RecordSet(int dim, int n_streams, int n_heads, int max_records);

  // Packed records first, then those of 16-bit rows, in each head of a stream alike. `sinks` are
  // the rows of the block that stand elsewhere, as 16-bit rows.
  void add_packed(int stream, int head, const RecordLayout& layout, const PackedHead& packed,
                  const BlockBits& sinks, uint32_t first);
  // Rows [n, dim], n <= kRawRecordTokens.
  void add_raw(int stream, int head, int n, const half* k, const half* v, uint32_t first);

  std::span<const uint8_t> pool() const { return pool_; }
  std::span<const Record> records() const { return records_; }  // [n_streams, n_heads, max_records]
  std::vector<StreamRecords> counts() const;                    // [n_streams]
  const Record& record(int stream, int head, int index) const;
  const uint8_t* bytes(const Record& record) const { return pool_.data() + size_t(record.at) * 16; }
  int max_record_bytes() const { return max_bytes_; }

 private:
  uint8_t* add(int stream, int head, size_t bytes, size_t rows, uint32_t first, uint32_t tokens);

  int dim_, n_heads_, max_records_;
  std::vector<uint8_t> pool_;
  std::vector<Record> records_;
  std::vector<StreamRecords> counts_;  // [n_streams, n_heads]
  int max_bytes_ = 16;
};

}  // namespace zipcache::cuda
