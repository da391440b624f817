// What a GPU learns of queries beside what the CPU does: the same bits.
#include "cuda/query_moments.hpp"

#include "codec/query_rounding.hpp"
#include "cuda/gpu.hpp"
#include "cuda/pack_form.hpp"
#include "cuda/row_matrix.hpp"
#include "support/random_rows.hpp"

namespace zipcache::cuda::test {
namespace {

constexpr int kHeads = 2, kGroup = 3, kStreams = 2;
constexpr float kScale = 0.11f;

struct Heads {
  int dim;
  Rotation rotation;
  std::vector<float> matrices;  // [kHeads, dim, dim]
  std::vector<QueryMoment> of;  // [kStreams, kHeads]

  Heads(int dim_of, Rotation rotated)
      : dim(dim_of),
        rotation(rotated),
        matrices(zipcache::test::random_rotations({{kHeads, dim_of, dim_of}}).layers[0].k),
        of(size_t(kStreams * kHeads), QueryMoment(dim_of)) {}

  // As the CPU's engine does with queries [stream, most, query head, dim].
  void learn(const std::vector<half>& q, int most, const std::vector<int32_t>& counts) {
    for (int s = 0; s < kStreams; ++s) {
      const int n = counts[size_t(s)], stride = std::max(1, n * kGroup / kMomentMostRows);
      for (int head = 0; head < kHeads && n > 0; ++head) {
        std::vector<float> rows;
        for (int token = 0; token < n; token += stride) {
          const size_t first = size_t(((s * most + token) * kHeads + head) * kGroup * dim);
          for (size_t i = 0; i < size_t(kGroup * dim); ++i)
            rows.push_back(to_float(q[first + i]) * kScale);
        }
        const int n_rows = int(rows.size()) / dim;
        const HeadRotation turning(rotation, &matrices[size_t(head * dim * dim)]);
        turning.turn(rows.data(), n_rows, dim, dim);
        of[size_t(s * kHeads + head)].learn(rows.data(), n_rows, dim);
      }
    }
  }
};

class Moments : public OnGpu {
 protected:
  // Deviations, then correlations, as QueryMoment saves them.
  static std::string bytes_of(const MomentGroup* groups, int n_groups) {
    std::string deviations, correlations;
    for (int g = 0; g < n_groups; ++g) {
      append_numbers(deviations, groups[g].deviation, size_t(kFeedbackGroup));
      append_numbers(correlations, groups[g].correlation, size_t(kMomentPairs));
    }
    return deviations + correlations;
  }

  static void expect_same(const Heads& heads, const std::vector<MomentGroup>& found,
                          const std::vector<float>& feedback, const std::vector<uint32_t>& learnt) {
    const int n_groups = heads.dim / kFeedbackGroup;
    for (size_t list = 0; list < heads.of.size(); ++list) {
      SCOPED_TRACE(::testing::Message() << "dim " << heads.dim << " list " << list);
      const QueryMoment& expected = heads.of[list];
      std::string saved;
      expected.save(saved);
      EXPECT_EQ(bytes_of(&found[list * size_t(n_groups)], n_groups), saved.substr(4));
      EXPECT_EQ(learnt[list] > 0, expected.known());
      if (!expected.known()) continue;
      const auto coefficients = feedback_for_pack(QueryRounding(expected).feedback());
      const auto begin = feedback.begin() + ptrdiff_t(list * coefficients.size());
      EXPECT_TRUE(std::equal(coefficients.begin(), coefficients.end(), begin));
    }
  }
};

TEST_F(Moments, AreTheCpus) {
  for (const int dim : {64, 128, 256}) {
    for (const Rotation rotation : {Rotation::None, Rotation::Hadamard, Rotation::File}) {
      Heads heads(dim, rotation);
      const Buffer<float> matrices(turned_over(heads.matrices, dim));
      const int n_groups = dim / kFeedbackGroup, most = 300;
      const size_t lists = size_t(kStreams * kHeads);
      const Buffer<MomentGroup> moments(lists * size_t(n_groups));
      must(cudaMemset(moments.get(), 0, lists * size_t(n_groups) * sizeof(MomentGroup)));
      const Buffer<float> feedback(lists * size_t(feedback_floats(dim)));
      must(cudaMemset(feedback.get(), 0, lists * size_t(feedback_floats(dim)) * sizeof(float)));
      const Buffer<uint32_t> learnt(lists);
      for (const auto& counts : std::vector<std::vector<int32_t>>{{30, 0}, {300, 0}, {77, 200}}) {
        auto rows = zipcache::test::random_rows(kStreams * most, kHeads * kGroup * dim,
                                                uint64_t(counts[0]));
        if (counts[1] == 200) rows[0] = 1e30f;  // teaches the first stream's first head nothing
        const std::vector<half> q = zipcache::test::to_halves(rows);
        const Buffer<half> queries(q);
        const Buffer<int32_t> n(counts);
        heads.learn(q, most, counts);
        LearnArgs args;
        args.dim = dim, args.n_heads = kHeads, args.group = kGroup, args.n_streams = kStreams;
        const int64_t token = int64_t{kHeads} * kGroup * dim;
        args.q = {queries.get(), most * token, token, dim};
        args.counts = n.get();
        args.most_rows = kMomentMostRows;
        args.scale = kScale;
        args.hadamard = rotation == Rotation::Hadamard;
        if (rotation == Rotation::File) args.matrices = matrices.get();
        args.moments = moments.get();
        ASSERT_TRUE(learn_queries(args, nullptr).ok());
        ASSERT_TRUE(make_feedback(moments.get(), dim, kHeads, kStreams, feedback.get(),
                                  learnt.get(), nullptr)
                        .ok());
        must(cudaDeviceSynchronize());
        expect_same(heads, moments.read(), feedback.read(), learnt.read());
      }
    }
  }
}

TEST_F(Moments, ShapesThatNoKernelHasAreRefused) {
  EXPECT_EQ(learn_queries({}, nullptr).code(), Code::BadArgument);
  EXPECT_EQ(make_feedback(nullptr, 96, 1, 1, nullptr, nullptr, nullptr).code(), Code::BadArgument);
}

}  // namespace
}  // namespace zipcache::cuda::test
