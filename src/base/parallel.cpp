#include "base/parallel.hpp"

#include <omp.h>

#include <algorithm>
#include <atomic>
#include <exception>

namespace zipcache {

void parallel_for(int n_threads, int n_tasks,
                  const std::function<void(int task, int worker)>& run) {
  const int team = std::max(1, std::min(n_threads, n_tasks));
  if (team == 1) {
    for (int i = 0; i < n_tasks; ++i) run(i, 0);
    return;
  }
  // An exception may not leave the thread that threw it: the first one waits until all are done.
  std::exception_ptr failure;
  std::atomic<bool> failed{false};
#pragma omp parallel for schedule(dynamic, 1) num_threads(team)
  for (int i = 0; i < n_tasks; ++i) {
    if (failed.load(std::memory_order_relaxed)) continue;
    try {
      run(i, omp_get_thread_num());
    } catch (...) {
      if (!failed.exchange(true)) failure = std::current_exception();
    }
  }
  if (failure) std::rethrow_exception(failure);
}

}  // namespace zipcache
