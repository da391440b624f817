// All kernel sets of the table against the portable one: hostile codes and parameters in tiles of
// any shape, extreme numbers in every other function.
#include "codec/kernels.hpp"

#include <cmath>
#include <vector>

#include "base/random.hpp"
#include "fuzz.hpp"

namespace zipcache::fuzz {
namespace {

constexpr float kGuard = -7.0f;

// Sets that this machine runs, but for the last, which is the portable one.
std::vector<const Kernels*> others() {
  std::vector<const Kernels*> sets = runnable_kernels();
  sets.pop_back();
  return sets;
}
const Kernels& plain() { return *runnable_kernels().back(); }

// Finite numbers of all sizes: from the input while it lasts, then seeded ones about 1.
class Numbers {
 public:
  explicit Numbers(Input& bytes)
      : bytes_(bytes), extreme_(bytes.below(4) == 0), random_(bytes.take<uint8_t>()) {}
  float next() {
    const float seeded = 4 * random_.unit() - 2;
    if (extreme_ && random_.below(4) == 0) {
      const int exponent = int(random_.below(250)) - 130;
      return std::ldexp(seeded, exponent);
    }
    return seeded;
  }
  std::vector<float> some(size_t n) {
    std::vector<float> out(n);
    for (float& x : out) x = next();
    for (size_t i = 0; i < n && i < 8 && !bytes_.empty(); ++i) {
      const float given = bytes_.take<float>();
      if (std::isfinite(given)) out[(i * 37) % n] = given;
    }
    return out;
  }
  // Any 16-bit number that is finite.
  half finite_half(bool positive) {
    half bits = extreme_ ? half(random_.next()) : to_half(std::fabs(next()));
    if (positive) bits &= 0x7FFF;
    return (bits & 0x7C00) == 0x7C00 ? half(bits & 0x83FF) : bits;
  }
  Random& random() { return random_; }

