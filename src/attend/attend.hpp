// Attention of one layer's queries over raw and packed blocks, in plain C++ over the kernel table:
// tiles are expanded once per group of query rows, scores and weighted sums are small matrix
// products, softmax is online. Folding of parameters into queries is left to faster kernels;
// results agree.
#pragma once

#include <vector>

#include "cache/layer_store.hpp"
#include "codec/kernels.hpp"

namespace zipcache {

// Computes step.out and, for scoring, log_mass [n_queries, n_heads]: the log of each row's softmax
// sum. Rows that see nothing give zeros. Aborted when the caller's poll says so.
Status attend_blocks(const Attention& step, const StreamLog& log, const LayerStore& store,
                     const Kernels& kernels, std::vector<float>& log_mass);

// Adds the attention that the step's probe rows gave to raw rows (paper, Eq. 8 and 9), and what
// could see them. `probes` are query rows, ascending; a row that stands twice counts twice.
void score_raw_blocks(const Attention& step, const StreamLog& log, LayerStore& store,
                      const Kernels& kernels, const std::vector<int>& probes,
                      const std::vector<float>& log_mass);

}  // namespace zipcache
