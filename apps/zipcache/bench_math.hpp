// The parts of `zipcache bench` that need no llama.cpp: synthetic rows, the double-precision
// answer, statistics of repeated times, and the read bandwidth of the machine.
//
// Thread safety: pure functions.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace zipcache::cli {

// Rows [n, n_heads, dim] like a model's: normal numbers; for keys each channel has a width of its
// own (log-normal), and every 32nd channel is 6 to 10 times as wide.
std::vector<float> synthetic_rows(int n, int n_heads, int dim, bool keys, uint64_t seed);

// Queries [n_heads, dim] whose products with `keys` [n, n_heads_kv, dim], times `scale`, have a
// standard deviation of about 2.
std::vector<float> synthetic_queries(const std::vector<float>& keys, int n_heads, int n_heads_kv,
                                     int dim, float scale, uint64_t seed);

// Softmax attention in double precision: [n_heads, dim].
std::vector<double> exact_attention(const std::vector<float>& q, const std::vector<float>& keys,
                                    const std::vector<float>& values, int n_heads, int n_heads_kv,
                                    int dim, float scale);

// Largest over heads of |out - exact| / |exact|, Euclidean over the channels of a head.
double worst_head_error(std::span<const float> out, std::span<const double> exact, int dim);

struct Spread {
  double median = 0, least = 0, iqr = 0;
};
Spread spread_of(std::vector<double> samples);

// Bytes of the last-level cache, 32 MiB where the system does not say.
size_t last_level_cache();

// GB/s at which `n_threads` threads read `buffer` once.
double read_bandwidth(std::span<const uint64_t> buffer, int n_threads);

}  // namespace zipcache::cli
