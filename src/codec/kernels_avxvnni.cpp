// The kernels for machines with AVX2 and AVX-VNNI.
#include <immintrin.h>

#include "codec/kernels.hpp"

#define ZC_VNNI
namespace zipcache {
namespace {
#include "codec/lanes_avx2.inc"
// The primitives come first.
#include "codec/kernels_body.inc"
}  // namespace

extern const Kernels kKernelsAvxVnni;
const Kernels kKernelsAvxVnni = ZC_KERNEL_TABLE("avxvnni", Precision::Exact);

}  // namespace zipcache
