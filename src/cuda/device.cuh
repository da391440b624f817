// The few machine instructions that CUDA C++ has no words for. Device code only.
#pragma once

#include <cuda_fp16.h>

#include <cstdint>

namespace zipcache::cuda {

__device__ __forceinline__ uint32_t shared_address(const void* p) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(p));
}

// d = c + a [16, 16] times b [16, 8], 16-bit operands and 32-bit sums (mma.m16n8k16).
__device__ __forceinline__ void multiply_add(float (&d)[4], const float (&c)[4], uint32_t a0,
                                             uint32_t a1, uint32_t a2, uint32_t a3, uint32_t b0,
                                             uint32_t b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%10,%11,%12,%13};"
      : "=f"(d[0]), "=f"(d[1]), "=f"(d[2]), "=f"(d[3])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1), "f"(c[0]), "f"(c[1]), "f"(c[2]),
        "f"(c[3]));
}
__device__ __forceinline__ void multiply_add(float (&d)[4], uint32_t a0, uint32_t a1, uint32_t a2,
                                             uint32_t a3, uint32_t b0, uint32_t b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

// d += a [16, 32] times b [32, 8], whole numbers of 8 bits without a sign and with one, 32-bit sums
// (mma.m16n8k32). Lane l has of a rows l/4 (a[0], a[2]) and l/4 + 8, of b column l/4: bytes of
// columns of a and rows of b that meet have the same place.
__device__ __forceinline__ void multiply_bytes(int (&d)[4], const uint32_t (&a)[4],
                                               const uint32_t (&b)[2]) {
  asm("mma.sync.aligned.m16n8k32.row.col.s32.u8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%0,%1,%2,%3};"
      : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
// The same of numbers without a sign.
__device__ __forceinline__ void multiply_unsigned_bytes(int (&d)[4], const uint32_t (&a)[4],
                                                        const uint32_t (&b)[2]) {
  asm("mma.sync.aligned.m16n8k32.row.col.s32.u8.u8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%0,%1,%2,%3};"
      : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// Four numbers from -32512 to 32512, rounded, as upper and lower bytes with signs:
// number = 256 * upper + lower.
struct BytePlanes {
  uint32_t upper, lower;
};
__device__ __forceinline__ BytePlanes signed_planes(float a, float b, float c, float d) {
  // Added to a number this leaves it, and 128 more, in the sum's lower bits.
  constexpr float kMagic = 12582912.0f + 128.0f;  // 1.5 * 2^23
  const uint32_t ab = __byte_perm(__float_as_uint(a + kMagic), __float_as_uint(b + kMagic), 0x5140);
  const uint32_t cd = __byte_perm(__float_as_uint(c + kMagic), __float_as_uint(d + kMagic), 0x5140);
  return {__byte_perm(ab, cd, 0x7632), __byte_perm(ab, cd, 0x5410) ^ 0x80808080u};
}

// Two numbers from 0 to 65535, rounded: their upper bytes in the lower half, their lower bytes in
// the upper half.
__device__ __forceinline__ uint32_t byte_pairs(float a, float b) {
  constexpr float kMagic = 8388608.0f;  // 2^23
  return __byte_perm(__float_as_uint(a + kMagic), __float_as_uint(b + kMagic), 0x4051);
}

// Transpose of an 8 x 8 matrix of 16-bit numbers of which lane l holds row l / 4, columns
// 2 (l % 4) and the next one.
__device__ __forceinline__ uint32_t transposed(uint32_t x) {
  uint32_t y;
  asm("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(y) : "r"(x));
  return y;
}

// Four 8 x 8 matrices of 16-bit numbers in shared memory: lane l gives the address of row l % 8 of
// matrix l / 8, and gets of each matrix row l / 4, columns 2 (l % 4) and the next one.
__device__ __forceinline__ void load_matrices(uint32_t row_address, uint32_t (&w)[4]) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(w[0]), "=r"(w[1]), "=r"(w[2]), "=r"(w[3])
               : "r"(row_address));
}
// The same of their transposes: column l / 4, rows 2 (l % 4) and the next one.
__device__ __forceinline__ void load_turned_matrices(uint32_t row_address, uint32_t (&w)[4]) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(w[0]), "=r"(w[1]), "=r"(w[2]), "=r"(w[3])
               : "r"(row_address));
}

// Two 16-bit numbers in a word, and the word.
__device__ __forceinline__ __half2 pair_from(uint32_t bits) {
  return reinterpret_cast<const __half2&>(bits);
}
__device__ __forceinline__ uint32_t bits_of(__half2 pair) {
  return reinterpret_cast<const uint32_t&>(pair);
}
__device__ __forceinline__ uint32_t half_pair(float low, float high) {
  return bits_of(__floats2half2_rn(low, high));
}
// A number rounded to 16 bits, and in the upper half what this leaves over.
__device__ __forceinline__ uint32_t half_and_rest(float x) {
  const __half rounded = __float2half_rn(x);
  return half_pair(__half2float(rounded), x - __half2float(rounded));
}
__device__ __forceinline__ float2 pair_of(uint32_t x) { return __half22float2(pair_from(x)); }
// 2^x, 0 for -infinity; a few units of the last place off.
__device__ __forceinline__ float fast_exp2(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// Over the 4 lanes that hold numbers of the same row of products.
__device__ __forceinline__ float sum_of_row(float x) {
  x += __shfl_xor_sync(~0u, x, 1);
  return x + __shfl_xor_sync(~0u, x, 2);
}
__device__ __forceinline__ float largest_of_row(float x) {
  x = fmaxf(x, __shfl_xor_sync(~0u, x, 1));
  return fmaxf(x, __shfl_xor_sync(~0u, x, 2));
}

// Of the numbers of all lanes, none below 0.
__device__ __forceinline__ float largest_of_warp(float x) {
  return __uint_as_float(__reduce_max_sync(~0u, __float_as_uint(x)));
}

// 2 or 4 words of shared memory at once.
template <int kWords>
__device__ __forceinline__ void load_words(const uint8_t* from, uint32_t (&w)[4]) {
  if constexpr (kWords == 4) {
    const uint4 all = *reinterpret_cast<const uint4*>(from);
    w[0] = all.x;
    w[1] = all.y;
    w[2] = all.z;
    w[3] = all.w;
  } else {
    const uint2 both = *reinterpret_cast<const uint2*>(from);
    w[0] = both.x;
    w[1] = both.y;
  }
}

// Adds to a number in shared memory, after all that this thread read and before what it does next;
// returns what was there.
__device__ __forceinline__ int add_in_order(int* number, int by) {
  int before;
  asm volatile("atom.acq_rel.cta.shared::cta.add.u32 %0, [%1], %2;"
               : "=r"(before)
               : "r"(shared_address(number)), "r"(by)
               : "memory");
  return before;
}

// A number in shared memory that one thread writes and others look at until it is what they want.
__device__ __forceinline__ void publish(int* number, int value) {
  asm volatile("st.release.cta.shared::cta.b32 [%0], %1;" ::"r"(shared_address(number)), "r"(value)
               : "memory");
}
__device__ __forceinline__ int published(const int* number) {
  int value;
  asm volatile("ld.acquire.cta.shared::cta.b32 %0, [%1];"
               : "=r"(value)
               : "r"(shared_address(number))
               : "memory");
  return value;
}
// add_in_order of a number in the device's memory, for all threads that met at a barrier with this
// one.
__device__ __forceinline__ int add_in_order_of_device(int* number, int by) {
  int before;
  asm volatile("atom.acq_rel.gpu.global.add.u32 %0, [%1], %2;"
               : "=r"(before)
               : "l"(number), "r"(by)
               : "memory");
  return before;
}

// Neighbouring numbers of any memory that other blocks may have written.
__device__ __forceinline__ void load_of_device(const float* from, float& a, float& b) {
  asm volatile("ld.relaxed.gpu.v2.f32 {%0, %1}, [%2];" : "=f"(a), "=f"(b) : "l"(from) : "memory");
}
__device__ __forceinline__ void load_of_device(const float* from, float& a, float& b, float& c,
                                               float& d) {
  asm volatile("ld.relaxed.gpu.v4.f32 {%0, %1, %2, %3}, [%4];"
               : "=f"(a), "=f"(b), "=f"(c), "=f"(d)
               : "l"(from)
               : "memory");
}

// ---- copies by threads (sm_80)

__device__ __forceinline__ void copy_16(void* to, const void* from) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(shared_address(to)), "l"(from)
               : "memory");
}
__device__ __forceinline__ void copy_4(void* to, const void* from) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" ::"r"(shared_address(to)), "l"(from)
               : "memory");
}
__device__ __forceinline__ void commit_copies() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}
template <int kPending>
__device__ __forceinline__ void wait_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

