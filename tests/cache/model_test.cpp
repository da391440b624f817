// Random sequences of calls against a map from cell to row: what the cache must agree with at every
// read.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <map>

#include "base/half.hpp"
#include "base/random.hpp"
#include "codec/quantize.hpp"
#include "support/oracle.hpp"
#include "support/random_rows.hpp"
#include "zipcache/cache.hpp"

namespace zipcache {
namespace {

constexpr int kCells = 500, kDim = 32, kHeads = 2, kWidth = kDim * kHeads, kNumLayers = 2;
constexpr SideId kSides[] = {SideId::K, SideId::V};

class Model {
 public:
  Model(const char* policy, uint64_t seed)
      : cache_(std::move(*Cache::create({2, kCells, {{kHeads, kDim, kDim}, {kHeads, kDim, kDim}}},
                                        *parse_policy(policy)))),
        random_(seed, 0xA11) {}

  void run(int n_calls) {
    for (int call = 0; call < n_calls && !testing::Test::HasFatalFailure(); ++call) {
      SCOPED_TRACE(testing::Message() << "call " << call);
      const uint32_t choice = random_.below(100);
      if (choice < 55)
        write(int(random_.below(choice < 50 ? 60 : 300)) + 1, random_.below(4) != 0);
      else if (choice < 65)
        write_runs();
      else if (choice < 75)
        write_back();
      else if (choice < 92)
        check_reads();
      else if (choice < 99)
        check_attention();
      else
        clear();
    }
    if (!testing::Test::HasFatalFailure()) check_reads();
  }

 private:
  using Row = std::vector<float>;
  std::map<int, Row>& rows(int layer, int stream, SideId side) {
    return exact_[size_t((layer * 2 + stream) * 2 + (side == SideId::V))];
  }

  // A step: interleaved cells, new and written ones, in all layers; attention if asked for.
  void write(int n, bool attend) {
    const int stream = int(random_.below(2));
    std::vector<int64_t> cells;
    if (random_.below(3) == 0) {
      for (const int cell : random_.sample(kCells, n)) cells.push_back(cell);
    } else {
      const int first = int(random_.below(uint32_t(kCells - n)));
      for (int i = 0; i < n; ++i)
        cells.push_back(first + (i * 7) % n);  // a permutation unless 7 divides n
      std::sort(cells.begin(), cells.end());
      cells.erase(std::unique(cells.begin(), cells.end()), cells.end());
    }
    for (int layer = 0; layer < kNumLayers; ++layer) {
      for (const SideId side : kSides) {
        const auto values = test::random_rows(int(cells.size()), kWidth, random_.next());
        ASSERT_TRUE(cache_->write(layer, stream, side, cells, values.data(), kWidth).ok());
        for (size_t i = 0; i < cells.size(); ++i) {
          const auto row = values.begin() + ptrdiff_t(i) * kWidth;
          rows(layer, stream, side)[int(cells[i])] = Row(row, row + kWidth);
        }
      }
      if (attend) run_attention(layer, stream, 1 + int(random_.below(30)));
    }
  }

  // A restored state: fresh 16-bit rows for runs of cells, all keys and then all values.
  void write_runs() {
    const int stream = int(random_.below(2)), n_runs = 1 + int(random_.below(3));
    std::vector<std::pair<int, int>> runs;  // first cell, cells
    for (int run = 0; run < n_runs; ++run) {
      const int n = 1 + int(random_.below(100));
      runs.push_back({int(random_.below(uint32_t(kCells - n))), n});
    }
    for (const SideId side : kSides) {
      for (int layer = 0; layer < kNumLayers; ++layer) {
        for (const auto& [first, n] : runs) write_run(layer, stream, side, first, n);
      }
    }
  }

  void write_run(int layer, int stream, SideId side, int first, int n) {
    const auto values = test::random_rows(n, kWidth, random_.next());
    ASSERT_TRUE(
        cache_->write_half(layer, stream, side, first, n, test::to_halves(values).data()).ok());
    for (int i = 0; i < n; ++i) {
      const auto row = values.begin() + i * kWidth;
      rows(layer, stream, side)[first + i] = Row(row, row + kWidth);
    }
  }

