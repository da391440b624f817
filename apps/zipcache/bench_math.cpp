#include "bench_math.hpp"

#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <random>
#include <thread>

#include "statistics.hpp"

namespace zipcache::cli {

std::vector<float> synthetic_rows(int n, int n_heads, int dim, bool keys, uint64_t seed) {
  std::mt19937_64 engine(seed);
  std::normal_distribution<float> normal;
  std::uniform_real_distribution<float> loud(6.0f, 10.0f);
  std::vector<float> widths(size_t(n_heads) * size_t(dim), 1.0f);
  for (size_t c = 0; keys && c < widths.size(); ++c)
    widths[c] = std::exp(0.5f * normal(engine)) * (c % 32 == 5 ? loud(engine) : 1.0f);
  std::vector<float> rows(size_t(n) * widths.size());
  for (size_t i = 0; i < rows.size(); ++i) rows[i] = normal(engine) * widths[i % widths.size()];
  return rows;
}

std::vector<float> synthetic_queries(const std::vector<float>& keys, int n_heads, int n_heads_kv,
                                     int dim, float scale, uint64_t seed) {
  std::mt19937_64 engine(seed);
  std::normal_distribution<float> normal;
  const size_t width = size_t(n_heads_kv) * size_t(dim),
               n = std::min<size_t>(keys.size() / width, 512);
  std::vector<float> q(size_t(n_heads) * size_t(dim));
  for (int head = 0; head < n_heads; ++head) {
    float* row = &q[size_t(head) * size_t(dim)];
    const size_t at = size_t(head / (n_heads / n_heads_kv)) * size_t(dim);
    for (int c = 0; c < dim; ++c) row[c] = normal(engine);
    double squares = 0;
    for (size_t t = 0; t < n; ++t) {
      double dot = 0;
      for (int c = 0; c < dim; ++c) dot += double(row[c]) * keys[t * width + at + size_t(c)];
      squares += dot * dot * scale * scale;
    }
    const float factor = float(2.0 / std::sqrt(squares / double(n)));
    for (int c = 0; c < dim; ++c) row[c] *= factor;
  }
  return q;
}

std::vector<double> exact_attention(const std::vector<float>& q, const std::vector<float>& keys,
                                    const std::vector<float>& values, int n_heads, int n_heads_kv,
                                    int dim, float scale) {
  const size_t width = size_t(n_heads_kv) * size_t(dim), n = keys.size() / width;
  std::vector<double> out(size_t(n_heads) * size_t(dim), 0.0), p(n);
  for (int head = 0; head < n_heads; ++head) {
    const size_t at = size_t(head / (n_heads / n_heads_kv)) * size_t(dim);
    const float* row = &q[size_t(head) * size_t(dim)];
    double* sums = &out[size_t(head) * size_t(dim)];
    double peak = -INFINITY, mass = 0;
    for (size_t t = 0; t < n; ++t) {
      double dot = 0;
      for (int c = 0; c < dim; ++c) dot += double(row[c]) * keys[t * width + at + size_t(c)];
      peak = std::max(peak, p[t] = dot * scale);
    }
    for (size_t t = 0; t < n; ++t) {
      const double weight = std::exp(p[t] - peak);
      mass += weight;
      for (int c = 0; c < dim; ++c) sums[c] += weight * values[t * width + at + size_t(c)];
    }
    for (int c = 0; c < dim; ++c) sums[c] /= mass;
  }
  return out;
}

double worst_head_error(std::span<const float> out, std::span<const double> exact, int dim) {
  double worst = 0;
  for (size_t head = 0; head < exact.size(); head += size_t(dim)) {
    double error = 0, size = 0;
    for (size_t i = head; i < head + size_t(dim); ++i) {
      error += (out[i] - exact[i]) * (out[i] - exact[i]);
      size += exact[i] * exact[i];
    }
    worst = std::max(worst, std::sqrt(error / size));
  }
  return worst;
}

Spread spread_of(std::vector<double> samples) {
  std::sort(samples.begin(), samples.end());
  if (samples.empty()) return {};
  return {percentile(samples, 0.5), samples.front(),
          percentile(samples, 0.75) - percentile(samples, 0.25)};
}

size_t last_level_cache() {
  const long bytes = sysconf(_SC_LEVEL3_CACHE_SIZE);
  return bytes > 0 ? size_t(bytes) : size_t(32) << 20;
}

double read_bandwidth(std::span<const uint64_t> buffer, int n_threads) {
  std::atomic<uint64_t> total{0};
  const auto read = [&](int thread) {
    const size_t begin = buffer.size() * size_t(thread) / size_t(n_threads);
    const size_t end = buffer.size() * size_t(thread + 1) / size_t(n_threads);
    uint64_t sums[8] = {};
    for (size_t i = begin; i + 8 <= end; i += 8)
      for (size_t j = 0; j < 8; ++j) sums[j] += buffer[i + j];
    for (const uint64_t sum : sums) total += sum;
  };
  const auto start = std::chrono::steady_clock::now();
  std::vector<std::thread> others;
  for (int thread = 1; thread < n_threads; ++thread) others.emplace_back(read, thread);
  read(0);
  for (std::thread& other : others) other.join();
  const std::chrono::duration<double> took = std::chrono::steady_clock::now() - start;
  // The sum is used, so that reading cannot be left out.
  return total == 1 ? 0.0 : double(buffer.size_bytes()) / took.count() / 1e9;
}

}  // namespace zipcache::cli
