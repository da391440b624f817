// Calls of kernels, and the data they work on.
#include "codec/kernel_work.hpp"

#include <fmt/format.h>

#include <cmath>
#include <memory>
#include <random>
#include <utility>

namespace zipcache::bench {

namespace {

constexpr int kTokens = 128;
constexpr int kDims[] = {64, 128};
constexpr int kRowCounts[] = {1, 3, kMaxRows};
constexpr int kBits[] = {2, 3, 4, 8};

std::vector<float> random_numbers(size_t n) {
  std::mt19937_64 engine(1);
  std::normal_distribution<float> normal;
  std::vector<float> out(n);
  for (float& x : out) x = normal(engine);
  return out;
}

// The codes of one block of one head: keys in lanes of tokens, values in lanes of channels. Not
// copied: the part points into it.
struct Block {
  TileShape shape;
  std::vector<uint8_t> codes;
  std::vector<half> params;
  CodePart part;

  Block(Lanes lanes, int bits, int dim) {
    shape = {kTokens, dim, bits, lanes == Lanes::Tokens ? Axis::Channel : Axis::Token, 0, lanes};
    codes.resize(code_bytes(shape));
    params.resize(2 * size_t(n_sets(shape)));
    const auto x = random_numbers(size_t(kTokens) * size_t(dim));
    encode_tile(shape, Fit::Endpoint, x.data(), codes.data(), params.data());
    part = part_of({shape, codes.data(), params.data(), nullptr}, 0).part;
  }
  Block(const Block&) = delete;
  Block& operator=(const Block&) = delete;
  size_t n_codes() const { return size_t(shape.n_tokens) * size_t(shape.dim); }
  size_t bytes() const { return codes.size() + params.size() * sizeof(half); }
};

struct NamedWeighting {
  Weighting weighting;
  const char* name;
  Lanes lanes;  // where attention uses it
};
constexpr NamedWeighting kWeightings[] = {
    {Weighting::Words, "words", Lanes::Tokens},
    {Weighting::SignedBytes, "signed", Lanes::Tokens},
    {Weighting::UnsignedBytes, "unsigned", Lanes::Channels},
};

class Works {
 public:
  explicit Works(const Kernels& kernels) : k_(kernels) {}

  void add_products() {
    for (const NamedWeighting& w : kWeightings)
      for (const int bits : kBits)
        for (const int n : kRowCounts)
          for (const int dim : kDims) {
            if (bits == 8 && w.weighting != Weighting::Words) continue;
            add_products(w, bits, n, dim);
          }
  }

  void add_fold() {
    for (const NamedWeighting& w : kWeightings)
      for (const int n : kRowCounts)
        for (const int dim : kDims) {
          const auto block = std::make_shared<Block>(w.lanes, 4, dim);
          const Numbers x = columns_for(w.weighting, *block, n);
          const auto rows = std::make_shared<std::vector<FoldedRow>>(size_t(n));
          add(fmt::format("fold/{}/rows{}/d{}", w.name, n, dim), x->size(),
              x->size() * sizeof(float), [=, &k = k_] {
                k.fold(block->part, w.weighting, x->data(), block->shape.n_columns(), n,
                       rows->data());
              });
        }
  }

  void add_expand() {
    for (const int bits : kBits)
      for (const int dim : kDims) {
        const auto block = std::make_shared<Block>(Lanes::Tokens, bits, dim);
        const auto out = numbers(block->n_codes());
        add(fmt::format("expand/{}bit/d{}", bits, dim), block->n_codes(), block->bytes(),
            [=, &k = k_] { k.expand(block->part, out->data(), kTokens); });
      }
  }

  void add_rows() {
    const Numbers row = numbers(kTokens);
    // exp(x - 2) of these numbers stays near 0.2 however often it is taken.
    add("exp_row", kTokens, kTokens * sizeof(float),
        [=, &k = k_] { k.exp_row(row->data(), kTokens, 2); });
    for (const int n : kRowCounts) {
      const Numbers scores = numbers(size_t(n * kTokens));
      const auto peak = std::make_shared<std::vector<float>>(size_t(n), -INFINITY);
      const Numbers mass = numbers(size_t(n)), rescale = numbers(size_t(n));
      add(fmt::format("softmax/rows{}", n), scores->size(), scores->size() * sizeof(float),
          [=, &k = k_] {
            k.softmax(scores->data(), n, kTokens, kTokens, peak->data(), mass->data(),
                      rescale->data());
          });
    }
  }

  void add_half_dots() {
    for_half_rows([this](const std::string& variant, int n, int dim, const Halves& keys) {
      const Numbers queries = numbers(size_t(n * dim)), scores = numbers(size_t(n * kTokens));
      add("half_dots/" + variant, keys->size(), keys->size() * sizeof(half), [=, &k = k_] {
        k.half_dots(n, kTokens, dim, queries->data(), dim, keys->data(), scores->data(), kTokens);
      });
    });
  }

