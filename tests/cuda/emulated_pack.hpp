// Packing as a GPU does it, its threads one after another: the same steps, the same arithmetic.
#pragma once

#include <cstring>
#include <memory>

#include "cuda/pack_low_rank.hpp"

namespace zipcache::cuda::test {

// In which order the threads of a block take each step; none may matter.
enum class Order { Ascending, Descending };

template <class Packer>
void emulate_steps(int n_steps, const PackArgs& args, int task, int head, Order order) {
  using Shared = typename Packer::Shared;
  const auto shared = std::make_unique<Shared>();
  std::memset(static_cast<void*>(shared.get()), 0xCD, sizeof(Shared));  // as good as unknown
  for (int step = 0; step < n_steps; ++step) {
    if (!Packer(args, task, head, 0, *shared).has_step(step)) continue;
    for (int i = 0; i < kPackThreads; ++i) {
      const int thread = order == Order::Ascending ? i : kPackThreads - 1 - i;
      Packer(args, task, head, thread, *shared).step(step);
    }
  }
}

template <int kDim, bool kIsK, bool kRotated>
void emulate_side(const PackArgs& args, int task, int head, Order order) {
  using Packer = SidePacker<kDim, kIsK, kRotated>;
  emulate_steps<Packer>(Packer::kSteps, args, task, head, order);
}

template <int kDim, bool kIsK>
void emulate_sets(const PackArgs& args, int task, int head, Order order) {
  using Packer = LowRankPacker<kDim, kIsK>;
  emulate_steps<Packer>(Packer::n_steps(args), args, task, head, order);
}

template <int kDim>
void emulate_dim(const PackArgs& args, Order order) {
  for (int task = 0; task < args.n_tasks; ++task) {
    for (int head = 0; head < args.n_heads; ++head) {
      if (args.form.k_sets.used)
        emulate_sets<kDim, true>(args, task, head, order);
      else if (args.form.k_hadamard || args.form.k_by_queries)
        emulate_side<kDim, true, true>(args, task, head, order);
      else
        emulate_side<kDim, true, false>(args, task, head, order);
      if (args.form.v_sets.used)
        emulate_sets<kDim, false>(args, task, head, order);
      else if (args.form.v_hadamard)
        emulate_side<kDim, false, true>(args, task, head, order);
      else
        emulate_side<kDim, false, false>(args, task, head, order);
    }
  }
}

inline void emulate_pack(const PackArgs& args, Order order) {
  switch (args.form.record.dim) {
    case 64:
      return emulate_dim<64>(args, order);
    case 128:
      return emulate_dim<128>(args, order);
    default:
      return emulate_dim<256>(args, order);
  }
}

}  // namespace zipcache::cuda::test
