// One thin function per PTX instruction the kernels use. Shared memory is named by its 32-bit address.
#pragma once

#include <stdint.h>

namespace ribsr {

__device__ __forceinline__ uint32_t shared_address(const void *pointer) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

// This thread. What follows from it is worked out where it is asked for, and not kept: often there are no registers for that.
__device__ __forceinline__ int own_thread() {
  int thread;
  asm volatile("mov.u32 %0, %%tid.x;" : "=r"(thread));
  return thread;
}

// ---- copies ---------------------------------------------------------------------------------------------------------

// 16 bytes from global to shared memory; zeros when not valid (the pointer must be a legal one all the same).
__device__ __forceinline__ void copy_async(uint32_t to, const void *from, bool valid) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(valid ? 16 : 0) : "memory");
}

__device__ __forceinline__ void copy_async(uint32_t to, const void *from) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to), "l"(from) : "memory");
}

__device__ __forceinline__ void copy_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }

template <int Pending>
__device__ __forceinline__ void copy_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(Pending) : "memory");
}

__device__ __forceinline__ uint4 load_shared(uint32_t from) {
  uint4 v;
  asm volatile("ld.shared.v4.b32 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "r"(from)
               : "memory");
  return v;
}

__device__ __forceinline__ int load_shared_int(uint32_t from) {
  int v;
  asm volatile("ld.shared.b32 %0, [%1];" : "=r"(v) : "r"(from) : "memory");
  return v;
}

__device__ __forceinline__ float2 load_shared_pair(uint32_t from) {
  float2 v;
  asm volatile("ld.shared.v2.f32 {%0, %1}, [%2];" : "=f"(v.x), "=f"(v.y) : "r"(from) : "memory");
  return v;
}

__device__ __forceinline__ float4 load_shared_floats(uint32_t from) {
  const uint4 v = load_shared(from);
  return make_float4(__uint_as_float(v.x), __uint_as_float(v.y), __uint_as_float(v.z), __uint_as_float(v.w));
}

__device__ __forceinline__ uint2 load_shared_words(uint32_t from) {
  uint2 v;
  asm volatile("ld.shared.v2.b32 {%0, %1}, [%2];" : "=r"(v.x), "=r"(v.y) : "r"(from) : "memory");
  return v;
}

// A word that other warps of the block may be raising at the same time. One lane alone should ask.
__device__ __forceinline__ int load_shared_atomic(uint32_t from) {
  int v;
  asm volatile("atom.relaxed.cta.shared.or.b32 %0, [%1], 0;" : "=r"(v) : "r"(from) : "memory");
  return v;
}

// To `least` at least.
__device__ __forceinline__ void raise_shared(uint32_t to, int least) {
  asm volatile("red.relaxed.cta.shared.max.s32 [%0], %1;" ::"r"(to), "r"(least) : "memory");
}

__device__ __forceinline__ void or_shared(uint32_t to, uint32_t bits) {
  asm volatile("red.shared.or.b32 [%0], %1;" ::"r"(to), "r"(bits) : "memory");
}

// `Threads` threads of the block, those that name this barrier.
template <int Barrier, int Threads>
__device__ __forceinline__ void meet() {
  asm volatile("barrier.sync %0, %1;" ::"n"(Barrier), "n"(Threads) : "memory");
}

// The same without waiting for the others.
template <int Barrier, int Threads>
__device__ __forceinline__ void arrive() {
  asm volatile("barrier.arrive %0, %1;" ::"n"(Barrier), "n"(Threads) : "memory");
}

__device__ __forceinline__ void prefetch(const void *address) {
  asm volatile("prefetch.global.L2 [%0];" ::"l"(address));
}

__device__ __forceinline__ void store_shared(uint32_t to, uint32_t a, uint32_t b, uint32_t c, uint32_t d) {
  asm volatile("st.shared.v4.b32 [%0], {%1, %2, %3, %4};" ::"r"(to), "r"(a), "r"(b), "r"(c), "r"(d) : "memory");
}

