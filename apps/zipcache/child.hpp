// Programs that are run as children: gnuplot, Python.
//
// Thread safety: any thread.
#pragma once

#include <string>
#include <vector>

#include "zipcache/status.hpp"

namespace zipcache::cli {

// Runs `arguments`, of which the first is a program on the path, to its end; its output is ours.
// The answer is its exit status, 128 + n after signal n. Environment when it cannot be started.
Result<int> run_program(const std::vector<std::string>& arguments);

}  // namespace zipcache::cli
