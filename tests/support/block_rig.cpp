#include "support/block_rig.hpp"

#include <algorithm>
#include <numeric>
#include <stdexcept>

#include "support/random_rows.hpp"
#include "support/tiles.hpp"
#include "transform/hadamard.hpp"

namespace zipcache::test {

BlockRig::BlockRig(const LayerShape& shape, const Policy& policy, int n_cells)
    : log(n_cells, 1),
      rotations(needs_rotations(policy)
                    ? std::make_shared<const LayerRotations>(random_rotations({shape}).layers[0])
                    : nullptr),
      store(shape, policy, StreamLog::max_blocks(n_cells), rotations) {
  if (!arena.reserve(size_t(1) << 28).ok()) throw std::runtime_error("no storage for the test");
}

void BlockRig::append(int n, const std::vector<float>& k, const std::vector<float>& v) {
  std::vector<int64_t> cells(size_t(n), 0);
  std::iota(cells.begin(), cells.end(), int64_t(next_));
  next_ += n;
  std::vector<RowId> rows;
  log.begin_write(0, SideId::K, Writer::Model);
  log.place(cells, rows, [](int) {});
  const LayerShape& shape = store.raw.shape;
  for (int i = 0; i < n; ++i) {
    uint8_t* raw = store.raw_for_write(rows[size_t(i)].slot, arena);
    for (int head = 0; head < shape.n_heads; ++head) {
      if (uint8_t* present = store.raw.present(raw, head))
        present[rows[size_t(i)].row / 8] |= uint8_t(1 << (rows[size_t(i)].row % 8));
      for (int c = 0; c < shape.k_dim; ++c) {
        store.raw.k(raw, head)[rows[size_t(i)].row * shape.k_dim + c] =
            to_half(k[size_t((i * shape.n_heads + head) * shape.k_dim + c)]);
      }
      for (int c = 0; c < shape.v_dim; ++c) {
        store.raw.v(raw, head)[rows[size_t(i)].row * shape.v_dim + c] =
            to_half(v[size_t((i * shape.n_heads + head) * shape.v_dim + c)]);
      }
    }
  }
}

void BlockRig::pack(bool shared) {
  std::vector<int> due;
  for (const int slot : log.order()) {
    if (log.due(slot, 0) && !store.block(slot).packed) due.push_back(slot);
  }
  for (size_t i = 0; i < due.size(); i += shared ? due.size() : 1) {
    const std::span slots = std::span(due).subspan(i, shared ? due.size() : 1);
    const std::vector<QueryRounding> roundings = key_roundings(store, 1);
    if (!pack_blocks({0, slots, shared, roundings, 1}, log, store, arena).ok())
      throw std::runtime_error("pack");
  }
}

std::vector<float> BlockRig::attend(const std::vector<float>& q, int n_queries, int n_heads,
                                    int last_visible, const Kernels& kernels, int n_threads) {
  const LayerShape& shape = store.raw.shape;
  std::vector<float> out(size_t(n_queries * n_heads * shape.v_dim));
  q_ = q;
  mask_.assign(size_t(n_queries * log.n_cells()), kHalfNegInf);
  for (int i = 0; i < n_queries; ++i) {
    std::fill_n(mask_.begin() + i * log.n_cells(), last_visible + i + 1, half{0});
  }
  step_ = Attention{};
  step_.n_queries = n_queries;
  step_.n_heads = n_heads;
  step_.q = q_.data();
  step_.q_row_stride = n_heads * shape.k_dim;
  step_.q_head_stride = shape.k_dim;
  step_.mask = mask_.data();
  step_.mask_stride = step_.n_cells = log.n_cells();
  step_.scale = scale;
  step_.out = out.data();
  step_.out_row_stride = n_heads * shape.v_dim;
  step_.out_head_stride = shape.v_dim;
  step_.n_threads = n_threads;
  attender_ = std::make_unique<Attender>(kernels);
  if (!attender_->attend(step_, log, store, true).ok()) throw std::runtime_error("attend");
  step_.out = nullptr;
  return out;
}

void BlockRig::score(const std::vector<int>& probes) {
  attender_->score(step_, log, store, probes);
}

namespace {

// docs/formats.md: planes of 16 bytes hold how many tiers come after the row's.
size_t tagged_tier(const PackedHead& head, int row) {
  const auto bit = [&](int plane) { return (head.tags[16 * plane + row / 8] >> (row % 8)) & 1; };
  if (head.n_tiers == 1) return 0;
  if (head.n_tiers == 2) return bit(0) ? 0 : 1;
  return size_t(head.n_tiers - 1 - bit(0) - 2 * bit(1));
}

// docs/formats.md: factors of channels [rank, dim], then of tokens [rank, n filled to 16].
void add_product(const TileView& view, std::vector<float>& values) {
  const int n = view.shape.n_tokens, dim = view.shape.dim, filled = (n + 15) / 16 * 16;
  for (int i = 0; view.low_rank && i < n * dim; ++i) {
    double sum = values[size_t(i)];
    for (int r = 0; r < view.shape.rank; ++r) {
      const half* tokens = view.low_rank + view.shape.rank * dim + r * filled;
      sum += double(to_float(view.low_rank[r * dim + i % dim])) * to_float(tokens[i / dim]);
    }
    values[size_t(i)] = float(sum);
  }
}

}  // namespace

bool BlockRig::evicted(int slot, int head_index, int row) const {
  const StoredBlock& stored = store.block(slot);
  if (!stored.packed || stored.sinks.test(size_t(row))) return false;
  const PackedHead head = store.head(slot, head_index);
  return store.packed.policy().tiers[tagged_tier(head, row)].k_bits == 0;
}

std::vector<bool> BlockRig::absent() const {
  std::vector<bool> out;
  for (int cell = 0; cell < log.n_cells(); ++cell) {
    const RowId id = log.find(cell);
    for (int head = 0; head < store.raw.shape.n_heads; ++head)
      out.push_back(id.slot >= 0 && evicted(id.slot, head, id.row));
  }
  return out;
}

// Codes, parameters and factors put together one number at a time, without the kernels.
std::vector<float> BlockRig::packed_rows(int slot, SideId side, int head_index) const {
  const PackedHead head = store.head(slot, head_index);
  const PackedSide& packed = side == SideId::K ? head.k : head.v;
  const BlockBits& sinks = store.block(slot).sinks;
  const int dim = packed.tiers[0].shape.dim;
  std::vector<float> coded, rows(size_t(kBlockTokens * dim));
  for (size_t tier = 0; tier < store.packed.policy().tiers.size(); ++tier) {
    CodedTile tile;
    const TileView& view = packed.tiers[tier];
    tile.shape = view.shape;
    tile.params.assign(view.params, view.params + param_bytes(view.shape) / sizeof(half));
    if (view.factors) tile.factors.assign(view.factors, view.factors + padded_to(dim, kUnitRows));
    if (view.token_factors) {
      tile.token_factors.assign(view.token_factors,
                                view.token_factors + padded_to(view.shape.n_tokens, kUnitRows));
    }
    tile.packed.assign(view.codes, view.codes + code_bytes(view.shape));
    tile.decode_all();
    add_product(view, tile.values);
    coded.insert(coded.end(), tile.values.begin(), tile.values.end());
  }
  const Side& spec = side == SideId::K ? store.packed.policy().k : store.packed.policy().v;
  if (spec.rotation == Rotation::Hadamard)
    hadamard(coded.data(), int(coded.size()) / dim, dim, dim);
  if (spec.rotation == Rotation::File) {
    const std::vector<float>& matrices = side == SideId::K ? rotations->k : rotations->v;
    turn_back(&matrices[size_t(head_index * dim * dim)], int(coded.size()) / dim, dim,
              coded.data());
  }
  TierCounts next = {};
  for (size_t tier = 1; tier < next.size(); ++tier)
    next[tier] = next[tier - 1] + head.held[tier - 1];
  int sink = 0;
  for (int row = 0; row < kBlockTokens; ++row) {
    float* out = &rows[size_t(row * dim)];
    if (sinks.test(size_t(row))) {
      const half* from = (side == SideId::K ? head.k_sinks : head.v_sinks) + sink++ * dim;
      std::transform(from, from + dim, out, to_float);
      continue;
    }
    if (evicted(slot, head_index, row)) continue;
    std::copy_n(&coded[size_t(next[tagged_tier(head, row)]++ * dim)], dim, out);
  }
  return rows;
}

std::vector<double> BlockRig::decoded(SideId side) const {
  const LayerShape& shape = store.raw.shape;
  const int dim = side == SideId::K ? shape.k_dim : shape.v_dim;
  std::vector<double> out(size_t(log.n_cells() * shape.n_heads * dim));
  for (const int slot : log.order()) {
    const LogBlock& block = log.block(slot);
    for (int head = 0; head < shape.n_heads; ++head) {
      std::vector<float> rows;
      if (store.block(slot).packed) {
        rows = packed_rows(slot, side, head);
      } else {
        const half* raw = store.raw.rows(store.block(slot).raw, side, head);
        rows = to_floats({raw, raw + block.n_rows * dim});
      }
      for (int row = 0; row < block.n_rows; ++row) {
        const int32_t cell = block.cells[size_t(row)];
        if (cell < 0) continue;
        std::copy_n(&rows[size_t(row * dim)], dim,
                    &out[size_t((cell * shape.n_heads + head) * dim)]);
      }
    }
  }
  return out;
}

float BlockRig::sum(int cell, int head) const {
  const RowId id = log.find(cell);
  return store.raw.sums(store.block(id.slot).raw, head)[id.row];
}
float BlockRig::squares(int cell, int head) const {
  const RowId id = log.find(cell);
  return store.raw.squares(store.block(id.slot).raw, head)[id.row];
}
uint32_t BlockRig::probes_seen(int cell) const {
  const RowId id = log.find(cell);
  return store.raw.probes_seen(store.block(id.slot).raw)[id.row];
}
uint32_t BlockRig::rows_seen(int cell) const {
  const RowId id = log.find(cell);
  return store.raw.rows_seen(store.block(id.slot).raw)[id.row];
}

}  // namespace zipcache::test