__device__ __forceinline__ void store_shared(uint32_t to, int a) {
  asm volatile("st.shared.b32 [%0], %1;" ::"r"(to), "r"(a) : "memory");
}

__device__ __forceinline__ void store_shared(uint32_t to, int a, int b) {
  asm volatile("st.shared.v2.b32 [%0], {%1, %2};" ::"r"(to), "r"(a), "r"(b) : "memory");
}

__device__ __forceinline__ void store_shared_float(uint32_t to, float a) { store_shared(to, __float_as_int(a)); }

// ---- numbers --------------------------------------------------------------------------------------------------------

// Two floats to one register of two 16-bit floats, `low` in the lower half; round to nearest even.
template <bool BF16>
__device__ __forceinline__ uint32_t pack(float low, float high) {
  uint32_t both;
  if constexpr (BF16) {
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(high), "f"(low));
  } else {
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(high), "f"(low));
  }
  return both;
}

template <bool BF16>
__device__ __forceinline__ float2 unpack(uint32_t both) {
  float2 value;
  if constexpr (BF16) {
    value.x = __uint_as_float(both << 16);
    value.y = __uint_as_float(both & 0xffff0000u);
  } else {
    asm("{.reg .b16 low, high; mov.b32 {low, high}, %2; cvt.f32.f16 %0, low; cvt.f32.f16 %1, high;}"
        : "=f"(value.x), "=f"(value.y)
        : "r"(both));
  }
  return value;
}

// a * b + c of two 16-bit numbers each, as all of these.
template <bool BF16>
__device__ __forceinline__ uint32_t multiply_add_packed(uint32_t a, uint32_t b, uint32_t c) {
  uint32_t both;
  if constexpr (BF16) {
    asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(both) : "r"(a), "r"(b), "r"(c));
  } else {
    asm("fma.rn.f16x2 %0, %1, %2, %3;" : "=r"(both) : "r"(a), "r"(b), "r"(c));
  }
  return both;
}

// Of bfloat16 compute capability 8.0 has neither products nor sums.
template <bool BF16>
__device__ __forceinline__ uint32_t multiply_packed(uint32_t a, uint32_t b) {
  if constexpr (BF16) return multiply_add_packed<true>(a, b, 0x80008000u);
  uint32_t both;
  asm("mul.rn.f16x2 %0, %1, %2;" : "=r"(both) : "r"(a), "r"(b));
  return both;
}

template <bool BF16>
__device__ __forceinline__ uint32_t add_packed(uint32_t a, uint32_t b) {
  if constexpr (BF16) return multiply_add_packed<true>(a, 0x3f803f80u, b);
  uint32_t both;
  asm("add.rn.f16x2 %0, %1, %2;" : "=r"(both) : "r"(a), "r"(b));
  return both;
}

// The greater one, but NaN if either is.
__device__ __forceinline__ float maximum(float a, float b) {
  float y;
  asm("max.NaN.f32 %0, %1, %2;" : "=f"(y) : "f"(a), "f"(b));
  return y;
}

// Likewise of two float16 numbers each.
__device__ __forceinline__ uint32_t maximum_packed(uint32_t a, uint32_t b) {
  uint32_t both;
  asm("max.NaN.f16x2 %0, %1, %2;" : "=r"(both) : "r"(a), "r"(b));
  return both;
}

__device__ __forceinline__ uint32_t tanh_packed(uint32_t a) {  // of two float16 numbers, wrong by 2^-11
  uint32_t both;
  asm("tanh.approx.f16x2 %0, %1;" : "=r"(both) : "r"(a));
  return both;
}

// The sum of as many neighbouring lanes' x.
template <int Lanes>
__device__ __forceinline__ float sum_lanes(float x) {
#pragma unroll
  for (int distance = Lanes / 2; distance > 0; distance /= 2) x += __shfl_xor_sync(0xffffffffu, x, distance);
  return x;
}

