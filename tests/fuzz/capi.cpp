// Sequences of calls of the C interface with hostile shapes, sizes, places and numbers. Arrays are
// exactly as large as the call says, so that a sanitizer sees the first element beyond them; after
// everything a good call on the same handle still gives the right answer.
#include <cmath>
#include <limits>
#include <vector>

#include "fuzz.hpp"
#include "zipcache/zipcache.h"

namespace zipcache::fuzz {
namespace {

constexpr const char* kPolicies[] = {
    "f16",
    "zip",
    "zipcache",
    "zip,recent=0,sinks=2",
    "uniform,bits=2,recent=0",
    "uniform,bits=8,k_axis=token,v_axis=token,recent=0",
    "zipcache,cadence=prompt",
    "h2o,recent=0",
    "sym8",
    "kivi2",
    "rdkv,bits=16/8/4/0,target_bits=4,recent=9",
    "zip,k_rotate=hadamard,v_rotate=hadamard",
    "zipcache,precision=fast,recent=0",
};

// Numbers at the edges of every range, among small ones.
int hostile_int(Input& bytes) {
  constexpr int kEdges[] = {-1,
                            0,
                            std::numeric_limits<int>::min(),
                            std::numeric_limits<int>::max(),
                            (1 << 28) + 1,
                            -128,
                            65536,
                            std::numeric_limits<int>::max() - 127};
  const int choice = bytes.below(256);
  return choice < 16 ? kEdges[choice % 8] : choice % 16;
}

float hostile_float(Input& bytes) {
  constexpr float kEdges[] = {0.0f,
                              -0.0f,
                              65504.0f,
                              -65504.0f,
                              65520.0f,
                              std::numeric_limits<float>::infinity(),
                              -std::numeric_limits<float>::infinity(),
                              std::numeric_limits<float>::quiet_NaN(),
                              std::numeric_limits<float>::max(),
                              std::numeric_limits<float>::denorm_min(),
                              6e-8f};
  const int choice = bytes.below(64);
  return choice < 11 ? kEdges[choice] : float(choice - 37) / 8;
}

class Session {
 public:
  explicit Session(Input& bytes) : bytes_(bytes) {}
  ~Session() {
    zipcache_cache_free(cache_);
    zipcache_policy_free(policy_);
  }
  Session(const Session&) = delete;
  Session& operator=(const Session&) = delete;

  void run() {
    create();
    for (int call = 0; call < 60 && !bytes_.empty(); ++call) {
      switch (bytes_.below(8)) {
        case 0:
          write_half();
          break;
        case 1:
          read_half();
          break;
        case 2:
          clear_or_stats();
          break;
        case 3:
        case 4:
          attend();
          break;
        default:
          write();
          break;
      }
    }
    if (cache_) answer();
  }

 private:
  void create() {
    policy_ = zipcache_policy_parse(kPolicies[bytes_.below(std::size(kPolicies))], &error_);
    expect(policy_ != nullptr);
    zipcache_layer layers[3];
    for (zipcache_layer& layer : layers)
      layer = {1 + bytes_.below(3), 16 + 8 * bytes_.below(6), 16 + 8 * bytes_.below(6)};
    shape_ = {1 + bytes_.below(2), 1 + bytes_.below(256) + 64 * bytes_.below(8),
              1 + bytes_.below(3), nullptr};
    if (bytes_.below(8) == 0) {
      int* const fields[] = {&shape_.n_streams,  &shape_.n_cells,  &shape_.n_layers,
                             &layers[0].n_heads, &layers[0].k_dim, &layers[0].v_dim};
      int& field = *fields[bytes_.below(6)];
      field = hostile_int(bytes_);
      // The caller's array is as long as it says, and tables of 2^28 cells are more than a fuzzer
      // has.
      shape_.n_layers = std::min(shape_.n_layers, 3);
    }
    layers_.assign(layers, layers + std::max(shape_.n_layers, 0));
    shape_.layers = layers_.data();
    cache_ = zipcache_cache_create(&shape_, policy_, &error_);
    expect(cache_ != nullptr);
  }

  // A refusal says why.
  void expect(bool accepted) {
    if (accepted) return;
    require(error_.code != ZC_OK && error_.code != ZC_INTERNAL, "refused with code {}: {}",
            zipcache_code_name(error_.code), error_.message);
    require_good_message({Code::BadArgument, error_.message});
  }

  zipcache_side side() { return bytes_.below(2) ? ZC_SIDE_V : ZC_SIDE_K; }
  int place(int n) {
    return bytes_.below(16) == 0 ? hostile_int(bytes_) : bytes_.below(std::max(n, 1));
  }
  // Numbers of a row; those of places that do not exist are of no matter.
  size_t width(int layer, zipcache_side side) const {
    if (layer < 0 || size_t(layer) >= layers_.size()) return 64;
    const zipcache_layer& of = layers_[size_t(layer)];
    return size_t(of.n_heads) * size_t(side == ZC_SIDE_V ? of.v_dim : of.k_dim);
  }

