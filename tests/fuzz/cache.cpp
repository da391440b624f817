// Random sequences of write, restore, read, copy, shift, attend and clear against a reference that
// holds plain rows. Of every row the cache must give back what was written, exactly while it is raw
// and within its policy's bound once it is packed; a packed row stays as it was read first until
// something says that it moved; and storage stays within what its blocks may take.
#include "zipcache/cache.hpp"

#include <array>
#include <cmath>
#include <memory>
#include <span>
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
constexpr int kCalls = 30;  // enough to fill, pack, move and fill again; more only take time
// Small, since rows are what time goes to: two layers, two heads, or both.
const std::vector<LayerShape> kModels[] = {
    {{1, 16, 16}, {1, 16, 16}}, {{2, 16, 24}}, {{1, 16, 16}, {2, 16, 24}}};
constexpr SideId kSides[] = {SideId::K, SideId::V};

// What one side of one layer of one stream should hold, in flat tables: a fuzzer has no time for a
// vector a row.
class Rows {
 public:
  struct Cell {
    bool written = false;
    bool seen = false;    // `read` holds what it was last read as
    bool packed = false;  // it was read as something else than what was written
    bool steady = true;   // once packed it stays: it did not move, to be packed again
    int slack = 1;        // bounds that its error may have added up to
  };

  explicit Rows(int width) : width_(size_t(width)), cells_(kCells) {
    written_.resize(kCells * width_), read_.resize(kCells * width_);
  }
  Cell& operator[](int cell) { return cells_[size_t(cell)]; }
  std::span<half> written(int cell) { return of(written_, cell); }
  std::span<half> read(int cell) { return of(read_, cell); }
  // A cell whose row is about to be filled in.
  std::span<half> fresh(int cell) {
    (*this)[cell] = {.written = true};
    return written(cell);
  }
  void clear() { std::fill(cells_.begin(), cells_.end(), Cell{}); }

 private:
  std::span<half> of(std::vector<half>& rows, int cell) const {
    return std::span(rows).subspan(size_t(cell) * width_, width_);
  }

  size_t width_;
  std::vector<Cell> cells_;
  std::vector<half> written_, read_;  // [kCells, width]
};

class Session {
 public:
  explicit Session(Input& bytes)
      : bytes_(bytes),
        policy_(*parse_policy(kPolicies[bytes.below(std::size(kPolicies))])),
        layers_(kModels[bytes.below(std::size(kModels))]),
        cache_(std::move(*Cache::create({kStreams, kCells, layers_}, policy_))),
        random_(bytes.take<uint8_t>()) {
    empty_ = cache_->stats().bytes.allocated();
    for (int layer = 0; layer < int(layers_.size()); ++layer) {
      for (int part = 0; part < 2 * kStreams; ++part)
        rows_.emplace_back(width(layer, kSides[part % 2]));
    }
  }

  void run() {
    for (int call = 0; call < kCalls && !bytes_.empty(); ++call) {
      switch (bytes_.below(11)) {
        case 0:
          restore();
          break;
        case 1:
          write_back();
          break;
        case 2:
          if (n_copies_++ % 2 == 0)
            copy_stream();
          else
            keep_stream();
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
          check(bytes_.below(kStreams));
          break;
        default:
          step();
          break;
      }
      check_storage();
    }
    for (int stream = 0; stream < kStreams; ++stream) check(stream);
    clear();
  }

 private:
  // Mostly few; blocks of 128 are filled by those that are many.
  int some_rows() { return 1 + bytes_.below(bytes_.below(8) < 5 ? 24 : 200); }

  int width(int layer, SideId side) const {
    const LayerShape& shape = layers_[size_t(layer)];
    return shape.n_heads * dim(layer, side);
  }
  int dim(int layer, SideId side) const {
    const LayerShape& shape = layers_[size_t(layer)];
    return side == SideId::K ? shape.k_dim : shape.v_dim;
  }
  Rows& rows(int layer, int stream, SideId side) {
    return rows_[size_t((layer * kStreams + stream) * 2 + (side == SideId::V))];
  }

