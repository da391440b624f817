// The kernels for machines with AVX2, FMA and F16C.
#include <immintrin.h>

#include "codec/kernels.hpp"

namespace zipcache {
namespace {
#include "codec/lanes_avx2.inc"
// The primitives come first.
#include "codec/kernels_body.inc"
}  // namespace

extern const Kernels kKernelsAvx2;
const Kernels kKernelsAvx2 = ZC_KERNEL_TABLE("avx2", Precision::K2);

}  // namespace zipcache
