#include "support/harness.hpp"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <stdexcept>

#include "support/random_rows.hpp"

namespace zipcache::test {

namespace {

Policy with_rotations(Policy policy, const RotationFile* file) {
  if (file) policy.rotations = file->path();
  return policy;
}

}  // namespace

Harness::Harness(CacheShape shape, const Policy& policy, int group)
    : shape_(std::move(shape)),
      group_(group),
      rotations_(needs_rotations(policy) && policy.rotations.empty()
                     ? std::make_unique<RotationFile>(shape_.layers)
                     : nullptr),
      cache_(Cache::create(shape_, with_rotations(policy, rotations_.get())).value_or_throw()) {
  forget();
  outputs_.resize(shape_.layers.size());
  queries_.resize(shape_.layers.size());
}

Harness::Harness(CacheShape shape, std::string_view policy, int group)
    : Harness(std::move(shape), parse_policy(policy).value_or_throw(), group) {}

void Harness::forget() {
  places_.assign(size_t(shape_.n_streams), std::vector<Place>(size_t(shape_.n_cells)));
  fed_.assign(size_t(shape_.n_streams), 0);
}

int Harness::width(int layer, SideId side) const {
  const LayerShape& shape = shape_.layers[size_t(layer)];
  return shape.n_heads * (side == SideId::K ? shape.k_dim : shape.v_dim);
}

std::vector<float> Harness::rows_of(int layer, SideId side, int sequence, int token) const {
  const uint64_t seed = ((data_seed * 64 + uint64_t(layer)) * 2 + (side == SideId::V)) * 1000003 +
                        uint64_t(sequence) * 100000 + uint64_t(token);
  return random_rows(1, width(layer, side), seed, side == SideId::K ? 6.0f : 2.0f);
}

std::vector<half> Harness::mask_of(int stream, int sequence, int first_token, int n) const {
  const auto& places = places_[size_t(stream)];
  std::vector<half> mask(size_t(n) * places.size(), kHalfNegInf);
  for (int q = 0; q < n; ++q) {
    for (size_t cell = 0; cell < places.size(); ++cell) {
      const int distance = first_token + q - places[cell].token;
      if (places[cell].sequence != sequence || distance < 0) continue;
      mask[size_t(q) * places.size() + cell] = max_bias > 0 ? to_half(float(-distance)) : half{0};
    }
  }
  return mask;
}

Status Harness::step(int stream, int sequence, int first_token, const std::vector<int64_t>& cells) {
  for (size_t i = 0; i < cells.size(); ++i) {
    places_[size_t(stream)][size_t(cells[i])] = {sequence, first_token + int(i)};
  }
  for (int layer = 0; layer < int(shape_.layers.size()); ++layer) {
    for (const SideId side : {SideId::K, SideId::V}) {
      std::vector<float> rows;
      for (size_t i = 0; i < cells.size(); ++i) {
        const auto row = rows_of(layer, side, sequence, first_token + int(i));
        rows.insert(rows.end(), row.begin(), row.end());
      }
      ZC_TRY(cache_->write(layer, stream, side, cells, rows.data(), width(layer, side)));
    }
    // Attention of this layer before the next one is written, as a model does it.
    if (layer == 0) mask_ = mask_of(stream, sequence, first_token, int(cells.size()));
    last_stream_ = stream;
    last_n_ = int(cells.size());
    const LayerShape& shape = shape_.layers[size_t(layer)];
    const int n_heads = shape.n_heads * group_;
    queries_[size_t(layer)] =
        random_rows(last_n_, n_heads * shape.k_dim,
                    data_seed * 7919 + uint64_t(layer * 100000 + first_token), 1.0f);
    auto& out = outputs_[size_t(layer)];
    out.assign(size_t(last_n_) * size_t(n_heads * shape.v_dim), NAN);
    Attention attention;
    attention.layer = layer;
    attention.stream = stream;
    attention.n_queries = last_n_;
    attention.n_heads = n_heads;
    attention.q = queries_[size_t(layer)].data();
    attention.q_row_stride = n_heads * shape.k_dim;
    attention.q_head_stride = shape.k_dim;
    attention.mask = mask_.data();
    attention.mask_stride = shape_.n_cells;
    attention.n_cells = shape_.n_cells;
    attention.scale = 1.0f / std::sqrt(float(shape.k_dim));
    attention.max_bias = max_bias;
    attention.soft_cap = soft_cap;
    attention.sinks = sinks.empty() ? nullptr : sinks.data();
    attention.out = out.data();
    attention.out_row_stride = n_heads * shape.v_dim;
    attention.out_head_stride = shape.v_dim;
    attention.n_threads = n_threads;
    ZC_TRY(cache_->attend(attention));
  }
  return ok();
}

Status Harness::feed(int n, int stream) {
  std::vector<int64_t> cells(static_cast<size_t>(n));
  int& next = fed_[size_t(stream)];
  std::iota(cells.begin(), cells.end(), int64_t(next));
  next += n;
  return step(stream, 0, next - n, cells);
}

Status Harness::prompt(int n, int ubatch, int stream) {
  for (int done = 0; done < n; done += ubatch) ZC_TRY(feed(std::min(ubatch, n - done), stream));
  return ok();
}

std::vector<half> Harness::read(int layer, SideId side, int first, int n, int stream) const {
  if (n < 0) n = tokens(stream) - first;
  std::vector<half> rows(size_t(n) * size_t(width(layer, side)));
  const Status status = cache_->read_half(layer, stream, side, first, n, rows.data());
  if (!status.ok()) throw std::runtime_error(status.message());
  return rows;
}

std::vector<half> Harness::written(int layer, SideId side, int first, int n, int stream) const {
  if (n < 0) n = tokens(stream) - first;
  std::vector<half> rows;
  for (int cell = first; cell < first + n; ++cell) {
    const Place& place = places_[size_t(stream)][size_t(cell)];
    if (place.sequence < 0) {
      rows.resize(rows.size() + size_t(width(layer, side)), half{0});
      continue;
    }
    const auto row = to_halves(rows_of(layer, side, place.sequence, place.token));
    rows.insert(rows.end(), row.begin(), row.end());
  }
  return rows;
}

OracleOut Harness::expected(int layer, bool over_written) const {
  const LayerShape& shape = shape_.layers[size_t(layer)];
  OracleStep step{last_n_,
                  shape.n_heads * group_,
                  shape.n_heads,
                  shape.k_dim,
                  shape.v_dim,
                  shape_.n_cells,
                  to_doubles(queries_[size_t(layer)]),
                  {},
                  {},
                  {},
                  1.0 / std::sqrt(shape.k_dim),
                  max_bias,
                  soft_cap,
                  to_doubles(sinks)};
  const auto rows = [&](SideId side) {
    return to_doubles(to_floats(over_written ? written(layer, side, 0, shape_.n_cells, last_stream_)
                                             : read(layer, side, 0, shape_.n_cells, last_stream_)));
  };
  step.keys = rows(SideId::K);
  step.values = rows(SideId::V);
  // No written key is all zeros; one that reads so was evicted.
  if (cache_->policy().evicts() && !over_written) {
    for (size_t at = 0; at < step.keys.size(); at += size_t(shape.k_dim)) {
      const auto key = step.keys.begin() + ptrdiff_t(at);
      step.absent.push_back(std::all_of(key, key + shape.k_dim, [](double x) { return x == 0; }));
    }
  }
  for (const half value : mask_)
    step.mask.push_back(value == kHalfNegInf ? kHidden : double(to_float(value)));
  return attention(step);
}

double rounded_rows_error(const OracleOut& expected) {
  return (0x1p-11 + 1e-5) * expected.largest_value * (1 + 2 * expected.largest_score);
}

}  // namespace zipcache::test