  std::vector<float> numbers(size_t n) {
    const float scale = bytes_.below(4) == 0 ? 60000.0f : 2.0f;
    uint32_t state = bytes_.take<uint8_t>() + 1u;
    std::vector<float> out(n);
    for (float& x : out) {
      state = state * 1664525u + 1013904223u;
      x = scale * (float(state >> 8) * 0x1p-24f - 0.5f);
    }
    for (int hostile = bytes_.below(4); hostile == 3 && !out.empty(); hostile = bytes_.below(4))
      out[bytes_.take<uint16_t>() % n] = hostile_float(bytes_);
    return out;
  }

  void write() {
    if (!cache_) return;
    const int layer = place(shape_.n_layers), stream = place(shape_.n_streams);
    const zipcache_side side = this->side();
    const size_t width = this->width(layer, side), n = size_t(bytes_.below(201));
    const int first = bytes_.below(256), step = bytes_.below(8) ? 1 : bytes_.below(5) - 2;
    std::vector<int64_t> cells;
    for (size_t i = 0; i < n; ++i)
      cells.push_back((int64_t{first} + int64_t(i) * step) % std::max(shape_.n_cells, 1));
    if (n > 0 && bytes_.below(16) == 0)
      cells[bytes_.take<uint8_t>() % n] =
          bytes_.below(2) ? hostile_int(bytes_) : bytes_.take<int64_t>();
    const size_t stride = bytes_.below(8) ? width : bytes_.below(2) ? 0 : width + 3;
    const auto rows = numbers(n == 0 ? 0 : (n - 1) * stride + width);
    expect(zipcache_cache_write(cache_, layer, stream, side, cells.data(), n, rows.data(),
                                ptrdiff_t(stride), &error_) == ZC_OK);
  }

  // Cells of a range, hostile now and then; then the arrays hold what an honest call would need.
  struct Range {
    int first, n;
    size_t held() const { return n > 0 && n < 4096 ? size_t(n) : 1; }
  };
  Range range() {
    Range range{bytes_.below(256), bytes_.below(256)};
    if (bytes_.below(8) == 0) (bytes_.below(2) ? range.first : range.n) = hostile_int(bytes_);
    return range;
  }

  void read_half() {
    if (!cache_) return;
    const int layer = place(shape_.n_layers), stream = place(shape_.n_streams);
    const zipcache_side side = this->side();
    const Range range = this->range();
    std::vector<uint16_t> rows(range.held() * width(layer, side));
    expect(zipcache_cache_read_half(cache_, layer, stream, side, range.first, range.n, rows.data(),
                                    &error_) == ZC_OK);
    for (const uint16_t value : rows)
      require((value & 0x7C00) != 0x7C00, "read {:#x}, which is no number", value);
  }

  void write_half() {
    if (!cache_) return;
    const int layer = place(shape_.n_layers), stream = place(shape_.n_streams);
    const zipcache_side side = this->side();
    const Range range = this->range();
    std::vector<uint16_t> rows(range.held() * width(layer, side));
    uint32_t state = bytes_.take<uint8_t>();
    const uint32_t keep = bytes_.below(8) ? 0xBFFF : 0xFFFF;
    for (uint16_t& value : rows) {
      state = state * 1664525u + 1013904223u;
      value = uint16_t((state >> 16) & keep);
    }
    expect(zipcache_cache_write_half(cache_, layer, stream, side, range.first, range.n, rows.data(),
                                     &error_) == ZC_OK);
  }

