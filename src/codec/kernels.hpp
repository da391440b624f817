// The arithmetic that attention and packing spend their time in, as a table of kernel sets: one
// source (kernels_body.inc) over the primitives of an instruction set (lanes_*.inc), best set
// first. Pure functions over caller's memory, thread-safe. Arrays marked "filled" are readable, and
// writable where they are outputs, up to the next multiple of 16 numbers.
#pragma once

#include <string>

#include "codec/tile.hpp"

namespace zipcache {

inline constexpr int kMaxColumns = 256;
inline constexpr int kMaxRows = 4;  // query rows that share one decoded register

// A part of a tile that has one set of parameters for each row, or for each column: what products
// of codes work on. A tile is one part, but for Axis::Group and Axis::ChannelGroup, which have a
// part for each group.
struct CodePart {
  const uint8_t* codes;
  size_t unit_bytes;  // from one unit of 16 rows to the next
  int bits, n_rows, n_columns;
  const half *row_steps, *row_floors;        // filled, or null
  const half *column_steps, *column_floors;  // filled, or null
  const half *row_factors, *column_factors;  // filled, or null
  const float* levels;  // [2^bits] what codes stand for, or null: only expand() takes these
  float implied_floor;  // of steps without floors, in steps
};

// How the vector that codes are multiplied with is held.
enum class Weighting : uint8_t {
  Words,          // 16 bits
  SignedBytes,    // 8 bits
  UnsignedBytes,  // 8 bits, for numbers that are not negative
};

// One row of numbers x, one for each column, with the column's parameters folded in and rounded.
//   sum over columns of x * (floor + step * code)
//     = scale * (sum of weight * code) + constant
// The constant holds the floors, and the middle code times what rounding left over.
struct FoldedRow {
  alignas(64) uint32_t words[kMaxColumns / 2];
  float scale, constant;
  float sum;  // of x times the column factors, where rows have floors
};

// Sets of values in 16 lanes: value i of lane l is x[i * stride + l].
struct SetSearchArgs {
  const float* x;
  int n, stride, bits;
  Fit fit;  // one that clips: also search for its range
};
struct SetSearch {
  float lo[kUnitRows], hi[kUnitRows];
  float step[kUnitRows], floor[kUnitRows];    // coding grid of the best clipped range
  float slope[kUnitRows], offset[kUnitRows];  // and the pair that decodes it; slope 0: none found
};

struct EncodeArgs {
  const float* x;  // [n_columns, ld], rows filled
  int ld, n_rows, n_columns, bits;
  bool by_column;         // grids belong to columns, else to rows
  const float* inverses;  // 1 / step, 0 for a constant set; filled
  const float* floors;    // filled
};

struct Kernels {
  const char* name;
  Precision precision;  // that Precision::Auto stands for

  // out[column * ld + row] = decoded value, rows filled.
  void (*expand)(const CodePart& part, float* out, int ld);
  // Folds n <= kMaxRows rows x [n, ldx], each filled with zeros.
  void (*fold)(const CodePart& part, Weighting weighting, const float* x, int ldx, int n,
               FoldedRow* rows);
  // out[r * ld + row] (+)= sum over columns of x_r * decoded value, rows filled; n <= kMaxRows.
  // Memory is asked for ahead of its use: `next` is what will be read after the part's codes, null
  // for the bytes behind them.
  void (*products)(const CodePart& part, Weighting weighting, const FoldedRow* rows, int n,
                   float* out, int ld, bool add, const uint8_t* next);
  // out [n_a, n] = a [n_a, dim] times the transpose of b [n, dim]; dim a multiple of 8.
  void (*half_dots)(int n_a, int n, int dim, const float* a, int lda, const half* b, float* out,
                    int ld);
  // out [n_a, dim] += a [n_a, n] times b [n, dim]; dim a multiple of 8.
  void (*half_sums)(int n_a, int n, int dim, const float* a, int lda, const half* b, float* out,
                    int ld);
  // 16-bit numbers as floats, and back, rounded half to even.
  void (*halves)(const half* in, float* out, int n);
  void (*to_halves)(const float* in, half* out, int n);
  // c [m, n] (+)= a [m, k] times b [k, n], rows ld* floats apart.
  void (*gemm)(int m, int n, int k, const float* a, int lda, const float* b, int ldb, float* c,
               int ldc, bool add);
  // row [n] = exp(row - peak), -inf giving 0; returns the sum.
  float (*exp_row)(float* row, int n, float peak);
  // One step of an online softmax: n_rows rows of scores [n_rows, ld], n a multiple of 16, become
  // exp(score - peak), -inf giving 0. First each peak is raised to its row's largest score;
  // rescale[r] is what sums over earlier scores have to be multiplied with, and mass[r] is, before
  // the row's sum is added to it.
  void (*softmax)(float* scores, int n_rows, int n, int ld, float* peak, float* mass,
                  float* rescale);
  void (*search_sets)(const SetSearchArgs& sets, SetSearch& found);
  // ORs the codes into zeroed units of 16 rows, `unit_bytes` apart.
  void (*encode)(const EncodeArgs& values, uint8_t* codes, size_t unit_bytes);
};

// The set in use: the best that this machine runs, or the one that ZIPCACHE_ISA names.
Result<const Kernels*> pick_kernels();
// Every set that this machine runs, best first.
std::vector<const Kernels*> runnable_kernels();
// The first of them, which packing uses: all sets give the same codes.
const Kernels& best_kernels();

// Parts of a packed tile, with the first row and column of each; bits below 16.
struct PlacedPart {
  CodePart part;
  int first_row, first_column;
};
int n_parts(const TileShape& shape);
PlacedPart part_of(const TileView& tile, int index);

// Largest number of steps of a tile: sets of 16 channels of each token, or of 16 tokens of each
// channel.
inline constexpr int kMaxSets = kMaxColumns / kUnitRows * kBlockTokens;

// Decodes the codes of a whole tile: out[column * ld + row], rows filled.
void expand_tile(const Kernels& kernels, const TileView& tile, float* out, int ld);
// The same in the order of tokens, of raw tiles too: out [n_tokens, dim].
void decode_tile(const Kernels& kernels, const TileView& tile, float* out);

// Parameters of one lane of a search.
SetFit finish_fit(const SetSearch& found, int lane, int bits, Fit fit);

}  // namespace zipcache
