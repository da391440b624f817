// What the kernels of a set are measured with: calls like attention's and packing's own, on a block
// of 128 tokens of one head. Rows are made from a fixed seed.
#pragma once

#include <cstddef>
#include <functional>
#include <string>
#include <vector>

#include "codec/kernels.hpp"

namespace zipcache::bench {

struct KernelWork {
  std::string name;  // kernel/variant/.../set
  size_t items;      // codes of a call; numbers, or products of gemm, where none are coded
  size_t bytes;      // that a call has to read
  std::function<void()> call;  // owns what it works on
};

std::vector<KernelWork> kernel_work(const Kernels& kernels);

}  // namespace zipcache::bench