  void attend() {
    if (!cache_) return;
    zipcache_attention step{};
    step.layer = place(shape_.n_layers);
    step.stream = place(shape_.n_streams);
    const bool known = step.layer >= 0 && size_t(step.layer) < layers_.size();
    const zipcache_layer layer = known ? layers_[size_t(step.layer)] : zipcache_layer{1, 16, 16};
    step.n_queries = 1 + bytes_.below(40);
    step.n_heads = layer.n_heads * (1 + bytes_.below(3));
    step.n_cells = bytes_.below(8) ? std::max(shape_.n_cells, 0) : bytes_.below(256);
    const size_t rows = size_t(step.n_queries) * size_t(step.n_heads);
    const auto q = numbers(rows * size_t(layer.k_dim));
    std::vector<float> out(rows * size_t(layer.v_dim), 5.0f), sinks;
    std::vector<uint16_t> mask;
    if (bytes_.below(2)) {
      uint32_t state = bytes_.take<uint8_t>();
      mask.resize(size_t(step.n_queries) * size_t(step.n_cells));
      const int kind = bytes_.below(4);
      for (uint16_t& value : mask) {
        state = state * 1664525u + 1013904223u;
        value = kind == 0 ? 0xFC00 : kind == 1 ? uint16_t(state >> 16) : state >> 31 ? 0xFC00 : 0;
      }
      step.mask = mask.data();
      step.mask_stride = step.n_cells;
    }
    step.scale = bytes_.below(4) ? 0.2f : hostile_float(bytes_);
    step.max_bias = bytes_.below(4) ? 0.0f : hostile_float(bytes_);
    step.soft_cap = bytes_.below(4) ? 0.0f : hostile_float(bytes_);
    if (bytes_.below(4) == 0) {
      sinks = numbers(size_t(step.n_heads));
      step.sinks = sinks.data();
    }
    step.q = q.data();
    step.q_head_stride = layer.k_dim;
    step.q_row_stride = ptrdiff_t{step.n_heads} * layer.k_dim;
    step.out = out.data();
    step.out_head_stride = layer.v_dim;
    step.out_row_stride = ptrdiff_t{step.n_heads} * layer.v_dim;
    step.n_threads = bytes_.below(16) ? 1 : 1 + bytes_.below(3);
    if (bytes_.below(16) == 0) spoil(step);
    expect(zipcache_cache_attend(cache_, &step, &error_) == ZC_OK);
  }

  // One field that no honest call would have. Larger counts than the arrays have would be the
  // caller's lie about its own memory, so counts only shrink.
  void spoil(zipcache_attention& step) {
    switch (bytes_.below(6)) {
      case 0:
        step.n_queries = std::min(step.n_queries, hostile_int(bytes_));
        break;
      case 1:
        step.n_heads = std::min(step.n_heads, hostile_int(bytes_));
        break;
      case 2:
        step.n_threads = hostile_int(bytes_);
        break;
      case 3:
        step.q = nullptr;
        break;
      case 4:
        step.out = nullptr;
        break;
      default:
        step.n_cells =
            step.mask ? std::min(step.n_cells, hostile_int(bytes_)) : hostile_int(bytes_);
    }
  }

  void clear_or_stats() {
    if (bytes_.below(4) == 0) zipcache_cache_clear(cache_);
    zipcache_stats stats;
    expect(zipcache_cache_stats(cache_, &stats, &error_) == ZC_OK);
    if (!cache_) return;
    const size_t held = stats.codes + stats.params + stats.tags + stats.raw + stats.scores +
                        stats.map + stats.padding;
    require(held < 1u << 30, "stats: {} bytes are held", held);
    require(stats.rows_live <= uint64_t(shape_.n_streams) * uint64_t(shape_.n_cells),
            "stats: {} live rows", stats.rows_live);
  }

  // A fresh text of one token: its value is the output, whatever the policy.
  void answer() {
    zipcache_cache_clear(cache_);
    const int64_t cell = 0;
    for (int layer = 0; layer < shape_.n_layers; ++layer) {
      const zipcache_layer& of = layers_[size_t(layer)];
      const std::vector<float> k(width(layer, ZC_SIDE_K), 0.5f), v(width(layer, ZC_SIDE_V), -1.5f);
      std::vector<float> out(v.size(), 5.0f);
      zipcache_attention step{};
      step.layer = layer, step.n_queries = 1, step.n_heads = of.n_heads,
      step.n_cells = shape_.n_cells;
      step.q = k.data(), step.q_head_stride = of.k_dim, step.scale = 1, step.n_threads = 1;
      step.out = out.data(), step.out_head_stride = of.v_dim;
      for (const auto& [side, rows] : {std::pair{ZC_SIDE_K, &k}, std::pair{ZC_SIDE_V, &v}}) {
        require(zipcache_cache_write(cache_, layer, 0, side, &cell, 1, rows->data(), 0, &error_) ==
                    ZC_OK,
                "afterwards a good row is refused: {}", error_.message);
      }
      require(zipcache_cache_attend(cache_, &step, &error_) == ZC_OK,
              "afterwards good attention is refused: {}", error_.message);
      for (const float value : out) require(value == -1.5f, "afterwards attention gives {}", value);
    }
  }

  Input& bytes_;
  zipcache_error error_{};
  zipcache_policy* policy_ = nullptr;
  zipcache_cache* cache_ = nullptr;
  zipcache_shape shape_{};
  std::vector<zipcache_layer> layers_;
};

}  // namespace
}  // namespace zipcache::fuzz

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  zipcache::fuzz::Input bytes(data, size);
  zipcache::fuzz::Session(bytes).run();
  return 0;
}
