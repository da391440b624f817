#include "cuda/model_schedule.hpp"

#include <fmt/format.h>

#include <algorithm>

namespace zipcache::cuda {
namespace {

// Of a layer; where it packs nothing, nothing else of a side counts.
Result<Policy> resolved(const Policy& policy, int layer) {
  Result<Policy> own = policy_for_layer(policy, layer);
  if (own.ok() && own->raw()) own->k = own->v = {}, own->k_rounding = Rounding::Nearest;
  return own;
}

}  // namespace

Result<ModelSchedule> ModelSchedule::create(const ScheduleShape& shape, const Policy& policy,
                                            int n_layers) {
  ModelSchedule model;
  for (int layer = 0; layer < n_layers; ++layer) {
    const Result<Policy> own = resolved(policy, layer);
    if (!own.ok()) return own.status();
    const auto found = std::find_if(model.groups_.begin(), model.groups_.end(),
                                    [&](const Schedule& group) { return group.policy() == *own; });
    model.group_of_.push_back(int(found - model.groups_.begin()));
    if (found != model.groups_.end()) continue;
    Result<Schedule> made = Schedule::create(shape, *own);
    if (made.ok())
      model.groups_.push_back(std::move(*made));
    else if (policy.overrides.empty())
      return made.status();
    else
      return Status{made.status().code(),
                    fmt::format("layer {}: {}", layer, made.status().message())};
  }
  return model;
}

int ModelSchedule::record_stride() const {
  int stride = 0;
  for (const Schedule& group : groups_) stride = std::max(stride, group.sizes().record_stride);
  return stride;
}

std::vector<TableChange> ModelSchedule::changes() const {
  std::vector<TableChange> changes;
  for (int g = 0; g < n_groups(); ++g) {
    for (TableChange change : group(g).changes()) {
      change.stream += g * n_streams();
      changes.push_back(change);
    }
  }
  return changes;
}

Status ModelSchedule::begin(std::span<const int> n_new) {
  for (const Schedule& group : groups_) ZC_TRY(group.check_begin(n_new));
  for (Schedule& group : groups_) ZC_TRY(group.begin(n_new));
  return ok();
}

Status ModelSchedule::truncate(int stream, int length) {
  for (const Schedule& group : groups_) ZC_TRY(group.check_truncate(stream, length));
  for (Schedule& group : groups_) ZC_TRY(group.truncate(stream, length));
  return ok();
}

void ModelSchedule::clear(int stream) {
  for (Schedule& group : groups_) group.clear(stream);
}

}  // namespace zipcache::cuda
