// The kernels for any machine.
#include "codec/kernels.hpp"

namespace zipcache {
namespace {
#include "codec/lanes_plain.inc"
// The primitives come first.
#include "codec/kernels_body.inc"
}  // namespace

extern const Kernels kKernelsPlain;
const Kernels kKernelsPlain = ZC_KERNEL_TABLE("plain", Precision::Exact);

}  // namespace zipcache
