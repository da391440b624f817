// Random sequences of write, restore, read, copy, shift, attend and clear against a reference that
// holds plain rows. Of every row the cache must give back what was written, exactly while it is raw
// and within its policy's bound once it is packed; a packed row stays as it was read first until
// something says that it moved; and storage stays within what its blocks may take.
#include "zipcache/cache.hpp"

#include <array>
#include <cmath>
#include <map>
#include <memory>
#include <vector>

#include "base/half.hpp"
#include "base/random.hpp"
#include "cache/log.hpp"
#include "codec/tile.hpp"
#include "fuzz.hpp"

namespace zipcache::fuzz {
namespace {

// Sets along tokens, so that a row's own numbers bound its error.
constexpr const char* kPolicies[] = {
    "f16",
    "uniform,bits=8,k_axis=token,v_axis=token,recent=0",
    "uniform,bits=4,k_axis=token,v_axis=token,recent=50,sinks=2",
    "zipcache,k_axis=token,v_axis=token,recent=0",
    "random-tiers,k=8/4,v=8/4,k_axis=token,v_axis=token,cadence=prompt",
    "h2o,bits=8/0,k_axis=token,v_axis=token,recent=30",
    "zipcache,bits=16/8/4/2,ratio=0.2/0.2/0.3,k_axis=token,v_axis=token,recent=9",
    "rdkv,bits=16/8/4/0,target_bits=4,k_axis=token,v_axis=token,recent=9",
};
constexpr int kStreams = 2, kCells = 300;
const std::vector<LayerShape> kLayers = {{1, 16, 16}, {2, 16, 24}};
constexpr SideId kSides[] = {SideId::K, SideId::V};

struct Row {
  std::vector<float> written;
  std::vector<half> read;  // what it was last read as; empty: not yet
  bool packed = false;     // it was read as something else than what was written
  bool steady = true;      // once packed it stays: it did not move, to be packed again
  double slack = 1;        // bounds that its error may have added up to
};

class Session {
 public:
  explicit Session(Input& bytes)
      : bytes_(bytes),
        policy_(*parse_policy(kPolicies[bytes.below(std::size(kPolicies))])),
        cache_(std::move(*Cache::create({kStreams, kCells, kLayers}, policy_))),
        random_(bytes.take<uint8_t>()) {
    empty_ = cache_->stats().bytes.allocated();
  }

  void run() {
    for (int call = 0; call < 80 && !bytes_.empty(); ++call) {
      switch (bytes_.below(10)) {
        case 0:
          restore();
          break;
        case 1:
          write_back();
          break;
        case 2:
          copy_stream();
          break;
        case 3:
          shift();
          break;
        case 4:
          half_a_step();
          break;
        case 5:
          clear();
          break;
        case 6:
          attend(bytes_.below(kStreams), 1 + bytes_.below(30));
          break;
        case 7:
          check_all();
          break;
        default:
          step();
          break;
      }
      check_storage();
    }
    check_all();
    clear();
  }

 private:
  int width(int layer, SideId side) const {
    const LayerShape& shape = kLayers[size_t(layer)];
    return shape.n_heads * dim(layer, side);
  }
  static int dim(int layer, SideId side) {
    const LayerShape& shape = kLayers[size_t(layer)];
    return side == SideId::K ? shape.k_dim : shape.v_dim;
  }
  std::map<int, Row>& rows(int layer, int stream, SideId side) {
    return rows_[size_t((layer * kStreams + stream) * 2 + (side == SideId::V))];
  }

  // Of every kind: ordinary, loud, tiny, constant, with the largest numbers that 16 bits hold. None
  // is all zeros, which is what cells that were never written read as.
  std::vector<float> fresh_row(int n) {
    const uint32_t kind = random_.below(8);
    const float scale = kind == 0 ? 65504.0f : kind == 1 ? 1e-6f : kind == 2 ? 300.0f : 2.0f;
    std::vector<float> row(static_cast<size_t>(n));
    for (float& x : row) x = rounded_to_half(kind == 3 ? 0.75f : scale * (2 * random_.unit() - 1));
    row[0] = row[0] == 0 ? 1.0f : row[0];
    return row;
  }

  std::vector<int64_t> cells() {
    std::vector<int64_t> cells;
    const int n = 1 + bytes_.below(200), first = bytes_.below(256), kind = bytes_.below(4);
    if (kind == 0) {
      for (const int cell : random_.sample(kCells, n)) cells.push_back(cell);
    } else {
      for (int i = 0; i < n; ++i) cells.push_back((first + i * (kind == 1 ? 7 : 1)) % kCells);
    }
    return cells;  // with repetitions where 7 comes around: the last one counts
  }

