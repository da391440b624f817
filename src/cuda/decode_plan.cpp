#include <algorithm>

#include "cuda/decode.hpp"

namespace zipcache::cuda {
namespace {

// Records of an item where `per_item` at most are wanted: equal shares.
void add_items(int stream, bool raw, int first, int count, int per_item,
               std::vector<WorkItem>& items) {
  const int n = (count + per_item - 1) / per_item;
  for (int i = 0; i < n; ++i) {
    WorkItem item;
    item.stream = stream;
    item.raw = raw;
    item.first = first + int(int64_t(count) * i / n);
    item.count = first + int(int64_t(count) * (i + 1) / n) - item.first;
    items.push_back(item);
  }
}

int items_of(std::span<const StreamRecords> streams, int per_item) {
  const auto parts = [&](int count) { return (count + per_item - 1) / per_item; };
  int n = 0;
  for (const StreamRecords& stream : streams)
    n += std::max(1, parts(stream.packed) + parts(stream.raw));
  return n;
}

}  // namespace

std::vector<WorkItem> plan_decode(std::span<const StreamRecords> streams, int n_heads,
                                  int n_blocks) {
  int most = 1;
  for (const StreamRecords& stream : streams) most = std::max({most, stream.packed, stream.raw});
  // The smallest share with which all items run at once; two records at least, since a block of
  // threads works on two side by side, and fewer parts are merged sooner.
  int low = std::min(2, most), high = most;
  while (low < high) {
    const int middle = (low + high) / 2;
    if (int64_t(items_of(streams, middle)) * n_heads <= n_blocks)
      high = middle;
    else
      low = middle + 1;
  }
  std::vector<WorkItem> items;
  for (size_t s = 0; s < streams.size(); ++s) {
    const size_t begin = items.size();
    add_items(int(s), false, 0, streams[s].packed, low, items);
    const size_t raw_begin = items.size();
    add_items(int(s), true, streams[s].packed, streams[s].raw, low, items);
    if (items.size() == begin) items.push_back({.stream = int(s)});
    for (size_t i = begin; i < items.size(); ++i) {
      items[i].part_first = int(begin);
      items[i].part_count = int(items.size() - begin);
      items[i].part_packed = int(raw_begin - begin);
    }
  }
  return items;
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
