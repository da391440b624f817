// The kernels for any machine.
#include "codec/kernels.hpp"

#define ZC_VECTOR_BYTES 16
#define ZC_KERNELS kKernelsPlain
#define ZC_KERNELS_NAME "plain"
#include "codec/kernels_body.inc"
