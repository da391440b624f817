// Attention of one layer's queries over raw and packed blocks. Few query rows of a KV head multiply
// codes as they are stored, parameters folded into the query and the probabilities; many work on a
// block expanded into a tile that stays in cache. Softmax is online in both.
#pragma once

#include <vector>

#include "cache/layer_store.hpp"
#include "codec/kernels.hpp"

namespace zipcache {

// What the policy's precision comes to with a kernel set.
Precision precision_in_use(const Policy& policy, const Kernels& kernels);

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
