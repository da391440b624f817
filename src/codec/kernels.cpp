// Chooses the kernel set: the best row of the table that this machine runs and ZIPCACHE_ISA allows.
#include "codec/kernels.hpp"

#include <fmt/format.h>

#include <cstdlib>
#include <cstring>

namespace zipcache {

extern const Kernels kKernelsPlain;
#ifdef __x86_64__
extern const Kernels kKernelsAvx2;
extern const Kernels kKernelsAvx512;
#endif

namespace {

struct Row {
  const Kernels* kernels;
  bool (*runs_here)();
};

// Best first, the portable one last.
const Row kRows[] = {
#ifdef __x86_64__
    {&kKernelsAvx512,
     [] {
       return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
              __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
              __builtin_cpu_supports("fma");
     }},
    {&kKernelsAvx2, [] { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }},
#endif
    {&kKernelsPlain, [] { return true; }},
};

}  // namespace

std::vector<const Kernels*> runnable_kernels() {
  std::vector<const Kernels*> found;
  for (const Row& row : kRows) {
    if (row.runs_here()) found.push_back(row.kernels);
  }
  return found;
}

Result<const Kernels*> pick_kernels() {
  const auto found = runnable_kernels();
  const char* forced = std::getenv("ZIPCACHE_ISA");
  if (!forced || !*forced) return found.front();
  std::string names;
  for (const Kernels* kernels : found) {
    if (std::strcmp(kernels->name, forced) == 0) return kernels;
    names += names.empty() ? kernels->name : fmt::format(", {}", kernels->name);
  }
  return Status{Code::Incompatible,
                fmt::format("ZIPCACHE_ISA={}: this machine runs {}; unset it or name one of these",
                            forced, names)};
}

}  // namespace zipcache