// ---- of sm_90 and later: launches that overlap, and bulk copies that end at a barrier in shared
// memory

#if __CUDA_ARCH__ >= 900
// Of a launch that may begin while the one before it in the stream still runs: returns when that
// one has ended and all it wrote can be read. Of another launch: at once.
__device__ __forceinline__ void wait_for_launch_before() {
  asm volatile("griddepcontrol.wait;" ::: "memory");
}
// Lets such a launch begin when all blocks have come here, or ended.
__device__ __forceinline__ void let_next_launch_begin() {
  asm volatile("griddepcontrol.launch_dependents;");
}
__device__ __forceinline__ void open_barrier(uint64_t* barrier, int arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)),
               "r"(arrivals)
               : "memory");
}
__device__ __forceinline__ void fence_barriers() {
  asm volatile("fence.mbarrier_init.release.cluster;\n\tfence.proxy.async.shared::cta;" ::
                   : "memory");
}
__device__ __forceinline__ void arrive_expecting(uint64_t* barrier, uint32_t bytes) {
  asm volatile(
      "mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)),
      "r"(bytes)
      : "memory");
}
__device__ __forceinline__ void wait_phase(uint64_t* barrier, int parity) {
  asm volatile(
      "{\n\t.reg .pred done;\n\t"
      "again: mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n\t"
      "@!done bra again;\n\t}" ::"r"(shared_address(barrier)),
      "r"(parity)
      : "memory");
}
__device__ __forceinline__ void copy_bulk(void* to, const void* from, uint32_t bytes,
                                          uint64_t* barrier) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::
          "r"(shared_address(to)),
      "l"(from), "r"(bytes), "r"(shared_address(barrier))
      : "memory");
}
#else
// Earlier cards copy by threads, one launch after another.
__device__ __forceinline__ void wait_for_launch_before() {}
__device__ __forceinline__ void let_next_launch_begin() {}
__device__ __forceinline__ void open_barrier(uint64_t*, int) {}
__device__ __forceinline__ void fence_barriers() {}
__device__ __forceinline__ void arrive_expecting(uint64_t*, uint32_t) {}
__device__ __forceinline__ void wait_phase(uint64_t*, int) {}
__device__ __forceinline__ void copy_bulk(void*, const void*, uint32_t, uint64_t*) {}
#endif

}  // namespace zipcache::cuda
