// Calls every kernel once, for counting instructions: bench/instructions has callgrind write what
// it counted whenever zipcache_measured_call() returns, in the order of the lines printed here.
#include <fmt/format.h>

#include "codec/kernel_work.hpp"

// A plain name, so that callgrind's options can name it.
extern "C" __attribute__((noinline)) void zipcache_measured_call(
    const zipcache::bench::KernelWork& work) {
  work.call();
}

int main() {
  for (const zipcache::Kernels* kernels : zipcache::runnable_kernels()) {
    for (const zipcache::bench::KernelWork& work : zipcache::bench::kernel_work(*kernels)) {
      work.call();  // the first call may look symbols up
      zipcache_measured_call(work);
      fmt::print("{} {}\n", work.name, work.items);
    }
  }
}