__device__ __forceinline__ float reciprocal(float x) {  // to one unit in the last place
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

__device__ __forceinline__ float inverse_root(float x) {
  float y;
  asm("rsqrt.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

__device__ __forceinline__ float exp2_special(float x) {  // special-function unit: 16 per clock and multiprocessor
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

__device__ __forceinline__ float sigmoid(float x) { return reciprocal(1.0f + exp2_special(-1.44269504f * x)); }

template <bool BF16>
__device__ __forceinline__ uint32_t sigmoid_packed(uint32_t both) {
  const float2 x = unpack<BF16>(both);
  return pack<BF16>(sigmoid(x.x), sigmoid(x.y));
}

// a * b + c between 0 and 1.
__device__ __forceinline__ float multiply_add_saturated(float a, float b, float c) {
  float y;
  asm("fma.rn.sat.f32 %0, %1, %2, %3;" : "=f"(y) : "f"(a), "f"(b), "f"(c));
  return y;
}

// a * Factor + c of integers, in one instruction.
template <int Factor>
__device__ __forceinline__ uint32_t multiply_add_integer(uint32_t a, uint32_t c) {
  uint32_t y;
  asm("mad.lo.s32 %0, %1, %2, %3;" : "=r"(y) : "r"(a), "n"(Factor), "r"(c));
  return y;
}

// ---- matrix units, compute capability 8.0 ---------------------------------------------------------------------------

__device__ __forceinline__ void load_matrices(uint32_t (&r)[4], uint32_t row_address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(row_address)
               : "memory");
}

__device__ __forceinline__ void load_matrices_transposed(uint32_t (&r)[4], uint32_t row_address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(row_address)
               : "memory");
}

// d[16 x 8] += a[16 x 16] b[16 x 8]
template <bool BF16>
__device__ __forceinline__ void multiply_add(float *d, const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  if constexpr (BF16) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
                 "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  } else {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
                 "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  }
}

// d[16 x 8] = a[16 x 16] b[16 x 8]
template <bool BF16>
__device__ __forceinline__ void multiply(float *d, const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  if constexpr (BF16) {
    asm volatile("{.reg .f32 zero; mov.f32 zero, 0f00000000;\n"
                 "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
                 "{zero,zero,zero,zero};}"
                 : "=f"(d[0]), "=f"(d[1]), "=f"(d[2]), "=f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  } else {
    asm volatile("{.reg .f32 zero; mov.f32 zero, 0f00000000;\n"
                 "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
                 "{zero,zero,zero,zero};}"
                 : "=f"(d[0]), "=f"(d[1]), "=f"(d[2]), "=f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  }
}

// d[16 x 8] += a[16 x 8] b[8 x 8]
template <bool BF16>
__device__ __forceinline__ void multiply_add(float *d, uint32_t a0, uint32_t a1, uint32_t b) {
  if constexpr (BF16) {
    asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5}, {%6}, {%0,%1,%2,%3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a0), "r"(a1), "r"(b));
  } else {
    asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5}, {%6}, {%0,%1,%2,%3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a0), "r"(a1), "r"(b));
  }
}

// d[16 x 8] = a[16 x 8] b[8 x 8]
template <bool BF16>
__device__ __forceinline__ void multiply(float *d, uint32_t a0, uint32_t a1, uint32_t b) {
  if constexpr (BF16) {
    asm volatile("{.reg .f32 zero; mov.f32 zero, 0f00000000;\n"
                 "mma.sync.aligned.m16n8k8.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5}, {%6}, "
                 "{zero,zero,zero,zero};}"
                 : "=f"(d[0]), "=f"(d[1]), "=f"(d[2]), "=f"(d[3])
                 : "r"(a0), "r"(a1), "r"(b));
  } else {
    asm volatile("{.reg .f32 zero; mov.f32 zero, 0f00000000;\n"
                 "mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5}, {%6}, "
                 "{zero,zero,zero,zero};}"
                 : "=f"(d[0]), "=f"(d[1]), "=f"(d[2]), "=f"(d[3])
                 : "r"(a0), "r"(a1), "r"(b));
  }
}

// ---- barriers and bulk copies in shared memory, warp-group matrix instructions, compute capability 9.0a ---------------

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

// Four 8x8 matrices, as ldmatrix loads them.
__device__ __forceinline__ void store_matrices(uint32_t row_address, const uint32_t (&r)[4]) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(row_address), "r"(r[0]),
               "r"(r[1]), "r"(r[2]), "r"(r[3])
               : "memory");
}

