// Speed of every kernel of every set that this machine runs: codes and bytes a second, on data that
// stays in the nearest cache.
#include <benchmark/benchmark.h>

#include "codec/kernel_work.hpp"

int main(int argc, char** argv) {
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 2;
  for (const zipcache::Kernels* kernels : zipcache::runnable_kernels()) {
    for (const zipcache::bench::KernelWork& work : zipcache::bench::kernel_work(*kernels)) {
      benchmark::RegisterBenchmark(work.name.c_str(), [work](benchmark::State& state) {
        for (auto _ : state) work.call();
        state.SetItemsProcessed(int64_t(work.items) * state.iterations());
        state.SetBytesProcessed(int64_t(work.bytes) * state.iterations());
      });
    }
  }
  benchmark::RunSpecifiedBenchmarks();
}
