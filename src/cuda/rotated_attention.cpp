#include "cuda/rotated_attention.hpp"

#include "cuda/row_matrix.hpp"

namespace zipcache::cuda {
namespace {

Status upload_side(const std::vector<float>& matrices, int dim, DeviceMemory& to,
                   cudaStream_t stream) {
  std::vector<float> both = turned_over(matrices, dim);
  both.insert(both.end(), matrices.begin(), matrices.end());
  const size_t bytes = both.size() * sizeof(float);
  ZC_TRY(to.allocate(bytes, stream));
  if (bytes == 0) return ok();
  return from_cuda(
      cudaMemcpyAsync(to.at<void>(), both.data(), bytes, cudaMemcpyHostToDevice, stream),
      "sending rotations");
}

// Of tokens without gaps, by matrices.
RotateArgs rotation(const DecodeArgs& args, int n_tokens, const float* matrices) {
  RotateArgs rotate;
  rotate.dim = args.dim, rotate.n_heads = args.n_heads, rotate.group = args.group;
  rotate.n_streams = 1, rotate.n_tokens = n_tokens;
  rotate.matrices = matrices;
  rotate.from.head_stride = rotate.to.head_stride = args.dim;
  rotate.from.token_stride = rotate.to.token_stride = int64_t{args.n_heads} * args.group * args.dim;
  return rotate;
}

}  // namespace

Status LayerMatrices::upload(const LayerRotations& rotations, int dim, cudaStream_t stream) {
  ZC_TRY(upload_side(rotations.k, dim, k_, stream));
  return upload_side(rotations.v, dim, v_, stream);
}

SideMatrices LayerMatrices::of(const DeviceMemory& memory) {
  if (memory.bytes() == 0) return {};
  return {memory.at<float>(), memory.at<float>(memory.bytes() / 2)};
}

Status RotatedAttention::allocate(size_t n_numbers, cudaStream_t stream) {
  return space_.grow(2 * n_numbers * sizeof(float), stream);
}

Status RotatedAttention::attend(DecodeArgs args, int n_tokens, SideMatrices k, SideMatrices v,
                                cudaStream_t stream) {
  if (!k && !v) return decode_attention(args, stream);
  const size_t n_numbers = size_t(n_tokens) * size_t(args.n_heads * args.group * args.dim);
  ZC_TRY(allocate(n_numbers, stream));
  if (k) {
    RotateArgs rotate = rotation(args, n_tokens, k.turn);
    rotate.from.data = args.q, rotate.from.type = args.q_type;
    rotate.to.data = space_.at<void>();
    ZC_TRY(rotate_rows(rotate, stream));
    args.q = rotate.to.data, args.q_type = Number::F32;
  }
  if (!v) return decode_attention(args, stream);
  RotateArgs rotate = rotation(args, n_tokens, v.back);
  rotate.back = true;
  rotate.from.data = space_.at<void>(n_numbers * sizeof(float));
  rotate.to.data = args.out, rotate.to.type = args.out_type;
  args.out = space_.at<void>(n_numbers * sizeof(float)), args.out_type = Number::F32;
  ZC_TRY(decode_attention(args, stream));
  return rotate_rows(rotate, stream);
}

}  // namespace zipcache::cuda
