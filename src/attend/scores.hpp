// Scores of query rows against a tile of keys: scale, soft cap, ALiBi and mask, shared by attention
// and by the probe pass.
#pragma once

#include <span>
#include <vector>

#include "attend/mask.hpp"
#include "codec/kernels.hpp"
#include "transform/rotation.hpp"

namespace zipcache {

// Up to so many query rows of a KV head work on codes; more work on an expanded tile.
inline constexpr int kDecodeRows = 16;

// Query rows of one KV head: rows are query-major, row = query * group + head inside the group.
struct QueryTile {
  int first_query = 0;  // of queries that follow one another
  int n_queries = 0;
  int first_head = 0;  // first query head of the group
  int group = 1;       // query heads per KV head
  int dim = 0;
  int ld = 0;                  // dim filled up to whole vectors with zeros
  std::vector<float> rows;     // [n_queries * group, ld], scaled
  std::vector<float> rotated;  // the same times the key rotation, or empty

  int n_rows() const { return n_queries * group; }
  const float* for_packed() const { return rotated.empty() ? rows.data() : rotated.data(); }
};

// Gathers and scales the rows of `queries`, which follow one another unless the caller keeps them
// apart, into `tile`; also turned as keys are by `rotation`.
void gather_queries(const Attention& step, std::span<const int> queries, int kv_head, int group,
                    int dim, HeadRotation rotation, QueryTile& tile);

// Scores [n_rows, n of ld] of the queries against 16-bit keys [n, dim]; `scratch` is reused memory.
void half_scores(const Kernels& kernels, const QueryTile& queries, const half* keys, int n,
                 std::vector<float>& scratch, float* scores, int ld);

// Soft cap, then slope * bias (bias [n_queries, n], unused when visible is All), on scores
// [n_queries * group, n of ld] of the query heads from first_head on.
void finish_scores(const Attention& step, int first_head, int group, int n_queries, Visible visible,
                   const float* bias, int n, float* scores, int ld);

}  // namespace zipcache
