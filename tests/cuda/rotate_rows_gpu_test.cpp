// Rows that a GPU turns by matrices are the CPU's bit for bit, turned back nearly so.
#include "cuda/rotate_rows.hpp"

#include <cmath>

#include "cuda/gpu.hpp"
#include "cuda/row_matrix.hpp"
#include "support/random_rows.hpp"

namespace zipcache::cuda::test {
namespace {

class Rotate : public OnGpu {};

struct Shape {
  int dim = 128, n_heads = 2, group = 1, n_streams = 2, n_tokens = 5;
  Number type = Number::F32;
  bool back = false, cut = false, in_place = false;

  size_t n_rows() const { return size_t(n_streams) * size_t(n_tokens) * size_t(n_heads * group); }
  // Every second stream has two tokens less.
  int count(int stream) const { return cut ? n_tokens - stream % 2 * 2 : n_tokens; }
};

// Numbers of a type, and back.
std::vector<uint16_t> narrowed(const std::vector<float>& x, Number type) {
  std::vector<uint16_t> out;
  for (const float value : x) {
    const uint32_t bits = std::bit_cast<uint32_t>(value);
    const uint16_t brief = uint16_t((bits + 0x7FFF + (bits >> 16 & 1)) >> 16);
    out.push_back(std::isnan(value) ? 0xFFFF : type == Number::F16 ? finite_half(value) : brief);
  }
  return out;
}
std::vector<float> widened(const std::vector<uint16_t>& x, Number type) {
  std::vector<float> out;
  for (const uint16_t bits : x)
    out.push_back(type == Number::F16 ? to_float(bits)
                                      : std::bit_cast<float>(uint32_t(bits) << 16));
  return out;
}

template <class T>
std::vector<T> run(const Shape& shape, const std::vector<T>& rows,
                   const std::vector<float>& matrices) {
  const Buffer<T> from(rows), to(rows.size());
  must(cudaMemset(to.get(), 0xFF, rows.size() * sizeof(T)));
  const Buffer<float> device_matrices(matrices);
  std::vector<int32_t> counts;
  for (int s = 0; s < shape.n_streams; ++s) counts.push_back(shape.count(s));
  const Buffer<int32_t> device_counts(counts);
  const int64_t token = int64_t{shape.n_heads} * shape.group * shape.dim;
  RotateArgs args;
  args.dim = shape.dim, args.n_heads = shape.n_heads, args.group = shape.group;
  args.n_streams = shape.n_streams, args.n_tokens = shape.n_tokens;
  if (shape.cut) args.counts = device_counts.get();
  args.matrices = device_matrices.get();
  args.back = shape.back;
  args.from = {from.get(), shape.type, shape.n_tokens * token, token, shape.dim};
  args.to = {shape.in_place ? from.get() : to.get(), shape.type, shape.n_tokens * token, token,
             shape.dim};
  const Status status = rotate_rows(args, nullptr);
  if (!status.ok()) throw std::runtime_error(status.message());
  must(cudaDeviceSynchronize());
  return (shape.in_place ? from : to).read();
}

// The CPU's; rows behind a stream's own as they were, or without a number.
std::vector<float> expected(const Shape& shape, std::vector<float> rows,
                            const std::vector<float>& matrices) {
  const size_t dim = size_t(shape.dim);
  for (size_t row = 0; row < shape.n_rows(); ++row) {
    const int of_token = shape.n_heads * shape.group, token = int(row) / of_token;
    float* x = &rows[row * dim];
    if (token % shape.n_tokens >= shape.count(token / shape.n_tokens)) {
      if (!shape.in_place) std::fill_n(x, dim, NAN);
      continue;
    }
    const int head = int(row) % of_token / shape.group;
    const HeadRotation rotation(Rotation::File, &matrices[size_t(head) * dim * dim]);
    if (shape.back)
      rotation.turn_back(x, 1, shape.dim, shape.dim);
    else
      rotation.turn(x, 1, shape.dim, shape.dim);
  }
  return rows;
}

// Turned rows have the same bits, NaN among them.
void expect_same(const Shape& shape, const std::vector<float>& found,
                 const std::vector<float>& wanted) {
  // Back, a rounding or two of the type: numbers are below 32 or so.
  const float rounding = shape.type == Number::F32   ? 1e-4f
                         : shape.type == Number::F16 ? 0x1p-5f
                                                     : 0x1p-2f;
  const float bound = shape.back ? rounding : 0;
  ASSERT_EQ(found.size(), wanted.size());
  for (size_t i = 0; i < found.size(); ++i) {
    if (std::isnan(wanted[i]) && std::isnan(found[i])) continue;
    ASSERT_LE(std::fabs(found[i] - wanted[i]), bound)
        << "dim " << shape.dim << " heads " << shape.n_heads << " group " << shape.group
        << " tokens " << shape.n_tokens << " type " << int(shape.type) << " back " << shape.back
        << ", number " << i << ": " << found[i] << ", expected " << wanted[i];
  }
}

void check(const Shape& shape) {
  const auto matrices =
      zipcache::test::random_rotations({{shape.n_heads, shape.dim, shape.dim}}, 3).layers[0].k;
  const auto read = shape.back ? matrices : turned_over(matrices, shape.dim);
  const auto rows = zipcache::test::random_rows(int(shape.n_rows()), shape.dim, 11, 4.0f);
  if (shape.type == Number::F32)
    return expect_same(shape, run(shape, rows, read), expected(shape, rows, matrices));
  const std::vector<uint16_t> narrow = narrowed(rows, shape.type);
  const auto wanted = expected(shape, widened(narrow, shape.type), matrices);
  expect_same(shape, widened(run(shape, narrow, read), shape.type),
              widened(narrowed(wanted, shape.type), shape.type));
}

TEST_F(Rotate, TurnsRowsAsTheCpuDoes) {
  for (const int dim : {64, 128, 256}) {
    for (const int n_tokens : {1, 5, 33}) {
      for (const int group : {1, 3}) {
        check({.dim = dim, .n_heads = 3, .group = group, .n_tokens = n_tokens});
        check({.dim = dim, .group = group, .n_tokens = n_tokens, .back = true});
      }
    }
    // As many as the other kernel takes.
    check({.dim = dim, .n_heads = 3, .n_streams = 3, .n_tokens = 1001});
    check({.dim = dim, .n_heads = 2, .group = 2, .n_tokens = 1033, .back = true});
  }
}

TEST_F(Rotate, TypesOfNumbers) {
  for (const Number type : {Number::F16, Number::BF16}) {
    for (const bool back : {false, true}) check({.type = type, .back = back});
  }
}

TEST_F(Rotate, OnlyTheRowsThatCountInPlace) {
  for (const int n_tokens : {7, 3000}) {
    for (const bool in_place : {false, true}) {
      for (const Number type : {Number::F16, Number::F32})
        check({.n_tokens = n_tokens,
               .type = type,
               .back = in_place,
               .cut = true,
               .in_place = in_place});
    }
  }
}

TEST_F(Rotate, SaysWhatIsWrongWithArguments) {
  const auto message = [](const RotateArgs& args) { return rotate_rows(args, nullptr).message(); };
  RotateArgs args;
  EXPECT_NE(message(args).find("a head size that no kernel has"), std::string::npos);
  args.dim = 64;
  EXPECT_NE(message(args).find("a shape that no kernel has"), std::string::npos);
  args.n_heads = args.n_streams = args.n_tokens = 1;
  EXPECT_NE(message(args).find("null pointer among matrices"), std::string::npos);
}

}  // namespace
}  // namespace zipcache::cuda::test
