// The kernels for machines with avx2.
#include "codec/kernels.hpp"

#define ZC_VECTOR_BYTES 32
#define ZC_KERNELS kKernelsAvx2
#define ZC_KERNELS_NAME "avx2"
#include "codec/kernels_body.inc"