  void write(int layer, int stream, SideId side, const std::vector<int64_t>& cells) {
    const int n = width(layer, side);
    std::vector<float> values;
    for (const int64_t cell : cells) {
      const auto row = fresh_row(n);
      values.insert(values.end(), row.begin(), row.end());
      rows(layer, stream, side)[int(cell)] = {row, {}, false, true, 1};
    }
    const Status status = cache_->write(layer, stream, side, cells, values.data(), n);
    require(status.ok(), "write: {}", status.message());
  }

  void step() {
    const auto cells = this->cells();
    const int stream = bytes_.below(kStreams), attends = bytes_.below(4);
    for (int layer = 0; layer < int(kLayers.size()); ++layer) {
      for (const SideId side : kSides) write(layer, stream, side, cells);
      if (attends == 1) attend_layer(layer, stream, 15, {});
      if (attends > 1) attend_layer(layer, stream, int(cells.size()), cells);  // as a host does
    }
    note_moves();
  }

  // What a step that was stopped leaves: one layer written, the others' rows of these cells open.
  void half_a_step() {
    const auto cells = this->cells();
    const int stream = bytes_.below(kStreams), stop = bytes_.below(4);
    for (int part = 0; part < 4; ++part) {
      if (part <= stop) {
        write(part / 2, stream, kSides[part % 2], cells);
        continue;
      }
      for (const int64_t cell : cells) rows(part / 2, stream, kSides[part % 2]).erase(int(cell));
    }
    for (const int64_t cell : cells) torn_.insert({{stream, int(cell)}, stop});
    note_moves();
  }

  // A saved state comes back: any 16-bit numbers for runs of cells, all keys and then all values.
  void restore() {
    const int stream = bytes_.below(kStreams), n_runs = 1 + bytes_.below(3);
    std::vector<std::pair<int, int>> runs;  // first cell, cells
    for (int run = 0; run < n_runs; ++run) {
      const int n = 1 + bytes_.below(200);
      runs.push_back({bytes_.below(256) % (kCells - n + 1), n});
    }
    for (const SideId side : kSides) {
      for (int layer = 0; layer < int(kLayers.size()); ++layer) {
        for (const auto& [first, n] : runs) restore_run(layer, stream, side, first, n);
      }
    }
    for (const auto& [first, n] : runs) {
      for (int i = 0; i < n; ++i) torn_.erase({stream, first + i});
    }
    note_moves();
  }

  void restore_run(int layer, int stream, SideId side, int first, int n) {
    std::vector<half> values;
    for (int i = 0; i < n; ++i) {
      const auto row = fresh_row(width(layer, side));
      for (const float x : row) values.push_back(to_half(x));
      rows(layer, stream, side)[first + i] = {row, {}, false, true, 1};
    }
    const Status status = cache_->write_half(layer, stream, side, first, n, values.data());
    require(status.ok(), "restore: {}", status.message());
  }

  std::vector<half> read(int layer, int stream, SideId side, int first, int n) const {
    std::vector<half> found(size_t(n) * size_t(width(layer, side)));
    const Status status = cache_->read_half(layer, stream, side, first, n, found.data());
    require(status.ok(), "read: {}", status.message());
    return found;
  }

  // Rows that are read and written back change nothing.
  void write_back() {
    const int stream = bytes_.below(kStreams), n = 1 + bytes_.below(200);
    const int first = bytes_.below(256) % (kCells - n + 1);
    for (int layer = 0; layer < int(kLayers.size()); ++layer) {
      for (const SideId side : kSides) {
        const auto found = read(layer, stream, side, first, n);
        const Status status = cache_->write_half(layer, stream, side, first, n, found.data());
        require(status.ok(), "write back: {}", status.message());
        const bool same = read(layer, stream, side, first, n) == found;
        require(same || compactions_ != cache_->stats().compactions,
                "rows written back have changed");
      }
    }
    note_moves();
  }

  // As a host copies a sequence to another stream: every row read and written there.
  void copy_stream() {
    const int from = bytes_.below(kStreams), to = 1 - from;
    for (int layer = 0; layer < int(kLayers.size()); ++layer) {
      for (const SideId side : kSides) {
        const auto found = read(layer, from, side, 0, kCells);
        const Status status = cache_->write_half(layer, to, side, 0, kCells, found.data());
        require(status.ok(), "copy: {}", status.message());
        rows(layer, to, side).clear();
        for (const auto& [cell, row] : rows(layer, from, side)) {
          const half* values = &found[size_t(cell) * size_t(width(layer, side))];
          std::vector<float> written;
          for (int c = 0; c < width(layer, side); ++c) written.push_back(to_float(values[c]));
          rows(layer, to, side)[cell] = {written, {}, false, true, 1};
        }
      }
    }
    for (int cell = 0; cell < kCells; ++cell) torn_.insert({{to, cell}, 0});
    note_moves();
  }

