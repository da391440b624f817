// The cache: logs, stores, attention, scoring and packing tied together. See zipcache/cache.hpp.
#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <optional>
#include <utility>

#include "attend/attend.hpp"
#include "attend/block_attention.hpp"
#include "attend/mask.hpp"
#include "cache/kept_rows.hpp"
#include "cache/pack.hpp"
#include "cache/saved_blocks.hpp"
#include "codec/kernels.hpp"
#include "saliency/probes.hpp"
#include "zipcache/rotations.hpp"
#include "zipcache/token_scores.hpp"

namespace zipcache {
namespace {

// Dead rows that may stand before a block is compacted: an eighth of the cells, at least a block.
uint64_t dead_rows_allowed(int n_cells) { return uint64_t(std::max(n_cells / 8, kBlockTokens)); }

// Each has working memory of its own; ggml's programs stop at 512.
constexpr int kMaxThreads = 1024;

std::vector<half> to_halves(const std::vector<float>& values) {
  std::vector<half> halves(values.size());
  std::transform(values.begin(), values.end(), halves.begin(), finite_half);
  return halves;
}

class Stopwatch {
 public:
  // Seconds since the last lap, or since the beginning.
  double lap() {
    const auto now = std::chrono::steady_clock::now();
    return std::chrono::duration<double>(now - std::exchange(last_, now)).count();
  }

 private:
  std::chrono::steady_clock::time_point last_ = std::chrono::steady_clock::now();
};

// Numbers of live rows that no tier of their head keeps.
uint64_t evicted_elements(const LogBlock& block, const LayerStore& store, int slot) {
  if (!store.packed.policy().evicts() || (!store.block(slot).raw && !store.block(slot).packed))
    return 0;
  uint64_t n = 0;
  for (int head = 0; head < store.raw.shape.n_heads; ++head) {
    const BlockBits held = store.held(slot, head);
    for (int row = 0; row < block.n_rows; ++row)
      n += block.cells[size_t(row)] >= 0 && !held.test(size_t(row));
  }
  return n * uint64_t(store.raw.shape.k_dim + store.raw.shape.v_dim);
}

class Engine final : public Cache {
 public:
  Engine(CacheShape shape, Policy policy, const Kernels& kernels)
      : shape_(std::move(shape)),
        policy_(std::move(policy)),
        kernels_(kernels),
        attender_(kernels) {}

  Status open();

  Status write(int layer, int stream, SideId side, std::span<const int64_t> cells,
               const float* rows, ptrdiff_t row_stride) override;
  Status write_half(int layer, int stream, SideId side, int first_cell, int n_cells,
                    const uint16_t* rows) override;
  Status read_half(int layer, int stream, SideId side, int first_cell, int n_cells,
                   uint16_t* rows) const override;
  Status save(int layer, int stream, SideId side, int first_cell, int n_cells,
              uint16_t* rows) const override;
  Status restore(int layer, int stream, SideId side, int first_cell, int n_cells,
                 const uint16_t* rows) override;
  Result<std::unique_ptr<KeptRows>> keep(int layer, int stream, SideId side, int first_cell,
                                         int n_cells, const KeptRows* other) const override;
  Status restore(int layer, int stream, SideId side, int first_cell, int n_cells,
                 const KeptRows& kept, int from) override;
  Status copy(int layer, int from, int to) override;
  Status read(int layer, int stream, SideId side, int first_cell, int n_cells,
              float* rows) const override;
  Status read_scores(int layer, int stream, int first_cell, int n_cells, float* sums,
                     uint32_t* seen) const override;
  Status rotate_keys(int layer, int stream, std::span<const int32_t> shift,
                     const KeyTurn& turn) override;
  Status check_rotation(int first_layer, int stream, std::span<const int32_t> shift) const override;
  Status attend(const Attention& step) override;
  void clear() override;
  CacheStats stats() const override;
  const CacheShape& shape() const override { return shape_; }
  const Policy& policy() const override { return policy_; }

 private:
  LayerStore& store(int layer, int stream) {
    return *stores_[size_t(stream) * shape_.layers.size() + size_t(layer)];
  }
  const LayerStore& store(int layer, int stream) const {
    return *stores_[size_t(stream) * shape_.layers.size() + size_t(layer)];
  }
  int dim(int layer, SideId side) const {
    const LayerShape& shape = shape_.layers[size_t(layer)];
    return side == SideId::K ? shape.k_dim : shape.v_dim;
  }

  Status check_place(const char* call, int layer, int stream) const;
  Status check_cells(std::span<const int64_t> cells) const;
  Status check_range(const char* call, int first_cell, int n_cells) const;
  Status load_scores();
  Status check_order(int stream, std::span<const int64_t> cells) const;
  Status check_step(const Attention& step) const;
  // A run of 16-bit rows of one side of one layer.
  struct RowRun {
    int layer = 0;
    int stream = 0;
    SideId side = SideId::K;
    int first_cell = 0;
    int n_cells = 0;
    const half* rows = nullptr;  // [n_cells, width]
    size_t width = 0;
    RowRun part(int from, int n) const {
      return {layer, stream, side, first_cell + from, n, rows + size_t(from) * width, width};
    }
    std::span<const half> numbers() const { return {rows, size_t(n_cells) * width}; }
  };
  Result<RowRun> row_run(int layer, int stream, SideId side, int first_cell, int n_cells,
                         const half* rows) const;
  Status write_changed(const RowRun& run);
  void forget_others(const RowRun& run);
  bool begins_step(const RowRun& run) const;
  bool place_anew(const RowRun& run, uint64_t first);
  // What stands in a run beside 16-bit rows.
  struct BlockAt {
    int at = 0;          // row of the run
    uint64_t first = 0;  // place in the text
  };
  struct RunParts {
    std::vector<BlockAt> blocks;         // ascending
    std::optional<uint64_t> tail_place;  // in the text of the rows behind them
    std::string tail;                    // of these, for restore_tail()
  };
  template <class Put>
  Status restore_parts(const RowRun& run, const RunParts& parts, Put&& put);
  Status restore_block(const RowRun& run, const SavedBlock& block);
  void take_block(const RowRun& run, StoredBlock block);
  bool restore_kept_block(const RowRun& run, const KeptBlock& block);
  Status settle_keys(int layer, int stream, int slot);
  Status settle_keys(int layer, int stream);
  Status settle_keys_of(int stream, int slot);
  Status restore_rows(const RowRun& run);
  Status restore_run(const RowRun& run);
  Status copy_layer(int layer, int from, int to);
  Status begin_write(int layer, int stream, SideId side, Writer writer);
  Status place(int stream, std::span<const int64_t> cells, std::vector<RowId>& rows);
  Status unseal(int stream, std::span<const int64_t> cells);
  // Rows on their way to another place of the log: values [2 * layer + side][row, width], and which
  // of them each head holds [layer][row * n_heads + head].
  struct MovedRows {
    std::vector<std::vector<half>> values;
    std::vector<std::vector<bool>> held;
  };
  std::vector<bool> held_by_heads(int layer, int stream, const std::vector<RowId>& rows) const;
  void mark_present(int layer, int stream, const std::vector<RowId>& rows,
                    const std::vector<bool>& held);
  Status move_rows(int stream, std::span<const int64_t> cells, const MovedRows& saved,
                   std::vector<RowId>& rows);
  Status write_rows(int layer, int stream, SideId side, std::span<const int64_t> cells,
                    const float* rows, ptrdiff_t row_stride);
  Status check_layer_rotation(int layer, int stream, std::span<const int32_t> shift,
                              const std::shared_ptr<const KeyTurn>& turn) const;
  Status turn_keys(int layer, int stream, std::span<const int32_t> shift,
                   const std::shared_ptr<const KeyTurn>& turn);
  std::shared_ptr<const KeyTurn> known_turn(int layer, int stream, const KeyTurn& turn) const;
  template <class Fill>
  Status store_rows(int layer, int stream, SideId side, const std::vector<RowId>& rows,
                    Fill&& fill);
  void free_block(int stream, int slot);
  Status compact(int stream, int slot);
  std::vector<half> block_rows(int layer, int stream, SideId side, int slot, int n_rows) const;
  void mark_sinks(const Attention& step);
  std::vector<int> probes_of(const Attention& step) const;
  Status pack_due(const Attention& step, bool together);
  // Runs a part of a call that leaves rows between two places. Where storage gives out in it,
  // nothing is read or written any more until clear(), instead of rows that are half moved.
  template <class Body>
  Status changing(Body&& body) {
    torn_ = true;
    const Status status = body();
    torn_ = status.code() == Code::OverLimit;
    return status;
  }
  void note_peak() { peak_ = std::max(peak_, arena_.committed()); }

