// What the host decides before blocks are packed on a GPU (pack.hpp). Pure, thread-safe.
#pragma once

#include "cache/log.hpp"
#include "cuda/pack.hpp"
#include "zipcache/cache.hpp"

namespace zipcache::cuda {

// Incompatible, by name, for what packing on a GPU or records (RecordLayout::create) do not have.
Result<PackForm> pack_form(const LayerShape& shape, const Policy& policy);

// Whether scores of a block's tokens alone decide their tiers under this policy, as
// PackArgs::scores do. Tiers of other policies come from the host, as PackArgs::tiers.
Status check_ranks_by_scores(const Policy& policy);

// The block-th block of a stream, whose tokens get their tiers by the policy's shares; without
// scores all of them the first.
PackTask pack_task(const Policy& policy, uint64_t block, const BlockBits& left_out, bool scored);

// Coefficients of QueryRounding::feedback(), whose channels are whole groups, in the order of
// PackArgs::feedback.
std::vector<float> feedback_for_pack(std::span<const float> feedback);

}  // namespace zipcache::cuda
