// A cache fed with seeded tokens, and what it should hold and answer, kept apart from it.
#pragma once

#include <memory>
#include <string_view>
#include <vector>

#include "base/half.hpp"
#include "support/oracle.hpp"
#include "support/rotations.hpp"
#include "zipcache/cache.hpp"

namespace zipcache::test {

// Which token a cell holds.
struct Place {
  int sequence = -1;  // -1: never written
  int token = 0;      // position in its sequence
};

class Harness {
 public:
  // `group` query heads per KV head.
  Harness(CacheShape shape, const Policy& policy, int group = 2);
  Harness(CacheShape shape, std::string_view policy, int group = 2);

  // One step: writes tokens first .. first + cells.size() - 1 of a sequence to `cells` in every
  // layer and attends to them, each seeing its own sequence up to itself. Keeps the outputs.
  Status step(int stream, int sequence, int first_token, const std::vector<int64_t>& cells);
  // The next `n` tokens of sequence 0 in the next cells of stream 0, as one step.
  Status feed(int n, int stream = 0);
  // feed() in steps of `ubatch`.
  Status prompt(int n, int ubatch, int stream = 0);

  // 16-bit rows as the cache gives them, and as they were written: [n, n_heads * dim].
  std::vector<half> read(int layer, SideId side, int first = 0, int n = -1, int stream = 0) const;
  std::vector<half> written(int layer, SideId side, int first = 0, int n = -1,
                            int stream = 0) const;

  // Last step's outputs of a layer, [n_queries, n_heads, v_dim].
  const std::vector<float>& out(int layer) const { return outputs_[size_t(layer)]; }
  // The same by the oracle, over the rows that read() gives now, or over those written.
  OracleOut expected(int layer, bool over_written) const;

  Cache& cache() { return *cache_; }
  const Cache& cache() const { return *cache_; }
  CacheStats stats() const { return cache_->stats(); }
  int tokens(int stream = 0) const { return fed_[size_t(stream)]; }
  void forget();  // after cache().clear()

  int n_threads = 1;
  float max_bias = 0, soft_cap = 0;
  std::vector<float> sinks;  // [n_heads] logits or empty
  uint64_t data_seed = 1;

 private:
  int width(int layer, SideId side) const;
  std::vector<float> rows_of(int layer, SideId side, int sequence, int token) const;
  std::vector<half> mask_of(int stream, int sequence, int first_token, int n) const;

  CacheShape shape_;
  int group_;
  std::unique_ptr<RotationFile> rotations_;  // for a policy that needs one and names none
  std::unique_ptr<Cache> cache_;
  std::vector<std::vector<Place>> places_;             // [n_streams][n_cells]
  std::vector<int> fed_;                               // [n_streams]
  std::vector<std::vector<float>> outputs_, queries_;  // [n_layers]
  std::vector<half> mask_;
  int last_stream_ = 0, last_n_ = 0;
};

// Attention's error over decoded rows that were rounded to 16 bits: values move by 2^-11 of
// themselves, scores by 2^-11 of their terms, probabilities by twice that; float adds 1e-5 of both.
double rounded_rows_error(const OracleOut& expected);

}  // namespace zipcache::test
