// Working memory of attention, kept from one operation to the next so that none allocates.
#pragma once

#include <atomic>
#include <vector>

#include "attend/block_attention.hpp"

namespace zipcache {

struct Workspace {
  std::vector<Scratch> scratch;           // [worker]
  std::vector<TaskSums> sums;             // [task, head], or [worker] for a prompt
  std::vector<int> before;                // [block] work before it
  std::vector<std::atomic<int>> pending;  // [head] tasks that have not left it
  std::vector<float> log_mass;            // [n_queries, n_heads], or empty

  void begin(int n_workers) {
    if (scratch.size() < size_t(n_workers)) scratch.resize(size_t(n_workers));
  }
};

}  // namespace zipcache
