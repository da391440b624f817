#include "support/block_rig.hpp"

#include <algorithm>
#include <numeric>
#include <stdexcept>

namespace zipcache::test {

BlockRig::BlockRig(const LayerShape& shape, const Policy& policy, int n_cells)
    : log(n_cells, 1), store(shape, policy, StreamLog::max_blocks(n_cells)) {
  if (!arena.reserve(size_t(1) << 28).ok()) throw std::runtime_error("no storage for the test");
}

void BlockRig::append(int n, const std::vector<float>& k, const std::vector<float>& v) {
  std::vector<int64_t> cells(size_t(n), 0);
  std::iota(cells.begin(), cells.end(), int64_t(next_));
  next_ += n;
  std::vector<RowId> rows;
  log.begin_write(0, SideId::K);
  log.place(cells, rows, [](int) {});
  const LayerShape& shape = store.raw.shape;
  for (int i = 0; i < n; ++i) {
    uint8_t* raw = store.raw_for_write(rows[size_t(i)].slot, arena);
    for (int head = 0; head < shape.n_heads; ++head) {
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
    if (!pack_blocks({0, 0, slots, shared, 1}, log, store, arena).ok()) throw std::runtime_error("pack");
  }
}

std::vector<float> BlockRig::attend(const std::vector<float>& q, int n_queries, int n_heads, int last_visible,
                                    const Kernels& kernels, int n_threads) {
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
  if (!attend_blocks(step_, log, store, kernels, log_mass).ok()) throw std::runtime_error("attend");
  step_.out = nullptr;
  return out;
}

void BlockRig::score(const std::vector<int>& probes) {
  score_raw_blocks(step_, log, store, *runnable_kernels().front(), probes, log_mass);
}

std::vector<double> BlockRig::decoded(SideId side) const {
  const LayerShape& shape = store.raw.shape;
  const int dim = side == SideId::K ? shape.k_dim : shape.v_dim;
  std::vector<double> out(size_t(log.n_cells() * shape.n_heads * dim));
  std::vector<float> rows(size_t(kBlockTokens * dim));
  for (const int slot : log.order()) {
    const LogBlock& block = log.block(slot);
    for (int head = 0; head < shape.n_heads; ++head) {
      decode_rows(store, slot, side, head, block.n_rows, rows.data());
      for (int row = 0; row < block.n_rows; ++row) {
        const int32_t cell = block.cells[size_t(row)];
        if (cell < 0) continue;
        std::copy_n(&rows[size_t(row * dim)], dim, &out[size_t((cell * shape.n_heads + head) * dim)]);
      }
    }
  }
  return out;
}

float BlockRig::sum(int cell, int head) const {
  const RowId id = log.find(cell);
  return store.raw.sums(store.block(id.slot).raw, head)[id.row];
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