  // Reading and writing back a range of written cells must change nothing.
  void write_back() {
    const int stream = int(random_.below(2));
    const auto& known = rows(0, stream, SideId::K);
    if (known.empty()) return;
    int first = known.begin()->first, n = 1;
    for (int tries = 0; tries < 20; ++tries) {
      const int at = int(random_.below(kCells));
      int length = 0;
      while (length < 150 && known.count(at + length)) ++length;
      if (length > n) first = at, n = length;
    }
    const CacheStats before = cache_->stats();
    std::vector<half> found(size_t(n * kWidth)), again(found.size());
    for (int layer = 0; layer < kNumLayers; ++layer) {
      for (const SideId side : kSides) {
        ASSERT_TRUE(cache_->read_half(layer, stream, side, first, n, found.data()).ok());
        ASSERT_TRUE(cache_->write_half(layer, stream, side, first, n, found.data()).ok());
        ASSERT_TRUE(cache_->read_half(layer, stream, side, first, n, again.data()).ok());
        ASSERT_EQ(again, found);
      }
    }
    const CacheStats after = cache_->stats();
    if (after.compactions != before.compactions)
      return;  // writing also begins a step, which may compact
    ASSERT_EQ(after.rows_dead, before.rows_dead);
    ASSERT_EQ(after.rows_packed, before.rows_packed);
    ASSERT_EQ(after.bytes.allocated(), before.bytes.allocated());
  }

  double bound_of(const Row& row, int head) const {
    const Policy& policy = cache_->policy();
    if (policy.raw()) return 0;
    // The last tier that is kept, of 16 bits or coded; a row that is moved is coded again.
    const int bits =
        policy.tiers[policy.tiers.size() - (policy.tiers.size() > 1 && policy.evicts() ? 2 : 1)]
            .k_bits;
    if (bits == 16) return 0;
    // Tokenwise: a set is this row. A row may be coded again when compaction moves it, which adds
    // no more than rounding; one extra bound pays for it.
    const auto [lo, hi] =
        std::minmax_element(row.begin() + head * kDim, row.begin() + (head + 1) * kDim);
    return 2 * error_bound(*lo, *hi, bits, Fit::Endpoint) +
           std::max(std::fabs(*lo), std::fabs(*hi)) * 0x1p-9;
  }

  void check_row(int layer, int stream, SideId side, int cell, const half* found) {
    const auto row = rows(layer, stream, side).find(cell);
    const bool known = row != rows(layer, stream, side).end();
    for (int head = 0; head < kHeads; ++head) {
      const double bound = known ? bound_of(row->second, head) : 0;
      if (known && absent(found + head * kDim)) continue;
      for (int c = head * kDim; c < (head + 1) * kDim; ++c) {
        const double expected = known ? row->second[size_t(c)] : 0.0;
        if (std::fabs(to_float(found[c]) - expected) <= bound) continue;
        FAIL() << "layer " << layer << " cell " << cell << " channel " << c << ": found "
               << to_float(found[c]) << ", expected " << expected << " within " << bound;
      }
    }
  }

  // An evicted row of a head: no written one is all zeros.
  bool absent(const half* head_row) const {
    return cache_->policy().evicts() &&
           std::all_of(head_row, head_row + kDim, [](half x) { return x == 0; });
  }

  void check_reads() {
    std::vector<half> found(size_t(kCells * kWidth));
    for (int stream = 0; stream < 2; ++stream) {
      for (int layer = 0; layer < kNumLayers; ++layer) {
        for (const SideId side : kSides) {
          ASSERT_TRUE(cache_->read_half(layer, stream, side, 0, kCells, found.data()).ok());
          for (int cell = 0; cell < kCells; ++cell) {
            ASSERT_NO_FATAL_FAILURE(
                check_row(layer, stream, side, cell, &found[size_t(cell * kWidth)]));
          }
        }
      }
    }
    const CacheStats stats = cache_->stats();
    ASSERT_EQ(stats.rows_live, rows(0, 0, SideId::K).size() + rows(0, 1, SideId::K).size());
    ASSERT_LE(stats.bytes.allocated(), stats.bytes_peak);
  }