__device__ __forceinline__ void barrier_init(uint32_t barrier, int arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals) : "memory");
}

__device__ __forceinline__ void barrier_arrive(uint32_t barrier) {
  asm volatile("{.reg .b64 state; mbarrier.arrive.shared::cta.b64 state, [%0];}" ::"r"(barrier) : "memory");
}

// Until the phase of this parity has completed.
__device__ __forceinline__ void barrier_wait(uint32_t barrier, uint32_t parity) {
  asm volatile(
      "{.reg .pred done;\n"
      "again:\n"
      "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
      "@done bra finished;\n"
      "bra again;\n"
      "finished:}" ::"r"(barrier),
      "r"(parity)
      : "memory");
}

__device__ __forceinline__ bool barrier_passed(uint32_t barrier, uint32_t parity) {
  uint32_t passed;
  asm volatile(
      "{.reg .pred done;\n"
      "mbarrier.test_wait.parity.shared::cta.b64 done, [%1], %2;\n"
      "selp.b32 %0, 1, 0, done;}"
      : "=r"(passed)
      : "r"(barrier), "r"(parity)
      : "memory");
  return passed != 0;
}

// One arrival, and as many bytes of copies that the phase has to wait for.
__device__ __forceinline__ void barrier_expect(uint32_t barrier, int bytes) {
  asm volatile("{.reg .b64 state; mbarrier.arrive.expect_tx.shared::cta.b64 state, [%0], %1;}" ::"r"(barrier),
               "r"(bytes)
               : "memory");
}

// `bytes`, a multiple of 16, from global to shared memory, which `barrier` counts. For one thread.
__device__ __forceinline__ void copy_bulk(uint32_t to, const void *from, int bytes, uint32_t barrier) {
  asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(to),
               "l"(from), "r"(bytes), "r"(barrier)
               : "memory");
}

// A box of a map, from its first channel, column, row and image on, which may lie outside. Its layout is in the map.
template <class TensorMap>
__device__ __forceinline__ void copy_box(uint32_t to, const TensorMap &map, int channel, int column, int row, int image,
                                         uint32_t barrier) {
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3, %4, %5}], [%6];" ::
          "r"(to), "l"(&map), "r"(channel), "r"(column), "r"(row), "r"(image), "r"(barrier)
      : "memory");
}

// Move registers between the warp groups of a block.
template <int Count>
__device__ __forceinline__ void take_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(Count));
}
template <int Count>
__device__ __forceinline__ void give_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(Count));
}

// Makes this thread's writes to shared memory visible to the matrix units' own reads.
__device__ __forceinline__ void fence_async_proxy() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

__device__ __forceinline__ void group_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void group_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int Pending>
__device__ __forceinline__ void group_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(Pending) : "memory");
}

// An operand whose rows of `Width` bytes (32 or 64: 16 or 32 channels, as heads and RIB factors have) lie one after the
// other, the 16-byte pieces of a row permuted as the matrix units' 32- and 64-byte swizzles have it. One layout serves
// K-major (rows along m or n) and MN-major (rows along k) operands: the blocks of 8 rows are 8 * Width bytes apart.
// Tiles are aligned to a block. Addresses in units of 16 bytes, so that they can be stepped by adding. Columns past the
// first Width bytes of an MN-major operand lie `leading` further on.
__device__ __forceinline__ uint32_t descriptor_address(uint32_t address) { return (address & 0x3ffff) >> 4; }

