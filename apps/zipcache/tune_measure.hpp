// Measurements of `zipcache tune`: policies against the 16-bit cache on the parts of the texts,
// kept in a file of rows as `zipcache eval kld` writes them.
//
// Thread safety: one thread at a time.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "comparison.hpp"
#include "eval_setup.hpp"

namespace zipcache::cli {

struct MeasureOptions : EvalOptions {
  int ctx = 0;     // 0: by the model, see usual_ctx in tuning.hpp
  int chunks = 2;  // of each part, dealt to the texts in turn
  int together = 6;
};

// Chunks that a policy is measured on.
struct Part {
  Json key;  // of its rows
  std::vector<std::vector<llama_token>> chunks;
};

class Measurer {
 public:
  // Finds the files and loads the model. `options.policies` and `options.ctx` need not be set.
  static Result<std::unique_ptr<Measurer>> open(MeasureOptions options);

  // Chunks from the `skip`-th on of the texts at `paths`; `name` tells the part from others.
  Result<Part> part(const std::string& name, const std::vector<std::string>& paths, int skip);

  // A bar over this many caches, each filled with all chunks of a part, begins.
  void expect(int caches);

  // The bar is gone; what is printed stands alone.
  void finish() { progress_.reset(); }

  // One row for each of `policies`, measured unless the file has it. Aborted after an interrupt.
  Result<std::vector<Json>> rows(const Part& part, const std::vector<std::string>& policies,
                                 const std::string& what);

  const ModelFile& about() const { return setup_.files.about; }
  const EvalSetup& setup() const { return setup_; }
  int ctx() const { return options_.ctx; }

 private:
  Measurer(MeasureOptions options, EvalSetup setup, Engines engines)
      : options_(std::move(options)), setup_(std::move(setup)), engines_(std::move(engines)) {}

  Status measure(const Part& part, std::span<const PolicyChoice> missing, const std::string& what);
  int64_t tokens_of(const Part& part) const;

  MeasureOptions options_;
  EvalSetup setup_;
  Engines engines_;
  std::unique_ptr<Progress> progress_;
};

// Coded bits per element of the policy in `row`: what a token takes in the long run. Arithmetic for
// policies of ours, so that it does not depend on the measured length.
double coded_bits(const std::string& policy, const ModelFile& about);

}  // namespace zipcache::cli