  // Of every kind: ordinary, loud, tiny, constant, with the largest numbers that 16 bits hold. None
  // is all zeros, which is what cells that were never written read as.
  void fill(std::span<half> row) {
    const uint32_t kind = random_.below(8);
    const float scale = kind == 0 ? 65504.0f : kind == 1 ? 1e-6f : kind == 2 ? 300.0f : 2.0f;
    for (half& x : row) x = to_half(kind == 3 ? 0.75f : scale * (2 * random_.unit() - 1));
    if (is_zero(row[0])) row[0] = to_half(1.0f);
  }

  std::vector<int64_t> cells() {
    std::vector<int64_t> cells;
    const int n = some_rows(), first = bytes_.below(256), kind = bytes_.below(4);
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
    values.reserve(cells.size() * size_t(n));
    for (const int64_t cell : cells) {
      const auto row = rows(layer, stream, side).fresh(int(cell));
      fill(row);
      for (const half x : row) values.push_back(to_float(x));
    }
    const Status status = cache_->write(layer, stream, side, cells, values.data(), n);
    require(status.ok(), "write: {}", status.message());
  }

  void step() {
    const auto cells = this->cells();
    const int stream = bytes_.below(kStreams), attends = bytes_.below(8);
    for (int layer = 0; layer < int(layers_.size()); ++layer) {
      for (const SideId side : kSides) write(layer, stream, side, cells);
      if (attends > 1 && attends < 6) attend_layer(layer, stream, attends, {});
      // As a host does: a query for each cell, which is what attention spends its time on.
      if (attends >= 6) attend_layer(layer, stream, int(cells.size()), cells);
    }
    note_moves();
  }

  // What a step that was stopped leaves: one layer written, the others' rows of these cells open.
  void half_a_step() {
    const auto cells = this->cells();
    const int stream = bytes_.below(kStreams), stop = bytes_.below(2 * int(layers_.size()));
    for (int part = 0; part < 2 * int(layers_.size()); ++part) {
      if (part <= stop) {
        write(part / 2, stream, kSides[part % 2], cells);
        continue;
      }
      for (const int64_t cell : cells) rows(part / 2, stream, kSides[part % 2])[int(cell)] = {};
    }
    for (const int64_t cell : cells) torn(stream, int(cell)) = true;
    note_moves();
  }

  // A saved state comes back: any 16-bit numbers for runs of cells, all keys and then all values.
  void restore() {
    const int stream = bytes_.below(kStreams), n_runs = 1 + bytes_.below(3);
    std::vector<std::pair<int, int>> runs;  // first cell, cells
    for (int run = 0; run < n_runs; ++run) {
      const int n = some_rows();
      runs.push_back({bytes_.below(256) % (kCells - n + 1), n});
    }
    for (const SideId side : kSides) {
      for (int layer = 0; layer < int(layers_.size()); ++layer) {
        for (const auto& [first, n] : runs) restore_run(layer, stream, side, first, n);
      }
    }
    for (const auto& [first, n] : runs) {
      for (int i = 0; i < n; ++i) torn(stream, first + i) = false;
    }
    note_moves();
  }

