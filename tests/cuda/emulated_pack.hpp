// Packing as a GPU does it, its threads one after another: the same steps, the same arithmetic.
#pragma once

#include <cstring>
#include <memory>

#include "cuda/pack_low_rank.hpp"

namespace zipcache::cuda::test {

// In which order the threads of a block take each step; none may matter.
enum class Order { Ascending, Descending };

// All threads of a block, one after another.
template <class Visit>
void for_threads(int n, Order order, Visit&& visit) {
  for (int i = 0; i < n; ++i) visit(order == Order::Ascending ? i : n - 1 - i);
}

// Memory that is as good as unknown.
template <class T>
std::unique_ptr<T> make_unknown() {
  auto out = std::make_unique<T>();
  std::memset(static_cast<void*>(out.get()), 0xCD, sizeof(T));
  return out;
}

// A side of a record by a block of threads.
template <class Packer>
class EmulatedSide {
 public:
  EmulatedSide(const PackArgs& args, int task, int head, Order order,
               typename Packer::Shared& shared)
      : args_(args), task_(task), head_(head), order_(order), shared_(shared) {}

  template <class Visit>
  void for_packers(Visit&& visit) {
    for_threads(Packer::Shared::kThreads, order_, [&](int thread) { visit(packer(thread)); });
  }
  void take_steps(int first, int end) {
    for (int step = first; step < end; ++step) {
      if (!packer(0).has_step(step)) continue;
      for_packers([&](const Packer& packer) { packer.step(step); });
    }
  }
  void make_side(int n_steps) {
    if (!packer(0).refused())
      take_steps(Packer::kOrdered, n_steps);
    else if (Packer::kKeys)
      packer(0).count_refused();
  }

 private:
  Packer packer(int thread) { return Packer(args_, task_, head_, thread, *tile_, shared_); }

  const PackArgs& args_;
  const int task_, head_;
  const Order order_;
  typename Packer::Shared& shared_;
  const std::unique_ptr<typename Packer::Tile> tile_ = make_unknown<typename Packer::Tile>();
};

template <class Packer>
void emulate_block(const PackArgs& args, int task, int head, Order order, int n_steps) {
  const auto shared = make_unknown<typename Packer::Shared>();
  EmulatedSide<Packer> side(args, task, head, order, *shared);
  side.take_steps(0, Packer::kOrdered);
  side.make_side(n_steps);
}

template <int kDim, bool kIsK>
void emulate_side(const PackArgs& args, int task, int head, Order order, bool by_sets,
                  bool rotated) {
  using OfSets = LowRankPacker<kDim, kIsK>;
  using OfNumbers = SidePacker<kDim, kIsK, true>;
  using OfHalves = SidePacker<kDim, kIsK, false>;
  if (by_sets) return emulate_block<OfSets>(args, task, head, order, OfSets::n_steps(args));
  if (rotated) return emulate_block<OfNumbers>(args, task, head, order, OfNumbers::kSteps);
  emulate_block<OfHalves>(args, task, head, order, OfHalves::kSteps);
}

template <int kDim>
void emulate_dim(const PackArgs& args, Order order) {
  const PackForm& form = args.form;
  const bool k_rotated = form.k_hadamard || form.k_by_matrix || form.k_by_queries;
  const bool v_rotated = form.v_hadamard || form.v_by_matrix;
  const bool k_by_sets = form.k_sets.used, v_by_sets = form.v_sets.used;
  for (int task = 0; task < args.n_tasks; ++task) {
    for (int head = 0; head < args.n_heads; ++head) {
      emulate_side<kDim, true>(args, task, head, order, k_by_sets, k_rotated);
      emulate_side<kDim, false>(args, task, head, order, v_by_sets, v_rotated);
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