  // Keys change their sign, which no code width minds.
  void shift() {
    const int stream = bytes_.below(kStreams), every = 1 + bytes_.below(4);
    std::vector<int32_t> by(kCells);
    for (int cell = 0; cell < kCells; cell += every) by[size_t(cell)] = 1;
    for (int layer = 0; layer < int(kLayers.size()); ++layer) {
      const Status status = cache_->rotate_keys(layer, stream, by, [&](float* head, int32_t) {
        for (int c = 0; c < dim(layer, SideId::K); ++c) head[c] = -head[c];
      });
      require(status.ok() || policy_.cadence == Cadence::Prompt, "shift: {}", status.message());
      auto& keys = rows(layer, stream, SideId::K);
      if (!status.ok()) keys.clear();
      for (auto& [cell, row] : keys) {
        row.read.clear();
        row.slack += 1;  // a block is coded anew as a whole
        if (cell % every != 0) continue;
        for (float& x : row.written) x = -x;
      }
      if (!status.ok()) torn_all(stream);
    }
    note_moves();
  }

  void torn_all(int stream) {
    for (int cell = 0; cell < kCells; ++cell) torn_.insert({{stream, cell}, 0});
  }

  void clear() {
    cache_->clear();
    for (auto& part : rows_) part.clear();
    torn_.clear();
    note_moves();
    const CacheStats stats = cache_->stats();
    require(stats.rows_live == 0 && stats.rows_dead == 0, "rows are left after clear");
    require(stats.bytes.allocated() == empty_, "{} bytes after clear, {} when it was new",
            stats.bytes.allocated(), empty_);
  }

  // After a compaction rows may have been coded once more.
  void note_moves() {
    const uint64_t now = cache_->stats().compactions;
    if (now == compactions_) return;
    compactions_ = now;
    for (auto& part : rows_) {
      for (auto& [cell, row] : part) {
        row.steady = false;
        row.read.clear();
        row.slack += 1;
      }
    }
  }

  void attend(int stream, int n_queries) {
    for (int layer = 0; layer < int(kLayers.size()); ++layer)
      attend_layer(layer, stream, n_queries, {});
  }

  // Outputs are means of values: between the least and the largest of their channel. Each query
  // sees the step's cells up to its own, which makes the first ones sinks, or any cells without
  // `own`.
  void attend_layer(int layer, int stream, int n_queries, const std::vector<int64_t>& own) {
    const LayerShape& shape = kLayers[size_t(layer)];
    const int n_heads = 2 * shape.n_heads;
    std::vector<float> q, out(size_t(n_queries * n_heads * shape.v_dim), NAN);
    for (int i = 0; i < n_queries * n_heads * shape.k_dim; ++i) q.push_back(2 * random_.unit() - 1);
    std::vector<half> mask(size_t(n_queries) * kCells);
    for (half& value : mask) value = own.empty() && random_.below(3) ? half{0} : kHalfNegInf;
    for (size_t query = 0; query < own.size(); ++query) {
      for (size_t i = 0; i <= query; ++i) mask[query * kCells + size_t(own[i])] = 0;
    }
    Attention step;
    step.layer = layer, step.stream = stream, step.n_queries = n_queries, step.n_heads = n_heads;
    step.q = q.data(), step.q_head_stride = shape.k_dim, step.q_row_stride = n_heads * shape.k_dim;
    step.mask = mask.data(), step.mask_stride = step.n_cells = kCells;
    step.scale = 0.01f;
    step.out = out.data(), step.out_head_stride = shape.v_dim;
    step.out_row_stride = n_heads * shape.v_dim;
    const bool looks = random_.below(4) == 0;
    const auto before = looks ? read(layer, stream, SideId::V, 0, kCells) : std::vector<half>{};
    const Status status = cache_->attend(step);
    require(status.ok(), "attend: {}", status.message());
    if (!looks) return;
    const auto after = read(layer, stream, SideId::V, 0, kCells);
    for (int head = 0; head < shape.n_heads; ++head) {
      for (int c = 0; c < shape.v_dim; ++c) {
        double lo = 0, hi = 0;  // hidden rows and empty cells give 0
        for (const auto* values : {&before, &after}) {
          for (int cell = 0; cell < kCells; ++cell) {
            const double x =
                to_float((*values)[size_t((cell * shape.n_heads + head) * shape.v_dim + c)]);
            lo = std::min(lo, x), hi = std::max(hi, x);
          }
        }
        const double room = 0.02 * std::max(hi, -lo);  // probabilities of 8 bits, rows of 16
        for (int i = 0; i < n_queries * 2; ++i) {
          const int query = i / 2, of = head * 2 + i % 2;
          const float x = out[size_t((query * n_heads + of) * shape.v_dim + c)];
          require(x >= lo - room && x <= hi + room, "attention gives {}, values are {} to {}", x,
                  lo, hi);
        }
      }
    }
  }

