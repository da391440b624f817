#include "support/text.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <numeric>

#include "support/random_rows.hpp"
#include "support/rotations.hpp"
#include "zipcache/rotations.hpp"

namespace zipcache::test {

const std::vector<LayerShape> kTextLayers = {{2, 64, 64}, {1, 80, 96}};

size_t width(int layer, SideId side) {
  const LayerShape& shape = kTextLayers[size_t(layer)];
  return size_t(shape.n_heads) * size_t(side == SideId::K ? shape.k_dim : shape.v_dim);
}

std::unique_ptr<Cache> cache_of(const char* policy, int n_streams, int n_cells) {
  Policy parsed = *parse_policy(policy);
  static const RotationFile rotations(kTextLayers);
  if (needs_rotations(parsed)) parsed.rotations = rotations.path();
  return std::move(*Cache::create({n_streams, n_cells, kTextLayers}, parsed));
}

namespace {

// What `get`, a call of the cache, gives of cells first .. + n.
State state_of(const Cache& cache, int stream, int first, int n, decltype(&Cache::save) get) {
  State state;
  for (const SideId side : kSides) {
    for (const int layer : {0, 1}) {
      auto& rows = state.emplace_back(size_t(n) * width(layer, side));
      EXPECT_TRUE((cache.*get)(layer, stream, side, first, n, rows.data()).ok());
    }
  }
  return state;
}

}  // namespace

State save(const Cache& cache, int stream, int first, int n) {
  return state_of(cache, stream, first, n, &Cache::save);
}

State read(const Cache& cache, int stream, int first, int n) {
  return state_of(cache, stream, first, n, &Cache::read_half);
}

void restore(Cache& cache, const State& state, int stream, int first) {
  for (const SideId side : kSides) {
    for (const int layer : {0, 1}) {
      const auto& rows = state[size_t(layer + 2 * (side == SideId::V))];
      const int n = int(rows.size() / width(layer, side));
      const Status status = cache.restore(layer, stream, side, first, n, rows.data());
      ASSERT_TRUE(status.ok()) << status.message();
    }
  }
}

std::vector<float> Text::go_on(int n, int step) {
  std::vector<float> all;
  for (int done = 0; done < n; done += step) {
    const auto out = next(std::min(step, n - done));
    all.insert(all.end(), out.begin(), out.end());
  }
  return all;
}

std::vector<float> Text::next(int n) {
  std::vector<float> outputs;
  std::vector<int64_t> cells(size_t(n), 0);
  std::iota(cells.begin(), cells.end(), int64_t(first_cell_ + n_tokens_));
  const int n_cells = cache_.shape().n_cells;
  std::vector<half> mask(size_t(n * n_cells), kHalfNegInf);
  for (int q = 0; q < n; ++q) {
    const int n_seen = n_tokens_ < n_alone ? 1 : n_tokens_ + q + 1;
    std::fill_n(&mask[size_t(q * n_cells + first_cell_ + n_tokens_ + q + 1 - n_seen)], n_seen,
                half{0});
  }
  for (const int layer : {0, 1}) {
    const LayerShape& shape = kTextLayers[size_t(layer)];
    for (const SideId side : kSides) {
      const int w = int(width(layer, side));
      std::vector<float> rows;
      for (int i = 0; i < n; ++i) {
        const auto row = random_rows(
            1, w, uint64_t(((n_tokens_ + i) * 2 + layer) * 2 + (side == SideId::V)), 3.0f);
        rows.insert(rows.end(), row.begin(), row.end());
      }
      EXPECT_TRUE(cache_.write(layer, stream_, side, cells, rows.data(), w).ok());
    }
    const int n_heads = 2 * shape.n_heads;
    const auto q = random_rows(n, n_heads * shape.k_dim, uint64_t(7000 + n_tokens_), 1.0f);
    std::vector<float> out(size_t(n * n_heads * shape.v_dim));
    Attention step;
    step.layer = layer, step.stream = stream_, step.n_queries = n, step.n_heads = n_heads;
    step.q = q.data(), step.q_row_stride = n_heads * shape.k_dim;
    step.q_head_stride = shape.k_dim, step.mask = mask.data();
    step.mask_stride = step.n_cells = n_cells, step.scale = 0.1f, step.out = out.data();
    step.out_row_stride = n_heads * shape.v_dim, step.out_head_stride = shape.v_dim;
    EXPECT_TRUE(cache_.attend(step).ok());
    outputs.insert(outputs.end(), out.begin(), out.end());
  }
  n_tokens_ += n;
  return outputs;
}

void expect_same(const std::vector<float>& found, const std::vector<float>& expected) {
  ASSERT_EQ(found.size(), expected.size());
  for (size_t i = 0; i < found.size(); ++i) ASSERT_NEAR(found[i], expected[i], 1e-5) << i;
}

KeyTurn turn_of(int dim) {
  KeyTurn turn;
  for (int c = 0; c < dim / 2; ++c)
    turn.pairs.push_back({c, c + dim / 2, std::pow(10000.0f, -2.0f * float(c) / float(dim))});
  return turn;
}

}  // namespace zipcache::test
