// Runs independent tasks on a team of threads: the one place that knows about OpenMP. The team is
// libgomp's, which ggml's CPU kernels use too, so that no second pool competes for the cores.
#pragma once

#include <functional>

namespace zipcache {

// Calls run(task, worker) for task 0 .. n_tasks - 1, in any order, on at most `n_threads` threads;
// returns when all are done. A worker, 0 .. n_threads - 1, runs one task at a time, so that it can
// own working memory; worker 0 is the calling thread. What a task throws (the system being out of
// memory) is thrown on here; tasks that have not begun by then are left out.
void parallel_for(int n_threads, int n_tasks, const std::function<void(int task, int worker)>& run);

}  // namespace zipcache