  void restore_run(int layer, int stream, SideId side, int first, int n) {
    std::vector<half> values;
    for (int i = 0; i < n; ++i) {
      const auto row = rows(layer, stream, side).fresh(first + i);
      fill(row);
      values.insert(values.end(), row.begin(), row.end());
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
    const int stream = bytes_.below(kStreams), n = some_rows();
    const int first = bytes_.below(256) % (kCells - n + 1);
    for (int layer = 0; layer < int(layers_.size()); ++layer) {
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
    for (int layer = 0; layer < int(layers_.size()); ++layer) {
      for (const SideId side : kSides) {
        const auto found = read(layer, from, side, 0, kCells);
        const Status status = cache_->write_half(layer, to, side, 0, kCells, found.data());
        require(status.ok(), "copy: {}", status.message());
        note_copy(layer, from, to, side, found);
      }
    }
    torn_all(to);
    note_moves();
  }

  void note_copy(int layer, int from, int to, SideId side, const std::vector<half>& found) {
    rows(layer, to, side).clear();
    for (int cell = 0; cell < kCells; ++cell) {
      if (!rows(layer, from, side)[cell].written) continue;
      const auto row = rows(layer, to, side).fresh(cell);
      std::copy_n(&found[size_t(cell) * row.size()], row.size(), row.begin());
    }
  }

  // As a host keeps a sequence on the device and brings it back elsewhere, in one piece or two.
  void keep_stream() {
    const int from = bytes_.below(kStreams), to = 1 - from, cut = bytes_.below(256) % (kCells + 1);
    std::vector<std::unique_ptr<KeptRows>> kept;
    for (const SideId side : kSides) {
      for (size_t layer = 0; layer < layers_.size(); ++layer) {
        const KeptRows* other = side == SideId::V ? kept[layer].get() : nullptr;
        auto rows = cache_->keep(int(layer), from, side, 0, kCells, other);
        require(rows.ok(), "keep: {}", rows.status().message());
        kept.push_back(std::move(*rows));
      }
    }
    for (size_t part = 0; part < kept.size(); ++part) {
      const int layer = int(part % layers_.size());
      const SideId side = kSides[part / layers_.size()];
      const auto found = read(layer, from, side, 0, kCells);
      for (const auto& [first, n] : {std::pair{0, cut}, {cut, kCells - cut}}) {
        const Status status = cache_->restore(layer, to, side, first, n, *kept[part], first);
        require(status.ok(), "restore what was kept: {}", status.message());
      }
      require(read(layer, from, side, 0, kCells) == found, "keeping changed what is kept");
      note_copy(layer, from, to, side, found);
    }
    torn_all(to);
    note_moves();
  }

  // Keys change their sign, which no code width minds. Refused in all layers, or in none.
  void shift() {
    const int stream = bytes_.below(kStreams), every = 1 + bytes_.below(4);
    std::vector<int32_t> by(kCells);
    for (int cell = 0; cell < kCells; cell += every) by[size_t(cell)] = 1;
    const Status possible = cache_->check_rotation(0, stream, by);
    require(possible.ok() || policy_.cadence == Cadence::Prompt, "shift: {}", possible.message());
    for (int layer = 0; layer < int(layers_.size()) && possible.ok(); ++layer) {
      const int n = dim(layer, SideId::K);
      KeyTurn turn;
      for (int c = 0; c < n; c += 2) turn.pairs.push_back({c, c + 1, 3.14159265f});
      const Status status = cache_->rotate_keys(layer, stream, by, turn);
      require(status.ok(), "shift: {}", status.message());
      auto& keys = rows(layer, stream, SideId::K);
      for (int cell = 0; cell < kCells; ++cell) {
        keys[cell].seen = false;
        keys[cell].slack += 1;  // a block may be coded anew as a whole
        if (cell % every != 0 || !keys[cell].written) continue;
        const auto row = keys.written(cell);
        std::vector<float> values(row.size());
        std::transform(row.begin(), row.end(), values.begin(), to_float);
        turn.apply(values.data(), layers_[size_t(layer)].n_heads, n, 1);
        std::transform(values.begin(), values.end(), row.begin(), finite_half);
      }
    }
    note_moves();
  }

  bool& torn(int stream, int cell) { return torn_[size_t(stream)][size_t(cell)]; }
  void torn_all(int stream) {
    for (int cell = 0; cell < kCells; ++cell) torn(stream, cell) = true;
  }

  void clear() {
    cache_->clear();
    for (auto& part : rows_) part.clear();
    torn_ = {};
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
      for (int cell = 0; cell < kCells; ++cell) {
        part[cell].steady = part[cell].seen = false;
        part[cell].slack += 1;
      }
    }
  }

  void attend(int stream, int n_queries) {
    for (int layer = 0; layer < int(layers_.size()); ++layer)
      attend_layer(layer, stream, n_queries, {});
  }

  // Three of four cells.
  void show_some(std::span<half> mask) {
    uint64_t bits = 0;
    for (size_t i = 0; i < mask.size(); ++i, bits >>= 2) {
      if (i % 32 == 0) bits = random_.next();
      if (bits & 3) mask[i] = 0;
    }
  }

  // Outputs are means of values: between the least and the largest of their channel. Each query
  // sees the step's cells up to its own, which makes the first ones sinks, or any cells without
  // `own`.
  void attend_layer(int layer, int stream, int n_queries, const std::vector<int64_t>& own) {
    const LayerShape& shape = layers_[size_t(layer)];
    const int n_heads = 2 * shape.n_heads;
    std::vector<float> q, out(size_t(n_queries * n_heads * shape.v_dim), NAN);
    for (int i = 0; i < n_queries * n_heads * shape.k_dim; ++i) q.push_back(2 * random_.unit() - 1);
    std::vector<half> mask(size_t(n_queries) * kCells, kHalfNegInf);
    if (own.empty()) show_some(mask);
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
        // Probabilities of 8 bits; rows are read at 16 bits, where the smallest are 0.
        const double room = 0.02 * std::max(hi, -lo) + 0x1p-25;
        for (int i = 0; i < n_queries * 2; ++i) {
          const int query = i / 2, of = head * 2 + i % 2;
          const float x = out[size_t((query * n_heads + of) * shape.v_dim + c)];
          require(x >= lo - room && x <= hi + room, "attention gives {}, values are {} to {}", x,
                  lo, hi);
        }
      }
    }
  }

  // Largest difference of a packed number of a head's row from the one that was written.
  double bound(std::span<const half> written, int slack) const {
    float lo = INFINITY, hi = -INFINITY;
    for (const half x : written) lo = std::min(lo, to_float(x)), hi = std::max(hi, to_float(x));
    double largest = 0;
    // Tiny numbers lose more in wide codes, whose steps 16 bits cannot hold.
    for (const Tier& tier : policy_.tiers) {
      if (coded(tier.k_bits))
        largest = std::max(largest, double(error_bound(lo, hi, tier.k_bits, Fit::Endpoint)));
    }
    if (largest == 0) return 0;
    const double size = std::max(std::fabs(lo), std::fabs(hi));
    return slack * (largest + size * 0x1p-9) + 0x1p-24;
  }

  // Most rows are 16-bit ones, which are what was written.
  void check_row(int layer, SideId side, int cell, Rows& all, std::span<const half> found) {
    Rows::Cell& row = all[cell];
    const auto written = all.written(cell), read = all.read(cell);
    if (row.seen && row.packed && row.steady)
      require(std::ranges::equal(found, read), "cell {} changed after it was packed", cell);
    const bool exact =
        std::ranges::equal(found, written) || !is_coded(layer, side, cell, all, found);
    row.packed = row.packed || !exact;
    row.seen = true;
    std::ranges::copy(found, read.begin());
  }

  // A number is another one than was written, or the row was evicted here.
  bool is_coded(int layer, SideId side, int cell, Rows& all, std::span<const half> found) const {
    const size_t n = size_t(dim(layer, side));
    bool coded = false;
    for (size_t at = 0; at < found.size(); at += n) {
      const auto head = found.subspan(at, n);
      const std::span<const half> written = all.written(cell).subspan(at, n);
      if (policy_.evicts() && std::ranges::all_of(head, is_zero)) {
        coded = coded || !std::ranges::all_of(written, is_zero);  // else it was copied as it is
        continue;
      }
      const double allowed = bound(written, all[cell].slack);
      for (size_t c = 0; c < n; ++c) {
        const double error = std::fabs(double(to_float(head[c])) - to_float(written[c]));
        require(error <= allowed, "layer {} {} cell {} channel {}: {} instead of {} within {}",
                layer, side == SideId::K ? "K" : "V", cell, at + c, to_float(head[c]),
                to_float(written[c]), allowed);
        coded = coded || error != 0;
      }
    }
    return coded;
  }

  void check(int stream) {
    for (int layer = 0; layer < int(layers_.size()); ++layer) {
      for (const SideId side : kSides) {
        const auto found = read(layer, stream, side, 0, kCells);
        const size_t n = size_t(width(layer, side));
        Rows& all = rows(layer, stream, side);
        for (int cell = 0; cell < kCells; ++cell) {
          const auto row = std::span(found).subspan(size_t(cell) * n, n);
          if (all[cell].written)
            check_row(layer, side, cell, all, row);
          else if (!torn(stream, cell))
            require(std::ranges::all_of(row, is_zero), "cell {} was never written", cell);
        }
      }
    }
  }

  void check_storage() const {
    const CacheStats stats = cache_->stats();
    const size_t slots = size_t(StreamLog::max_blocks(kCells));
    size_t most = empty_;
    for (const LayerShape& shape : layers_) {
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
  const std::vector<LayerShape>& layers_;
  std::unique_ptr<Cache> cache_;
  Random random_;
  std::vector<Rows> rows_;  // [layer, stream, side]
  // [stream][cell], of which some side may hold anything
  std::array<std::array<bool, kCells>, kStreams> torn_ = {};
  int n_copies_ = 0;
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
