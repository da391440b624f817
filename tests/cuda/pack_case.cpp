#include "cuda/pack_case.hpp"

#include <fmt/format.h>

#include "base/random.hpp"
#include "cuda/row_matrix.hpp"
#include "support/block_rig.hpp"
#include "support/random_rows.hpp"

namespace zipcache::cuda::test {
namespace {

using zipcache::test::BlockRig;
using zipcache::test::random_rows;

// Rows [n_tokens, n_heads * dim].
std::vector<float> make_rows(const PackCase& test, int n_tokens, uint64_t seed) {
  const int width = test.n_heads * test.dim;
  std::vector<float> x = random_rows(n_tokens, width, seed);
  Random random(seed, 0xCA5E);
  for (int t = 0; t < n_tokens; ++t) {
    for (int i = 0; i < width; ++i) {
      float& value = x[size_t(t) * size_t(width) + size_t(i)];
      const int channel = i % test.dim;
      switch (test.kind) {
        case Kind::Normal:
          break;
        case Kind::Constant:
          if (channel % 4 == 0) value = float(channel);
          if (t % 8 == 3) value = -float(t);
          if (i / test.dim == 1) value = 0.3f;
          break;
        case Kind::Zeros:
          if (channel % 8 < 4) value = random.unit() < 0.5f ? 0.0f : -0.0f;
          if (channel % 8 == 4) value = std::fabs(value) * (random.unit() < 0.5f ? 0.0f : 1.0f);
          if (channel % 8 == 5) value = -std::fabs(value) * (random.unit() < 0.5f ? 0.0f : 1.0f);
          if (t % 8 == 3) value = random.unit() < 0.5f ? 0.0f : -0.0f;
          if (t % 8 == 5) value = std::fabs(value) * (random.unit() < 0.5f ? 0.0f : 1.0f);
          break;
        case Kind::Extreme:
          if (channel % 5 == 0) value = random.unit() < 0.5f ? kHalfMax : -kHalfMax;
          if (channel % 5 == 1) value *= 0x1p-20f;
          if (channel % 5 == 2) value *= 5000;
          if (t % 16 == 7) value *= 0x1p-22f;
          if (t % 16 == 9) value *= 1e4f;
          break;
      }
      value = to_float(finite_half(value));
    }
  }
  return x;
}

// What probes gave each token of each head, [head, token], and how many saw it.
struct Given {
  std::vector<float> sums;
  std::vector<uint32_t> seen;
};

Given make_scores(const PackCase& test, int n_tokens, uint64_t seed) {
  Random random(seed, 0x5C0E);
  Given given;
  for (int i = 0; i < test.n_heads * n_tokens; ++i)
    given.sums.push_back(std::floor(random.unit() * float(test.n_levels)) / float(test.n_levels));
  for (int t = 0; t < n_tokens; ++t) {
    const bool unseen =
        (test.unscored && t / kBlockTokens == n_tokens / kBlockTokens - 1) || t % 50 == 20;
    given.seen.push_back(test.by != By::SeenScores ? 1 : unseen ? 0 : 1 + random.below(9));
  }
  return given;
}

// What queries taught about rounding the keys of each head but the last of several.
void add_moments(const PackCase& test, const Policy& policy, BlockRig& rig, PackInput& input) {
  if (policy.k_rounding != Rounding::Query) return;
  for (int head = 0; head < test.n_heads; ++head) {
    QueryMoment& moment = rig.store.moments[size_t(head)];
    const bool taught = test.learnt && (head == 0 || head + 1 < test.n_heads);
    for (int step = 0; taught && step < 2; ++step) {
      const auto queries = random_rows(80, test.dim, 31 + uint64_t(head) + 7 * uint64_t(step));
      moment.learn(queries.data(), 80, test.dim);
    }
    input.learnt.push_back(taught);
    const auto feedback = feedback_for_pack(QueryRounding(moment).feedback());
    input.feedback.insert(input.feedback.end(), feedback.begin(), feedback.end());
  }
}

void add_stream(const PackCase& test, const Policy& policy, int s, PackInput& input,
                RecordSet& records) {
  BlockRig rig({test.n_heads, test.dim, test.dim}, policy, input.n_tokens);
  const auto k = make_rows(test, input.n_tokens, 11 + 2 * uint64_t(s)),
             v = make_rows(test, input.n_tokens, 12 + 2 * uint64_t(s));
  rig.append(input.n_tokens, k, v);
  if (rig.rotations) {
    input.k_matrices = turned_over(rig.rotations->k, test.dim);
    input.v_matrices = turned_over(rig.rotations->v, test.dim);
  }
  for (int row = 0; row < test.n_sinks; ++row) rig.log.mark_sink({rig.log.order()[0], row});
  const Given given = make_scores(test, input.n_tokens, 13 + uint64_t(s));
  const auto at = [&](int head, int token) {
    return size_t(head) * size_t(input.n_tokens) + size_t(token);
  };
  std::vector<int> slots;
  for (const int slot : rig.log.order()) {
    const int first = int(rig.log.block(slot).first);
    slots.push_back(slot);
    for (int row = 0; row < kBlockTokens && policy.needs_scores(); ++row) {
      uint8_t* raw = rig.store.block(slot).raw;
      for (int head = 0; head < test.n_heads; ++head)
        rig.store.raw.sums(raw, head)[row] = given.sums[at(head, first + row)];
      rig.store.raw.probes_seen(raw)[row] = given.seen[size_t(first + row)];
    }
  }
  add_moments(test, policy, rig, input);
  rig.pack();

  for (size_t i = 0; i < k.size(); i += size_t(test.dim)) {
    const size_t to = (size_t(s) * k.size() + i) / size_t(test.dim) * size_t(input.head_stride);
    for (size_t c = 0; c < size_t(test.dim); ++c) {
      input.k[to + c] = to_half(k[i + c]);
      input.v[to + c] = to_half(v[i + c]);
    }
  }
  const bool ranked = policy.tiers.size() > 1;
  if (ranked && test.by != By::Tiers)
    input.scores.insert(input.scores.end(), given.sums.begin(), given.sums.end());
  if (ranked && test.by == By::SeenScores)
    input.seen.insert(input.seen.end(), given.seen.begin(), given.seen.end());
  std::vector<uint8_t> tiers(given.sums.size(), kNoRow);
  for (size_t b = 0; b < slots.size(); ++b) {
    const StoredBlock& stored = rig.store.block(slots[b]);
    const uint32_t first = uint32_t(rig.log.block(slots[b]).first);
    const bool scored = !test.unscored || b + 1 < slots.size();
    PackTask& task = input.tasks.emplace_back(pack_task(policy, b, stored.sinks, scored));
    task.stream = s;
    task.record = int(b);
    task.row = int(first);
    for (int head = 0; head < test.n_heads; ++head) {
      const PackedHead packed = rig.store.head(slots[b], head);
      for (int row = 0; row < kBlockTokens && ranked; ++row) {
        if (!stored.sinks.test(size_t(row)))
          tiers[at(head, int(first) + row)] = uint8_t(packed.tier_of(row));
      }
      const auto layout = RecordLayout::create({test.n_heads, test.dim, test.dim}, policy);
      records.add_packed(s, head, *layout, packed, stored.sinks, first);
    }
  }
  if (ranked && test.by == By::Tiers)
    input.tiers.insert(input.tiers.end(), tiers.begin(), tiers.end());
}

size_t bytes_of(const Record& record, const uint8_t* bytes) {
  size_t columns = 0;
  for (int t = 0; t < (bytes[offsetof(TierHeader, tiers_and_form)] & kTierMask); ++t) {
    TierHeader header;
    std::memcpy(&header, bytes + size_t(t) * sizeof header, sizeof header);
    columns += size_t(units_of(header.count)) * kUnitTokens;
  }
  return size_t(record.size) * 16 + columns;
}

}  // namespace

PackInput make_pack_input(const PackCase& test) {
  const auto policy = parse_policy(test.policy);
  if (!policy.ok()) throw std::runtime_error(policy.status().message());
  const auto form = pack_form({test.n_heads, test.dim, test.dim}, *policy);
  if (!form.ok()) throw std::runtime_error(form.status().message());
  PackInput input;
  input.form = *form;
  input.dim = test.dim;
  input.n_heads = test.n_heads;
  input.n_streams = test.n_streams;
  input.n_tokens = test.n_blocks * kBlockTokens;
  input.record_stride = test.n_blocks + 1;
  input.head_stride = test.gaps ? test.dim + 24 : test.dim;
  input.k.resize(size_t(test.n_streams) * size_t(input.n_tokens) * size_t(test.n_heads) *
                 size_t(input.head_stride));
  input.v = input.k;
  RecordSet records(test.dim, test.n_streams, test.n_heads, input.record_stride);
  for (int s = 0; s < test.n_streams; ++s) add_stream(test, *policy, s, input, records);
  input.records.assign(records.records().begin(), records.records().end());
  input.expected.assign(records.pool().size(), kUntouched);
  for (const Record& record : input.records) {
    if (record.size == 0) continue;
    const uint8_t* from = records.bytes(record);
    std::copy_n(from, bytes_of(record, from), input.expected.begin() + ptrdiff_t(record.at) * 16);
  }
  return input;
}

PackArgs args_of(const PackInput& input) {
  PackArgs args;
  args.form = input.form;
  args.n_heads = input.n_heads;
  const int64_t token = input.n_heads * input.head_stride, stream = token * input.n_tokens;
  args.k = {input.k.data(), stream, token, input.head_stride};
  args.v = {input.v.data(), stream, token, input.head_stride};
  const int64_t all_heads = int64_t{input.n_heads} * input.n_tokens;
  if (!input.tiers.empty()) args.tiers = {input.tiers.data(), all_heads, input.n_tokens};
  if (!input.scores.empty()) args.scores = {input.scores.data(), all_heads, input.n_tokens};
  if (!input.learnt.empty())
    args.feedback = input.feedback.data(), args.learnt = input.learnt.data();
  if (!input.k_matrices.empty())
    args.k_matrices = input.k_matrices.data(), args.v_matrices = input.v_matrices.data();
  if (!input.seen.empty()) args.seen = {input.seen.data(), input.n_tokens, 0};
  args.tasks = input.tasks.data();
  args.n_tasks = int(input.tasks.size());
  args.records = input.records.data();
  args.record_stride = input.record_stride;
  return args;
}

std::string difference(const PackInput& input, const std::vector<uint8_t>& pool) {
  if (pool.size() != input.expected.size())
    return fmt::format("{} bytes, expected {}", pool.size(), input.expected.size());
  const auto [found, expected] = std::mismatch(pool.begin(), pool.end(), input.expected.begin());
  if (found == pool.end()) return {};
  const size_t at = size_t(found - pool.begin());
  size_t list = 0;
  for (size_t i = 0; i < input.records.size(); ++i) {
    if (input.records[i].size > 0 && size_t(input.records[i].at) * 16 <= at &&
        input.records[i].at >= input.records[list].at)
      list = i;
  }
  return fmt::format("record {}, byte {} of {}: found {:#04x}, expected {:#04x}", list,
                     at - size_t(input.records[list].at) * 16, input.records[list].size * 16,
                     *found, *expected);
}

std::string describe(const PackCase& test) {
  return fmt::format("{} dim {} heads {} streams {} kind {} by {} levels {} sinks {}", test.policy,
                     test.dim, test.n_heads, test.n_streams, int(test.kind), int(test.by),
                     test.n_levels, test.n_sinks);
}

}  // namespace zipcache::cuda::test