  // Largest difference of a packed number of this head from the one that was written.
  double bound(const Row& row, int head, int n) const {
    const auto [lo, hi] =
        std::minmax_element(row.written.begin() + head * n, row.written.begin() + (head + 1) * n);
    double largest = 0;
    // Tiny numbers lose more in wide codes, whose steps 16 bits cannot hold.
    for (const Tier& tier : policy_.tiers) {
      if (coded(tier.k_bits))
        largest = std::max(largest, double(error_bound(*lo, *hi, tier.k_bits, Fit::Endpoint)));
    }
    if (largest == 0) return 0;
    const double size = std::max(std::fabs(*lo), std::fabs(*hi));
    return row.slack * (largest + size * 0x1p-9) + 0x1p-24;
  }

  void check_row(int layer, SideId side, int cell, Row& row, const half* found) {
    const int n = dim(layer, side);
    const std::vector<half> now(found, found + width(layer, side));
    if (!row.read.empty() && row.packed && row.steady)
      require(now == row.read, "cell {} changed after it was packed", cell);
    bool exact = true;
    for (int head = 0; head < kLayers[size_t(layer)].n_heads; ++head) {
      const bool absent =
          policy_.evicts() && std::all_of(found + head * n, found + (head + 1) * n, is_zero);
      const double allowed = bound(row, head, n);
      for (int c = head * n; c < (head + 1) * n && !absent; ++c) {
        const double error = std::fabs(double(to_float(found[c])) - row.written[size_t(c)]);
        require(error <= allowed, "layer {} {} cell {} channel {}: {} instead of {} within {}",
                layer, side == SideId::K ? "K" : "V", cell, c, to_float(found[c]),
                row.written[size_t(c)], allowed);
        exact = exact && error == 0;
      }
      if (absent)  // as it was copied, or since it was evicted here
        exact = exact &&
                std::all_of(row.written.begin() + head * n, row.written.begin() + (head + 1) * n,
                            [](float x) { return x == 0; });
    }
    row.packed = row.packed || !exact;
    row.read = now;
  }

  void check_all() {
    for (int stream = 0; stream < kStreams; ++stream) {
      for (int layer = 0; layer < int(kLayers.size()); ++layer) {
        for (const SideId side : kSides) {
          const auto found = read(layer, stream, side, 0, kCells);
          const size_t n = size_t(width(layer, side));
          for (auto& [cell, row] : rows(layer, stream, side))
            check_row(layer, side, cell, row, &found[size_t(cell) * n]);
          for (int cell = 0; cell < kCells; ++cell) {
            if (rows(layer, stream, side).count(cell) || torn_.count({stream, cell})) continue;
            for (size_t c = 0; c < n; ++c)
              require(found[size_t(cell) * n + c] == 0, "cell {} was never written", cell);
          }
        }
      }
    }
  }

  void check_storage() const {
    const CacheStats stats = cache_->stats();
    const size_t slots = size_t(StreamLog::max_blocks(kCells));
    size_t most = empty_;
    for (const LayerShape& shape : kLayers) {
      const size_t numbers = size_t(kBlockTokens * shape.n_heads * (shape.k_dim + shape.v_dim));
      most += kStreams * slots * (2 * sizeof(half) * numbers + 16 * 1024);
    }
    require(stats.bytes.allocated() <= most, "{} bytes, at most {} were possible",
            stats.bytes.allocated(), most);
    require(stats.bytes.allocated() <= stats.bytes_peak, "more than the peak is held");
    require(stats.rows_live <= kStreams * kCells, "{} live rows", stats.rows_live);
    require(stats.rows_packed <= stats.rows_live, "{} packed of {} live rows", stats.rows_packed,
            stats.rows_live);
  }

  Input& bytes_;
  const Policy policy_;
  std::unique_ptr<Cache> cache_;
  Random random_;
  std::array<std::map<int, Row>, 8> rows_;   // kLayers.size() * kStreams * 2
  std::map<std::pair<int, int>, int> torn_;  // cells of which some side may hold anything
  uint64_t compactions_ = 0;
  size_t empty_ = 0;
};

}  // namespace
}  // namespace zipcache::fuzz

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  zipcache::fuzz::Input bytes(data, size);
  zipcache::fuzz::Session(bytes).run();
  return 0;
}
