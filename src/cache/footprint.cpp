// Byte arithmetic of a policy, without a cache: what it costs at a length, and what to plan for.
#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <set>

#include "base/arena.hpp"
#include "cache/block_layout.hpp"

namespace zipcache {
namespace {

struct LayerCost {
  PackedLayout packed;
  RawLayout raw;

  // The `index`-th packed block of a log, with sinks when it is the first.
  PackedBytes block(int index) const {
    const Policy& policy = packed.policy();
    const int n_sinks = index == 0 ? std::min(policy.window.sinks, kBlockTokens) : 0;
    const int n_coded = kBlockTokens - n_sinks;
    const std::vector<TierCounts> counts(size_t(packed.shape().n_heads),
                                         head_counts(uint64_t(index), n_coded));
    return packed.bytes(counts, n_sinks, false);
  }

 private:
  // What a budget is spent on depends on the text; here weights fall as attention often does, with
  // one over their rank.
  TierCounts head_counts(uint64_t index, int n_coded) const {
    const Policy& policy = packed.policy();
    if (policy.tiers.size() == 1) return {n_coded};
    if (!policy.fills_budget()) return tier_counts_of_block(index, n_coded, policy.shares);
    std::vector<float> weights;
    for (int rank = 1; rank <= n_coded; ++rank) weights.push_back(1.0f / float(rank));
    return packed.counts_of_budget(weights);
  }
};

Result<std::vector<LayerCost>> layer_costs(const Policy& policy, const CacheShape& shape) {
  std::vector<LayerCost> costs;
  for (size_t layer = 0; layer < shape.layers.size(); ++layer) {
    Result<Policy> own = policy_for_layer(policy, shape.number(layer));
    if (!own.ok()) return own.status();
    costs.push_back(
        {PackedLayout(shape.layers[layer], *own), RawLayout(shape.layers[layer], *own)});
  }
  return costs;
}

// Bytes of the first n packed blocks. Shares in 1/1000 repeat after 125 blocks at most.
size_t packed_total(const LayerCost& cost, size_t n) {
  constexpr size_t kPeriod = 125;
  size_t total = 0;
  for (size_t b = 0; b < std::min(n, kPeriod + 1); ++b) {
    const size_t bytes = Arena::rounded(cost.block(int(b)).total);
    // Block b + 125 costs what block b does, and so on.
    total += b == 0 ? bytes : bytes * ((n - 1 - b) / kPeriod + 1);
  }
  return total;
}

// Blocks of a log of `n` rows: how many are packed and how many raw after a step.
struct BlockCounts {
  int packed = 0;
  int raw = 0;
};

BlockCounts counts_at(const Policy& policy, int n) {
  BlockCounts counts;
  if (!policy.raw()) counts.packed = std::max(0, n - policy.window.recent) / kBlockTokens;
  counts.raw = (n + kBlockTokens - 1) / kBlockTokens - counts.packed;
  return counts;
}

// Most raw pieces in use at once while layers go through the steps one after the other, by piece
// size.
size_t raw_high_water(const Policy& policy, const std::vector<LayerCost>& costs, int n_tokens,
                      int ubatch) {
  std::map<size_t, int64_t> layers_of_size;
  for (const LayerCost& cost : costs) ++layers_of_size[cost.raw.bytes];
  size_t total = 0;
  for (const auto& [size, n_layers] : layers_of_size) {
    int64_t most = 0;
    for (int before = 0; before < n_tokens; before += ubatch) {
      const int after = std::min(n_tokens, before + ubatch);
      const BlockCounts old = counts_at(policy, before), now = counts_at(policy, after);
      const int64_t written = old.raw + (now.packed + now.raw) - (old.packed + old.raw);
      most =
          std::max({most, written + (n_layers - 1) * old.raw, written + (n_layers - 1) * now.raw});
    }
    total += size_t(most) * Arena::rounded(size);
  }
  return total;
}

}  // namespace

Bytes& Bytes::operator+=(const Bytes& other) {
  codes += other.codes;
  params += other.params;
  tags += other.tags;
  raw += other.raw;
  scores += other.scores;
  map += other.map;
  padding += other.padding;
  return *this;
}

Status check(const CacheShape& shape) {
  const auto wrong = [](const std::string& what) {
    return Status{Code::Incompatible, "cache shape: " + what};
  };
  if (shape.n_streams < 1 || shape.n_streams > 4096) {
    return wrong(fmt::format("{} streams, expected 1 to 4096", shape.n_streams));
  }
  if (shape.n_cells < 1 || shape.n_cells > (1 << 28)) {
    return wrong(fmt::format("{} cells, expected 1 to {}", shape.n_cells, 1 << 28));
  }
  // Tables of cells are made before any storage is reserved; this bounds them to a few GiB.
  if (int64_t{shape.n_cells} * shape.n_streams > (1 << 28)) {
    return Status{
        Code::OverLimit,
        fmt::format("cache shape: {} streams of {} cells, expected at most {} cells in all; use a "
                    "shorter context or fewer slots",
                    shape.n_streams, shape.n_cells, 1 << 28)};
  }
  if (shape.layers.empty() || shape.layers.size() > 4096) {
    return wrong(fmt::format("{} layers, expected 1 to 4096", shape.layers.size()));
  }
  if (!shape.numbers.empty() && shape.numbers.size() != shape.layers.size()) {
    return wrong(fmt::format("numbers of {} layers, expected {}", shape.numbers.size(),
                             shape.layers.size()));
  }
  if (std::any_of(shape.numbers.begin(), shape.numbers.end(), [](int n) { return n < 0; }))
    return wrong("a layer's number is below 0");
  for (size_t i = 0; i < shape.layers.size(); ++i) {
    const LayerShape& layer = shape.layers[i];
    for (const int dim : {layer.k_dim, layer.v_dim}) {
      if (dim < 16 || dim > 256 || dim % 8 != 0) {
        return wrong(
            fmt::format("layer {}: head size {}, expected a multiple of 8 from 16 to 256; run "
                        "this model with its 16-bit cache",
                        i, dim));
      }
    }
    if (layer.n_heads < 1 || layer.n_heads > 1024) {
      return wrong(fmt::format("layer {}: {} KV heads, expected 1 to 1024", i, layer.n_heads));
    }
  }
  return ok();
}

Result<Bytes> footprint(const Policy& policy, const std::vector<LayerShape>& layers, int n_tokens,
                        int ubatch) {
  ZC_TRY(check(policy));
  const CacheShape shape{1, std::max(1, n_tokens), layers};
  ZC_TRY(check(shape));
  if (n_tokens < 0 || ubatch < 1) {
    return Status{Code::BadArgument, "footprint: expected n_tokens >= 0 and ubatch >= 1"};
  }
  Result<std::vector<LayerCost>> costs = layer_costs(policy, shape);
  if (!costs.ok()) return costs.status();
  const BlockCounts counts = counts_at(policy, n_tokens);
  Bytes bytes;
  size_t committed = raw_high_water(policy, *costs, n_tokens, ubatch);
  for (const LayerCost& cost : *costs) {
    for (int b = 0; b < counts.packed; ++b) {
      const PackedBytes block = cost.block(b);
      bytes.codes += block.codes;
      bytes.params += block.params;
      bytes.tags += block.tags;
      bytes.raw += block.sinks;
      committed += Arena::rounded(block.total);
    }
    bytes.raw += cost.raw.row_bytes() * size_t(n_tokens - counts.packed * kBlockTokens);
    bytes.scores += (cost.raw.bytes - cost.raw.sums_at) * size_t(counts.raw);
  }
  bytes.map = StreamLog(std::max(1, n_tokens), int(layers.size())).bytes();
  for (const LayerCost& cost : *costs)
    bytes.map += cost.packed.moment_bytes() + cost.packed.rotation_bytes();
  bytes.padding = committed - (bytes.codes + bytes.params + bytes.tags + bytes.raw + bytes.scores);
  return bytes;
}

Result<double> long_run_bits(const Policy& policy, const std::vector<LayerShape>& layers) {
  // Shares of 1/1000 come out even over this many blocks.
  constexpr int kBlocks = 125;
  const int before = policy.window.recent + kBlocks * kBlockTokens;
  double held[2] = {};  // bits with so many tokens, and with kBlocks blocks more
  double elements = 0;
  for (int more = 0; more < 2; ++more) {
    const int n_tokens = before + more * kBlocks * kBlockTokens;
    const Result<Bytes> bytes = footprint(policy, layers, n_tokens, kBlockTokens);
    if (!bytes.ok()) return bytes.status();
    held[more] =
        8.0 * double(bytes->codes + bytes->params + bytes->tags + bytes->raw + bytes->scores);
  }
  for (const LayerShape& layer : layers)
    elements += double(layer.n_heads) * (layer.k_dim + layer.v_dim);
  return (held[1] - held[0]) / (elements * kBlocks * kBlockTokens);
}

Result<size_t> planned_bytes(const Policy& policy, const CacheShape& shape, int ubatch) {
  ZC_TRY(check(shape));
  Result<std::vector<LayerCost>> costs = layer_costs(policy, shape);
  if (!costs.ok()) return costs.status();
  const size_t cell_blocks = size_t(shape.n_cells + kBlockTokens - 1) / kBlockTokens;
  const size_t window_blocks =
      policy.raw() || policy.cadence == Cadence::Prompt
          ? cell_blocks
          : size_t(policy.window.recent + kBlockTokens - 1) / kBlockTokens + 1;
  size_t per_stream = 0, largest_raw = 0, rotations = 0;
  for (const LayerCost& cost : *costs) {
    const size_t raw_piece = Arena::rounded(cost.raw.bytes);
    if (!policy.raw()) per_stream += packed_total(cost, cell_blocks);
    per_stream += std::min(window_blocks, cell_blocks) * raw_piece;
    per_stream += cost.packed.moment_bytes();
    rotations += cost.packed.rotation_bytes();
    largest_raw = std::max(largest_raw, raw_piece);
  }
  per_stream += StreamLog(shape.n_cells, int(shape.layers.size())).bytes();
  const size_t step_blocks = policy.raw() ? 0 : size_t(ubatch + kBlockTokens - 1) / kBlockTokens;
  return per_stream * size_t(shape.n_streams) + step_blocks * largest_raw + rotations;
}

double paper_ratio(double average_bits, double n_params, double b, double C, double l) {
  return 16.0 / (average_bits + 16.0 * n_params / (2.0 * b * C * l));
}

double paper_ratio(const Policy& policy, double C, double l, double b) {
  const size_t n_tiers = policy.tiers.size();
  const auto average = [&](int Tier::*side) {
    double left = 1, sum = 0;
    for (size_t tier = 0; tier + 1 < n_tiers; ++tier) {
      const double share = policy.shares[tier] / 1000.0;
      sum += share * policy.tiers[tier].*side;
      left -= share;
    }
    return sum + left * policy.tiers.back().*side;
  };
  const auto params = [&](const Side& side, int Tier::*bits) {
    std::set<int> widths;  // of codes
    for (const Tier& tier : policy.tiers) {
      if (coded(tier.*bits)) widths.insert(tier.*bits);
    }
    if (widths.empty()) return 0.0;
    const double factors = side.rank * (C + b * l) + (side.channel_factors() ? C
                                                      : side.token_factors() ? b * l
                                                                             : 0.0);
    const double per_set = double(set_bytes(side.codec)) / sizeof(half);
    switch (side.axis) {
      case Axis::None:
        return factors;
      case Axis::Channel:  // tiers of one width share them
        return factors + per_set * C * double(widths.size());
      case Axis::Group:
      case Axis::ChannelGroup:
        return factors + per_set * b * C * l / side.group;
      case Axis::Token:
      case Axis::Cst:
        break;
    }
    return factors + per_set * b * l;
  };
  // The published mixed-precision figures need 4C + 4bl, which no printed formula gives.
  const bool published =
      n_tiers == 2 && policy.k.axis == Axis::Channel && policy.v.axis == Axis::Cst;
  const double n_params = published
                              ? 4 * C + 4 * b * l
                              : params(policy.k, &Tier::k_bits) + params(policy.v, &Tier::v_bits);
  const double bits = policy.fills_budget() ? policy.target_millibits / 1000.0
                                            : (average(&Tier::k_bits) + average(&Tier::v_bits)) / 2;
  return paper_ratio(bits, n_params, b, C, l);
}

}  // namespace zipcache
