// What a model's attention sees while it reads text: llama.cpp calls the observer after each
// attention operation of its own CPU path, with queries, 16-bit cache and mask at hand.
//
// Thread safety: one thread at a time.
#pragma once

#include <ggml.h>

#include <map>
#include <vector>

#include "rotation_fit.hpp"

namespace zipcache::cli {

class Calibration {
 public:
  // For ContextOptions::observe and ::observer.
  static bool observe(ggml_tensor* node, bool ask, void* calibration);

  // Why operations could not be taken up; ok when all could.
  const Status& status() const { return status_; }
  // Rotations of all layers seen, by the model's numbers.
  Result<Rotations> fit(RotationMethod method) const;

 private:
  struct Layer {
    LayerShape shape;
    std::vector<HeadMoments> heads;
  };
  Status take(const ggml_tensor* node);

  std::map<int, Layer> layers_;
  Status status_;
};

}  // namespace zipcache::cli
