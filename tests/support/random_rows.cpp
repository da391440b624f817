#include "support/random_rows.hpp"

#include <random>

namespace zipcache::test {

std::vector<float> random_rows(int n, int dim, uint64_t seed, float outlier) {
  std::mt19937_64 engine(seed * 0x9E3779B97F4A7C15ull + 1);
  std::normal_distribution<float> normal;
  std::vector<float> rows(size_t(n) * size_t(dim));
  for (size_t i = 0; i < rows.size(); ++i) {
    const bool loud = i % size_t(dim) % 16 == 5;
    const float value = normal(engine);
    rows[i] = rounded_to_half(loud ? outlier * (value + 0.5f) : value);
  }
  return rows;
}

std::vector<half> to_halves(const std::vector<float>& values) {
  std::vector<half> out;
  for (const float value : values) out.push_back(to_half(value));
  return out;
}

std::vector<float> to_floats(const std::vector<half>& values) {
  std::vector<float> out;
  for (const half value : values) out.push_back(to_float(value));
  return out;
}

std::vector<double> to_doubles(const std::vector<float>& values) {
  return {values.begin(), values.end()};
}

}  // namespace zipcache::test
