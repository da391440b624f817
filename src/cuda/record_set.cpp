#include "cuda/record_set.hpp"

#include <algorithm>

namespace zipcache::cuda {
namespace {

constexpr size_t kLine = 128;  // bytes that memory moves at once

}  // namespace

RecordSet::RecordSet(int dim, int n_streams, int n_heads, int max_records)
    : dim_(dim),
      n_heads_(n_heads),
      max_records_(max_records),
      records_(size_t(n_streams) * size_t(n_heads) * size_t(max_records)),
      counts_(size_t(n_streams) * size_t(n_heads)) {}

uint8_t* RecordSet::add(int stream, int head, size_t bytes, size_t rows, uint32_t first,
                        uint32_t tokens) {
  const size_t at = pool_.size();
  pool_.resize((at + bytes + rows + kLine - 1) / kLine * kLine);
  const size_t list = size_t(stream) * size_t(n_heads_) + size_t(head);
  const size_t index = size_t(counts_[list].packed + counts_[list].raw);
  records_[list * size_t(max_records_) + index] = {uint32_t(at / 16), uint16_t(bytes / 16), 0,
                                                   first, tokens};
  max_bytes_ = std::max(max_bytes_, int(bytes));
  return pool_.data() + at;
}

void RecordSet::add_packed(int stream, int head, const RecordLayout& layout,
                           const PackedHead& packed, const BlockBits& sinks, uint32_t first) {
  const size_t bytes = layout.bytes(packed.held);
  uint32_t tokens = 0;
  for (const int count : packed.held) tokens += uint32_t(count);
  uint8_t* record = add(stream, head, bytes, size_t(tier_columns(packed)), first, tokens);
  write_record(layout, packed, record);
  packed_order(packed, sinks, record + bytes);
  ++counts_[size_t(stream) * size_t(n_heads_) + size_t(head)].packed;
}

void RecordSet::add_raw(int stream, int head, int n, const half* k, const half* v, uint32_t first) {
  uint8_t* record = add(stream, head, raw_record_bytes(dim_, n), 0, first, uint32_t(n));
  write_raw_record(dim_, n, k, v, record);
  ++counts_[size_t(stream) * size_t(n_heads_) + size_t(head)].raw;
}

std::vector<StreamRecords> RecordSet::counts() const {
  std::vector<StreamRecords> first_heads;
  for (size_t i = 0; i < counts_.size(); i += size_t(n_heads_)) first_heads.push_back(counts_[i]);
  return first_heads;
}

const Record& RecordSet::record(int stream, int head, int index) const {
  return records_[(size_t(stream) * size_t(n_heads_) + size_t(head)) * size_t(max_records_) +
                  size_t(index)];
}

}  // namespace zipcache::cuda
