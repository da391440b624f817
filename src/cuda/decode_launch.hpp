// What the host hands to the kernels of decode attention.
#pragma once

#include <cuda_runtime_api.h>

#include "cuda/code_values.hpp"
#include "cuda/decode.hpp"

namespace zipcache::cuda {

inline constexpr int kMostSlots = 16;  // for records in shared memory, of a block

// Scores that a warp has in shared memory.
ZC_BOTH constexpr int score_bytes(int tiles) {
  return tiles * kColumns * kRecordTokens * int(sizeof(float));
}

struct Launch {
  DecodeArgs args;
  int n_slots, slot_bytes, dynamic_bytes;  // of shared memory, scores of all warps before the slots
  int n_columns;                           // query rows of a KV head
  int tiles;    // matrix instructions side by side: 4 or 8 query rows share a read
  bool masked;  // places are looked at
  bool any;     // the kernel that has everything: masks, sides in the order of tiles
  SideValues k_values, v_values;  // of sides in that order
  float* parts;                   // [n_items, n_heads, n_columns, kRowFloats + dim]
  int* tickets;                   // [streams, n_heads, column tiles]
  int* blocks;  // where not null: nothing is launched, and it takes the blocks that a processor
                // runs at once
};

cudaError_t launch_decode_64(const Launch& launch, dim3 grid, cudaStream_t stream);
cudaError_t launch_decode_128(const Launch& launch, dim3 grid, cudaStream_t stream);
cudaError_t launch_decode_256(const Launch& launch, dim3 grid, cudaStream_t stream);

}  // namespace zipcache::cuda
