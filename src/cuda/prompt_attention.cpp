#include "cuda/prompt_attention.hpp"

namespace zipcache::cuda {
namespace {

// Of a piece of the past that is unpacked at once, K and V of all streams together; rows of a
// stream, in whole blocks.
constexpr size_t kPieceBytes = size_t{128} << 20;
constexpr int kLeastPieceRows = 1024, kMostPieceRows = 8192;

}  // namespace

int PromptAttention::piece_rows() const {
  const size_t of_row =
      size_t(shape_.n_streams) * size_t(shape_.n_heads) * size_t(shape_.dim) * 2 * sizeof(uint16_t);
  const size_t fitting = std::min<size_t>(kPieceBytes / of_row, kMostPieceRows);
  const int wanted =
      shape_.piece_tokens > 0 ? shape_.piece_tokens : std::max(int(fitting), kLeastPieceRows);
  const int rows = std::min(wanted, shape_.max_tokens);
  return (rows + kBlockTokens - 1) / kBlockTokens * kBlockTokens;
}

Status PromptAttention::attend(const LayerGroup& group, const LayerMemory& own,
                               const CacheStep& step, const PromptStep& prompt,
                               cudaStream_t stream) {
  const size_t rows = size_t(shape_.n_streams) * size_t(step.most_new);
  ZC_TRY(log_sums_.grow(rows * size_t(shape_.n_heads * shape_.group) * sizeof(float), stream));
  if (!step.is_long()) return attend_short(group, own, step, prompt, stream);
  ZC_TRY(attend_prompt(prompt_args(step, prompt), stream));
  return attend_past(group, own, step, prompt, stream);
}

// Few tokens attend to records, their own among them. They come into the ring once more when they
// have scores.
Status PromptAttention::attend_short(const LayerGroup& group, const LayerMemory& own,
                                     const CacheStep& step, const PromptStep& prompt,
                                     cudaStream_t stream) {
  ZC_TRY(group.keep(own, step, LayerGroup::Part::First, prompt.k, prompt.v, {}, stream));
  ZC_TRY(pick_queries(step, prompt, stream));
  DecodeArgs args = group.decode_args(own, step);
  args.sinks = prompt.sinks;
  args.scale = prompt.scale;
  args.q = queries_.at<void>();
  args.out = prompt.out, args.out_type = prompt.out_type;
  args.log_sums = log_sums_.at<float>();
  return rotated_.attend(args, shape_.n_streams * step.most_new, own.matrices.k(), own.matrices.v(),
                         stream);
}

// Of the new tokens over themselves.
PromptArgs PromptAttention::prompt_args(const CacheStep& step, const PromptStep& prompt) const {
  PromptArgs args;
  args.dim = shape_.dim, args.n_heads = shape_.n_heads, args.group = shape_.group;
  args.n_streams = shape_.n_streams, args.n_tokens = step.most_new;
  args.q = prompt.q, args.k = prompt.k, args.v = prompt.v;
  args.lengths = step.parcel.at<int32_t>(step.n_new_at);
  args.scale = prompt.scale;
  args.sinks = prompt.sinks;
  args.out = prompt.out, args.out_type = prompt.out_type;
  args.log_sums = log_sums_.at<float>();
  return args;
}

Status PromptAttention::allocate_past(cudaStream_t stream) {
  if (turns_.bytes() > 0) return ok();
  const size_t rows = size_t(shape_.n_streams) * size_t(shape_.n_heads) * size_t(piece_rows());
  for (DeviceMemory* memory : {&past_k_, &past_v_})
    ZC_TRY(memory->allocate(rows * size_t(shape_.dim) * sizeof(uint16_t), stream));
  return turns_.allocate(kPromptTurns * sizeof(int), stream);
}

InputRows PromptAttention::past_rows(const DeviceMemory& rows) const {
  const int64_t head = int64_t{piece_rows()} * shape_.dim;
  return {rows.at<uint16_t>(), shape_.n_heads * head, shape_.dim, head};
}

// Rows of a piece of the past, of which each stream has `counts`, where a file's matrices turned
// them.
Status PromptAttention::turn_back(const DeviceMemory& rows, SideMatrices matrices,
                                  const int32_t* counts, cudaStream_t stream) const {
  if (!matrices) return ok();
  const InputRows at = past_rows(rows);
  RotateArgs args;
  args.dim = shape_.dim, args.n_heads = shape_.n_heads;
  args.n_streams = shape_.n_streams, args.n_tokens = piece_rows();
  args.counts = counts;
  args.matrices = matrices.back;
  args.back = true;
  args.from = {at.data, Number::F16, at.stream_stride, at.token_stride, at.head_stride};
  args.to = {rows.at<void>(), Number::F16, at.stream_stride, at.token_stride, at.head_stride};
  return rotate_rows(args, stream);
}

// Adds attention over the tokens from before, a piece of them after the other.
Status PromptAttention::attend_past(const LayerGroup& group, const LayerMemory& own,
                                    const CacheStep& step, const PromptStep& prompt,
                                    cudaStream_t stream) {
  const std::vector<int>& ends = group.past().ends;
  if (ends.empty()) return ok();
  ZC_TRY(allocate_past(stream));
  UnpackArgs unpack = group.unpack_args(own);
  unpack.k = past_k_.at<uint16_t>(), unpack.v = past_v_.at<uint16_t>();
  unpack.n_rows = piece_rows();
  PromptArgs args = prompt_args(step, prompt);
  args.k = past_rows(past_k_), args.v = past_rows(past_v_);
  args.turns = turns_.at<int>();
  args.sinks = nullptr;
  int first = 0;
  for (size_t piece = 0; piece < ends.size(); ++piece) {
    unpack.tasks = group.past_tasks(step) + first;
    unpack.n_tasks = ends[piece] - first;
    first = ends[piece];
    ZC_TRY(unpack_records(unpack, stream));
    args.past = group.past_rows(step) + piece * size_t(shape_.n_streams);
    ZC_TRY(turn_back(past_k_, own.matrices.k(), args.past, stream));
    ZC_TRY(turn_back(past_v_, own.matrices.v(), args.past, stream));
    ZC_TRY(attend_prompt(args, stream));
  }
  return ok();
}

// Queries of each stream's tokens, without gaps.
Status PromptAttention::pick_queries(const CacheStep& step, const PromptStep& prompt,
                                     cudaStream_t stream) {
  const size_t query_heads = size_t(shape_.n_heads * shape_.group);
  const size_t rows = size_t(shape_.n_streams) * size_t(step.most_new) * query_heads;
  ZC_TRY(queries_.grow(rows * size_t(shape_.dim) * sizeof(uint16_t), stream));
  PickArgs pick;
  pick.dim = shape_.dim, pick.n_heads = int(query_heads), pick.n_streams = shape_.n_streams;
  pick.n_picked = step.most_new;
  pick.from = prompt.q;
  pick.to = queries_.at<uint16_t>();
  return pick_rows(pick, stream);
}

size_t PromptAttention::bytes() const {
  size_t bytes = 0;
  for (const DeviceMemory* memory : {&log_sums_, &queries_, &past_k_, &past_v_, &turns_})
    bytes += memory->bytes();
  return bytes + rotated_.bytes();
}

}  // namespace zipcache::cuda
