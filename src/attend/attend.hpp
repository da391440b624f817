// Attention of one layer's queries over raw and packed blocks, and the scores that probe rows give.
// Softmax is online: blocks may be split over threads in any way.
#pragma once

#include <memory>
#include <vector>

#include "cache/layer_store.hpp"
#include "codec/kernels.hpp"

namespace zipcache {

struct Workspace;

// Attention over blocks, with the working memory that it keeps from one operation to the next.
// Not thread-safe; an operation runs on the threads that its step names.
class Attender {
 public:
  explicit Attender(const Kernels& kernels);
  ~Attender();

  // Computes step.out. Rows that see nothing give zeros. With `keep_log_mass` the log of each row's
  // softmax sum is kept for score(). Aborted when the caller's poll says so.
  Status attend(const Attention& step, const StreamLog& log, const LayerStore& store,
                bool keep_log_mass);

  // Adds the attention that the step's probe rows gave to raw rows (paper, Eq. 8 and 9), and what
  // could see them, after an attend() of the same step that kept the log mass. `probes` are query
  // rows, ascending; a row that stands twice counts twice.
  void score(const Attention& step, const StreamLog& log, LayerStore& store,
             const std::vector<int>& probes);

  // Lets the layer learn from the step's query rows how keys are best rounded, when the policy
  // rounds by queries and the rows are enough to learn from.
  void learn_queries(const Attention& step, LayerStore& store);

 private:
  const Kernels& kernels_;
  std::unique_ptr<Workspace> space_;
};

}  // namespace zipcache
