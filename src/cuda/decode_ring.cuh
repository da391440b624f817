// Records on their way to shared memory by bulk copies.
#pragma once

#include "cuda/decode_queries.cuh"

namespace zipcache::cuda {
namespace {

// Shared memory of a block of threads beside the ring of records.
template <int kDim, int kTiles>
struct Shared {
  SharedQueries<kDim, kTiles> queries;
  uint64_t full[kMostSlots];
  alignas(16) Record entries[kMostSlots];
  int readers[kMostSlots], asked[kMostSlots];  // asked: number of the record that is to stand there
  int last;
};

// Record i of the item stands in slot i modulo their number, and is asked for when the one before
// it in the slot was read. Groups of warps that share records take these in turn.
template <int kDim, int kTiles>
class Ring {
 public:
  __device__ Ring(const Launch& launch, const Task& task, const Record* records, uint8_t* memory,
                  Shared<kDim, kTiles>& shared)
      : launch_(launch),
        records_(reinterpret_cast<const uint4*>(records)),
        item_(task.item),
        memory_(memory),
        shared_(shared),
        warp_(int(threadIdx.x) / kLanes),
        lane_(int(threadIdx.x) % kLanes) {}

  // The Record of which begin() asks, of the asking warp's lanes.
  __device__ uint4 first_entry() const {
    return warp_ == 0 && lane_ < min(launch_.n_slots, item_.count) ? records_[lane_] : uint4{};
  }

  // Asks for the first records; others than the asking warp may wait for these after a barrier of
  // the block.
  __device__ void begin(uint4 entry) const {
    if (warp_ != 0 || lane_ >= launch_.n_slots) return;
    open_barrier(&shared_.full[lane_], 1);
    shared_.readers[lane_] = 0;
    shared_.asked[lane_] = -1;
    fence_barriers();
    if (lane_ < item_.count) ask(lane_, lane_, entry);
  }

  template <class Worker>
  __device__ __forceinline__ void run(Worker& work) const {
    const int sharing = item_.sharing, shift = __ffs(sharing) - 1;  // a power of two
    const int n_groups = launch_.args.n_warps >> shift;
    int slot = warp_ >> shift, parity = 0;
#pragma unroll 1
    for (int i = slot;; i += n_groups, slot += n_groups) {
      for (; slot >= launch_.n_slots; slot -= launch_.n_slots) parity ^= 1;
      if (i >= item_.count) return;
      uint4 next = {};  // a Record, on its way while this one is worked on
      const bool more = i + launch_.n_slots < item_.count;
      if (more && lane_ == 0) next = records_[i + launch_.n_slots];
      wait_for(i, slot, parity);
      work.add(memory_ + slot * launch_.slot_bytes, shared_.entries[slot], warp_ & (sharing - 1),
               sharing);
      __syncwarp();
      if (more && lane_ == 0 && last_reader(slot)) ask(i + launch_.n_slots, slot, next);
    }
  }

 private:
  // Record i, into a slot that nothing reads any more.
  __device__ void ask(int i, int slot, uint4 entry) const {
    const uint32_t bytes = (entry.y & 0xFFFF) * 16;
    *reinterpret_cast<uint4*>(&shared_.entries[slot]) = entry;
    publish(&shared_.asked[slot], i);
    arrive_expecting(&shared_.full[slot], bytes);
    copy_bulk(memory_ + slot * launch_.slot_bytes, launch_.args.pool + size_t(entry.x) * 16, bytes,
              &shared_.full[slot]);
  }

  // A barrier tells two neighbouring phases apart, no more; so record i has to be asked for before
  // its phase is waited for, since whoever reads the one before it in the slot may be late.
  __device__ void wait_for(int i, int slot, int parity) const {
    while (published(&shared_.asked[slot]) != i) __nanosleep(20);
    wait_phase(&shared_.full[slot], parity);
  }

  __device__ bool last_reader(int slot) const {
    const int sharing = item_.sharing;
    return sharing == 1 || (add_in_order(&shared_.readers[slot], 1) & (sharing - 1)) == sharing - 1;
  }

  const Launch& launch_;
  const uint4* records_;
  const WorkItem& item_;
  uint8_t* memory_;
  Shared<kDim, kTiles>& shared_;
  const int warp_, lane_;
};

}  // namespace
}  // namespace zipcache::cuda
