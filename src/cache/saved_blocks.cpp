#include "cache/saved_blocks.hpp"

#define XXH_INLINE_ALL
#include <xxhash.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>

#include "base/number_reader.hpp"
#include "cache/carried_bits.hpp"

namespace zipcache {
namespace {

constexpr std::string_view kMagic = "ZCBLOCK2";
constexpr size_t kNames = 3, kSizes = 6;
constexpr size_t kHeadBytes =
    kMagic.size() + kNames * sizeof(uint64_t) + kSizes * sizeof(uint32_t) + kBlockTokens / 8;
constexpr size_t kSumBytes = sizeof(uint64_t);

uint64_t sum_of(std::string_view bytes) { return XXH3_64bits(bytes.data(), bytes.size()); }

int width_of(const LayerStore& store, SideId side) {
  const LayerShape& shape = store.raw.shape;
  return shape.n_heads * (side == SideId::K ? shape.k_dim : shape.v_dim);
}

// The first row with a number that is not 0, kBlockTokens if there is none. Carrying does not move
// it, and since zeros carry nothing, it tells where the rows of a frame begin.
uint32_t first_filled_row(std::span<const half> rows) {
  const auto filled = std::find_if_not(rows.begin(), rows.end(), is_zero);
  return uint32_t(size_t(filled - rows.begin()) / (rows.size() / kBlockTokens));
}

void append_rows(std::string& bytes, const BlockBits& rows) {
  uint8_t packed[kBlockTokens / 8] = {};
  for (size_t row = 0; row < kBlockTokens; ++row)
    packed[row / 8] |= uint8_t(rows.test(row) << (row % 8));
  append_numbers(bytes, packed, sizeof packed);
}

bool take_rows(NumberReader& reader, BlockBits& rows) {
  uint8_t packed[kBlockTokens / 8];
  if (!reader.take(packed, sizeof packed)) return false;
  for (size_t row = 0; row < kBlockTokens; ++row) rows.set(row, (packed[row / 8] >> (row % 8)) & 1);
  return true;
}

std::string to_bytes(const BlockTurns& turns) {
  std::string bytes;
  if (!turns.any()) return bytes;
  const uint32_t counts[] = {uint32_t(turns.moved.size()), uint32_t(turns.turn->pairs.size())};
  append_numbers(bytes, counts, 2);
  for (const BlockTurns::Moved& moved : turns.moved) {
    append_numbers(bytes, &moved.by, 1);
    append_rows(bytes, moved.rows);
  }
  append_numbers(bytes, turns.turn->pairs.data(), turns.turn->pairs.size());
  return bytes;
}

std::optional<BlockTurns> turns_of(std::string_view bytes) {
  BlockTurns turns;
  if (bytes.empty()) return turns;
  NumberReader reader(bytes);
  uint32_t counts[2];
  if (!reader.take(counts, 2) || counts[0] < 1 || counts[0] > kMostTurns) return {};
  turns.moved.resize(counts[0]);
  BlockBits seen;
  for (BlockTurns::Moved& moved : turns.moved) {
    if (!reader.take(&moved.by, 1) || moved.by == 0 || !take_rows(reader, moved.rows) ||
        (seen & moved.rows).any())
      return {};
    seen |= moved.rows;
  }
  KeyTurn turn;
  if (!reader.take(turn.pairs, counts[1]) || reader.left() != 0) return {};
  turns.turn = std::make_shared<const KeyTurn>(std::move(turn));
  return turns;
}

std::string to_bytes(const SavedBlock& block, uint32_t filled_row) {
  std::string bytes(kMagic);
  const uint64_t names[] = {block.identity, block.first, block.checksum};
  const std::string turns = to_bytes(block.turns);
  const uint32_t sizes[] = {block.total,
                            uint32_t(turns.size()),
                            uint32_t(block.part.size()),
                            uint32_t(block.tail.size()),
                            uint32_t(block.side),
                            filled_row};
  append_numbers(bytes, names, kNames);
  append_numbers(bytes, sizes, kSizes);
  append_rows(bytes, block.sinks);
  bytes += turns;
  bytes += block.part;
  bytes += block.tail;
  const uint64_t sum = sum_of(bytes);
  append_numbers(bytes, &sum, 1);
  return bytes;
}

// Where K's part of a block of `total` bytes ends.
size_t k_part(const LayerStore& store, size_t total) {
  const size_t k = size_t(store.raw.shape.k_dim), v = size_t(store.raw.shape.v_dim);
  return total * k / (k + v);
}

bool is_whole(const LogBlock& block, const StoredBlock& stored) {
  return stored.packed && stored.shared < 0 && block.consecutive && block.n_rows == kBlockTokens;
}

struct TailRow {
  uint8_t sink = 0;
  std::vector<float> sums, squares;  // [head]
  std::vector<uint8_t> present;      // [head]
  uint32_t seen[2] = {};
};

bool take(NumberReader& reader, const LayerStore& store, TailRow& row) {
  const Policy& policy = store.packed.policy();
  const size_t n_heads = size_t(store.raw.shape.n_heads);
  if (!reader.take(&row.sink, 1)) return false;
  row.sums.resize(policy.needs_scores() ? n_heads : 0);
  row.squares.resize(policy.needs_squares() ? n_heads : 0);
  row.present.resize(policy.evicts() ? n_heads : 0);
  for (size_t head = 0; head < n_heads; ++head) {
    if (!row.sums.empty() && !reader.take(&row.sums[head], 1)) return false;
    if (!row.squares.empty() && !reader.take(&row.squares[head], 1)) return false;
    if (!row.present.empty() && !reader.take(&row.present[head], 1)) return false;
  }
  const auto is_score = [](float x) { return std::isfinite(x) && x >= 0; };
  return (row.sums.empty() || reader.take(row.seen, 2)) &&
         std::all_of(row.sums.begin(), row.sums.end(), is_score) &&
         std::all_of(row.squares.begin(), row.squares.end(), is_score);
}

void put(const TailRow& from, RowId id, StreamLog& log, LayerStore& store) {
  uint8_t* raw = store.block(id.slot).raw;
  const size_t row = size_t(id.row);
  log.mark_sink(id, from.sink != 0);
  for (int head = 0; head < store.raw.shape.n_heads; ++head) {
    const size_t h = size_t(head);
    if (!from.sums.empty()) store.raw.sums(raw, head)[row] = from.sums[h];
    if (!from.squares.empty()) store.raw.squares(raw, head)[row] = from.squares[h];
    if (from.present.empty()) continue;
    uint8_t& byte = store.raw.present(raw, head)[row / 8];
    const uint8_t bit = uint8_t(1 << (row % 8));
    byte = from.present[h] ? uint8_t(byte | bit) : uint8_t(byte & ~bit);
  }
  if (from.sums.empty()) return;
  store.raw.probes_seen(raw)[row] = from.seen[0];
  store.raw.rows_seen(raw)[row] = from.seen[1];
}

// The block's head says what the layout makes of its counts, and its tags agree with them.
bool fits_layout(const LayerStore& store, const StoredBlock& block, std::string_view bytes,
                 std::span<const TierCounts> counts) {
  const PackedLayout& layout = store.packed;
  std::string head(bytes);
  layout.begin(reinterpret_cast<uint8_t*>(head.data()), counts, int(block.sinks.count()), false);
  if (head != bytes) return false;
  for (int i = 0; i < store.raw.shape.n_heads; ++i) {
    const PackedHead packed = store.head(block, i);
    TierCounts tagged = {};
    for (int row = 0; row < kBlockTokens; ++row) {
      if (block.sinks.test(size_t(row))) continue;
      const int tier = packed.tier_of(row);
      if (tier < 0 || tier >= layout.n_tiers()) return false;
      ++tagged[size_t(tier)];
    }
    if (tagged != counts[size_t(i)]) return false;
  }
  return true;
}

bool decodes_to_numbers(const LayerStore& store, const StoredBlock& block) {
  const LayerShape& shape = store.raw.shape;
  for (const SideId side : {SideId::K, SideId::V}) {
    std::vector<float> rows(size_t(kBlockTokens * (side == SideId::K ? shape.k_dim : shape.v_dim)));
    for (int head = 0; head < shape.n_heads; ++head) {
      decode_rows(store, block, side, head, kBlockTokens, rows.data());
      if (!std::all_of(rows.begin(), rows.end(), [](float x) { return std::isfinite(x); }))
        return false;
    }
  }
  return true;
}

// A block on its way into rows.
struct Carrier {
  SavedBlock block;
  std::span<half> rows;  // kBlockTokens of them

