#include <algorithm>
#include <climits>

#include "cuda/decode.hpp"

namespace zipcache::cuda {
namespace {

// Warps that share the records of an item. Of a record on its own a warp has some 16 parts of work,
// of a quarter 6: its parameters cost as much whatever the share.
int sharing_of(int count, int n_warps, int half_cost) {
  const int cost_of[][2] = {{1, 16}, {2, half_cost}, {4, 6}, {8, 5}};
  int best = 1, least = INT_MAX;
  for (const auto& [sharing, cost] : cost_of) {
    if (n_warps % sharing != 0) break;
    const int n_groups = n_warps / sharing, all = (count + n_groups - 1) / n_groups * cost;
    if (all >= least) continue;
    best = sharing;
    least = all;
  }
  return best;
}

// Records of an item where `per_item` at most are wanted: equal shares.
void add_items(int stream, int count, int per_item, int half_cost, DecodePlan& plan) {
  const int n = (count + per_item - 1) / per_item;
  for (int i = 0; i < n; ++i) {
    WorkItem item;
    item.stream = stream;
    item.first = int(int64_t(count) * i / n);
    item.count = int(int64_t(count) * (i + 1) / n) - item.first;
    item.sharing = sharing_of(item.count, plan.n_warps, half_cost);
    plan.items.push_back(item);
  }
}

int items_of(std::span<const StreamRecords> streams, int per_item) {
  int n = 0;
  for (const StreamRecords& stream : streams)
    n += std::max(1, (stream.all() + per_item - 1) / per_item);
  return n;
}

// The smallest share with which all items run at once, if there is one; two records at least, since
// fewer parts are merged sooner (4k x 1 on an H100: 10.1 us with two, 11.6 with one).
int share_of(std::span<const StreamRecords> streams, int n_heads, int n_blocks) {
  int most = 1;
  for (const StreamRecords& stream : streams) most = std::max(most, stream.all());
  int low = std::min(2, most), high = most;
  while (low < high) {
    const int middle = (low + high) / 2;
    if (int64_t(items_of(streams, middle)) * n_heads <= n_blocks)
      high = middle;
    else
      low = middle + 1;
  }
  return low;
}

}  // namespace

DecodePlan plan_decode(std::span<const StreamRecords> streams, int n_heads,
                       const DecodeBlocks& blocks) {
  DecodePlan plan;
  int share = share_of(streams, n_heads, blocks.small);
  // Large blocks halve what is merged and are done at times that differ less, where each of their
  // warps has a record and all of them run at once (32k x 8 on an H100: 94.7 us, not 97.4).
  const int large = share_of(streams, n_heads, blocks.large);
  if (large >= kLargeWarps && int64_t(items_of(streams, large)) * n_heads <= blocks.large) {
    share = large;
    plan.n_warps = blocks.large_warps;
  }
  for (size_t s = 0; s < streams.size(); ++s) {
    const size_t begin = plan.items.size();
    add_items(int(s), streams[s].all(), share, blocks.half_cost, plan);
    if (plan.items.size() == begin) plan.items.push_back({.stream = int(s)});
    for (size_t i = begin; i < plan.items.size(); ++i) {
      plan.items[i].part_first = int(begin);
      plan.items[i].part_count = int(plan.items.size() - begin);
    }
  }
  return plan;
}

size_t decode_part_bytes(const DecodeArgs& args) {
  return size_t(args.n_items) * size_t(args.n_heads) * size_t(args.group * args.n_queries) *
         size_t(kRowFloats + args.dim) * sizeof(float);
}

// A ticket for each stream, head and tile of columns stands before the partial results.
size_t decode_workspace(const DecodeArgs& args) {
  const int tiles = (args.group * args.n_queries + kColumns - 1) / kColumns;
  const size_t tickets = size_t(args.n_items) * size_t(args.n_heads) * size_t(tiles) * sizeof(int);
  return (tickets + 15) / 16 * 16 + decode_part_bytes(args);
}

}  // namespace zipcache::cuda
