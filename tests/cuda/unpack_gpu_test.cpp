// Rows that a GPU makes of records are what the host decodes them to.
#include "cuda/unpack.hpp"

#include <algorithm>
#include <cmath>

#include "cuda/gpu.hpp"
#include "support/random_rows.hpp"
#include "transform/hadamard.hpp"

namespace zipcache::cuda::test {
namespace {

class Unpack : public OnGpu {};

constexpr half kUnwritten = 0xFFFF;

// Rows of both sides on the device, [stream, head, n_rows, dim], and the records they are made of.
class Unpacked {
 public:
  Unpacked(const RecordSet& set, const RecordLayout& layout, bool k_hadamard, bool v_hadamard,
           int n_streams, int n_heads, int n_rows)
      : set_(set),
        layout_(layout),
        n_heads_(n_heads),
        n_rows_(n_rows),
        stride_(set.records().size() / size_t(n_streams * n_heads)),
        entries_(set.records().begin(), set.records().end()),
        pool_(set.pool()),
        n_numbers_(size_t(n_streams) * size_t(n_heads * n_rows * layout.dim())),
        k_(n_numbers_),
        v_(n_numbers_),
        hadamard_{k_hadamard, v_hadamard} {}

  // The last record of each list of a stream has fewer tokens than its header says.
  void cut(int stream, int n_fewer) {
    const int last = set_.counts()[size_t(stream)].all() - 1;
    for (int head = 0; head < n_heads_; ++head)
      entry(stream, head, last).tokens -= uint32_t(n_fewer);
  }

  void expect_right(const std::string& text) {
    const std::vector<StreamRecords> counts = set_.counts();
    std::vector<std::span<const Record>> first_heads;
    for (size_t s = 0; s < counts.size(); ++s)
      first_heads.push_back(
          std::span(entries_).subspan(s * size_t(n_heads_) * stride_, size_t(counts[s].all())));
    const PastPieces pieces = plan_past(first_heads, n_rows_);
    int first = 0;
    for (const int end : pieces.ends) {
      const auto tasks = std::span(pieces.tasks).subspan(size_t(first), size_t(end - first));
      run(tasks);
      first = end;
      if (::testing::Test::HasFatalFailure()) return;
      expect_rows(tasks, text);
    }
  }

 private:
  Record& entry(int stream, int head, int index) {
    return entries_[(size_t(stream) * size_t(n_heads_) + size_t(head)) * stride_ + size_t(index)];
  }

  void run(std::span<const UnpackTask> tasks) {
    const Buffer<UnpackTask> device_tasks(tasks);
    const Buffer<Record> records(entries_);
    for (const Buffer<half>* rows : {&k_, &v_})
      must(cudaMemset(rows->get(), 0xFF, n_numbers_ * sizeof(half)));
    UnpackArgs args;
    args.form = layout_.form();
    args.k_hadamard = hadamard_[0], args.v_hadamard = hadamard_[1];
    args.n_heads = n_heads_;
    args.pool = pool_.get();
    args.records = records.get(), args.record_stride = int(stride_);
    args.tasks = device_tasks.get(), args.n_tasks = int(tasks.size());
    args.k = k_.get(), args.v = v_.get(), args.n_rows = n_rows_;
    const Status status = unpack_records(args, nullptr);
    ASSERT_TRUE(status.ok()) << status.message();
    ASSERT_EQ(cudaDeviceSynchronize(), cudaSuccess);
  }

  // Rows of the tasks as they should be, all others untouched.
  void expect_rows(std::span<const UnpackTask> tasks, const std::string& text) {
    const std::vector<half> found[2] = {k_.read(), v_.read()};
    std::vector<bool> written(n_numbers_);
    for (const UnpackTask& task : tasks) {
      for (int head = 0; head < n_heads_; ++head) {
        const Record& record = entry(task.stream, head, task.record);
        std::vector<float> rows[2];
        decode_record(layout_.form(), set_.bytes(record), rows[0], rows[1]);
        const int dim = layout_.dim();
        const size_t at =
            ((size_t(task.stream) * size_t(n_heads_) + size_t(head)) * size_t(n_rows_) +
             size_t(task.row)) *
            size_t(dim);
        std::fill_n(written.begin() + ptrdiff_t(at), int(record.tokens) * dim, true);
        for (int side = 0; side < 2; ++side) {
          rows[side].resize(size_t(record.tokens) * size_t(dim));
          const double error = error_of(&found[side][at], rows[side], side);
          ASSERT_LE(error, 1.0) << text << (side == 0 ? " K" : " V") << ", stream " << task.stream
                                << " head " << head << " record " << task.record;
        }
      }
    }
    for (size_t i = 0; i < n_numbers_; ++i) {
      if (written[i]) continue;
      ASSERT_EQ(found[0][i], kUnwritten) << text << ", number " << i;
      ASSERT_EQ(found[1][i], kUnwritten) << text << ", number " << i;
    }
  }