  std::vector<float> run_attention(int layer, int stream, int n_queries) {
    q_ = test::random_rows(n_queries, kWidth, random_.next(), 1.0f);
    mask_.assign(size_t(n_queries * kCells), 0);
    for (half& value : mask_) value = random_.below(3) ? kHalfNegInf : half{0};
    std::vector<float> out(q_.size());
    Attention step;
    step.layer = layer, step.stream = stream, step.n_queries = n_queries, step.n_heads = kHeads;
    step.q = q_.data(), step.q_row_stride = kWidth, step.q_head_stride = kDim;
    step.mask = mask_.data(), step.mask_stride = step.n_cells = kCells;
    step.scale = 0.17f, step.n_threads = 1 + int(random_.below(2));
    step.out = out.data(), step.out_row_stride = kWidth, step.out_head_stride = kDim;
    EXPECT_TRUE(cache_->attend(step).ok());
    return out;
  }

  void check_attention() {
    const int layer = int(random_.below(kNumLayers)), stream = int(random_.below(2)), n_queries = 5;
    test::OracleStep oracle{n_queries, kHeads, kHeads, kDim,  kDim, kCells, {},
                            {},        {},     {},     0.17f, 0,    0,      {}};
    // With Cadence::Prompt a short step packs before it reads; after this one there is nothing left
    // to pack.
    if (cache_->policy().cadence == Cadence::Prompt) run_attention(layer, stream, 1);
    std::vector<half> held(size_t(kCells * kWidth));
    ASSERT_TRUE(cache_->read_half(layer, stream, SideId::K, 0, kCells, held.data()).ok());
    oracle.keys = test::to_doubles(test::to_floats(held));
    for (int at = 0; at < kCells * kWidth; at += kDim)
      oracle.absent.push_back(absent(&held[size_t(at)]));
    ASSERT_TRUE(cache_->read_half(layer, stream, SideId::V, 0, kCells, held.data()).ok());
    oracle.values = test::to_doubles(test::to_floats(held));
    const auto out = run_attention(layer, stream, n_queries);
    oracle.q = test::to_doubles(q_);
    const auto& known = rows(layer, stream, SideId::K);
    for (size_t i = 0; i < mask_.size(); ++i) {
      oracle.mask.push_back(mask_[i] || !known.count(int(i % kCells)) ? test::kHidden : 0.0);
    }
    const auto expected = test::attention(oracle);
    const double tolerance =
        (0x1p-11 + 1e-5) * expected.largest_value * (1 + 2 * expected.largest_score);
    for (size_t i = 0; i < out.size(); ++i) ASSERT_NEAR(out[i], expected.out[i], tolerance) << i;
  }

  void clear() {
    cache_->clear();
    for (auto& part : exact_) part.clear();
    ASSERT_EQ(cache_->stats().rows_live, 0u);
  }

  std::unique_ptr<Cache> cache_;
  Random random_;
  std::map<int, Row> exact_[kNumLayers * 2 * 2];
  std::vector<float> q_;
  std::vector<half> mask_;
};

class ModelOfCache : public testing::TestWithParam<const char*> {};

TEST_P(ModelOfCache, AgreesWithAMapFromCellToRow) {
  for (const uint64_t seed : {1, 2, 3}) {
    SCOPED_TRACE(testing::Message() << "seed " << seed);
    Model(GetParam(), seed).run(120);
    if (HasFatalFailure()) return;
  }
}

INSTANTIATE_TEST_SUITE_P(
    Policies, ModelOfCache,
    testing::Values("f16", "uniform,bits=8,k_axis=token,v_axis=token",
                    "uniform,bits=4,k_axis=token,v_axis=token,recent=50,sinks=2",
                    "zipcache,k_axis=token,v_axis=token",
                    "random-tiers,k=8/4,v=8/4,k_axis=token,v_axis=token,cadence=prompt",
                    "random+pin,recent=0,sinks=2", "streaming,recent=100,sinks=3",
                    "h2o,bits=8/0,k_axis=token,v_axis=token,recent=30",
                    "roco,bits=8/0,k_axis=token,v_axis=token,recent=30", "sym8",
                    "zipcache,bits=16/8/4/2,ratio=0.2/0.2/0.3,k_axis=token,v_axis=token",
                    "rdkv,bits=16/8/4/0,target_bits=4,k_axis=token,v_axis=token,recent=9",
                    "random-tiers,bits=16/8/0,ratio=0.2/0.5,k_axis=token,v_axis=token,"
                    "cadence=prompt"),
    [](const auto& info) { return "policy" + std::to_string(info.index); });

}  // namespace
}  // namespace zipcache