  void add_half_sums() {
    for_half_rows([this](const std::string& variant, int n, int dim, const Halves& values) {
      const Numbers weights = numbers(size_t(n * kTokens)), sums = numbers(size_t(n * dim));
      add("half_sums/" + variant, values->size(), values->size() * sizeof(half), [=, &k = k_] {
        k.half_sums(n, kTokens, dim, weights->data(), kTokens, values->data(), sums->data(), dim);
      });
    });
  }

  void add_gemm() {
    for (const int dim : kDims) {
      constexpr int kQueries = 32;
      const auto a = numbers(size_t(kQueries * dim)), b = numbers(size_t(dim * kTokens)),
                 c = numbers(size_t(kQueries * kTokens));
      add(fmt::format("gemm/{}x{}x{}", kQueries, kTokens, dim), size_t(kQueries * kTokens * dim),
          (a->size() + b->size()) * sizeof(float), [=, &k = k_] {
            k.gemm(kQueries, kTokens, dim, a->data(), dim, b->data(), kTokens, c->data(), kTokens,
                   false);
          });
    }
  }

  void add_search_sets() {
    for (const int bits : kBits)
      for (const Fit fit : {Fit::Endpoint, Fit::Unbiased}) {
        const Numbers x = numbers(size_t(kTokens * kUnitRows));
        const auto found = std::make_shared<SetSearch>();
        add(fmt::format("search_sets/{}bit{}", bits, clips(fit) ? "/unbiased" : ""), x->size(),
            x->size() * sizeof(float), [=, &k = k_] {
              k.search_sets({x->data(), kTokens, kUnitRows, bits, fit}, *found);
            });
      }
  }

  void add_encode() {
    for (const int bits : kBits)
      for (const int dim : kDims) add_encode(bits, dim);
  }

  std::vector<KernelWork> take() { return std::move(works_); }

 private:
  using Numbers = std::shared_ptr<std::vector<float>>;
  using Halves = std::shared_ptr<std::vector<half>>;

  static Numbers numbers(size_t n) {
    return std::make_shared<std::vector<float>>(random_numbers(n));
  }

  // Calls add_one(variant, query rows, channels, 16-bit rows [kTokens, channels]).
  template <class AddOne>
  static void for_half_rows(AddOne&& add_one) {
    for (const int n : kRowCounts)
      for (const int dim : kDims) {
        const auto rows = std::make_shared<std::vector<half>>();
        for (const float x : random_numbers(size_t(kTokens * dim))) rows->push_back(to_half(x));
        add_one(fmt::format("rows{}/d{}", n, dim), n, dim, rows);
      }
  }

  // Rows that are multiplied with the block's columns.
  static Numbers columns_for(Weighting weighting, const Block& block, int n) {
    const Numbers x = numbers(size_t(n) * size_t(block.shape.n_columns()));
    if (weighting == Weighting::UnsignedBytes)
      for (float& value : *x) value = std::fabs(value);
    return x;
  }

  void add(const std::string& name, size_t items, size_t bytes, std::function<void()> call) {
    works_.push_back({fmt::format("{}/{}", name, k_.name), items, bytes, std::move(call)});
  }

  void add_products(const NamedWeighting& w, int bits, int n, int dim) {
    const auto block = std::make_shared<Block>(w.lanes, bits, dim);
    const Numbers x = columns_for(w.weighting, *block, n);
    const auto rows = std::make_shared<std::vector<FoldedRow>>(size_t(n));
    k_.fold(block->part, w.weighting, x->data(), block->shape.n_columns(), n, rows->data());
    const int ld = padded_to(block->shape.n_rows(), kUnitRows);
    const Numbers out = numbers(size_t(n * ld));
    add(fmt::format("products/{}bit/{}/rows{}/d{}", bits, w.name, n, dim), block->n_codes(),
        block->bytes(), [=, &k = k_] {
          k.products(block->part, w.weighting, rows->data(), n, out->data(), ld, false,
                     block->codes.data());
        });
  }

  void add_encode(int bits, int dim) {
    const auto block = std::make_shared<Block>(Lanes::Tokens, bits, dim);
    const Numbers x = numbers(block->n_codes()), inverses = numbers(size_t(dim)),
                  floors = numbers(size_t(dim));
    add(fmt::format("encode/{}bit/d{}", bits, dim), block->n_codes(), x->size() * sizeof(float),
        [=, &k = k_] {
          k.encode({x->data(), kTokens, kTokens, dim, bits, true, inverses->data(), floors->data()},
                   block->codes.data(), block->shape.unit_bytes());
        });
  }

  const Kernels& k_;
  std::vector<KernelWork> works_;
};

}  // namespace

std::vector<KernelWork> kernel_work(const Kernels& kernels) {
  Works works(kernels);
  works.add_products();
  works.add_fold();
  works.add_expand();
  works.add_rows();
  works.add_half_dots();
  works.add_half_sums();
  works.add_gemm();
  works.add_search_sets();
  works.add_encode();
  return works.take();
}

}  // namespace zipcache::bench