  CacheShape shape_;
  Policy policy_;
  const Kernels& kernels_;
  Attender attender_;
  Arena arena_;
  std::vector<StreamLog> logs_;                      // [n_streams]
  std::vector<std::shared_ptr<LayerStore>> stores_;  // [n_streams, n_layers]
  std::optional<TokenScores> scores_;                // for Statistic::File
  Seconds seconds_;
  uint64_t compactions_ = 0;
  uint64_t unscored_blocks_ = 0;
  size_t peak_ = 0;
  size_t planned_ = 0;
  bool torn_ = false;  // a change ended half way
};

// Addresses for the worst case of every layer: each block slot both raw and packed at the best
// tier.
Status Engine::open() {
  ZC_TRY(load_scores());
  size_t reserve = 0;
  const auto rotations = rotations_of_layers(policy_, shape_);
  if (!rotations.ok()) return rotations.status();
  const int n_slots = StreamLog::max_blocks(shape_.n_cells);
  for (int stream = 0; stream < shape_.n_streams; ++stream) {
    logs_.emplace_back(shape_.n_cells, int(shape_.layers.size()));
    for (size_t layer = 0; layer < shape_.layers.size(); ++layer) {
      Result<Policy> own = policy_for_layer(policy_, shape_.number(layer));
      if (!own.ok()) return own.status();
      for (const auto& [side, size] : {std::pair{own->k, shape_.layers[layer].k_dim},
                                       std::pair{own->v, shape_.layers[layer].v_dim}}) {
        if (side.axis != Axis::Group || size % side.group == 0) continue;
        return {Code::BadPolicy,
                fmt::format("policy, layer {}: group{} does not divide the head size {}; "
                            "choose a group that does, or axis token",
                            layer, side.group, size)};
      }
      stores_.push_back(
          std::make_shared<LayerStore>(shape_.layers[layer], *own, n_slots, (*rotations)[layer]));
      const LayerStore& made = *stores_.back();
      // No block takes more than one whose tokens are all in the best tier, and a step of columns
      // in each of the others.
      TierCounts most;
      most.fill(step_columns(3));
      most[0] = kBlockTokens;
      const std::vector<TierCounts> heads(size_t(shape_.layers[layer].n_heads), most);
      const size_t packed = made.packed.bytes(heads, 0, false).total +
                            made.raw.row_bytes() * size_t(policy_.window.sinks) +
                            made.packed.shared_bytes();
      reserve += size_t(n_slots) * (Arena::rounded(made.raw.bytes) + 2 * Arena::rounded(packed));
    }
  }
  Result<size_t> planned = planned_bytes(policy_, shape_, 512);
  if (!planned.ok()) return planned.status();
  planned_ = *planned;
  return arena_.reserve(reserve);
}

Status Engine::check_place(const char* call, int layer, int stream) const {
  if (torn_) {
    return {
        Code::OverLimit,
        fmt::format("{}: storage gave out in the middle of an earlier call; clear the cache, and "
                    "use a shorter context",
                    call)};
  }
  if (layer < 0 || size_t(layer) >= shape_.layers.size()) {
    return {Code::BadArgument,
            fmt::format("{}: layer {}, expected 0 to {}", call, layer, shape_.layers.size() - 1)};
  }
  if (stream < 0 || stream >= shape_.n_streams) {
    return {Code::BadArgument,
            fmt::format("{}: stream {}, expected 0 to {}", call, stream, shape_.n_streams - 1)};
  }
  return ok();
}

Status Engine::check_cells(std::span<const int64_t> cells) const {
  for (const int64_t cell : cells) {
    if (cell >= 0 && cell < shape_.n_cells) continue;
    return {Code::BadArgument,
            fmt::format("write: cell {}, expected 0 to {}", cell, shape_.n_cells - 1)};
  }
  return ok();
}

Status Engine::check_range(const char* call, int first_cell, int n_cells) const {
  if (first_cell >= 0 && n_cells >= 0 && first_cell <= shape_.n_cells - n_cells) return ok();
  return {Code::BadArgument, fmt::format("{}: cells {} to {}, expected 0 to {}", call, first_cell,
                                         int64_t{first_cell} + n_cells - 1, shape_.n_cells - 1)};
}

// Reads the file that the policy ranks by.
Status Engine::load_scores() {
  if (policy_.saliency.statistic != Statistic::File) return ok();
  ZC_TRY(check_scores_named(policy_));
  Result<TokenScores> scores = load_token_scores(policy_.saliency.file);
  if (!scores.ok()) return scores.status();
  scores_ = std::move(*scores);
  const Status fit = check_fit(*scores_, shape_.layers);
  if (fit.ok()) return fit;
  return {fit.code(), fmt::format("score=file:{}: {}", policy_.saliency.file, fit.message())};
}

// A file of scores knows tokens by their order in the stream: they must come one after the other,
// each once, and no more of them than it has.
Status Engine::check_order(int stream, std::span<const int64_t> cells) const {
  if (!scores_) return ok();
  const StreamLog& log = logs_[size_t(stream)];
  uint64_t n_new = 0;
  for (const int64_t cell : cells) {
    const RowId old = log.find(int(cell));
    n_new += old.slot < 0;
    if (old.slot < 0 || log.open(old.slot)) continue;
    return {Code::Incompatible,
            fmt::format("score=file:{}: cell {} is written again after it was packed, so that the "
                        "order of the tokens is no longer the file's; read one text from its "
                        "beginning",
                        policy_.saliency.file, cell)};
  }
  if (log.next_place() + n_new <= scores_->tokens.size()) return ok();
  return {Code::Incompatible,
          fmt::format("score=file:{}: found {} tokens in the stream, the file has scores of {}; "
                      "measure them over as many tokens, or read a shorter text",
                      policy_.saliency.file, log.next_place() + n_new, scores_->tokens.size())};
}

void Engine::free_block(int stream, int slot) {
  for (size_t layer = 0; layer < shape_.layers.size(); ++layer)
    store(int(layer), stream).release(slot, arena_);
  logs_[size_t(stream)].free_slot(slot);
}

// Rows of a block as 16-bit numbers, token by token: [n_rows, n_heads * dim].
std::vector<half> Engine::block_rows(int layer, int stream, SideId side, int slot,
                                     int n_rows) const {
  const LayerStore& from = store(layer, stream);
  return to_halves(decode_rows(from, from.block(slot), side, n_rows));
}

// Moves the live rows of a block that has dead ones to the end of the log, in all layers: the only
// re-encoding there is. Runs between steps, when no layer is behind another.
Status Engine::compact(int stream, int slot) {
  ZC_TRY(settle_keys_of(stream, slot));
  StreamLog& log = logs_[size_t(stream)];
  const LogBlock before = log.block(slot);
  std::vector<int> live;
  for (int row = 0; row < before.n_rows; ++row) {
    if (before.cells[size_t(row)] >= 0) live.push_back(row);
  }
  std::vector<RowId> places;
  for (const int row : live) places.push_back({slot, row});
  MovedRows saved;
  for (size_t layer = 0; layer < shape_.layers.size(); ++layer) {
    saved.held.push_back(held_by_heads(int(layer), stream, places));
    for (const SideId side : {SideId::K, SideId::V}) {
      const std::vector<half> all = block_rows(int(layer), stream, side, slot, before.n_rows);
      const size_t width = all.size() / size_t(before.n_rows);
      std::vector<half>& kept = saved.values.emplace_back();
      for (const int row : live) {
        kept.insert(kept.end(), all.begin() + ptrdiff_t(size_t(row) * width),
                    all.begin() + ptrdiff_t(size_t(row + 1) * width));
      }
    }
  }
  const std::vector<int64_t> cells = log.evacuate(slot);
  free_block(stream, slot);
  std::vector<RowId> rows;
  ZC_TRY(move_rows(stream, cells, saved, rows));
  for (size_t i = 0; i < live.size(); ++i) {
    if (before.sinks.test(size_t(live[i]))) log.mark_sink(rows[i]);
  }
  ++compactions_;
  return ok();
}

// Between steps is the time to compact.
Status Engine::begin_write(int layer, int stream, SideId side, Writer writer) {
  StreamLog& log = logs_[size_t(stream)];
  if (!log.begin_write(layer, side, writer)) return ok();
  while (log.rows_dead() > dead_rows_allowed(shape_.n_cells) && log.most_dead() >= 0) {
    ZC_TRY(compact(stream, log.most_dead()));
  }
  log.restart_step();
  return ok();
}

Status Engine::place(int stream, std::span<const int64_t> cells, std::vector<RowId>& rows) {
  ZC_TRY(check_order(stream, cells));
  logs_[size_t(stream)].place(cells, rows, [&](int slot) { free_block(stream, slot); });
  return ok();
}

// Gives cells that stand in sealed blocks new 16-bit rows with the values they have, in all layers,
// so that a write of one side of one layer does not lose the others'.
Status Engine::unseal(int stream, std::span<const int64_t> cells) {
  const StreamLog& log = logs_[size_t(stream)];
  std::vector<int64_t> sealed;
  std::vector<RowId> places;
  for (const int64_t cell : cells) {
    const RowId id = log.find(int(cell));
    if (id.slot < 0 || log.open(id.slot)) continue;
    sealed.push_back(cell);
    places.push_back(id);
  }
  if (sealed.empty()) return ok();
  for (const RowId id : places) ZC_TRY(settle_keys_of(stream, id.slot));
  MovedRows saved;
  for (size_t layer = 0; layer < shape_.layers.size(); ++layer) {
    saved.held.push_back(held_by_heads(int(layer), stream, places));
    for (const SideId side : {SideId::K, SideId::V}) {
      const size_t width = size_t(shape_.layers[layer].n_heads) * size_t(dim(int(layer), side));
      std::vector<half>& rows = saved.values.emplace_back(sealed.size() * width);
      for (size_t i = 0; i < sealed.size();) {
        size_t n = 1;
        while (i + n < sealed.size() && sealed[i + n] == sealed[i] + int64_t(n)) ++n;
        read_cells(log, store(int(layer), stream), side, int(sealed[i]), int(n), &rows[i * width]);
        i += n;
      }
    }
  }
  std::vector<RowId> rows;
  return move_rows(stream, sealed, saved, rows);
}

// Which rows the heads of a layer hold: [row * n_heads + head]; empty where nothing is evicted.
std::vector<bool> Engine::held_by_heads(int layer, int stream,
                                        const std::vector<RowId>& rows) const {
  const LayerStore& from = store(layer, stream);
  if (!from.packed.policy().evicts()) return {};
  const size_t n_heads = size_t(from.raw.shape.n_heads);
  std::vector<bool> held(rows.size() * n_heads);
  for (size_t head = 0; head < n_heads; ++head) {
    int looked_at = -1;
    BlockBits bits;
    for (size_t i = 0; i < rows.size(); ++i) {
      if (rows[i].slot != looked_at) bits = from.held(rows[i].slot, int(head));
      looked_at = rows[i].slot;
      held[i * n_heads + head] = bits.test(size_t(rows[i].row));
    }
  }
  return held;
}

// Says of 16-bit rows which of them each head holds.
void Engine::mark_present(int layer, int stream, const std::vector<RowId>& rows,
                          const std::vector<bool>& held) {
  LayerStore& target = store(layer, stream);
  if (!target.packed.policy().evicts()) return;
  const size_t n_heads = size_t(target.raw.shape.n_heads);
  for (size_t i = 0; i < held.size(); ++i) {
    const RowId id = rows[i / n_heads];
    uint8_t& byte = target.raw.present(target.block(id.slot).raw, int(i % n_heads))[id.row / 8];
    const uint8_t bit = uint8_t(1 << (id.row % 8));
    byte = held[i] ? uint8_t(byte | bit) : uint8_t(byte & ~bit);
  }
}

// Places `cells` and stores `saved` as their 16-bit rows in all layers.
Status Engine::move_rows(int stream, std::span<const int64_t> cells, const MovedRows& saved,
                         std::vector<RowId>& rows) {
  ZC_TRY(place(stream, cells, rows));
  for (size_t layer = 0; layer < shape_.layers.size(); ++layer) {
    for (const SideId side : {SideId::K, SideId::V}) {
      const half* next = saved.values[2 * layer + (side == SideId::V)].data();
      ZC_TRY(store_rows(int(layer), stream, side, rows, [&](half* out, int, int n) {
        std::copy_n(next, n, out);
        next += n;
      }));
    }
    mark_present(int(layer), stream, rows, saved.held[layer]);
  }
  return ok();
}

// Calls fill(out, head, dim) for each row and head of a write, in that order.
template <class Fill>
Status Engine::store_rows(int layer, int stream, SideId side, const std::vector<RowId>& rows,
                          Fill&& fill) {
  LayerStore& target = store(layer, stream);
  const int n_heads = target.raw.shape.n_heads, width = dim(layer, side);
  for (const RowId id : rows) {
    uint8_t* raw = target.raw_for_write(id.slot, arena_);
    if (!raw)
      return {Code::OverLimit, "cache storage is used up; create the cache with more cells"};
    for (int head = 0; head < n_heads; ++head) {
      fill(target.raw.rows(raw, side, head) + ptrdiff_t(id.row) * width, head, width);
      if (target.packed.policy().needs_scores()) target.raw.sums(raw, head)[id.row] = 0;
      if (target.packed.policy().needs_squares()) target.raw.squares(raw, head)[id.row] = 0;
    }
    if (target.packed.policy().needs_scores()) {
      target.raw.probes_seen(raw)[id.row] = target.raw.rows_seen(raw)[id.row] = 0;
    }
  }
  note_peak();
  return ok();
}

Status Engine::write(int layer, int stream, SideId side, std::span<const int64_t> cells,
                     const float* rows, ptrdiff_t row_stride) {
  ZC_TRY(check_place("write", layer, stream));
  ZC_TRY(check_cells(cells));
  const int n_values = shape_.layers[size_t(layer)].n_heads * dim(layer, side);
  for (size_t i = 0; i < cells.size(); ++i) {
    const float* row = rows + ptrdiff_t(i) * row_stride;
    for (int c = 0; c < n_values; ++c) {
      if (std::fabs(row[c]) <= kHalfMax) continue;
      return {
          Code::BadData,
          fmt::format("write: layer {}, cell {}, {} channel {}: found {}, expected a number within "
                      "+-65504; the model's activations overflow a 16-bit cache",
                      layer, cells[i], side == SideId::K ? "K" : "V", c, row[c])};
    }
  }
  return changing([&] { return write_rows(layer, stream, side, cells, rows, row_stride); });
}

Status Engine::write_rows(int layer, int stream, SideId side, std::span<const int64_t> cells,
                          const float* rows, ptrdiff_t row_stride) {
  // In all layers: those to come must not find a block's cells elsewhere.
  for (size_t other = 0; other < shape_.layers.size(); ++other)
    ZC_TRY(settle_keys(int(other), stream));
  ZC_TRY(begin_write(layer, stream, side, Writer::Model));
  std::vector<RowId> placed;
  ZC_TRY(place(stream, cells, placed));
  size_t i = 0;
  const int n_heads = shape_.layers[size_t(layer)].n_heads;
  const auto fill = [&](half* out, int head, int n) {
    const float* in = rows + ptrdiff_t(i) * row_stride + ptrdiff_t(head) * n;
    for (int c = 0; c < n; ++c) out[c] = to_half(in[c]);
    if (head + 1 == n_heads) ++i;
  };
  ZC_TRY(store_rows(layer, stream, side, placed, fill));
  if (side == SideId::K && store(layer, stream).packed.policy().evicts())
    mark_present(layer, stream, placed, std::vector<bool>(placed.size() * size_t(n_heads), true));
  return ok();
}

Status Engine::read(int layer, int stream, SideId side, int first_cell, int n_cells,
                    float* rows) const {
  ZC_TRY(check_place("read", layer, stream));
  ZC_TRY(check_range("read", first_cell, n_cells));
  read_cells(logs_[size_t(stream)], store(layer, stream), side, first_cell, n_cells, rows);
  return ok();
}

Status Engine::read_scores(int layer, int stream, int first_cell, int n_cells, float* sums,
                           uint32_t* seen) const {
  ZC_TRY(check_place("read_scores", layer, stream));
  ZC_TRY(check_range("read_scores", first_cell, n_cells));
  const LayerStore& from = store(layer, stream);
  if (!from.packed.policy().needs_scores()) {
    return {
        Code::BadArgument,
        fmt::format("read_scores: layer {} of policy {} keeps no scores; use one with two tiers "
                    "and score=mean",
                    layer, to_text(policy_))};
  }
  for (int i = 0; i < n_cells; ++i) {
    const RowId id = logs_[size_t(stream)].find(first_cell + i);
    uint8_t* raw = id.slot < 0 ? nullptr : from.block(id.slot).raw;
    if (!raw) {
      return {Code::BadArgument,
              fmt::format("read_scores: cell {} is {}, expected a raw row; scores of packed rows "
                          "are gone (use a window, recent, as long as the text)",
                          first_cell + i, id.slot < 0 ? "empty" : "packed")};
    }
    for (int head = 0; head < from.raw.shape.n_heads; ++head)
      sums[ptrdiff_t(head) * n_cells + i] = from.raw.sums(raw, head)[id.row];
    seen[i] = from.raw.probes_seen(raw)[id.row];
  }
  return ok();
}

Status Engine::read_half(int layer, int stream, SideId side, int first_cell, int n_cells,
                         uint16_t* rows) const {
  ZC_TRY(check_place("read", layer, stream));
  ZC_TRY(check_range("read", first_cell, n_cells));
  read_cells(logs_[size_t(stream)], store(layer, stream), side, first_cell, n_cells, rows);
  return ok();
}

Result<Engine::RowRun> Engine::row_run(int layer, int stream, SideId side, int first_cell,
                                       int n_cells, const half* rows) const {
  ZC_TRY(check_place("write", layer, stream));
  ZC_TRY(check_range("write", first_cell, n_cells));
  const size_t width = size_t(shape_.layers[size_t(layer)].n_heads) * size_t(dim(layer, side));
  for (size_t i = 0; i < size_t(n_cells) * width; ++i) {
    if (!is_finite(rows[i])) {
      return Status{Code::BadData,
                    fmt::format("write: layer {}, cell {}: found an infinity or NaN in a 16-bit "
                                "row; the saved state is damaged",
                                layer, first_cell + int(i / width))};
    }
  }
  return RowRun{layer, stream, side, first_cell, n_cells, rows, width};
}

Status Engine::write_half(int layer, int stream, SideId side, int first_cell, int n_cells,
                          const uint16_t* rows) {
  const Result<RowRun> run = row_run(layer, stream, side, first_cell, n_cells, rows);
  if (!run.ok()) return run.status();
  return changing([&]() -> Status {
    ZC_TRY(begin_write(layer, stream, side, Writer::Host));
    return write_changed(*run);
  });
}

// Stores the rows that differ from what is there.
Status Engine::write_changed(const RowRun& run) {
  std::vector<half> now(run.numbers().size());
  read_cells(logs_[size_t(run.stream)], store(run.layer, run.stream), run.side, run.first_cell,
             run.n_cells, now.data());
  std::vector<int64_t> cells;
  std::vector<const half*> changed;
  for (int i = 0; i < run.n_cells; ++i) {
    const half* row = run.rows + size_t(i) * run.width;
    // A cell never written reads as zeros, so a row of zeros leaves it unwritten.
    if (std::equal(row, row + run.width, now.data() + size_t(i) * run.width)) continue;
    cells.push_back(run.first_cell + i);
    changed.push_back(row);
  }
  if (cells.empty()) return ok();
  ZC_TRY(unseal(run.stream, cells));
  std::vector<RowId> placed;
  ZC_TRY(place(run.stream, cells, placed));
  size_t i = 0;
  std::vector<bool> held;
  const auto fill = [&](half* out, int head, int n) {
    const half* in = changed[i] + size_t(head) * size_t(n);
    std::copy_n(in, n, out);
    held.push_back(!std::all_of(in, in + n, is_zero));
    if (size_t(head + 1) * size_t(n) == run.width) ++i;
  };
  ZC_TRY(store_rows(run.layer, run.stream, run.side, placed, fill));
  // Evicted keys are saved as zeros, and no others are.
  if (run.side == SideId::K) mark_present(run.layer, run.stream, placed, held);
  return ok();
}

Status Engine::save(int layer, int stream, SideId side, int first_cell, int n_cells,
                    uint16_t* rows) const {
  ZC_TRY(read_half(layer, stream, side, first_cell, n_cells, rows));
  put_blocks(logs_[size_t(stream)], store(layer, stream), side, first_cell, n_cells, rows);
  return ok();
}

// Where each sequence has a stream of its own, one that begins anew is all that its stream holds.
void Engine::forget_others(const RowRun& run) {
  StreamLog& log = logs_[size_t(run.stream)];
  if (shape_.n_streams == 1 || !begins_step(run) || log.continues_pieces()) return;
  for (int cell = 0; cell < shape_.n_cells; ++cell) {
    if (cell >= run.first_cell && cell < run.first_cell + run.n_cells) continue;
    log.forget(cell, [&](int slot) { free_block(run.stream, slot); });
  }
}

// The first layer's keys, with which hosts begin: no layer has rows in the step that it could lose.
bool Engine::begins_step(const RowRun& run) const {
  return run.layer == 0 && run.side == SideId::K && logs_[size_t(run.stream)].first_write_of_step();
}

// Gives the cells of a run rows of their own, with nothing in them.
bool Engine::place_anew(const RowRun& run, uint64_t first) {
  StreamLog& log = logs_[size_t(run.stream)];
  return begins_step(run) && log.place_anew(run.first_cell, run.n_cells, first,
                                            [&](int slot) { free_block(run.stream, slot); });
}

// Keys that wait in a block for values which do not come as a block's become rows.
Status Engine::settle_keys(int layer, int stream, int slot) {
  LayerStore& target = store(layer, stream);
  const auto waiting = target.waiting_keys.extract(slot);
  if (waiting.empty()) return ok();
  const std::vector<half>& keys = waiting.mapped();
  // A packed block takes no rows: its cells move, with what they hold in all layers.
  if (target.block(slot).packed) {
    const int64_t first = logs_[size_t(stream)].block(slot).cells[0];
    return write_changed({layer, stream, SideId::K, int(first), kBlockTokens, keys.data(),
                          keys.size() / kBlockTokens});
  }
  std::vector<RowId> rows;
  for (int row = 0; row < kBlockTokens; ++row) rows.push_back({slot, row});
  const half* next = keys.data();
  std::vector<bool> held;
  ZC_TRY(store_rows(layer, stream, SideId::K, rows, [&](half* out, int, int n) {
    std::copy_n(next, n, out);
    held.push_back(!std::all_of(next, next + n, is_zero));
    next += n;
  }));
  mark_present(layer, stream, rows, held);
  return ok();
}

Status Engine::settle_keys(int layer, int stream) {
  const auto& waiting = store(layer, stream).waiting_keys;
  while (!waiting.empty()) ZC_TRY(settle_keys(layer, stream, waiting.begin()->first));
  return ok();
}

// The same in all layers, before the block's rows move.
Status Engine::settle_keys_of(int stream, int slot) {
  for (size_t layer = 0; layer < shape_.layers.size(); ++layer)
    ZC_TRY(settle_keys(int(layer), stream, slot));
  return ok();
}

// Restored rows that carry no block.
Status Engine::restore_rows(const RowRun& run) {
  for (int i = 0; run.side == SideId::V && i < run.n_cells; ++i) {
    const RowId id = logs_[size_t(run.stream)].find(run.first_cell + i);
    if (id.slot >= 0) ZC_TRY(settle_keys(run.layer, run.stream, id.slot));
  }
  return write_changed(run);
}

// Rows of one side of a whole block: keys wait for their values, and both make the block.
Status Engine::restore_block(const RowRun& run, const SavedBlock& block) {
  StreamLog& log = logs_[size_t(run.stream)];
  LayerStore& target = store(run.layer, run.stream);
  if (!log.stands(run.first_cell, run.n_cells, block.first) && !place_anew(run, block.first))
    return restore_rows(run);
  const int slot = log.find(run.first_cell).slot;
  if (run.side == SideId::K) {
    target.waiting_keys[slot].assign(run.numbers().begin(), run.numbers().end());
    return ok();
  }
  const auto waiting = target.waiting_keys.find(slot);
  if (waiting == target.waiting_keys.end()) return restore_rows(run);
  const auto k = find_block(waiting->second, SideId::K, block.identity);
  const auto whole = k ? join(target, *k, block, arena_) : std::nullopt;
  if (!whole) return restore_rows(run);
  take_block(run, *whole);
  return ok();
}

// Makes `block` what the cells of a run, which stand in one block, hold in this layer.
void Engine::take_block(const RowRun& run, StoredBlock block) {
  StreamLog& log = logs_[size_t(run.stream)];
  LayerStore& target = store(run.layer, run.stream);
  const int slot = log.find(run.first_cell).slot;
  if (block.turns.any()) block.turns.turn = known_turn(run.layer, run.stream, *block.turns.turn);
  target.release(slot, arena_);
  target.become_packed(slot, block, arena_);
  log.set_sinks(slot, block.sinks);
  log.seal(slot);
  note_peak();
}

Status Engine::restore(int layer, int stream, SideId side, int first_cell, int n_cells,
                       const uint16_t* rows) {
  const Result<RowRun> run = row_run(layer, stream, side, first_cell, n_cells, rows);
  if (!run.ok()) return run.status();
  return changing([&] { return restore_run(*run); });
}

Status Engine::restore_run(const RowRun& run) {
  ZC_TRY(begin_write(run.layer, run.stream, run.side, Writer::Host));
  const uint64_t identity = saved_identity(store(run.layer, run.stream));
  RunParts parts;
  std::vector<SavedBlock> found;
  size_t filled = 0;  // number that is not 0: no frame begins in zeros far before it
  const std::span<const half> numbers = run.numbers();
  for (int i = 0; i + kBlockTokens <= run.n_cells;) {
    filled = std::max(filled, size_t(i) * run.width);
    while (filled < numbers.size() && is_zero(numbers[filled])) ++filled;
    i = std::max(i, int(filled / run.width) - kBlockTokens + 1);
    if (i + kBlockTokens > run.n_cells) break;
    auto block = find_block(run.part(i, kBlockTokens).numbers(), run.side, identity);
    if (!block) {
      ++i;
      continue;
    }
    parts.blocks.push_back({i, block->first});
    parts.tail_place = block->first + kBlockTokens;
    found.push_back(std::move(*block));
    i += kBlockTokens;
  }
  const LayerStore& target = store(run.layer, run.stream);
  const StreamLog& log = logs_[size_t(run.stream)];
  return restore_parts(run, parts, [&](size_t i, const RowRun& part) {
    ZC_TRY(restore_block(part, found[i]));
    // A frame whose other side is damaged may have been saved as rows; its tail is not this
    // state's.
    if (target.block(log.find(part.first_cell).slot).packed) parts.tail += found[i].tail;
    return ok();
  });
}

// Rows, and blocks by put(number of the block, its part of the run).
template <class Put>
Status Engine::restore_parts(const RowRun& run, const RunParts& parts, Put&& put) {
  int done = 0;
  for (size_t i = 0; i < parts.blocks.size(); ++i) {
    const BlockAt& block = parts.blocks[i];
    if (block.first == 0) forget_others(run);
    ZC_TRY(restore_rows(run.part(done, block.at - done)));
    ZC_TRY(put(i, run.part(block.at, kBlockTokens)));
    done = block.at + kBlockTokens;
  }
  const RowRun rest = run.part(done, run.n_cells - done);
  if (!parts.tail_place) return restore_rows(rest);
  StreamLog& log = logs_[size_t(run.stream)];
  if (*parts.tail_place == 0) forget_others(run);
  if (!log.stands_last(rest.first_cell, rest.n_cells, *parts.tail_place))
    place_anew(rest, *parts.tail_place);
  ZC_TRY(restore_rows(rest));
  if (run.side == SideId::V) {
    restore_tail(parts.tail, log, store(run.layer, run.stream), rest.first_cell, rest.n_cells);
  }
  return ok();
}

Result<std::unique_ptr<KeptRows>> Engine::keep(int layer, int stream, SideId side, int first_cell,
                                               int n_cells, const KeptRows* other) const {
  ZC_TRY(check_place("keep", layer, stream));
  ZC_TRY(check_range("keep", first_cell, n_cells));
  const size_t index = size_t(stream) * shape_.layers.size() + size_t(layer);
  return std::unique_ptr<KeptRows>(
      std::make_unique<LayerRows>(logs_[size_t(stream)], stores_[index], side, first_cell, n_cells,
                                  static_cast<const LayerRows*>(other)));
}

Status Engine::restore(int layer, int stream, SideId side, int first_cell, int n_cells,
                       const KeptRows& all, int from) {
  const auto& kept = static_cast<const LayerRows&>(all);
  ZC_TRY(check_place("restore", layer, stream));
  ZC_TRY(check_range("restore", first_cell, n_cells));
  LayerStore& target = store(layer, stream);
  if (from < 0 || from > kept.n_rows() - n_cells || kept.side() != side ||
      saved_identity(kept.store()) != saved_identity(target)) {
    return {Code::BadArgument,
            fmt::format("restore: rows {} to {} of {}, expected rows that were kept, of the same "
                        "side and of a layer of the same shape and policy",
                        from, int64_t{from} + n_cells - 1, kept.n_rows())};
  }
  // Those of blocks stay zeros until they are asked for.
  std::vector<half> rows(size_t(n_cells) * kept.width());
  const RowRun run{layer, stream, side, first_cell, n_cells, rows.data(), kept.width()};
  RunParts parts;
  std::vector<const KeptBlock*> found;
  for (const LayerRows::Part& part : kept.parts()) {
    const int begin = std::max(part.first, from);
    const int end = std::min(part.first + part.n, from + n_cells);
    if (part.block && end - begin == kBlockTokens) {
      parts.blocks.push_back({begin - from, part.block->first});
      found.push_back(part.block.get());
    } else if (end > begin) {
      kept.read(begin, end - begin, &rows[size_t(begin - from) * run.width]);
    }
  }
  if (from <= kept.tail_first() && from + n_cells == kept.n_rows()) {
    parts.tail_place = kept.tail_place();
    parts.tail = kept.tail();
  }
  return changing([&]() -> Status {
    ZC_TRY(begin_write(layer, stream, side, Writer::Host));
    return restore_parts(run, parts, [&](size_t i, const RowRun& part) -> Status {
      if (restore_kept_block(part, *found[i])) return ok();
      kept.read(from + parts.blocks[i].at, kBlockTokens,
                &rows[size_t(parts.blocks[i].at) * run.width]);
      return restore_rows(part);
    });
  });
}

// A block comes with its keys, both sides of it; its values find it there. False when it has no
// place of its own.
bool Engine::restore_kept_block(const RowRun& run, const KeptBlock& block) {
  const StreamLog& log = logs_[size_t(run.stream)];
  const bool is_k = run.side == SideId::K;
  if (!log.stands(run.first_cell, run.n_cells, block.first) && !place_anew(run, block.first))
    return false;
  if (block.holds(store(run.layer, run.stream).block(log.find(run.first_cell).slot))) return true;
  StoredBlock own = block.stored;
  own.packed = is_k ? arena_.take(block.bytes.size()) : nullptr;
  if (!own.packed) return false;
  std::copy(block.bytes.begin(), block.bytes.end(), own.packed);
  take_block(run, std::move(own));
  return true;
}

Status Engine::copy(int layer, int from, int to) {
  ZC_TRY(check_place("copy", layer, from));
  ZC_TRY(check_place("copy", layer, to));
  if (from == to) return ok();
  return changing([&] { return copy_layer(layer, from, to); });
}

Status Engine::copy_layer(int layer, int from, int to) {
  ZC_TRY(settle_keys(layer, from));
  const int n_slots = StreamLog::max_blocks(shape_.n_cells);
  if (!(logs_[size_t(to)] == logs_[size_t(from)])) {
    for (size_t other = 0; other < shape_.layers.size(); ++other) {
      for (int slot = 0; slot < n_slots; ++slot) store(int(other), to).release(slot, arena_);
    }
    logs_[size_t(to)] = logs_[size_t(from)];
  }
  LayerStore& target = store(layer, to);
  for (int slot = 0; slot < n_slots; ++slot) target.release(slot, arena_);
  if (!target.copy(store(layer, from), logs_[size_t(from)], arena_))
    return {Code::OverLimit, "cache storage is used up; create the cache with more cells"};
  note_peak();
  return ok();
}

// Rows that moved apart from their block's others are coded again in the end, and those of blocks
// with shared parameters cannot be. Without `turn` they turn as they did before.
Status Engine::check_layer_rotation(int layer, int stream, std::span<const int32_t> shift,
                                    const std::shared_ptr<const KeyTurn>& turn) const {
  const StreamLog& log = logs_[size_t(stream)];
  for (const int slot : log.order()) {
    const StoredBlock& stored = store(layer, stream).block(slot);
    if (stored.shared < 0) continue;
    const LogBlock& block = log.block(slot);
    if (moved_on(stored.turns, turn ? turn : stored.turns.turn, shifts_of(block, shift),
                 coded_rows(block, stored.sinks)))
      continue;
    return {Code::Incompatible,
            fmt::format("context shift: the {} tokens of a block moved to more than {} distances "
                        "from where they were coded, and with cadence=prompt their keys cannot be "
                        "coded again; use cadence=stream, or start with --no-context-shift",
                        kBlockTokens, kMostTurns)};
  }
  return ok();
}

Status Engine::check_rotation(int first_layer, int stream, std::span<const int32_t> shift) const {
  ZC_TRY(check_place("rotate", first_layer, stream));
  for (size_t layer = size_t(first_layer); layer < shape_.layers.size(); ++layer)
    ZC_TRY(check_layer_rotation(int(layer), stream, shift, nullptr));
  return ok();
}

Status Engine::rotate_keys(int layer, int stream, std::span<const int32_t> shift,
                           const KeyTurn& turn) {
  ZC_TRY(check_place("rotate", layer, stream));
  ZC_TRY(check(turn, dim(layer, SideId::K)));
  const auto known = known_turn(layer, stream, turn);
  ZC_TRY(check_layer_rotation(layer, stream, shift, known));
  return changing([&] { return turn_keys(layer, stream, shift, known); });
}

// The object that blocks of the layer hold already, so that all of them have one.
std::shared_ptr<const KeyTurn> Engine::known_turn(int layer, int stream,
                                                  const KeyTurn& turn) const {
  for (const int slot : logs_[size_t(stream)].order()) {
    const BlockTurns& turns = store(layer, stream).block(slot).turns;
    if (turns.any() && *turns.turn == turn) return turns.turn;
  }
  return std::make_shared<const KeyTurn>(turn);
}

Status Engine::turn_keys(int layer, int stream, std::span<const int32_t> shift,
                         const std::shared_ptr<const KeyTurn>& turn) {
  ZC_TRY(settle_keys(layer, stream));
  LayerStore& target = store(layer, stream);
  const std::vector<QueryRounding> roundings = key_roundings(target, 1);
  for (const int slot : logs_[size_t(stream)].order()) {
    const LogBlock& block = logs_[size_t(stream)].block(slot);
    StoredBlock& stored = target.block(slot);
    const RowShifts by = shifts_of(block, shift);
    if (!moves(by) || (!stored.raw && !stored.packed)) continue;
    if (stored.raw) {
      turn_raw_keys(target, stored, by, *turn);
    } else if (auto turns = moved_on(stored.turns, turn, by, coded_rows(block, stored.sinks))) {
      stored.turns = std::move(*turns);
      turn_sinks(target, slot, by, *turn);
    } else {
      recode_keys(target, slot, by, *turn, roundings);
    }
  }
  return ok();
}

Status Engine::check_step(const Attention& step) const {
  ZC_TRY(check_place("attend", step.layer, step.stream));
  const LayerShape& layer = shape_.layers[size_t(step.layer)];
  if (step.n_queries < 1 || step.n_heads < 1 || step.n_heads % layer.n_heads != 0) {
    return {Code::BadArgument,
            fmt::format("attend: {} query rows of {} heads, expected at least one row "
                        "and a multiple of {} heads",
                        step.n_queries, step.n_heads, layer.n_heads)};
  }
  if (!step.q || !step.out) return {Code::BadArgument, "attend: q or out is null"};
  if (step.n_cells < 0 || step.n_threads < 1 || step.n_threads > kMaxThreads) {
    return {
        Code::BadArgument,
        fmt::format("attend: {} cells and {} threads, expected n_cells >= 0 and 1 to {} threads",
                    step.n_cells, step.n_threads, kMaxThreads)};
  }
  return ok();
}

// The first tokens of a sequence: query rows that see no more cells than there are sinks.
void Engine::mark_sinks(const Attention& step) {
  StreamLog& log = logs_[size_t(step.stream)];
  const std::vector<RowId>& rows = log.step_rows();
  const int limit = policy_.window.sinks + 1;
  if (limit == 1 || rows.size() != size_t(step.n_queries)) return;
  for (int q = 0; q < step.n_queries; ++q) {
    const int n = visible_cells(step, q, limit);
    if (n >= 1 && n < limit) log.mark_sink(rows[size_t(q)]);
  }
}

std::vector<int> Engine::probes_of(const Attention& step) const {
  const StreamLog& log = logs_[size_t(step.stream)];
  if (policy_.saliency.statistic == Statistic::Last) return {step.n_queries - 1};
  const auto key = [&](uint64_t round) {
    return Random(policy_.seed, 0, uint64_t(step.layer), round);
  };
  if (step.n_queries >= kShortStep) {
    return choose_probes(step.n_queries, policy_.saliency, key(log.next_place()));
  }
  std::vector<int> probes;
  const std::vector<RowId>& rows = log.step_rows();
  if (rows.size() != size_t(step.n_queries)) return probes;
  for (int q = 0; q < step.n_queries; ++q) {
    const LogBlock& block = log.block(rows[size_t(q)].slot);
    if (choose_decode_probes(policy_.saliency, key(block.first))
            .test(size_t(rows[size_t(q)].row))) {
      probes.push_back(q);
    }
  }
  return probes;
}

// Packs the blocks that are due: each by itself, or all with one ranking (Cadence::Prompt).
Status Engine::pack_due(const Attention& step, bool together) {
  StreamLog& log = logs_[size_t(step.stream)];
  LayerStore& target = store(step.layer, step.stream);
  if (target.packed.policy().raw()) return ok();
  std::vector<int> due;
  for (const int slot : log.order()) {
    if (log.due(slot, policy_.window.recent) && !target.block(slot).packed) due.push_back(slot);
  }
  if (due.empty()) return ok();
  const std::vector<QueryRounding> roundings = key_roundings(target, step.n_threads);
  const size_t at_once = together ? due.size() : 1;
  for (size_t i = 0; i < due.size(); i += at_once) {
    const PackJob job{.layer = step.layer,
                      .slots = std::span(due).subspan(i, at_once),
                      .shared = together,
                      .roundings = roundings,
                      .n_threads = step.n_threads,
                      .scores = scores_ ? &*scores_ : nullptr};
    const Result<PackOutcome> outcome = pack_blocks(job, log, target, arena_);
    if (!outcome.ok()) return outcome.status();
    unscored_blocks_ += uint64_t(outcome->unscored_blocks);
    for (const int slot : job.slots) log.seal(slot);
    note_peak();
  }
  return ok();
}

Status Engine::attend(const Attention& step) {
  ZC_TRY(check_step(step));
  ZC_TRY(changing([&] { return settle_keys(step.layer, step.stream); }));
  const bool decode_step = step.n_queries < kShortStep;
  if (policy_.cadence == Cadence::Prompt && decode_step)
    ZC_TRY(changing([&] { return pack_due(step, true); }));
  mark_sinks(step);
  logs_[size_t(step.stream)].note_attention();
  LayerStore& target = store(step.layer, step.stream);
  const bool scored = target.packed.policy().needs_scores();
  const std::vector<int> probes = scored ? probes_of(step) : std::vector<int>{};
  Stopwatch watch;
  ZC_TRY(attender_.attend(step, logs_[size_t(step.stream)], target, !probes.empty()));
  seconds_.attention += watch.lap();
  return changing([&]() -> Status {
    if (scored) attender_.score(step, logs_[size_t(step.stream)], target, probes);
    seconds_.scoring += watch.lap();
    attender_.learn_queries(step, target);
    if (policy_.cadence == Cadence::Stream || decode_step) ZC_TRY(pack_due(step, false));
    seconds_.packing += watch.lap();
    return ok();
  });
}

void Engine::clear() {
  for (auto& log : logs_) log.clear();
  for (auto& made : stores_) made->forget();
  arena_.clear();
  torn_ = false;
  compactions_ = unscored_blocks_ = peak_ = 0;
  seconds_ = {};
}

CacheStats Engine::stats() const {
  CacheStats stats;
  stats.policy = to_text(policy_);
  stats.kernel = kernels_.name;
  stats.precision = precision_name(precision_in_use(policy_, kernels_));
  stats.n_layers = int(shape_.layers.size());
  stats.n_streams = shape_.n_streams;
  stats.n_cells = shape_.n_cells;
  for (int stream = 0; stream < shape_.n_streams; ++stream) {
    const StreamLog& log = logs_[size_t(stream)];
    stats.rows_live += log.rows_live();
    stats.rows_dead += log.rows_dead();
    stats.bytes.map += log.bytes();
    stats.blocks.free += uint64_t(StreamLog::max_blocks(shape_.n_cells)) - log.order().size();
    for (int layer = 0; layer < stats.n_layers; ++layer) {
      const LayerShape& shape = shape_.layers[size_t(layer)];
      const LayerStore& held = store(layer, stream);
      if (stream == 0) stats.bytes.map += held.packed.rotation_bytes();
      const uint64_t per_row = uint64_t(shape.n_heads) * uint64_t(shape.k_dim + shape.v_dim);
      held.count(log, stats.bytes);
      stats.elements += log.rows_live() * per_row;
      for (const int slot : log.order()) {
        stats.evicted_elements += evicted_elements(log.block(slot), held, slot);
        const StoredBlock& block = held.block(slot);
        if (layer == 0) ++(block.packed ? stats.blocks.packed : stats.blocks.raw);
        if (!block.packed) continue;
        const uint64_t rows = coded_rows(log.block(slot), block.sinks).count();
        stats.coded_elements += rows * per_row;
        if (layer == 0) stats.rows_packed += rows;
      }
    }
  }
  const Bytes& b = stats.bytes;
  stats.bytes.padding = arena_.committed() - (b.codes + b.params + b.tags + b.raw + b.scores);
  stats.seconds = seconds_;
  stats.compactions = compactions_;
  stats.unscored_blocks = unscored_blocks_;
  stats.bytes_peak = peak_ + stats.bytes.map;
  stats.bytes_planned = planned_;
  return stats;
}

}  // namespace

double CacheStats::ratio_resident() const {
  return bytes.allocated() ? 2.0 * double(elements) / double(bytes.allocated()) : 0.0;
}

double CacheStats::ratio_params() const {
  const size_t coded = bytes.codes + bytes.params + bytes.tags;
  return coded ? 2.0 * double(coded_elements) / double(coded) : 1.0;
}

double CacheStats::bits_per_element() const {
  return elements ? 8.0 * double(bytes.allocated()) / double(elements) : 0.0;
}

Result<std::unique_ptr<Cache>> Cache::create(const CacheShape& shape, const Policy& policy) {
  ZC_TRY(zipcache::check(policy));
  ZC_TRY(zipcache::check(shape));
  Result<const Kernels*> kernels = pick_kernels();
  if (!kernels.ok()) return kernels.status();
  auto engine = std::make_unique<Engine>(shape, policy, **kernels);
  ZC_TRY(engine->open());
  return std::unique_ptr<Cache>(std::move(engine));
}

Result<std::string> kernel_name() {
  Result<const Kernels*> kernels = pick_kernels();
  if (!kernels.ok()) return kernels.status();
  return std::string((*kernels)->name);
}

const char* version() { return ZIPCACHE_VERSION; }

}  // namespace zipcache
