// A text in a cache that is saved, restored or moved, and goes on with its own tokens wherever it
// stands: what was done to it must not be seen in its outputs.
#pragma once

#include <memory>
#include <vector>

#include "base/half.hpp"
#include "zipcache/cache.hpp"

namespace zipcache::test {

constexpr SideId kSides[] = {SideId::K, SideId::V};
// Of the caches below.
extern const std::vector<LayerShape> kTextLayers;
size_t width(int layer, SideId side);

// A policy that needs rotations and names none gets some.
std::unique_ptr<Cache> cache_of(const char* policy, int n_streams, int n_cells);

using State = std::vector<std::vector<half>>;  // K of all layers, then V, as llama.cpp saves it
// Cells first .. + n of a stream, by Cache::save and by Cache::read_half.
State save(const Cache& cache, int stream, int first, int n);
State read(const Cache& cache, int stream, int first, int n);
// Puts a state at cells first .. of a stream, in one call for each layer and side.
void restore(Cache& cache, const State& state, int stream, int first);

class Text {
 public:
  Text(Cache& cache, int stream, int first_cell, int n_tokens = 0)
      : cache_(cache), stream_(stream), first_cell_(first_cell), n_tokens_(n_tokens) {}
  // Outputs of the next n tokens, `step` at once.
  std::vector<float> go_on(int n, int step = 1);

  int n_alone = 0;  // tokens of steps that begin before it see nothing but themselves: sinks

 private:
  std::vector<float> next(int n);
  Cache& cache_;
  int stream_, first_cell_, n_tokens_;
};

// Sums over blocks are taken in another order where other blocks stand beside them; outputs are of
// the size of values, 3, and more blocks are packed on the way.
void expect_same(const std::vector<float>& found, const std::vector<float>& expected);

// Pairs of channels that lie half of a head apart, from one radian a position downwards, as models
// have them.
KeyTurn turn_of(int dim);

}  // namespace zipcache::test
