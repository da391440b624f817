// Linked where there is no CUDA compiler: the same functions, which say so.
#include "cuda/decode.hpp"
#include "cuda/gpu_cache.hpp"
#include "cuda/pack.hpp"
#include "cuda/probe.hpp"
#include "cuda/prompt.hpp"
#include "cuda/unpack.hpp"

namespace zipcache::cuda {
namespace {

Status absent() {
  return {Code::Environment,
          "found a build without CUDA, expected one with it; build again where nvcc is on the path "
          "(CUDA 12 or newer)"};
}

}  // namespace

Result<DecodeBlocks> decode_blocks(const DecodeArgs&) { return absent(); }
Status decode_attention(const DecodeArgs&, cudaStream_t) { return absent(); }
Status check_packing(const PackForm&) { return absent(); }
Status pack_records(const PackArgs&, cudaStream_t) { return absent(); }
Status sum_probes(const ProbeArgs&, cudaStream_t) { return absent(); }
Status attend_prompt(const PromptArgs&, cudaStream_t) { return absent(); }
Status unpack_records(const UnpackArgs&, cudaStream_t) { return absent(); }
Result<std::unique_ptr<GpuCache>> GpuCache::create(const GpuCacheShape&, const Policy&,
                                                   cudaStream_t) {
  return absent();
}

}  // namespace zipcache::cuda
