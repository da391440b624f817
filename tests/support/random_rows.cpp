#include "support/random_rows.hpp"

#include <cmath>

#include "base/random.hpp"

namespace zipcache::test {

std::vector<float> random_rows(int n, int dim, uint64_t seed, float outlier) {
  Random random(seed, 0xDA7A);
  std::vector<float> rows(size_t(n) * size_t(dim));
  for (size_t i = 0; i < rows.size(); ++i) {
    const bool loud = i % size_t(dim) % 16 == 5;
    // Two uniform numbers make a normal one (Box and Muller).
    const float radius = std::sqrt(-2 * std::log(1 - random.unit()));
    const float value = radius * std::cos(6.2831853f * random.unit());
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
