// The arithmetic that attention spends its time in, as a table of kernel sets: one source, compiled
// for several instruction sets, best first. Pure functions over caller's memory, thread-safe.
#pragma once

#include <string>

#include "codec/tile.hpp"

namespace zipcache {

// One tile in the plain form that kernels take; no class types, so that files built for one
// instruction set need no shared inline code.
struct TileKernelArgs {
  const uint8_t* codes;
  const half* steps;    // [n_sets]
  const half* floors;   // [n_sets]
  const half* factors;  // [dim] or null
  int n_tokens, dim, bits;
  int by_channel;  // parameters per channel, else per token and group
  int group;       // channels per set when not by_channel
};

struct Kernels {
  const char* name;
  // out [n_tokens, dim] = decoded tile.
  void (*expand)(const TileKernelArgs& tile, float* out);
  // out [n] = 16-bit numbers as floats.
  void (*halves)(const half* in, float* out, int n);
  // c [m, n] (+)= a [m, k] * b [k, n], rows ld* floats apart; n a multiple of 8.
  void (*gemm)(int m, int n, int k, const float* a, int lda, const float* b, int ldb, float* c,
               int ldc, bool add);
  // out [rows_a, rows_b] = a [rows_a, dim] times the transpose of b [rows_b, dim]; dim a multiple
  // of 8.
  void (*dots)(int rows_a, int rows_b, int dim, const float* a, int lda, const float* b, int ldb,
               float* out, int ld_out);
  // row [n] = exp(row - peak), -inf giving 0; returns the sum.
  float (*exp_row)(float* row, int n, float peak);
};

// The set in use: the best that this machine runs, or the one that ZIPCACHE_ISA names.
Result<const Kernels*> pick_kernels();
// Every set that this machine runs, best first.
std::vector<const Kernels*> runnable_kernels();

inline TileKernelArgs kernel_args(const TileView& tile) {
  const int sets = n_sets(tile.shape);
  return {tile.codes,
          tile.params,
          tile.params + sets,
          tile.factors,
          tile.shape.n_tokens,
          tile.shape.dim,
          tile.shape.bits,
          tile.shape.axis == Axis::Channel,
          tile.shape.axis == Axis::Group ? tile.shape.group : tile.shape.dim};
}

}  // namespace zipcache
