// Between the CPU's packed blocks and a GPU's records: the same codes and parameters in another
// order, there and back (record.hpp). Pure functions over caller's memory, thread-safe.
#pragma once

#include <array>
#include <span>

#include "cache/block_layout.hpp"
#include "cuda/record.hpp"
#include "transform/rotation.hpp"
#include "zipcache/policy.hpp"

namespace zipcache::cuda {

// The records of one layer under a policy.
class RecordLayout {
 public:
  // Incompatible for a policy that records cannot hold, or a head that no kernel reads.
  static Result<RecordLayout> create(const LayerShape& shape, const Policy& policy);
  // Of a layer that packs nothing: its records are all of 16-bit rows.
  static Result<RecordLayout> of_rows(const LayerShape& shape);

  // Header of a record whose tiers have these tokens, and its size, a multiple of 16.
  std::array<TierHeader, kRecordTiers> headers(const TierCounts& counts) const;
  size_t bytes(const TierCounts& counts) const;

  const RecordForm& form() const { return form_; }
  int dim() const { return form_.dim; }
  int n_tiers() const { return form_.n_tiers; }

 private:
  RecordLayout() = default;

  RecordForm form_;
};

// Record [layout.bytes(head.held)] of a packed head.
void write_record(const RecordLayout& layout, const PackedHead& head, uint8_t* record);
// Codes and parameters of a record into a head whose tiers have the record's counts; what stands
// beside them (tags, sinks) is left alone. The codes' memory must hold zeros.
void read_record(const RecordLayout& layout, const uint8_t* record, const PackedHead& head);

// Record of rows [n, dim] of 16 bits, n <= kRawRecordTokens, which are rotated like the packed
// ones.
size_t raw_record_bytes(int dim, int n);
void write_raw_record(int dim, int n, const half* k, const half* v, uint8_t* record);
// Rows [n, dim] of a head as records of 16-bit rows of a side with this rotation hold them.
std::vector<half> rows_for_record(const HeadRotation& rotation, int dim, int n, const half* rows);

// What a record's tokens decode to, tier after tier: [tokens, dim]; of a record of 16-bit rows too.
// For tests and checks.
void decode_record(const RecordForm& form, const uint8_t* record, std::vector<float>& k,
                   std::vector<float>& v);

}  // namespace zipcache::cuda