 private:
  Input& bytes_;
  bool extreme_;
  Random random_;
};

void require_close(const char* what, const char* set, float found, float expected,
                   double tolerance) {
  if (found == expected || (std::isnan(found) && std::isnan(expected))) return;
  require(std::fabs(double(found) - expected) <= tolerance, "{} of {}: {} instead of {} within {}",
          what, set, found, expected, tolerance);
}

struct Tile {
  TileShape shape;
  std::vector<uint8_t> codes;
  std::vector<half> params, factors, token_factors;
  TileView view() const {
    return {shape, codes.data(), params.data(), factors.empty() ? nullptr : factors.data(),
            token_factors.empty() ? nullptr : token_factors.data()};
  }
};

// A tile of any codes and parameters; empty when the policy would not allow its shape.
Tile hostile_tile(Input& bytes, Numbers& numbers) {
  constexpr int kWidths[] = {2, 3, 4, 8};
  constexpr Axis kAxes[] = {Axis::Channel, Axis::Token,        Axis::Group,
                            Axis::Cst,     Axis::ChannelGroup, Axis::None};
  constexpr Codec kCodecs[] = {Codec::Affine, Codec::Symmetric, Codec::Lloyd, Codec::E4m3,
                               Codec::E2m1};
  Tile tile;
  TileShape& shape = tile.shape;
  shape.n_tokens = 1 + bytes.below(kBlockTokens);
  shape.dim = 16 + 8 * bytes.below(31);
  shape.bits = kWidths[bytes.below(4)];
  shape.axis = kAxes[bytes.below(6)];
  shape.codec = kCodecs[bytes.below(5)];
  shape.lanes = bytes.below(2) ? Lanes::Channels : Lanes::Tokens;
  if (!has_width(shape.codec, shape.bits)) shape.codec = Codec::Affine;
  if (shape.axis == Axis::None) shape.codec = Codec::E4m3, shape.bits = 8;
  if (shape.axis == Axis::Channel) shape.codec = Codec::Affine;
  if (shape.axis == Axis::Group) {
    shape.group = 16 << bytes.below(3);
    if (shape.group == 32)
      shape.dim = padded_to(shape.dim, 32) > 256 ? 256 : padded_to(shape.dim, 32);
    if (shape.group == 16) shape.dim = padded_to(shape.dim, 16);
    if (shape.group == 64) shape.dim = std::min(256, padded_to(shape.dim, 64));
    if (shape.group % step_columns(shape.bits) != 0) shape.group = shape.dim = 32;
  }
  if (shape.axis == Axis::ChannelGroup) shape.group = 32 << bytes.below(2);
  tile.codes.resize(code_bytes(shape));
  for (uint8_t& code : tile.codes) code = uint8_t(numbers.random().next());
  for (size_t i = 0; i < 8 && !bytes.empty(); ++i)
    tile.codes[(i * 101) % tile.codes.size()] = bytes.take<uint8_t>();
  tile.params.resize((param_bytes(shape) + 1) / sizeof(half));
  for (size_t i = 0; i < tile.params.size(); ++i) {
    const bool step = shape.codec != Codec::Affine || i < tile.params.size() / 2;
    tile.params[i] = numbers.finite_half(step && shape.codec != Codec::Symmetric);
  }
  // Steps of 8 bits: two to a number here, and 0x7F is none.
  if (shape.codec == Codec::E2m1) {
    for (half& two : tile.params) two &= 0x7777;
  }
  if (shape.axis == Axis::Cst || bytes.below(4) == 0) {
    tile.factors.resize(size_t(padded_to(shape.dim, kUnitRows)));
    for (half& factor : tile.factors) factor = numbers.finite_half(true);
  }
  return tile;
}

void check_expand(const Tile& tile) {
  const int ld = padded_to(tile.shape.n_rows(), kUnitRows);
  const size_t n = size_t(tile.shape.n_columns()) * size_t(ld);
  std::vector<float> expected(n + 1, kGuard);
  expand_tile(plain(), tile.view(), expected.data(), ld);
  for (const Kernels* set : others()) {
    std::vector<float> found(n + 1, kGuard);
    expand_tile(*set, tile.view(), found.data(), ld);
    require(found.back() == kGuard, "expand of {} writes beyond its end", set->name);
    for (int column = 0; column < tile.shape.n_columns(); ++column) {
      for (int row = 0; row < tile.shape.n_rows(); ++row) {
        const size_t i = size_t(column * ld + row);
        const int t = tile.shape.lanes == Lanes::Tokens ? row : column;
        const int c = tile.shape.lanes == Lanes::Tokens ? column : row;
        const double step =
            std::fabs(step_of(tile.shape, tile.params.data(), set_of(tile.shape, t, c)));
        const double factor = tile.factors.empty() ? 1 : to_float(tile.factors[size_t(c)]);
        const double size = (std::fabs(double(expected[i])) + step * 512 * factor);
        require_close("expand", set->name, found[i], expected[i], 6 * 0x1p-24 * size + 1e-38);
      }
    }
  }
}

// Sum over columns of |x| times the largest number that any code of the row stands for.
double product_size(const Tile& tile, const float* x, int row) {
  double size = 0;
  for (int i = 0; i < tile.shape.n_columns(); ++i) {
    const int t = tile.shape.lanes == Lanes::Tokens ? row : i;
    const int c = tile.shape.lanes == Lanes::Tokens ? i : row;
    const int set = set_of(tile.shape, t, c);
    const double step = std::fabs(step_of(tile.shape, tile.params.data(), set));
    const double floor =
        tile.shape.codec == Codec::Affine
            ? std::fabs(to_float(tile.params[tile.params.size() / 2 + size_t(set)]))
            : step * 128;
    const double factor = tile.factors.empty() ? 1 : to_float(tile.factors[size_t(c)]);
    size += std::fabs(double(x[i])) * factor * (floor + step * top_code(tile.shape.bits));
  }
  return size;
}

void products(const Kernels& set, const Tile& tile, Weighting weighting, const float* x, int ldx,
              int n, float* out, int ld) {
  FoldedRow folded[kMaxRows];
  for (int i = 0; i < n_parts(tile.shape); ++i) {
    const PlacedPart placed = part_of(tile.view(), i);
    set.fold(placed.part, weighting, x + placed.first_column, ldx, n, folded);
    set.products(placed.part, weighting, folded, n, out + placed.first_row, ld,
                 placed.first_column > 0, nullptr);
  }
}

void check_products(Input& bytes, Numbers& numbers, const Tile& tile) {
  if (!codes_are_numbers(tile.shape.codec)) return;
  const auto weighting = Weighting(bytes.below(3));
  if (tile.shape.bits == 8 && weighting != Weighting::Words) return;
  if (tile.shape.codec == Codec::Symmetric && weighting == Weighting::UnsignedBytes) return;
  const int n = 1 + bytes.below(kMaxRows), n_columns = tile.shape.n_columns();
  const int ld = padded_to(tile.shape.n_rows(), kUnitRows), ldx = padded_to(n_columns, kUnitRows);
  std::vector<float> x(size_t(n * ldx), 0.0f);
  for (int r = 0; r < n; ++r) {
    const auto row = numbers.some(size_t(n_columns));
    for (int i = 0; i < n_columns; ++i)
      x[size_t(r * ldx + i)] =
          weighting == Weighting::UnsignedBytes ? std::fabs(row[size_t(i)]) : row[size_t(i)];
  }
  std::vector<float> expected(size_t(n * ld) + 1, kGuard);
  products(plain(), tile, weighting, x.data(), ldx, n, expected.data(), ld);
  for (const Kernels* set : others()) {
    std::vector<float> found(expected.size(), kGuard);
    products(*set, tile, weighting, x.data(), ldx, n, found.data(), ld);
    require(found.back() == kGuard, "products of {} write beyond their end", set->name);
    for (int r = 0; r < n; ++r) {
      for (int row = 0; row < tile.shape.n_rows(); ++row) {
        const size_t i = size_t(r * ld + row);
        const double size = product_size(tile, &x[size_t(r * ldx)], row);
        if (size > 1e30) continue;  // sums leave the range in one order and not in another
        // Weights of 8 bits may round to neighbours where sets differ in the last digit.
        const double step = weighting == Weighting::Words ? 0x1p-14 : 0x1p-6;
        require_close("products", set->name, found[i], expected[i], (1e-5 + step) * size + 1e-30);
      }
    }
  }
}

void check_search(Input& bytes, Numbers& numbers) {
  constexpr int kWidths[] = {2, 3, 4, 8};
  const int n = 1 + bytes.below(kBlockTokens), bits = kWidths[bytes.below(4)];
  const auto fit = Fit(bytes.below(4));
  std::vector<float> x = numbers.some(size_t(n * kUnitRows));
  for (float& value : x) value = std::clamp(value, -kHalfMax, kHalfMax);  // what rows hold
  SetSearch expected, found;
  plain().search_sets({x.data(), n, kUnitRows, bits, fit}, expected);
  for (const Kernels* set : others()) {
    set->search_sets({x.data(), n, kUnitRows, bits, fit}, found);
    for (int lane = 0; lane < kUnitRows; ++lane) {
      const SetFit is = finish_fit(found, lane, bits, fit),
                   ought = finish_fit(expected, lane, bits, fit);
      require(is.step == ought.step && is.floor == ought.floor && is.code_step == ought.code_step &&
                  is.code_floor == ought.code_floor,
              "search of {}: fit {}, {} bits, {} values: step {} and floor {} instead of {} and {}",
              set->name, int(fit), bits, n, is.step, is.floor, ought.step, ought.floor);
      require(std::isfinite(to_float(is.step)) && std::isfinite(to_float(is.floor)),
              "search: fit {}, {} bits: parameters beyond 16 bits", int(fit), bits);
    }
  }
}

void check_encode(Input& bytes, Numbers& numbers) {
  constexpr int kWidths[] = {2, 3, 4, 8};
  const int rows = 1 + bytes.below(kBlockTokens), columns = 1 + bytes.below(kBlockTokens);
  const int bits = kWidths[bytes.below(4)], ld = padded_to(rows, kUnitRows);
  const bool by_column = bytes.below(2);
  const TileShape shape{rows, columns, bits, Axis::Channel, 0, Lanes::Tokens};
  const auto x = numbers.some(size_t(columns * ld));
  auto inverses = numbers.some(size_t(padded_to(std::max(rows, columns), kUnitRows)));
  const auto floors = numbers.some(inverses.size());
  for (float& inverse : inverses) inverse = std::fabs(inverse);
  std::vector<uint8_t> expected(code_bytes(shape), 0);
  plain().encode({x.data(), ld, rows, columns, bits, by_column, inverses.data(), floors.data()},
                 expected.data(), shape.unit_bytes());
  for (const Kernels* set : others()) {
    std::vector<uint8_t> found(expected.size(), 0);
    set->encode({x.data(), ld, rows, columns, bits, by_column, inverses.data(), floors.data()},
                found.data(), shape.unit_bytes());
    require(found == expected, "encode of {}: other codes, {} bits, {} x {}", set->name, bits, rows,
            columns);
  }
}

void check_gemm(Input& bytes, Numbers& numbers) {
  const int m = 1 + bytes.below(9), n = 1 + bytes.below(64), k = 1 + bytes.below(64);
  const bool add = bytes.below(2);
  const auto a = numbers.some(size_t(m * k)), b = numbers.some(size_t(k * n));
  const auto before = numbers.some(size_t(m * n));
  auto expected = before;
  plain().gemm(m, n, k, a.data(), k, b.data(), n, expected.data(), n, add);
  for (const Kernels* set : others()) {
    auto found = before;
    set->gemm(m, n, k, a.data(), k, b.data(), n, found.data(), n, add);
    for (int r = 0; r < m; ++r) {
      for (int j = 0; j < n; ++j) {
        double size = add ? std::fabs(before[size_t(r * n + j)]) : 0;
        for (int i = 0; i < k; ++i)
          size += std::fabs(double(a[size_t(r * k + i)]) * b[size_t(i * n + j)]);
        if (size > 1e37) continue;
        require_close("gemm", set->name, found[size_t(r * n + j)], expected[size_t(r * n + j)],
                      2 * (k + 1) * 0x1p-24 * size + 1e-37);
      }
    }
  }
}

void check_halves(Input& bytes, Numbers& numbers) {
  const int rows = 1 + bytes.below(16), n = 1 + bytes.below(64), dim = 8 * (1 + bytes.below(32));
  const auto q = numbers.some(size_t(rows * dim)), p = numbers.some(size_t(rows * n));
  std::vector<half> keys(size_t(n * dim));
  for (half& key : keys) key = numbers.finite_half(false);
  std::vector<float> dots(size_t(rows * n)), sums(size_t(rows * dim), 0.0f);
  plain().half_dots(rows, n, dim, q.data(), dim, keys.data(), dots.data(), n);
  plain().half_sums(rows, n, dim, p.data(), n, keys.data(), sums.data(), dim);
  for (const Kernels* set : others()) {
    std::vector<float> found_dots(dots.size()), found_sums(sums.size(), 0.0f);
    set->half_dots(rows, n, dim, q.data(), dim, keys.data(), found_dots.data(), n);
    set->half_sums(rows, n, dim, p.data(), n, keys.data(), found_sums.data(), dim);
    for (int r = 0; r < rows; ++r) {
      for (int t = 0; t < n; ++t) {
        double size = 0;
        for (int c = 0; c < dim; ++c)
          size += std::fabs(double(q[size_t(r * dim + c)]) * to_float(keys[size_t(t * dim + c)]));
        if (size < 1e37)
          require_close("half_dots", set->name, found_dots[size_t(r * n + t)],
                        dots[size_t(r * n + t)], 2 * (dim + 1) * 0x1p-24 * size + 1e-37);
      }
      for (int c = 0; c < dim; ++c) {
        double size = 0;
        for (int t = 0; t < n; ++t)
          size += std::fabs(double(p[size_t(r * n + t)]) * to_float(keys[size_t(t * dim + c)]));
        if (size < 1e37)
          require_close("half_sums", set->name, found_sums[size_t(r * dim + c)],
                        sums[size_t(r * dim + c)], 2 * (n + 1) * 0x1p-24 * size + 1e-37);
      }
    }
  }
  std::vector<half> back(q.size()), expected(q.size());
  plain().to_halves(q.data(), expected.data(), int(q.size()));
  for (const Kernels* set : others()) {
    set->to_halves(q.data(), back.data(), int(q.size()));
    require(back == expected, "to_halves of {}: other numbers", set->name);
  }
}

void check_softmax(Input& bytes, Numbers& numbers) {
  const int rows = 1 + bytes.below(16), n = 16 * (1 + bytes.below(11));
  auto scores = numbers.some(size_t(rows * n));
  for (float& score : scores) {
    if (numbers.random().below(8) == 0) score = -INFINITY;
  }
  const std::vector<float> peak(size_t(rows), bytes.below(2) ? -INFINITY : 0.5f);
  const std::vector<float> mass(size_t(rows), std::isinf(peak[0]) ? 0.0f : 1.5f);
  const auto run = [&](const Kernels& set, std::vector<float>& x) {
    std::vector<float> state[3] = {peak, mass, std::vector<float>(size_t(rows))};
    x = scores;
    set.softmax(x.data(), rows, n, n, state[0].data(), state[1].data(), state[2].data());
    for (const auto& part : state) x.insert(x.end(), part.begin(), part.end());
  };
  std::vector<float> expected, found;
  run(plain(), expected);
  for (const Kernels* set : others()) {
    run(*set, found);
    for (size_t i = 0; i < expected.size(); ++i)
      require_close("softmax", set->name, found[i], expected[i],
                    1e-5 * std::fabs(expected[i]) + 1e-37);
  }
}

}  // namespace
}  // namespace zipcache::fuzz

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace zipcache::fuzz;
  Input bytes(data, size);
  const int what = bytes.below(6);
  Numbers numbers(bytes);
  switch (what) {
    case 0: {
      const Tile tile = hostile_tile(bytes, numbers);
      check_expand(tile);
      check_products(bytes, numbers, tile);
      break;
    }
    case 1:
      check_search(bytes, numbers);
      break;
    case 2:
      check_encode(bytes, numbers);
      break;
    case 3:
      check_gemm(bytes, numbers);
      break;
    case 4:
      check_halves(bytes, numbers);
      break;
    default:
      check_softmax(bytes, numbers);
      break;
  }
  return 0;
}
