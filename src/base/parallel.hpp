// Runs independent tasks on a team of threads: the one place that knows about OpenMP. The team is
// libgomp's, which ggml's CPU kernels use too, so that no second pool competes for the cores.
#pragma once

#include <functional>

namespace zipcache {

// Calls task(0) .. task(n_tasks - 1), in any order, on at most `n_threads` threads; returns when
// all are done. Tasks must not throw.
void parallel_for(int n_threads, int n_tasks, const std::function<void(int)>& task);

}  // namespace zipcache
