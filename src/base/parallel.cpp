#include "base/parallel.hpp"

#include <omp.h>

#include <algorithm>

namespace zipcache {

void parallel_for(int n_threads, int n_tasks,
                  const std::function<void(int task, int worker)>& run) {
  const int team = std::max(1, std::min(n_threads, n_tasks));
  if (team == 1) {
    for (int i = 0; i < n_tasks; ++i) run(i, 0);
    return;
  }
#pragma omp parallel for schedule(dynamic, 1) num_threads(team)
  for (int i = 0; i < n_tasks; ++i) run(i, omp_get_thread_num());
}

}  // namespace zipcache
