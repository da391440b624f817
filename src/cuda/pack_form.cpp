#include "cuda/pack_form.hpp"

#include <fmt/format.h>

#include "codec/query_rounding.hpp"
#include "cuda/fragments.hpp"
#include "policy/fields.hpp"

namespace zipcache::cuda {

static_assert(kFeedbackGroup == kMomentGroup);
static_assert(kMostRank == kMaxRank);

namespace {

Status refused(std::string_view what, std::string_view expected) {
  return {
      Code::Incompatible,
      fmt::format("packing on the GPU found {}, expected {}; take such a policy, or pack on the "
                  "CPU",
                  what, expected)};
}

Status check_side(const Side& side, std::string_view name) {
  if (side.dual > kMostDual)
    return refused(fmt::format("{}_dual={}", name, side.dual),
                   fmt::format("at most {} rounds", kMostDual));
  return {};
}

SetPackForm set_form(const Side& side, const SideForm& form) {
  return {form.as_tile || side.clip.clips() || side.dual > 0, side.clip, side.dual};
}

}  // namespace

Result<PackForm> pack_form(const LayerShape& shape, const Policy& policy) {
  const Result<RecordLayout> layout = RecordLayout::create(shape, policy);
  if (!layout.ok()) return layout.status();
  ZC_TRY(check_side(policy.k, "k"));
  ZC_TRY(check_side(policy.v, "v"));
  PackForm form;
  form.record = layout->form();
  form.k_fit = policy.k.fit;
  form.v_fit = policy.v.fit;
  form.k_hadamard = policy.k.rotation == Rotation::Hadamard;
  form.v_hadamard = policy.v.rotation == Rotation::Hadamard;
  form.k_by_matrix = policy.k.rotation == Rotation::File;
  form.v_by_matrix = policy.v.rotation == Rotation::File;
  form.k_sets = set_form(policy.k, form.record.k);
  form.v_sets = set_form(policy.v, form.record.v);
  form.k_by_queries = policy.k_rounding == Rounding::Query && !form.record.k_by_token();
  if (form.k_by_queries && form.k_sets.used)
    return refused("k_round=query with k_clip, k_dual or k_rank", "k_round=nearest with these");
  return form;
}

Status check_ranks_by_scores(const Policy& policy) {
  const auto needs_host = [](std::string_view what) {
    return Status(
        Code::Incompatible,
        fmt::format("packing on the GPU found {}, expected tiers that each head's scores of "
                    "one block decide; give it the tiers themselves",
                    what));
  };
  if (policy.fills_budget()) return needs_host("a budget of bits (alloc=knapsack)");
  if (policy.saliency.pool_width != 1)
    return needs_host(fmt::format("pool={}", policy.saliency.pool_width));
  if (policy.saliency.scope == Scope::Layer) return needs_host("scope=layer");
  if (policy.saliency.statistic == Statistic::MeanStd) return needs_host("score=mean_std");
  return {};
}

PackTask pack_task(const Policy& policy, uint64_t block, const BlockBits& left_out, bool scored) {
  PackTask task;
  for (int row = 0; row < kPackRows; ++row)
    task.left_out[row / 32] |= uint32_t(left_out.test(size_t(row))) << row % 32;
  const int n_coded = kPackRows - int(left_out.count());
  TierCounts counts = {n_coded};
  if (policy.tiers.size() > 1 && scored)
    counts = tier_counts_of_block(block, n_coded, policy.shares);
  for (size_t t = 0; t < counts.size(); ++t) task.counts[t] = counts[t];
  return task;
}

std::vector<float> feedback_for_pack(std::span<const float> feedback) {
  constexpr size_t kSize = kFeedbackGroup;
  std::vector<float> out(feedback.size());
  for (size_t group = 0; group < feedback.size(); group += kSize * kSize) {
    for (size_t channel = 0; channel < kSize; ++channel) {
      for (size_t before = 0; before < kSize; ++before)
        out[group + before * kSize + channel] = feedback[group + channel * kSize + before];
    }
  }
  return out;
}

}  // namespace zipcache::cuda
