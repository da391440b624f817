// How idle worker threads wait.
#include "waiting.hpp"

#include <unistd.h>

#include <cstdlib>

namespace zipcache::cli {

namespace {

constexpr const char* kPolicy = "OMP_WAIT_POLICY";
constexpr const char* kSpins = "GOMP_SPINCOUNT";

}  // namespace

void wait_shortly(char** argv) {
  if (std::getenv(kPolicy) != nullptr || std::getenv(kSpins) != nullptr) return;
  if (setenv(kSpins, "2000", 1) != 0) return;  // 30 to 100 microseconds
  execv("/proc/self/exe", argv);
  // Still here: no /proc. The program works as before, only its threads spin longer.
  unsetenv(kSpins);
}

const char* wait_policy() {
  if (const char* policy = std::getenv(kPolicy)) return policy;
  return std::getenv(kSpins) != nullptr ? "short" : "default";
}

}  // namespace zipcache::cli