  // The largest error as a share of what it may be; infinity for what is no number. A number passes
  // through at most 5 + rank roundings to 16 bits, half a unit of the largest number each. Turning
  // a row back adds the errors of its numbers up to the root of dim times the largest.
  double error_of(const half* found, std::vector<float> expected, int side) const {
    const int dim = layout_.dim(), n = int(expected.size()) / dim;
    const SideForm& form = side == 0 ? layout_.form().k : layout_.form().v;
    double largest = 1e-5;
    for (const float x : expected) largest = std::max(largest, double(std::fabs(x)));
    double bound = (5 + form.rank) * largest / 2048;
    if (hadamard_[side]) {
      hadamard(expected.data(), n, dim, dim);
      bound *= std::sqrt(double(dim));
    }
    double worst = 0;
    for (size_t i = 0; i < expected.size(); ++i) {
      const double off = std::fabs(double(to_float(found[i])) - double(expected[i]));
      if (!(off <= worst * bound)) worst = std::isnan(off) ? INFINITY : off / bound;
    }
    return worst;
  }

  const RecordSet& set_;
  const RecordLayout& layout_;
  int n_heads_, n_rows_;
  size_t stride_;
  std::vector<Record> entries_;  // as set_ has them, or cut
  Buffer<uint8_t> pool_;
  size_t n_numbers_;
  Buffer<half> k_, v_;
  bool hadamard_[2];
};

void expect_right(const Case& test, int n_rows, int n_cut = 0) {
  const std::string text = test.policy + ", dim " + std::to_string(test.dim);
  try {
    const Policy policy = *parse_policy(test.policy);
    const auto layout = RecordLayout::create({test.n_heads, test.dim, test.dim}, policy);
    ASSERT_TRUE(layout.ok()) << text << ": " << layout.status().message();
    const RecordSet set = records_of(test);
    Unpacked unpacked(set, *layout, policy.k.rotation == Rotation::Hadamard,
                      policy.v.rotation == Rotation::Hadamard, int(test.lengths.size()),
                      test.n_heads, n_rows);
    if (n_cut > 0) unpacked.cut(0, n_cut);
    unpacked.expect_right(text);
  } catch (const std::exception& thrown) {
    ADD_FAILURE() << text << ": " << thrown.what();
    cudaGetLastError();
  }
}

const std::vector<int> kRagged = {300, 0, 37, 513};

TEST_F(Unpack, EveryPolicyThatRecordsHold) {
  for (const PolicyRow& row : policy_rows()) {
    const std::string policy = std::string(row.name) + ",score=random";
    const Result<Policy> parsed = parse_policy(policy);
    if (!parsed.ok() || !RecordLayout::create({2, 128, 128}, *parsed).ok()) continue;
    for (const int dim : {64, 128, 256})
      expect_right({.policy = policy, .dim = dim, .lengths = {270, 130}}, 1024);
  }
}

TEST_F(Unpack, WidthsAndTiers) {
  for (const char* policy :
       {"uniform4,bits=8", "uniform3", "zipcache,k=16/2,v=16/3,score=random",
        "zip,bits=8/3/2,ratio=0.3/0.4,score=random",
        "zipcache,bits=16/8/4/2,ratio=0.1/0.2/0.3,score=random",
        "zipcache,bits=4/0,ratio=0.5,score=random",  // the others evicted
        "zipcache,k=4/4/2,v=4/2/2,ratio=0.3/0.3,score=random", "uniform4,k_axis=token",
        "had4,v_axis=token", "uniform4,k_rotate=hadamard", "uniform4,v_rotate=hadamard",
        "kivi2,k_axis=channel48,bits=4/2,ratio=0.3,score=random",
        "kivi4,v_axis=channel32,k_axis=token,rank=3",
        "sym4,k_axis=channel128,v_axis=channel32,bits=8/3,ratio=0.5,score=random",
        "turbo-k4v4,bits=4/3/2,ratio=0.3/0.3,codec=lloyd,score=random",
        "fp8,k_axis=token,v_axis=cst", "nvfp4,k_axis=channel16,v_axis=token"}) {
    for (const int dim : {64, 128, 256})
      expect_right({.policy = policy, .dim = dim, .lengths = kRagged}, 1024);
  }
}

TEST_F(Unpack, PiecesOfThePast) {
  for (const char* policy : {"uniform4,recent=0", "zip,score=random,sinks=5"}) {
    for (const int n_rows : {128, 130, 256, 400}) {
      expect_right({.policy = policy, .n_heads = 1, .lengths = kRagged}, n_rows);
      expect_right({.policy = policy, .n_heads = 3, .lengths = {2000}}, n_rows);
    }
  }
}

TEST_F(Unpack, StreamsThatWereCut) {
  for (const int n_cut : {1, 7, 12})
    expect_right({.policy = "had4,sinks=3", .lengths = kRagged}, 512, n_cut);
}

TEST_F(Unpack, SaysWhatIsWrongWithArguments) {
  const auto message = [](const UnpackArgs& args) {
    return unpack_records(args, nullptr).message();
  };
  UnpackArgs args;
  EXPECT_NE(message(args).find("dim = 0"), std::string::npos);
  args.form.dim = 64;
  EXPECT_NE(message(args).find("n_heads = 0"), std::string::npos);
  args.n_heads = 1;
  EXPECT_NE(message(args).find("n_tasks = 0"), std::string::npos);
  args.n_tasks = 1;
  EXPECT_NE(message(args).find("n_rows = 0"), std::string::npos);
  args.n_rows = 128;
  EXPECT_NE(message(args).find("null pointer among pool"), std::string::npos);
}

}  // namespace
}  // namespace zipcache::cuda::test
