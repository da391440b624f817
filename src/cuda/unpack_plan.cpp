#include "cuda/unpack.hpp"

namespace zipcache::cuda {
namespace {

// Tasks for a stream's records from `next` on, which n_rows rows have room for. Returns how many
// they take.
int add_piece(int stream, std::span<const Record> records, int n_rows, size_t& next,
              std::vector<UnpackTask>& tasks) {
  int row = 0;
  for (; next < records.size(); ++next) {
    const int n = int(records[next].tokens);
    if (row + n > n_rows) break;
    if (n > 0) tasks.push_back({stream, int32_t(next), row, 0});
    row += n;
  }
  return row;
}

}  // namespace

PastPieces plan_past(std::span<const std::span<const Record>> records, int n_rows) {
  PastPieces pieces;
  std::vector<size_t> next(records.size());  // records of each stream that have a piece
  while (true) {
    const size_t n_before = pieces.tasks.size();
    std::vector<int32_t> rows;
    for (size_t s = 0; s < records.size(); ++s)
      rows.push_back(add_piece(int(s), records[s], n_rows, next[s], pieces.tasks));
    if (pieces.tasks.size() == n_before) return pieces;
    pieces.ends.push_back(int(pieces.tasks.size()));
    pieces.rows.insert(pieces.rows.end(), rows.begin(), rows.end());
  }
}

}  // namespace zipcache::cuda
