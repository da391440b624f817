#include "cuda/gpu.hpp"

#include <cmath>
#include <cstring>

#include "support/oracle.hpp"
#include "support/random_rows.hpp"

namespace zipcache::cuda::test {
namespace {

using zipcache::test::BlockRig;
using zipcache::test::OracleStep;

std::vector<float> times(std::vector<float> x, float size) {
  for (float& value : x) value = to_float(to_half(value * size));
  return x;
}

// Place in its block of the token that Case::large_value is of; hidden where Case::bits are.
constexpr int kLargeToken = 64;

// One stream: its blocks on the CPU, and the step's queries.
struct Stream {
  std::unique_ptr<BlockRig> rig;
  int n_tokens = 0;
  std::vector<float> q;  // [n_queries, n_heads * group, dim]
};

Policy policy_of(const Case& test) {
  auto policy = parse_policy(test.policy);
  if (!policy.ok()) throw std::runtime_error(policy.status().message());
  return *policy;
}

Stream make_stream(const Case& test, int index) {
  const Policy policy = policy_of(test);
  const LayerShape shape{test.n_heads, test.dim, test.dim};
  Stream stream;
  stream.n_tokens = test.lengths[size_t(index)];
  stream.rig = std::make_unique<BlockRig>(shape, policy, std::max(stream.n_tokens, 1));
  const uint64_t seed = 100 + uint64_t(index) * 7;
  const int width = test.n_heads * test.dim;
  if (stream.n_tokens > 0) {
    auto values = times(zipcache::test::random_rows(stream.n_tokens, width, seed + 1), test.v_size);
    if (test.flat_values) {
      for (size_t i = 0; i < values.size(); ++i) values[i] = values[i - i % size_t(test.dim)];
    }
    for (int token = kLargeToken; token < stream.n_tokens; token += kBlockTokens) {
      for (int i = 0; i < width; ++i) values[size_t(token * width + i)] *= test.large_value;
    }
    stream.rig->append(
        stream.n_tokens,
        times(zipcache::test::random_rows(stream.n_tokens, width, seed), test.k_size), values);
  }
  if (!stream.rig->log.order().empty()) {
    const int slot = stream.rig->log.order()[0];
    for (int row = 0; row < std::min(policy.window.sinks, stream.n_tokens); ++row)
      stream.rig->log.mark_sink({slot, row});
  }
  stream.rig->pack();
  stream.q = times(zipcache::test::random_rows(test.n_queries * test.n_heads * test.group, test.dim,
                                               seed + 2, 1.0f),
                   test.q_size);
  return stream;
}

// 16-bit rows of the block in `slot` that are not coded: of the window, or sinks.
void add_rows(const Case& test, const Stream& stream, int s, int slot, int head,
              RecordSet& records) {
  const LayerStore& store = stream.rig->store;
  const StoredBlock& stored = store.block(slot);
  const LogBlock& block = stream.rig->log.block(slot);
  const half *k, *v;
  int n = block.n_rows;
  if (stored.packed) {
    const PackedHead packed = store.head(slot, head);
    k = packed.k_sinks;
    v = packed.v_sinks;
    n = int(stored.sinks.count());
  } else {
    k = store.raw.k(stored.raw, head);
    v = store.raw.v(stored.raw, head);
  }
  const std::vector<half> keys = rows_for_record(store.rotation(SideId::K, head), test.dim, n, k);
  const std::vector<half> values = rows_for_record(store.rotation(SideId::V, head), test.dim, n, v);
  for (int first = 0; first < n; first += kRawRecordTokens)
    records.add_raw(s, head, std::min(kRawRecordTokens, n - first), keys.data() + first * test.dim,
                    values.data() + first * test.dim, uint32_t(block.first) + uint32_t(first));
}

RecordLayout layout_of(const Case& test) {
  const auto layout = RecordLayout::create({test.n_heads, test.dim, test.dim}, policy_of(test));
  if (!layout.ok()) throw std::runtime_error(layout.status().message());
  return *layout;
}

RecordSet make_records(const Case& test, const std::vector<Stream>& streams) {
  const RecordLayout layout = layout_of(test);
  int longest = 0;
  for (const Stream& stream : streams) longest = std::max(longest, stream.n_tokens);
  RecordSet records(test.dim, int(streams.size()), test.n_heads, longest / kRawRecordTokens + 8);
  for (size_t s = 0; s < streams.size(); ++s) {
    const BlockRig& rig = *streams[s].rig;
    for (int head = 0; head < test.n_heads; ++head) {
      for (const int slot : rig.log.order()) {
        const StoredBlock& stored = rig.store.block(slot);
        if (stored.packed)
          records.add_packed(int(s), head, layout, rig.store.head(slot, head), stored.sinks,
                             uint32_t(rig.log.block(slot).first));
      }
      for (const int slot : rig.log.order())
        add_rows(test, streams[s], int(s), slot, head, records);
    }
  }
  return records;
}

bool bit_of(int stream, int query, int place) {
  return (stream * 7 + query * 3 + place * 5) % 4 != 0;
}

OracleStep reference_step(const Case& test, const Stream& stream, int s,
                          const std::vector<float>& sinks) {
  OracleStep step;
  step.n_queries = test.n_queries;
  step.n_heads = test.n_heads * test.group;
  step.n_kv_heads = test.n_heads;
  step.k_dim = step.v_dim = test.dim;
  step.n_cells = stream.n_tokens;
  step.q = zipcache::test::to_doubles(stream.q);
  step.keys = stream.rig->decoded(SideId::K);
  step.values = stream.rig->decoded(SideId::V);
  step.keys.resize(size_t(stream.n_tokens) * size_t(test.n_heads * test.dim));
  step.values.resize(step.keys.size());
  step.absent = stream.rig->absent();
  step.scale = 1 / std::sqrt(double(test.dim));
  step.max_bias = test.max_bias;
  step.soft_cap = test.soft_cap;
  step.sinks = zipcache::test::to_doubles(sinks);
  for (int query = 0; query < test.n_queries; ++query) {
    const int own = stream.n_tokens - test.n_behind - test.n_queries + query;
    for (int place = 0; place < stream.n_tokens; ++place) {
      const bool seen = place <= own && (test.window == 0 || place > own - test.window) &&
                        (!test.bits || bit_of(s, query, place));
      step.mask.push_back(!seen ? zipcache::test::kHidden : test.max_bias > 0 ? place - own : 0);
    }
  }
  return step;
}

// Numbers of the case's type, and back.
std::vector<uint8_t> stored(const std::vector<float>& x, Number type) {
  std::vector<uint8_t> bytes;
  for (const float value : x) {
    uint32_t bits = std::bit_cast<uint32_t>(value);
    size_t size = 4;
    if (type == Number::F16) bits = to_half(value), size = 2;
    if (type == Number::BF16) bits = (bits + 0x7FFF + (bits >> 16 & 1)) >> 16, size = 2;
    const auto* from = reinterpret_cast<const uint8_t*>(&bits);
    bytes.insert(bytes.end(), from, from + size);
  }
  return bytes;
}

float loaded(const uint8_t* bytes, Number type) {
  uint32_t bits = 0;
  std::memcpy(&bits, bytes, type == Number::F32 ? 4 : 2);
  if (type == Number::F16) return to_float(half(bits));
  return std::bit_cast<float>(type == Number::BF16 ? bits << 16 : bits);
}

template <class Launch>
void launch(const Case& test, Launch&& once) {
  cudaStream_t stream;
  must(cudaStreamCreate(&stream));
  const cudaGraphExec_t graph =
      test.graph ? captured(stream, [&] { once(stream); }) : cudaGraphExec_t{};
  for (int i = 0; i < test.repeats; ++i) {
    if (graph)
      must(cudaGraphLaunch(graph, stream));
    else
      once(stream);
  }
  must(cudaStreamSynchronize(stream));
  if (graph) cudaGraphExecDestroy(graph);
  cudaStreamDestroy(stream);
}

}  // namespace

RecordSet records_of(const Case& test) {
  std::vector<Stream> streams;
  for (size_t s = 0; s < test.lengths.size(); ++s) streams.push_back(make_stream(test, int(s)));
  return make_records(test, streams);
}

double error_of(const Case& test) {
  const Policy policy = policy_of(test);
  std::vector<Stream> streams;
  std::vector<float> q, sinks, slopes;
  std::vector<int32_t> visible;
  for (size_t s = 0; s < test.lengths.size(); ++s) {
    streams.push_back(make_stream(test, int(s)));
    q.insert(q.end(), streams.back().q.begin(), streams.back().q.end());
    visible.push_back(streams.back().n_tokens - test.n_behind - test.n_queries + 1);
  }
  const int n_query_heads = test.n_heads * test.group;
  for (int h = 0; h < n_query_heads; ++h) {
    sinks.push_back(0.5f * float(h % 5) - 1);
    slopes.push_back(float(zipcache::test::alibi_slope(h, n_query_heads, test.max_bias)));
  }
  if (!test.sinks) sinks.clear();
  const RecordSet records = make_records(test, streams);
  DecodeBlocks blocks = {.small = test.n_blocks};
  if (test.large) blocks.large = test.n_blocks, blocks.large_warps = test.large;
  const DecodePlan plan = plan_decode(records.counts(), test.n_heads, blocks);
  const int longest = *std::max_element(test.lengths.begin(), test.lengths.end());
  std::vector<uint32_t> bits(streams.size() * size_t(test.n_queries) * size_t(longest / 32 + 1));
  for (size_t line = 0; line < streams.size() * size_t(test.n_queries); ++line) {
    for (int place = 0; place < longest; ++place) {
      if (bit_of(int(line) / test.n_queries, int(line) % test.n_queries, place))
        bits[line * size_t(longest / 32 + 1) + size_t(place / 32)] |= 1u << place % 32;
    }
  }

  const auto q_bytes = stored(q, test.type);
  const Buffer<uint8_t> pool(records.pool()), queries(q_bytes);
  const Buffer<Record> table(records.records());
  const Buffer<WorkItem> work(plan.items);
  const Buffer<int32_t> ends(visible);
  const Buffer<uint32_t> mask_bits(bits);
  const Buffer<float> sink_logits(sinks), slope_values(slopes);
  const Buffer<uint8_t> out(q_bytes.size());
  must(cudaMemset(out.get(), 0xFF, q_bytes.size()));  // NaN where nothing is written

  DecodeArgs args;
  args.dim = test.dim;
  args.n_heads = test.n_heads;
  args.group = test.group;
  args.n_queries = test.n_queries;
  args.pool = pool.get();
  args.records = table.get();
  args.record_stride = longest / kRawRecordTokens + 8;
  args.form = layout_of(test).form();
  args.items = work.get();
  args.n_items = int(plan.items.size());
  args.n_warps = plan.n_warps;
  args.max_record_bytes = records.max_record_bytes();
  args.k_hadamard = policy.k.rotation == Rotation::Hadamard;
  args.v_hadamard = policy.v.rotation == Rotation::Hadamard;
  args.visible = ends.get();
  args.mask.window = test.window;
  args.mask.soft_cap = test.soft_cap;
  if (test.bits) args.mask.bits = mask_bits.get(), args.mask.bits_stride = longest / 32 + 1;
  if (test.max_bias > 0) args.mask.alibi_slopes = slope_values.get();
  if (test.sinks) args.sinks = sink_logits.get();
  args.scale = 1 / std::sqrt(float(test.dim));
  args.q = queries.get();
  args.out = out.get();
  args.q_type = args.out_type = test.type;
  args.copy_by_threads = test.copy_by_threads;
  const Buffer<uint8_t> workspace(decode_workspace(args));
  must(cudaMemset(workspace.get(), 0, decode_workspace(args)));
  args.workspace = workspace.get();
  launch(test, [&](cudaStream_t stream) {
    const Status status = decode_attention(args, stream);
    if (!status.ok()) throw std::runtime_error(status.message());
  });

  const auto bytes = out.read();
  const size_t size = test.type == Number::F32 ? 4 : 2;
  const size_t n = size_t(test.n_queries) * size_t(n_query_heads) * size_t(test.dim);
  double worst = 0;
  for (size_t s = 0; s < streams.size(); ++s) {
    for (float& value : streams[s].q) value = loaded(stored({value}, test.type).data(), test.type);
    const auto expected =
        zipcache::test::attention(reference_step(test, streams[s], int(s), sinks)).out;
    double distance = 0, norm = 0;
    for (size_t i = 0; i < n; ++i) {
      const double found = loaded(bytes.data() + (s * n + i) * size, test.type);
      distance += (found - expected[i]) * (found - expected[i]);
      norm += expected[i] * expected[i];
    }
    const double error = norm > 0 ? std::sqrt(distance / norm) : std::sqrt(distance);
    if (!(error <= worst)) worst = error;  // NaN too
  }
  return worst;
}

}  // namespace zipcache::cuda::test
