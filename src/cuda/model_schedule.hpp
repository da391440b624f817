// The schedules of a model's layers, one for each policy among them, in step with each other: what
// one refuses changes none. Layers have the same window (policy_for_layer), so blocks leave it in
// all of them at once.
#pragma once

#include "cuda/schedule.hpp"

namespace zipcache::cuda {

class ModelSchedule {
 public:
  // Errors of Schedule::create name the first layer of a policy that has fields of single layers.
  static Result<ModelSchedule> create(const ScheduleShape& shape, const Policy& policy,
                                      int n_layers);

  int n_groups() const { return int(groups_.size()); }
  // In the order of their first layers.
  const Schedule& group(int index) const { return groups_[size_t(index)]; }
  int group_of(int layer) const { return group_of_[size_t(layer)]; }

  int n_streams() const { return groups_[0].shape().n_streams; }
  int length(int stream) const { return groups_[0].length(stream); }
  // Entries of a stream's block table that any group needs.
  int record_stride() const;
  // Changes of the block tables [group, stream], whose TableChange::stream counts through all of
  // them.
  std::vector<TableChange> changes() const;

  // As those of Schedule.
  Status begin(std::span<const int> n_new);
  Status truncate(int stream, int length);
  void clear(int stream);

 private:
  std::vector<Schedule> groups_;
  std::vector<int> group_of_;  // [n_layers]
};

}  // namespace zipcache::cuda
