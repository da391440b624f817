// The table of methods: each row is a name, the fields in which it differs from 16 bits, and a
// summary.
#include "zipcache/policy.hpp"

namespace zipcache {
namespace {

// The controls differ from `zipcache` only in what ranks the tokens.
#define ZC_PAPER "k=4/2,v=4/2,ratio=0.6,k_axis=channel,v_axis=cst,fit=endpoint,probes=5+5"

constexpr PolicyRow kRows[] = {
    {"f16", "bits=16", "16-bit cache through this backend, 32-bit accumulation; the reference"},
    {"uniform", "bits=4,k_axis=channel,v_axis=cst,fit=endpoint",
     "one width for every token, K per channel, V channel-separable (the paper's baseline); set k, "
     "v"},
    {"zipcache", ZC_PAPER ",norm=probe_nnz",
     "the paper: 60 % of tokens at 4 bits by normalized attention of 10 % probes, the rest at 2"},
    {"zipcache-code", ZC_PAPER ",norm=full_causal,replacement=1,decode_probes=last",
     "the paper as its released code scores: full causal divisor, draws with replacement, one "
     "decode probe"},
    {"zip", "k=4,v=2,k_axis=channel,v_axis=token,v_rotate=hadamard,fit=unbiased,sinks=4,recent=128",
     "the default: K4 V2, V rotated, slope-1 fit, 4 sinks and the newest 128 tokens at 16 bits"},
    {"kivi2", "bits=2,k_axis=channel32,v_axis=group32,fit=endpoint,recent=128",
     "KIVI at 2 bits: K per channel in groups of 32 tokens, V per token in groups of 32 channels; "
     "both windows move by blocks: the newest 128 to 255 tokens at 16 bits (KIVI: K 0 to 127, V "
     "128)"},
    {"kivi4", "bits=4,k_axis=channel32,v_axis=group32,fit=endpoint,recent=128",
     "KIVI at 4 bits, otherwise as kivi2"},
    {"had4", "bits=4,k_axis=token,v_axis=token,rotate=hadamard,fit=endpoint",
     "4 bits per token of a head, K and V rotated (QuaRot's cache)"},
    {"qserve4", "bits=4,k_axis=cst,v_axis=token,fit=endpoint",
     "QServe's 4-bit cache: per token of a head, K smoothed by the root of each channel's largest "
     "value, taken from each block instead of calibration"},
    {"random-tiers", ZC_PAPER ",score=random", "control: zipcache with tiers drawn at random"},
    {"recency-tiers", ZC_PAPER ",score=recency",
     "control: zipcache with the newest tokens of a block salient"},
};

#undef ZC_PAPER

}  // namespace

std::span<const PolicyRow> policy_rows() { return kRows; }

}  // namespace zipcache
