// Seeded test data that looks like keys and values: normal numbers with a few loud channels.
#pragma once

#include <cstdint>
#include <vector>

#include "base/half.hpp"

namespace zipcache::test {

// [n, dim] normal numbers, already rounded to 16 bits so that storing them loses nothing. Every
// 16th channel from the sixth on is `outlier` times as loud and has an offset, as keys of real
// models have.
std::vector<float> random_rows(int n, int dim, uint64_t seed, float outlier = 8.0f);

std::vector<half> to_halves(const std::vector<float>& values);
std::vector<float> to_floats(const std::vector<half>& values);
std::vector<double> to_doubles(const std::vector<float>& values);

}  // namespace zipcache::test