  size_t room_for_tail() const {
    const size_t used = kHeadBytes + block.part.size() + kSumBytes, most = most_carried(rows);
    return most > used ? most - used : 0;
  }
};

// Each carrier gets an even share, less where its block leaves less room. None get any when there
// is not enough for all: part of a tail says nothing.
void share_tail(std::string_view tail, std::vector<Carrier>& carriers) {
  std::vector<size_t> room, share(carriers.size()), order(carriers.size());
  for (const Carrier& carrier : carriers) room.push_back(carrier.room_for_tail());
  if (std::accumulate(room.begin(), room.end(), size_t{0}) < tail.size()) return;
  std::iota(order.begin(), order.end(), size_t{0});
  std::sort(order.begin(), order.end(), [&](size_t a, size_t b) { return room[a] < room[b]; });
  size_t left = tail.size();
  for (size_t i = 0; i < order.size(); ++i) {
    share[order[i]] = std::min(room[order[i]], left / (order.size() - i));
    left -= share[order[i]];
  }
  for (size_t i = 0; i < carriers.size(); ++i) {
    carriers[i].block.tail = tail.substr(0, share[i]);
    tail.remove_prefix(share[i]);
  }
}

}  // namespace

uint64_t saved_identity(const LayerStore& store) {
  Policy policy = store.packed.policy();
  policy.rotations.clear();  // what the file holds counts, not where it is
  std::string name = to_text(policy);
  const LayerShape& shape = store.raw.shape;
  const int numbers[] = {kTileFormat, shape.n_heads, shape.k_dim, shape.v_dim};
  append_numbers(name, numbers, std::size(numbers));
  if (const LayerRotations* matrices = store.matrices()) {
    for (const std::vector<float>* side : {&matrices->k, &matrices->v})
      append_numbers(name, side->data(), side->size());
  }
  return sum_of(name);
}

bool carries_blocks(const LayerStore& store) {
  const Policy& policy = store.packed.policy();
  // Scores of a file go by the order of tokens, which restoring does not keep.
  return !policy.raw() && policy.saliency.statistic != Statistic::File;
}

std::vector<int> whole_blocks(const StreamLog& log, const LayerStore& store, int first_cell,
                              int n_cells) {
  std::vector<int> found;
  for (int cell = first_cell; cell + kBlockTokens <= first_cell + n_cells; ++cell) {
    const RowId id = log.find(cell);
    if (id.slot < 0 || id.row != 0 || !is_whole(log.block(id.slot), store.block(id.slot))) continue;
    found.push_back(cell);
    cell += kBlockTokens - 1;
  }
  return found;
}

std::string tail_of(const StreamLog& log, const LayerStore& store, int first_cell, int n,
                    uint64_t first) {
  const auto is_raw = [&](int i) {
    const StoredBlock& stored = store.block(log.find(first_cell + i).slot);
    return stored.raw && !stored.packed;
  };
  bool scored = log.stands(first_cell, n, first);
  for (int i = 0; scored && i < n; i += kBlockTokens) scored = is_raw(i);
  std::string bytes;
  const uint32_t n_rows = scored ? uint32_t(n) : 0;
  append_numbers(bytes, &n_rows, 1);
  const Policy& policy = store.packed.policy();
  for (int i = 0; i < int(n_rows); ++i) {
    const RowId id = log.find(first_cell + i);
    const size_t row = size_t(id.row);
    uint8_t* raw = store.block(id.slot).raw;
    bytes += char(log.block(id.slot).sinks.test(row));
    for (int head = 0; head < store.raw.shape.n_heads; ++head) {
      if (policy.needs_scores()) append_numbers(bytes, store.raw.sums(raw, head) + row, 1);
      if (policy.needs_squares()) append_numbers(bytes, store.raw.squares(raw, head) + row, 1);
      if (policy.evicts()) bytes += char((store.raw.present(raw, head)[row / 8] >> (row % 8)) & 1);
    }
    if (!policy.needs_scores()) continue;
    append_numbers(bytes, store.raw.probes_seen(raw) + row, 1);
    append_numbers(bytes, store.raw.rows_seen(raw) + row, 1);
  }
  for (const QueryMoment& moment : store.moments) moment.save(bytes);
  return bytes;
}

void put_blocks(const StreamLog& log, const LayerStore& store, SideId side, int first_cell,
                int n_cells, half* rows) {
  if (!carries_blocks(store)) return;
  const std::vector<int> cells = whole_blocks(log, store, first_cell, n_cells);
  if (cells.empty()) return;
  const uint64_t identity = saved_identity(store);
  const size_t width = size_t(width_of(store, side));
  std::vector<Carrier> carriers;
  for (const int cell : cells) {
    const int slot = log.find(cell).slot;
    const StoredBlock& stored = store.block(slot);
    const std::string_view all(reinterpret_cast<const char*>(stored.packed), stored.bytes.total);
    const size_t cut = k_part(store, all.size());
    carriers.push_back(
        {{.identity = identity,
          .first = log.block(slot).first,
          .checksum = sum_of(all),
          .total = uint32_t(all.size()),
          .side = side,
          .sinks = stored.sinks,
          .turns = side == SideId::K ? stored.turns : BlockTurns{},
          .part = std::string(side == SideId::K ? all.substr(0, cut) : all.substr(cut)),
          .tail = {}},
         {rows + size_t(cell - first_cell) * width, size_t(kBlockTokens) * width}});
  }
  if (side == SideId::V) {
    const int behind = cells.back() + kBlockTokens;
    share_tail(tail_of(log, store, behind, first_cell + n_cells - behind,
                       carriers.back().block.first + kBlockTokens),
               carriers);
  }
  for (const Carrier& carrier : carriers)
    carry(to_bytes(carrier.block, first_filled_row(carrier.rows)), carrier.rows);
}

std::optional<SavedBlock> find_block(std::span<const half> rows, SideId side, uint64_t identity) {
  const auto head = carried(rows, kMagic, kHeadBytes);
  if (!head) return {};
  NumberReader reader(std::string_view(*head).substr(kMagic.size()));
  SavedBlock block;
  uint64_t names[kNames];
  uint32_t sizes[kSizes];
  if (!reader.take(names, kNames) || !reader.take(sizes, kSizes) || !take_rows(reader, block.sinks))
    return {};
  const auto [total, n_turns, n_part, n_tail, of_side, filled_row] = sizes;
  if (names[0] != identity || of_side != uint32_t(side) || filled_row != first_filled_row(rows))
    return {};
  const size_t n_most = rows.size() * kMostCarriedBits / 8;
  if (n_turns > n_most || n_part > n_most || n_tail > n_most) return {};
  const size_t n_bytes = kHeadBytes + n_turns + n_part + n_tail + kSumBytes;
  const auto all = carried(rows, *head, n_bytes);
  if (!all) return {};
  uint64_t sum = 0;
  std::memcpy(&sum, all->data() + n_bytes - kSumBytes, kSumBytes);
  if (sum != sum_of(std::string_view(*all).substr(0, n_bytes - kSumBytes))) return {};
  block.identity = names[0], block.first = names[1], block.checksum = names[2];
  block.total = total;
  block.side = side;
  auto turns = turns_of(std::string_view(*all).substr(kHeadBytes, n_turns));
  if (!turns) return {};
  block.turns = std::move(*turns);
  block.part = all->substr(kHeadBytes + n_turns, n_part);
  block.tail = all->substr(kHeadBytes + n_turns + n_part, n_tail);
  return block;
}

std::optional<StoredBlock> join(const LayerStore& store, const SavedBlock& k, const SavedBlock& v,
                                Arena& arena) {
  const std::string bytes = k.part + v.part;
  if (k.checksum != v.checksum || k.first != v.first || k.sinks != v.sinks ||
      bytes.size() != v.total || sum_of(bytes) != v.checksum)
    return {};
  StoredBlock block;
  if (k.turns.any() && !check(*k.turns.turn, store.raw.shape.k_dim).ok()) return {};
  block.sinks = v.sinks;
  block.turns = k.turns;
  block.n_coded = kBlockTokens - int(v.sinks.count());
  const auto counts = store.packed.counts(bytes, store.raw.shape.n_heads, block.n_coded);
  if (!counts) return {};
  block.bytes = store.packed.bytes(*counts, int(v.sinks.count()), false);
  if (block.bytes.total != bytes.size()) return {};
  block.packed = arena.take(bytes.size());
  if (!block.packed) return {};
  std::memcpy(block.packed, bytes.data(), bytes.size());
  if (fits_layout(store, block, bytes, *counts) && decodes_to_numbers(store, block)) return block;
  arena.give(block.packed, bytes.size());
  return {};
}

void restore_tail(const std::string& tail, StreamLog& log, LayerStore& store, int first_cell,
                  int n_rows) {
  NumberReader reader(tail);
  uint32_t n = 0;
  if (!reader.take(&n, 1) || (n != 0 && n != uint32_t(n_rows))) return;
  std::vector<TailRow> rows(n);
  for (TailRow& row : rows) {
    if (!take(reader, store, row)) return;
  }
  std::vector<QueryMoment> moments = store.moments;
  for (QueryMoment& moment : moments) {
    if (!moment.load(reader)) return;
  }
  if (reader.left() != 0) return;
  for (uint32_t i = 0; i < n; ++i) {
    const RowId id = log.find(first_cell + int(i));
    if (id.slot >= 0 && store.block(id.slot).raw) put(rows[i], id, log, store);
  }
  store.moments = std::move(moments);
}

}  // namespace zipcache
