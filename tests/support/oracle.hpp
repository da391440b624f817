// The slow, obvious forms of what the library computes, in double precision and sharing no code
// with it: what tests compare against.
#pragma once

#include <limits>
#include <vector>

#include "zipcache/policy.hpp"

namespace zipcache::test {

inline constexpr double kHidden = -std::numeric_limits<double>::infinity();

// The nearest number with an 11-bit significand, half to even, as a 16-bit float holds it.
double half_rounded(double value);

// One set of values that share parameters, coded with the paper's endpoints.
struct OracleSet {
  double step = 0, floor = 0;
  std::vector<int> codes;
  std::vector<double> values;  // reconstructed
};
// `half_params` rounds step and floor to 16 bits before coding.
OracleSet quantize_set(const std::vector<double>& x, int bits, bool half_params);

// A whole tile x [n, dim] by an axis; `group` channels per set for Axis::Group, tokens for
// Axis::ChannelGroup. For Axis::Cst the
// factors are sqrt(max|x|) of x itself.
struct OracleTile {
  std::vector<int> codes;      // [n, dim]
  std::vector<double> values;  // [n, dim]
  std::vector<double> steps;   // in the order of sets
};
OracleTile quantize_tile(const std::vector<double>& x, int n, int dim, int bits, Axis axis,
                         int group, bool half_params);

// Softmax attention of one step.
struct OracleStep {
  int n_queries = 0, n_heads = 0, n_kv_heads = 0, k_dim = 0, v_dim = 0, n_cells = 0;
  std::vector<double> q;       // [n_queries, n_heads, k_dim]
  std::vector<double> keys;    // [n_cells, n_kv_heads, k_dim]
  std::vector<double> values;  // [n_cells, n_kv_heads, v_dim]
  std::vector<double> mask;    // [n_queries, n_cells], kHidden hides; empty: all visible
  double scale = 1, max_bias = 0, soft_cap = 0;
  std::vector<double> sinks;      // [n_heads] or empty
  std::vector<bool> absent = {};  // [n_cells, n_kv_heads] rows that were evicted, or empty
};
struct OracleOut {
  std::vector<double> out;      // [n_queries, n_heads, v_dim]
  std::vector<double> weights;  // [n_queries, n_heads, n_cells]
  double largest_value = 0;     // largest |value|
  double largest_score = 0;     // largest sum over channels of |q * k * scale|
};
OracleOut attention(const OracleStep& step);

// Slope of a head under ALiBi, from the definition in the paper of that name.
double alibi_slope(int head, int n_heads, double max_bias);

// Sums of A [n_rows, n] over chosen rows, and how many of the rows can see each column (column <=
// row).
struct ColumnScores {
  std::vector<double> sums;
  std::vector<int> seen;
};
ColumnScores column_scores(const std::vector<double>& a, int n, const std::vector<int>& rows);

// Squares of the singular values of x [n, dim], largest first.
std::vector<double> singular_squares(std::vector<double> x, int n, int dim);

// Causal softmax rows of `logits` [n, n], upper triangle ignored.
std::vector<double> causal_softmax(const std::vector<double>& logits, int n);

}  // namespace zipcache::test
