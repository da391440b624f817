// The table of methods: each row is a name, the fields in which it differs from 16 bits, and a
// summary.
#include "zipcache/policy.hpp"

namespace zipcache {
namespace {

// The controls differ from `zipcache` only in what ranks the tokens.
#define ZC_PAPER "k=4/2,v=4/2,ratio=0.6,k_axis=channel,v_axis=cst,fit=endpoint,probes=5+5"

#define ZC_UNIFORM(BITS) "bits=" BITS ",k_axis=channel,v_axis=cst,fit=endpoint"

// Sets of 32 channels of a token with a step alone.
#define ZC_SYMMETRIC(BITS) "bits=" BITS ",codec=sym,k_axis=group32,v_axis=group32,fit=endpoint"

#define ZC_KVARN(K, V) \
  "k=" K ",v=" V ",k_axis=channel,v_axis=token,rotate=hadamard,dual=8,fit=endpoint,sinks=128"

#define ZC_ZIP                                                                               \
  "k_axis=channel,k_fit=endpoint,k_round=query,v_axis=token,v_fit=unbiased,rotate=hadamard," \
  "sinks=4,recent=128"

constexpr PolicyRow kRows[] = {
    {"f16", "bits=16", "16-bit cache through this backend, 32-bit accumulation; the reference"},
    {"uniform", ZC_UNIFORM("4"),
     "one width for every token, K per channel, V channel-separable (the paper's baseline); set k, "
     "v"},
    {"uniform2", ZC_UNIFORM("2"), "uniform at 2 bits"},
    {"uniform3", ZC_UNIFORM("3"), "uniform at 3 bits"},
    {"uniform4", ZC_UNIFORM("4"), "uniform at 4 bits"},
    {"zipcache", ZC_PAPER ",norm=probe_nnz",
     "the paper: 60 % of tokens at 4 bits by normalized attention of 10 % probes, the rest at 2"},
    {"zipcache-code", ZC_PAPER ",norm=full_causal,replacement=1,decode_probes=last",
     "the paper as its released code scores: full causal divisor, draws with replacement, one "
     "decode probe"},
    {"zip", ZC_ZIP ",k=4,v=4/2,ratio=0.1",
     "the default: K at 4 bits rounded by what queries see, V at 2 with the tenth of tokens that "
     "probes attend to most at 4; both rotated, 4 sinks, the newest 128 tokens at 16 bits"},
    {"zip2", ZC_ZIP ",bits=2", "zip with fewer bits: K2 V2"},
    {"zip3", ZC_ZIP ",k=3,v=2", "zip with fewer bits: K3 V2"},
    {"zip4", ZC_ZIP ",k=4,v=3", "zip with more bits: K4 V3"},
    {"kivi2", "bits=2,k_axis=channel32,v_axis=group32,fit=endpoint,recent=128",
     "KIVI at 2 bits: K per channel in groups of 32 tokens, V per token in groups of 32 channels; "
     "both windows move by blocks: the newest 128 to 255 tokens at 16 bits (KIVI: K 0 to 127, V "
     "128)"},
    {"kivi4", "bits=4,k_axis=channel32,v_axis=group32,fit=endpoint,recent=128",
     "KIVI at 4 bits, otherwise as kivi2"},
    {"gear2-l", "bits=2,k_axis=channel64,v_axis=group64,fit=endpoint,rank=2",
     "GEAR-L at 2 bits: groups of 64 tokens of a channel for K, of 64 channels of a token for V, "
     "and of "
     "what they miss a product of rank 2 for each block of a head; without outliers"},
    {"had4", "bits=4,k_axis=token,v_axis=token,rotate=hadamard,fit=endpoint",
     "4 bits per token of a head, K and V rotated (QuaRot's cache)"},
    {"kvarn-k4v2", ZC_KVARN("4", "2"),
     "KVarN: rotated, channels and tokens scaled to one spread, K per channel and V per token; "
     "first "
     "128 tokens at 16 bits"},
    {"kvarn-k2v2", ZC_KVARN("2", "2"), "KVarN with fewer bits: K2 V2"},
    {"kvarn-k4v4", ZC_KVARN("4", "4"), "KVarN with more bits: K4 V4"},
    {"sym8", ZC_SYMMETRIC("8"),
     "the values of llama.cpp's q8_0 in this cache, without its rotation"},
    {"sym8-had", ZC_SYMMETRIC("8") ",rotate=hadamard", "the same, rotated"},
    {"sym4", ZC_SYMMETRIC("4"),
     "the values of llama.cpp's q4_0 in this cache, without its rotation"},
    {"sym4-had", ZC_SYMMETRIC("4") ",rotate=hadamard", "the same, rotated"},
    {"turbo-k4v4", "bits=4,k_codec=lloyd,k_axis=token,v_axis=token,k_rotate=hadamard,fit=endpoint",
     "TurboQuant as vLLM has it, but in all layers: K rotated, Lloyd-Max levels times the token's "
     "norm; V per token"},
    {"fp8", "bits=8,codec=e4m3,k_axis=none,v_axis=none,fit=endpoint",
     "8-bit floating point numbers (e4m3) without a scale, as vLLM's uncalibrated cache; beyond "
     "448 "
     "they saturate"},
    {"nvfp4", "bits=4,codec=e2m1,k_axis=group16,v_axis=group16,fit=endpoint",
     "NVFP4: 4-bit floating point numbers, 16 channels sharing an e4m3 scale; without a scale of "
     "the "
     "tensor, as llama.cpp has it"},
    {"qserve4", "bits=4,k_axis=cst,v_axis=token,fit=endpoint",
     "QServe's 4-bit cache: per token of a head, K smoothed by the root of each channel's largest "
     "value, taken from each block instead of calibration"},
    {"oscar2",
     "bits=2,k_axis=token,v_axis=token,rotate=file,fit=endpoint,k_clip=q0.96,v_clip=q0.92,sinks=64,"
     "recent=256",
     "OSCAR at 2 bits: per token of a head, rotated by rotations=FILE (zipcache fit-rotations "
     "--method oscar), K clipped at the quantile 0.96, V at 0.92; 64 sinks, the newest 256 tokens "
     "at 16 bits"},
    {"skvq",
     "bits=2,k_axis=group32,v_axis=group32,rotate=file,fit=endpoint,clip=0.95,sinks=5,recent=128",
     "SKVQ at 2 bits, its variant after RoPE: channels of a head reordered by rotations=FILE "
     "(zipcache fit-rotations --method permute), groups of 32 of a token, clipped to 0.95 of the "
     "range; without V at 1.5 bits and 8-bit parameters; 5 sinks, the newest 128 tokens at 16 "
     "bits"},
    {"rotatekv", "bits=2,k_axis=token,v_axis=token,rotate=hadamard,fit=endpoint,clip=0.8,sinks=20",
     "RotateKV at 2 bits, a variant after RoPE: per token of a head, rotated, clipped to 0.8 of "
     "the "
     "range; the first 20 tokens at 16 bits in place of those with massive activations"},
    {"wkvquant", "bits=4,k_axis=token,v_axis=token,fit=endpoint",
     "WKVQuant's 4-bit cache: per token of a head, read exactly by the step that makes it; without "
     "its learned shift and scale of channels"},
    {"mikv",
     "bits=16/2,ratio=0.2,k_axis=group32,v_axis=group32,fit=endpoint,probes=100+0,norm=none,"
     "recent=128",
     "MiKV: the 20 % of a block with the most accumulated attention raw, the rest at 2 bits in "
     "groups of 32 channels (half a head of 64); without its key balancer"},
    {"h2o", "bits=16/0,ratio=0.125,probes=100+0,norm=none,recent=128",
     "H2O by blocks: as a block leaves the window each head keeps an eighth of its tokens, those "
     "with the most accumulated attention of all query rows so far, and evicts the others for "
     "ever"},
    {"tova", "bits=16/0,ratio=0.25,score=last",
     "TOVA by blocks: a quarter of each block's tokens, by the attention of the newest query row"},
    {"roco", "bits=16/0,ratio=0.25,score=mean_std,probes=100+0,sinks=4,recent=10",
     "RoCo by blocks: a quarter of each block's tokens, three tenths of them those whose attention "
     "varies most, the others by mean attention of all query rows so far"},
    {"snapkv", "bits=16/0,ratio=0.25,probes=6.2+0,pool=5,recent=32",
     "SnapKV by chunks: a quarter of each block's tokens, by the attention of each chunk's newest "
     "6.2 % of rows (32 of 512), averaged over 5 neighbours; generated tokens are evicted too"},
    {"kvzip", "bits=16/0,ratio=0.3,score=file",
     "KVzip by blocks: each head keeps three tenths of a block's tokens, by the most attention "
     "that "
     "a query gives while the model repeats the text: score=file:FILE (zipcache plot saliency "
     "--replay)"},
    {"streaming", "bits=0,sinks=4,recent=1020",
     "StreamingLLM: 4 sinks and the newest 1020 to 1147 tokens, all others evicted; positions are "
     "those of the text, not counted anew inside the cache"},
    {"rdkv",
     "bits=16/4/2/0,alloc=knapsack,target_bits=2,probes=6.2+0,norm=none,pool=5,k_axis=channel,"
     "v_axis=token,fit=endpoint,recent=32",
     "RDKV by chunks: each head spends 2 bits a number of a block where attention of each chunk's "
     "newest 6.2 % of rows says; from 16 bits to eviction by token, K with V; RDKV widens K by "
     "channel, and has 8 bits too"},
    {"random+pin", "bits=16/0,ratio=0.25,score=random,sinks=4,recent=128",
     "control: eviction at random, a quarter of each block kept; sinks and window pinned"},
    {"random-tiers", ZC_PAPER ",score=random", "control: zipcache with tiers drawn at random"},
    {"recency-tiers", ZC_PAPER ",score=recency",
     "control: zipcache with the newest tokens of a block salient"},
};

#undef ZC_SYMMETRIC
#undef ZC_KVARN
#undef ZC_ZIP
#undef ZC_UNIFORM
#undef ZC_PAPER

}  // namespace

std::span<const PolicyRow> policy_rows() { return kRows; }

}  // namespace zipcache
