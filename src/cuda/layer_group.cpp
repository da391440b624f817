#include "cuda/layer_group.hpp"

#include "base/random.hpp"
#include "cuda/query_moments.hpp"

namespace zipcache::cuda {
namespace {

int most_of(std::span<const StreamRows> rows) {
  int most = 0;
  for (const StreamRows& own : rows) most = std::max({most, own.end - own.begin, own.n_sinks});
  return most;
}

// Of the streams that go on.
PastPieces past_pieces(const Schedule& schedule, const std::vector<int>& n_new, int piece_rows) {
  std::vector<std::span<const Record>> records(n_new.size());
  for (size_t s = 0; s < records.size(); ++s) {
    if (n_new[s] > 0) records[s] = schedule.records(int(s));
  }
  return plan_past(records, piece_rows);
}

template <class T>
PerToken<const T> reading(const PerToken<T>& rows) {
  return {rows.data, rows.stream_stride, rows.head_stride};
}

}  // namespace

size_t LayerMemory::bytes() const {
  size_t bytes = 0;
  for (const DeviceMemory* memory : {&pool, &k_ring, &v_ring, &sums, &seen, &moments})
    bytes += memory->bytes();
  return bytes + matrices.bytes();
}

Status LayerGroup::allocate(LayerMemory& own, const LayerRotations* rotations,
                            cudaStream_t stream) const {
  const size_t rows = size_t(shape_.n_streams) * size_t(sizes().ring);
  const size_t heads = size_t(shape_.n_heads);
  ZC_TRY(own.pool.allocate(sizes().pool, stream));
  if (policy().raw()) return ok();
  if (by_matrix()) ZC_TRY(own.matrices.upload(*rotations, shape_.dim, stream));
  for (DeviceMemory* ring : {&own.k_ring, &own.v_ring})
    ZC_TRY(ring->allocate(rows * heads * size_t(shape_.dim) * sizeof(uint16_t), stream));
  if (by_queries()) {
    const size_t lists = size_t(shape_.n_streams) * heads;
    ZC_TRY(own.moments.allocate(lists * moment_bytes(shape_.dim), stream));
  }
  if (!scored()) return ok();
  ZC_TRY(own.sums.allocate(rows * heads * sizeof(float), stream));
  return own.seen.allocate(rows * sizeof(uint32_t), stream);
}

Status LayerGroup::ask_device() {
  DecodeArgs args = record_args();
  args.n_items = 1;
  for (const int more : {0, 1}) {
    args.n_queries = more ? kMostStepTokens : 1;
    const Result<DecodeBlocks> blocks = decode_blocks(args);
    if (!blocks.ok()) return blocks.status();
    blocks_[more] = *blocks;
  }
  return ok();
}

void LayerGroup::plan(CacheStep& step, int piece_rows) {
  plan_ = step.is_long() ? DecodePlan{}
                         : plan_decode(schedule_->counts(), shape_.n_heads,
                                       blocks_[step.most_new > 1 ? 1 : 0]);
  past_ = step.is_long() ? past_pieces(*schedule_, step.n_new, piece_rows) : PastPieces{};
  most_first_ = most_of(schedule_->first_rows());
  most_last_ = most_of(schedule_->last_rows());
  std::vector<int32_t> oldest;
  for (int s = 0; s < shape_.n_streams; ++s) oldest.push_back(schedule_->length(s) % sizes().ring);
  Parcel& parcel = step.parcel;
  first_at_ = parcel.add(schedule_->first_rows());
  last_at_ = parcel.add(schedule_->last_rows());
  items_at_ = parcel.add(plan_.items);
  oldest_at_ = parcel.add(oldest);
  past_tasks_at_ = parcel.add(past_.tasks);
  past_rows_at_ = parcel.add(past_.rows);
  ring_tasks_at_ = parcel.add(schedule_->ring_tasks());
  own_tasks_at_ = parcel.add(schedule_->own_tasks());
}

// Of records, whatever the layer and the step.
DecodeArgs LayerGroup::record_args() const {
  DecodeArgs args;
  args.dim = shape_.dim, args.n_heads = shape_.n_heads, args.group = shape_.group;
  args.records = table_;
  args.record_stride = stride_;
  args.form = form().record;
  args.max_record_bytes = sizes().max_record;
  args.k_hadamard = form().k_hadamard, args.v_hadamard = form().v_hadamard;
  return args;
}

DecodeArgs LayerGroup::decode_args(const LayerMemory& own, const CacheStep& step) const {
  DecodeArgs args = record_args();
  args.pool = own.pool.at<uint8_t>();
  args.n_queries = step.most_new;
  args.items = step.parcel.at<WorkItem>(items_at_);
  args.n_items = int(plan_.items.size());
  args.n_warps = plan_.n_warps;
  args.visible = step.parcel.at<int32_t>(step.visible_at);
  args.workspace = workspace_;
  return args;
}

// What the size of the workspace depends on.
DecodeArgs LayerGroup::plan_args(int n_queries) const {
  DecodeArgs args;
  args.dim = shape_.dim, args.n_heads = shape_.n_heads, args.group = shape_.group;
  args.n_queries = std::max(n_queries, 1);
  args.n_items = int(plan_.items.size());
  return args;
}

size_t LayerGroup::workspace_bytes(int n_queries) const {
  return decode_workspace(plan_args(n_queries));
}

size_t LayerGroup::ticket_bytes(int n_queries) const {
  return workspace_bytes(n_queries) - decode_part_bytes(plan_args(n_queries));
}

uint64_t LayerGroup::step_shape(const CacheStep& step) const {
  uint64_t shape = 0;
  for (const int number : {step.most_new, most_first_, int(plan_.items.size()), plan_.n_warps})
    shape = mix(shape ^ uint64_t(number));
  for (const size_t at : {step.visible_at, first_at_, items_at_})
    shape = mix(shape ^ reinterpret_cast<uintptr_t>(step.parcel.at<void>(at)));
  return mix(shape ^ reinterpret_cast<uintptr_t>(workspace_));
}

UnpackArgs LayerGroup::unpack_args(const LayerMemory& own) const {
  UnpackArgs args;
  args.form = form().record;
  args.k_hadamard = form().k_hadamard, args.v_hadamard = form().v_hadamard;
  args.n_heads = shape_.n_heads;
  args.pool = own.pool.at<uint8_t>();
  args.records = table_;
  args.record_stride = stride_;
  return args;
}

const UnpackTask* LayerGroup::past_tasks(const CacheStep& step) const {
  return step.parcel.at<UnpackTask>(past_tasks_at_);
}

const int32_t* LayerGroup::past_rows(const CacheStep& step) const {
  return step.parcel.at<int32_t>(past_rows_at_);
}

InputRows LayerGroup::ring_rows(const DeviceMemory& rows) const {
  const int64_t token = int64_t{shape_.n_heads} * shape_.dim;
  return {rows.at<uint16_t>(), sizes().ring * token, token, shape_.dim};
}

const int32_t* LayerGroup::oldest(const CacheStep& step) const {
  return step.parcel.at<int32_t>(oldest_at_);
}

ScoreRows LayerGroup::ring_scores(const LayerMemory& own) const {
  const int64_t ring = sizes().ring;
  return {{own.sums.at<float>(), ring * shape_.n_heads, ring}, {own.seen.at<uint32_t>(), ring, 0}};
}

Status LayerGroup::keep(const LayerMemory& own, const CacheStep& step, Part part,
                        const InputRows& k, const InputRows& v, const ScoreRows& from,
                        cudaStream_t stream) const {
  const bool first = part == Part::First;
  KeepRowsArgs args;
  args.dim = shape_.dim, args.n_heads = shape_.n_heads, args.n_streams = shape_.n_streams;
  args.k = k, args.v = v;
  args.rows = step.parcel.at<StreamRows>(first ? first_at_ : last_at_);
  args.most_rows = first ? most_first_ : most_last_;
  args.ring = sizes().ring;
  args.k_ring = own.k_ring.at<uint16_t>(), args.v_ring = own.v_ring.at<uint16_t>();
  args.pool = own.pool.at<uint8_t>();
  args.sinks_at = sizes().sinks_at, args.ring_at = sizes().ring_at;
  args.raw = sizes().raw, args.sink_records = sizes().sink_records;
  args.k_hadamard = form().k_hadamard, args.v_hadamard = form().v_hadamard;
  args.k_matrices = own.matrices.k().turn, args.v_matrices = own.matrices.v().turn;
  if (scored()) {
    const ScoreRows ring = ring_scores(own);
    args.sums = ring.sums, args.seen = ring.seen;
    args.from_sums = reading(from.sums), args.from_seen = reading(from.seen);
  }
  return keep_rows(args, stream);
}

PackArgs LayerGroup::pack_args(const LayerMemory& own, const ScoreRows& scores) const {
  PackArgs args;
  args.form = form();
  args.n_heads = shape_.n_heads;
  args.k_matrices = own.matrices.k().turn, args.v_matrices = own.matrices.v().turn;
  args.pool = own.pool.at<uint8_t>();
  args.records = table_;
  args.record_stride = stride_;
  if (scored()) {
    args.scores = reading(scores.sums);
    if (policy().saliency.norm == Norm::ProbeNnz) args.seen = reading(scores.seen);
  }
  return args;
}

PackArgs LayerGroup::ring_pack_args(const LayerMemory& own, const CacheStep& step) const {
  PackArgs args = pack_args(own, ring_scores(own));
  args.k = ring_rows(own.k_ring), args.v = ring_rows(own.v_ring);
  args.tasks = step.parcel.at<PackTask>(ring_tasks_at_);
  args.n_tasks = int(schedule_->ring_tasks().size());
  return args;
}

PackArgs LayerGroup::own_pack_args(const LayerMemory& own, const CacheStep& step,
                                   const InputRows& k, const InputRows& v,
                                   const ScoreRows& scores) const {
  PackArgs args = pack_args(own, scores);
  args.k = k, args.v = v;
  args.tasks = step.parcel.at<PackTask>(own_tasks_at_);
  args.n_tasks = int(schedule_->own_tasks().size());
  return args;
}

}  // namespace zipcache::cuda