template <int Width>
__device__ __forceinline__ uint64_t matrix_descriptor(uint32_t address, uint32_t leading = 1) {
  static_assert(Width == 32 || Width == 64, "16 or 32 channels");
  constexpr uint32_t kSwizzle = Width == 64 ? 2u : 3u;
  return static_cast<uint64_t>(kSwizzle << 30 | 8 * Width / 16) << 32 | (address + (leading << 16));
}

#define RIBSR_F4(d, i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define RIBSR_F16(d, i) RIBSR_F4(d, i), RIBSR_F4(d, i + 4), RIBSR_F4(d, i + 8), RIBSR_F4(d, i + 12)
#define RIBSR_D8 "%0,%1,%2,%3,%4,%5,%6,%7"
#define RIBSR_D12 RIBSR_D8 ",%8,%9,%10,%11"
#define RIBSR_D16 RIBSR_D12 ",%12,%13,%14,%15"
#define RIBSR_D20 RIBSR_D16 ",%16,%17,%18,%19"
#define RIBSR_D32 RIBSR_D20 ",%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31"

#define RIBSR_SCORES(TYPE)                                                                           \
  asm volatile("{.reg .pred p; setp.ne.b32 p, %34, 0;\n"                                             \
               "wgmma.mma_async.sync.aligned.m64n64k16.f32." TYPE "." TYPE " {" RIBSR_D32             \
               "}, %32, %33, p, 1, 1, 0, 0;}"                                                        \
               : RIBSR_F16(d, 0), RIBSR_F16(d, 16)                                                   \
               : "l"(a), "l"(b), "r"(static_cast<int>(accumulate)))

// d[64 x 64] (+)= a[64 x 16] b[16 x 64], both from shared memory, K-major.
template <bool BF16>
__device__ __forceinline__ void group_multiply(float (&d)[32], uint64_t a, uint64_t b, bool accumulate) {
  if constexpr (BF16) {
    RIBSR_SCORES("bf16");
  } else {
    RIBSR_SCORES("f16");
  }
}

#define RIBSR_VALUES(TYPE, N, OUTPUTS, A0, A1, A2, A3, B, P, ...)                                           \
  asm volatile("{.reg .pred p; setp.ne.b32 p, %" P ", 0;\n"                                                 \
               "wgmma.mma_async.sync.aligned.m64n" N "k16.f32." TYPE "." TYPE " {" OUTPUTS "}, {%" A0 ",%" A1 \
               ",%" A2 ",%" A3 "}, %" B ", p, 1, 1, 1;}"                                                     \
               : __VA_ARGS__                                                                                 \
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(static_cast<int>(accumulate)))

// d[64 x N] (+)= a[64 x 16] b[16 x N], a in registers, b in shared memory, MN-major.
template <int N, bool BF16>
__device__ __forceinline__ void group_multiply_registers(float (&d)[N / 2], const uint32_t (&a)[4], uint64_t b,
                                                         bool accumulate) {
  static_assert(N == 24 || N == 40, "unwritten shape");
  if constexpr (N == 24 && BF16) {
    RIBSR_VALUES("bf16", "24", RIBSR_D12, "12", "13", "14", "15", "16", "17", RIBSR_F4(d, 0), RIBSR_F4(d, 4),
                 RIBSR_F4(d, 8));
  } else if constexpr (N == 24) {
    RIBSR_VALUES("f16", "24", RIBSR_D12, "12", "13", "14", "15", "16", "17", RIBSR_F4(d, 0), RIBSR_F4(d, 4),
                 RIBSR_F4(d, 8));
  } else if constexpr (BF16) {
    RIBSR_VALUES("bf16", "40", RIBSR_D20, "20", "21", "22", "23", "24", "25", RIBSR_F16(d, 0), RIBSR_F4(d, 16));
  } else {
    RIBSR_VALUES("f16", "40", RIBSR_D20, "20", "21", "22", "23", "24", "25", RIBSR_F16(d, 0), RIBSR_F4(d, 16));
  }
}

