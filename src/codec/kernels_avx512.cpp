// The kernels for machines with AVX-512 and VNNI.
#include <immintrin.h>

#include "codec/kernels.hpp"

namespace zipcache {
namespace {
#include "codec/lanes_avx512.inc"
// The primitives come first.
#include "codec/kernels_body.inc"
}  // namespace

extern const Kernels kKernelsAvx512;
const Kernels kKernelsAvx512 = ZC_KERNEL_TABLE("avx512", Precision::Exact);

}  // namespace zipcache
