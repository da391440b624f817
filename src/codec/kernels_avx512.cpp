// The kernels for machines with avx512.
#include "codec/kernels.hpp"

#define ZC_VECTOR_BYTES 64
#define ZC_KERNELS kKernelsAvx512
#define ZC_KERNELS_NAME "avx512"
#include "codec/kernels_body.inc"