#define RIBSR_F32(d, i) RIBSR_F16(d, i), RIBSR_F16(d, i + 16)
#define RIBSR_D24 RIBSR_D20 ",%20,%21,%22,%23"
#define RIBSR_D48 RIBSR_D32 ",%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47"
#define RIBSR_D96                                                                                                    \
  RIBSR_D48 ",%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63,%64,%65,%66,%67,%68,%69,%70,%71,%72,"    \
            "%73,%74,%75,%76,%77,%78,%79,%80,%81,%82,%83,%84,%85,%86,%87,%88,%89,%90,%91,%92,%93,%94,%95"

#define RIBSR_PRODUCT_48(TYPE)                                                                            \
  asm volatile("{.reg .pred p; setp.ne.b32 p, %26, 0;\n"                                                  \
               "wgmma.mma_async.sync.aligned.m64n48k16.f32." TYPE "." TYPE " {" RIBSR_D24                 \
               "}, %24, %25, p, 1, 1, 0, 0;}"                                                             \
               : RIBSR_F16(d, 0), RIBSR_F4(d, 16), RIBSR_F4(d, 20)                                        \
               : "l"(a), "l"(b), "r"(static_cast<int>(accumulate)))

// d[64 x 48] (+)= a[64 x 16] b[16 x 48], both from shared memory, K-major.
template <bool BF16>
__device__ __forceinline__ void group_multiply(float (&d)[24], uint64_t a, uint64_t b, bool accumulate) {
  if constexpr (BF16) {
    RIBSR_PRODUCT_48("bf16");
  } else {
    RIBSR_PRODUCT_48("f16");
  }
}

#define RIBSR_OF_REGISTERS(TYPE, N, OUTPUTS, A0, A1, A2, A3, B, ...)                                      \
  asm volatile("wgmma.mma_async.sync.aligned.m64n" N "k16.f32." TYPE "." TYPE " {" OUTPUTS "}, {%" A0 ",%" A1\
               ",%" A2 ",%" A3 "}, %" B ", 1, 1, 1, 0;"                                                   \
               : __VA_ARGS__                                                                              \
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b))

// d[64 x 192] += a[64 x 16] b[16 x 192], a in registers, b in shared memory, K-major.
template <bool BF16>
__device__ __forceinline__ void group_multiply_registers(float (&d)[96], const uint32_t (&a)[4], uint64_t b) {
  if constexpr (BF16) {
    RIBSR_OF_REGISTERS("bf16", "192", RIBSR_D96, "96", "97", "98", "99", "100", RIBSR_F32(d, 0), RIBSR_F32(d, 32),
                       RIBSR_F32(d, 64));
  } else {
    RIBSR_OF_REGISTERS("f16", "192", RIBSR_D96, "96", "97", "98", "99", "100", RIBSR_F32(d, 0), RIBSR_F32(d, 32),
                       RIBSR_F32(d, 64));
  }
}

// d[64 x 96] += a[64 x 16] b[16 x 96], likewise.
template <bool BF16>
__device__ __forceinline__ void group_multiply_registers(float (&d)[48], const uint32_t (&a)[4], uint64_t b) {
  if constexpr (BF16) {
    RIBSR_OF_REGISTERS("bf16", "96", RIBSR_D48, "48", "49", "50", "51", "52", RIBSR_F32(d, 0), RIBSR_F16(d, 32));
  } else {
    RIBSR_OF_REGISTERS("f16", "96", RIBSR_D48, "48", "49", "50", "51", "52", RIBSR_F32(d, 0), RIBSR_F16(d, 32));
  }
}

// What a product of a warp group writes may be read from here on: no reading is moved before the waiting for it.
template <int Count>
__device__ __forceinline__ void group_results(float (&d)[Count]) {
#pragma unroll
  for (float &x : d) asm volatile("" : "+f"(x)::"memory");
}

#endif  // __CUDA_ARCH_FEAT_SM90_ALL

}  // namespace ribsr
