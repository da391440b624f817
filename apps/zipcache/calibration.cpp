// Moments of queries, keys and values from attention operations.
#include "calibration.hpp"

#include <fmt/format.h>
#include <ggml-backend.h>

#include <Eigen/Core>
#include <cmath>
#include <cstdio>
#include <cstring>

namespace zipcache::cli {

namespace {

using Rows = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

// Each n-th query says how much attention values get; all queries say what queries are like.
constexpr int kQueryStride = 8;
// First cells that count neither as keys nor as values: every policy with a fitted rotation keeps
// them at 16 bits, and the attention they draw would outweigh all others.
constexpr int kSinks = 4;

// One attention operation: tensors as ggml lays them out.
struct Operation {
  const ggml_tensor *q, *k, *v, *mask;
  float scale, max_bias, soft_cap;

  explicit Operation(const ggml_tensor* node)
      : q(node->src[0]), k(node->src[1]), v(node->src[2]), mask(node->src[3]) {
    float numbers[3];
    std::memcpy(numbers, node->op_params, sizeof numbers);
    scale = numbers[0], max_bias = numbers[1], soft_cap = numbers[2];
  }
  int n_queries() const { return static_cast<int>(q->ne[1]); }
  int n_cells() const { return static_cast<int>(k->ne[1]); }
  int group() const { return static_cast<int>(q->ne[2] / k->ne[2]); }
  LayerShape shape() const {
    return {static_cast<int>(k->ne[2]), static_cast<int>(k->ne[0]), static_cast<int>(v->ne[0])};
  }
};

const char* row_of(const ggml_tensor* tensor, int row, int head) {
  return static_cast<const char*>(tensor->data) + row * tensor->nb[1] + head * tensor->nb[2];
}

// [rows, channels] of one head, 16- or 32-bit numbers.
Rows head_rows(const ggml_tensor* tensor, int head) {
  Rows out(tensor->ne[1], tensor->ne[0]);
  for (int row = 0; row < out.rows(); ++row) {
    const char* from = row_of(tensor, row, head);
    if (tensor->type == GGML_TYPE_F32)
      std::memcpy(out.row(row).data(), from, out.cols() * sizeof(float));
    else
      ggml_fp16_to_fp32_row(reinterpret_cast<const ggml_fp16_t*>(from), out.row(row).data(),
                            out.cols());
  }
  return out;
}

// What the mask adds to the scores of one query: 0 or minus infinity; [n_cells].
Eigen::RowVectorXf mask_row(const Operation& step, int query) {
  Eigen::RowVectorXf out = Eigen::RowVectorXf::Zero(step.n_cells());
  if (step.mask) {
    ggml_fp16_to_fp32_row(reinterpret_cast<const ggml_fp16_t*>(row_of(step.mask, query, 0)),
                          out.data(), out.size());
  }
  return out;
}

// Softmax over the cells that the query sees; zeros if it sees none.
Eigen::RowVectorXf attention(const Operation& step, int query, const Rows& keys, const Rows& q) {
  Eigen::RowVectorXf scores = q.row(query) * keys.transpose() * step.scale;
  if (step.soft_cap > 0) scores = step.soft_cap * (scores.array() / step.soft_cap).tanh();
  scores += mask_row(step, query);
  const float peak = scores.maxCoeff();
  if (!std::isfinite(peak)) return Eigen::RowVectorXf::Zero(scores.size());
  scores = (scores.array() - peak).exp();
  return scores / scores.sum();
}

void add(const Rows& from, std::vector<double>& to) {
  for (Eigen::Index i = 0; i < from.size(); ++i) to[i] += from.data()[i];
}

void add_head(const Operation& step, int head, HeadMoments& moments) {
  const Rows keys = head_rows(step.k, head), values = head_rows(step.v, head);
  Eigen::VectorXf received = Eigen::VectorXf::Zero(step.n_cells());
  for (int h = head * step.group(); h < (head + 1) * step.group(); ++h) {
    const Rows q = head_rows(step.q, h);
    add(q.transpose() * q, moments.queries);
    for (int query = 0; query < step.n_queries(); query += kQueryStride)
      received += attention(step, query, keys, q).transpose();
  }
  Eigen::VectorXf there =  // what the newest query sees
      (mask_row(step, step.n_queries() - 1).array() == 0).cast<float>().transpose();
  received.head(std::min<Eigen::Index>(kSinks, received.size())).setZero();
  there.head(std::min<Eigen::Index>(kSinks, there.size())).setZero();
  add(values.transpose() * received.asDiagonal() * values, moments.values);
  add(there.transpose() * keys.cwiseAbs2(), moments.k_squares);
  add(there.transpose() * values.cwiseAbs2(), moments.v_squares);
}

// The number of the layer whose cache `tensor` is a view of; -1 for no such view.
int layer_of(const ggml_tensor* tensor) {
  while (tensor->view_src) tensor = tensor->view_src;
  int layer = -1;
  return std::sscanf(tensor->name, "cache_k_l%6d", &layer) == 1 ? layer : -1;
}

}  // namespace

bool Calibration::observe(ggml_tensor* node, bool ask, void* calibration) {
  auto& self = *static_cast<Calibration*>(calibration);
  if (node->op != GGML_OP_FLASH_ATTN_EXT) return !ask;
  if (!ask && self.status_.ok()) self.status_ = self.take(node);
  return true;
}

Status Calibration::take(const ggml_tensor* node) {
  const Operation step(node);
  const int number = layer_of(step.k);
  if (number < 0 || step.q->type != GGML_TYPE_F32 || step.k->type != GGML_TYPE_F16 ||
      step.v->type != GGML_TYPE_F16 || step.q->ne[3] != 1 || step.max_bias > 0) {
    return {Code::Incompatible,
            fmt::format("attention '{}' of this model cannot be fitted to: expected a 16-bit cache "
                        "of keys and values per head, without ALiBi; use a policy without "
                        "rotate=file",
                        node->name)};
  }
  ZC_TRY(check(CacheShape{1, 1, {step.shape()}}));
  Layer& layer = layers_[number];
  if (layer.heads.empty()) {
    layer.shape = step.shape();
    layer.heads.assign(layer.shape.n_heads, HeadMoments(layer.shape.k_dim, layer.shape.v_dim));
  }
  for (int head = 0; head < layer.shape.n_heads; ++head) add_head(step, head, layer.heads[head]);
  return ok();
}

Result<Rotations> Calibration::fit(RotationMethod method) const {
  if (!status_.ok()) return status_;
  if (layers_.empty()) {
    return Status{
        Code::Incompatible,
        "no attention over a cache was seen; this model needs no cache of keys and values"};
  }
  Rotations out;
  out.layers.resize(layers_.rbegin()->first + 1);
  for (const auto& [number, layer] : layers_)
    out.layers[number] = fit_rotations(layer.shape, layer.heads, method);
  const Status status = check(out);
  if (status.ok()) return out;
  return Status{
      Code::BadData,
      fmt::format("the model's numbers give no rotation: {}; it may overflow", status.message())};
}

}  // namespace zipcache::cli
