// One layer's log and blocks without the cache around them, so that a test can pack, score and read
// exactly what it wants.
#pragma once

#include <memory>
#include <vector>

#include "attend/attend.hpp"
#include "cache/pack.hpp"
#include "support/oracle.hpp"
#include "support/rotations.hpp"

namespace zipcache::test {

class BlockRig {
 public:
  BlockRig(const LayerShape& shape, const Policy& policy, int n_cells);

  // Rows [n, n_heads * dim] for cells first .. first + n - 1, which must be new.
  void append(int n, const std::vector<float>& k, const std::vector<float>& v);
  // Packs all full blocks that are raw, in one job when `shared`.
  void pack(bool shared = false);
  // Attends to queries [n_queries, n_heads, k_dim] where query i sees cells 0 .. last_visible + i.
  std::vector<float> attend(const std::vector<float>& q, int n_queries, int n_heads,
                            int last_visible, const Kernels& kernels, int n_threads = 1);
  // Scores with the queries and the kernels of the last attend().
  void score(const std::vector<int>& probes);
  // What attention should see, decoded without the kernels: [n_cells, n_heads, dim].
  std::vector<double> decoded(SideId side) const;

  // Which rows no tier keeps: [n_cells, n_heads].
  std::vector<bool> absent() const;

  float sum(int cell, int head) const;
  float squares(int cell, int head) const;
  uint32_t probes_seen(int cell) const;
  uint32_t rows_seen(int cell) const;

  StreamLog log;
  const std::shared_ptr<const LayerRotations> rotations;  // seeded, where the policy needs them
  LayerStore store;
  Arena arena;
  float scale = 1;

 private:
  std::vector<float> packed_rows(int slot, SideId side, int head) const;
  bool evicted(int slot, int head, int row) const;

  Attention step_;
  std::unique_ptr<Attender> attender_;  // of the last attend()
  std::vector<float> q_;
  std::vector<half> mask_;
  int next_ = 0;
};

}  // namespace zipcache::test
