// Chooses the kernel set: the best row of the table that this machine runs and ZIPCACHE_ISA allows.
#include "codec/kernels.hpp"

#include <fmt/format.h>

#include <cstdlib>
#include <cstring>
#ifdef __x86_64__
#include <cpuid.h>
#endif

namespace zipcache {

extern const Kernels kKernelsPlain;
#ifdef __x86_64__
extern const Kernels kKernelsAvx2;
extern const Kernels kKernelsAvxVnni;
extern const Kernels kKernelsAvx512;
#endif

namespace {

struct Row {
  const Kernels* kernels;
  bool (*runs_here)();
};

#ifdef __x86_64__
// Leaf 1, ECX bit 29; Clang's __builtin_cpu_supports does not know it.
bool has_f16c() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  return __get_cpuid(1, &a, &b, &c, &d) && (c >> 29 & 1);
}

bool has_avx2() {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_f16c();
}

// Leaf 7, subleaf 1, EAX bit 4; this compiler's __builtin_cpu_supports does not know it.
bool has_avxvnni() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  return has_avx2() && __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a >> 4 & 1);
}

bool has_avx512() {
  return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
         __builtin_cpu_supports("avx512vnni");
}
#endif

// Best first, the portable one last.
const Row kRows[] = {
#ifdef __x86_64__
    {&kKernelsAvx512, has_avx512},
    {&kKernelsAvxVnni, has_avxvnni},
    {&kKernelsAvx2, has_avx2},
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

const Kernels& best_kernels() {
  static const Kernels& best = *runnable_kernels().front();
  return best;
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
