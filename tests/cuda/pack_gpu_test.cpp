// Records that a GPU makes are the CPU's byte for byte.
#include "cuda/gpu.hpp"
#include "cuda/pack_case.hpp"

namespace zipcache::cuda::test {
namespace {

class Pack : public OnGpu {};

// The pool and the number of records that were not written.
struct Outcome {
  std::vector<uint8_t> pool;
  uint32_t n_wrong;
};

Outcome pack(const PackInput& input) {
  const Buffer<half> k(input.k), v(input.v);
  const Buffer<float> scores(input.scores);
  const Buffer<uint32_t> seen(input.seen), learnt(input.learnt);
  const Buffer<float> feedback(input.feedback);
  const Buffer<float> k_matrices(input.k_matrices), v_matrices(input.v_matrices);
  const Buffer<uint8_t> tiers(input.tiers);
  const Buffer<PackTask> tasks(input.tasks);
  const Buffer<Record> records(input.records);
  const Buffer<uint8_t> pool(input.expected.size());
  const Buffer<uint32_t> n_wrong(1);
  must(cudaMemset(pool.get(), kUntouched, input.expected.size()));
  must(cudaMemset(n_wrong.get(), 0, sizeof(uint32_t)));
  PackArgs args = args_of(input);
  args.k.data = k.get();
  args.v.data = v.get();
  if (args.scores.data) args.scores.data = scores.get();
  if (args.seen.data) args.seen.data = seen.get();
  if (args.learnt) args.feedback = feedback.get(), args.learnt = learnt.get();
  if (args.k_matrices) args.k_matrices = k_matrices.get(), args.v_matrices = v_matrices.get();
  if (args.tiers.data) args.tiers.data = tiers.get();
  args.tasks = tasks.get();
  args.records = records.get();
  args.pool = pool.get();
  args.n_wrong = n_wrong.get();
  const Status status = pack_records(args, nullptr);
  if (!status.ok()) throw std::runtime_error(status.message());
  must(cudaDeviceSynchronize());
  return {pool.read(), n_wrong.read()[0]};
}

void expect_same(const PackCase& test) {
  try {
    const PackInput input = make_pack_input(test);
    const Outcome outcome = pack(input);
    EXPECT_EQ(outcome.n_wrong, 0u) << describe(test);
    EXPECT_EQ(difference(input, outcome.pool), "") << describe(test);
  } catch (const std::exception& thrown) {
    ADD_FAILURE() << describe(test) << ": " << thrown.what();
    cudaGetLastError();
  }
}

TEST_F(Pack, EveryPolicyAndHeadSize) {
  for (const char* policy : kPackPolicies) {
    for (const int dim : {64, 128, 256}) expect_same({.policy = policy, .dim = dim, .n_heads = 3});
  }
}

TEST_F(Pack, RowsThatStressIt) {
  for (const char* policy : kPackPolicies) {
    for (const Kind kind : {Kind::Constant, Kind::Zeros, Kind::Extreme}) {
      for (const int dim : {64, 128, 256})
        expect_same({.policy = policy, .dim = dim, .kind = kind, .n_sinks = 3});
    }
  }
}

TEST_F(Pack, TiersByScoresWithTies) {
  for (const int n_levels : {1, 3, 20}) {
    expect_same({.n_levels = n_levels});
    expect_same({.n_blocks = 3, .by = By::SeenScores, .n_levels = n_levels, .unscored = true});
  }
}

TEST_F(Pack, TiersThatAreGiven) {
  for (const char* policy : {"zipcache", "zipcache,bits=16/8/4/2,ratio=0.1/0.2/0.3"})
    expect_same({.policy = policy, .by = By::Tiers});
}

TEST_F(Pack, LeavesSinksOut) {
  for (const int n_sinks : {1, 4, 100, 127, 128}) {
    for (const char* policy : {"zipcache", "had4", "kvarn-k4v2", "qserve4", "mikv", "nvfp4"})
      expect_same({.policy = policy, .n_sinks = n_sinks});
  }
}

TEST_F(Pack, ManyBlocksOfManyStreams) {
  expect_same({.n_heads = 8, .n_streams = 4, .n_blocks = 12, .gaps = true});
  expect_same({.policy = "had4", .n_heads = 8, .n_streams = 4, .n_blocks = 12});
}

TEST_F(Pack, WritesNothingWhereTheEntryIsOfAnotherSize) {
  for (const char* policy : {"zipcache", "zipcache,k_axis=channel32", "mikv"}) {
    PackInput input =
        make_pack_input({.policy = policy, .n_heads = 2, .n_blocks = 1, .by = By::Tiers});
    for (int row = 0; row < 40; ++row) input.tiers[size_t(row)] = 0;  // of the first head
    for (int row = 0; row < 3; ++row) input.tiers[size_t(kBlockTokens + row)] = 9;
    const Outcome outcome = pack(input);
    EXPECT_EQ(outcome.n_wrong, 2u) << policy;
    EXPECT_EQ(outcome.pool, std::vector<uint8_t>(outcome.pool.size(), kUntouched)) << policy;
  }
}

TEST_F(Pack, SaysWhatIsWrongWithArguments) {
  const PackInput input = make_pack_input({.n_blocks = 1});
  const auto message = [](const PackArgs& args) { return pack_records(args, nullptr).message(); };
  PackArgs args = args_of(input);
  EXPECT_NE(message(args).find("null pointer among tasks, pool"), std::string::npos);
  args.k.token_stride += 4;
  EXPECT_NE(message(args).find("k rows with a stride"), std::string::npos);
  args = args_of(input);
  args.scores.data = nullptr;
  uint8_t byte = 0;
  args.pool = &byte;
  EXPECT_NE(message(args).find("tiers and scores"), std::string::npos);
  args.form.k_by_matrix = true;
  EXPECT_NE(message(args).find("found no matrices"), std::string::npos);
  args.form.record.dim = 96;
  EXPECT_NE(message(args).find("dim = 96"), std::string::npos);
}

}  // namespace
}  // namespace zipcache::cuda::test
