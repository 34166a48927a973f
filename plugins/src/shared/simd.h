// Vectors of floats as wide as the instruction set has them, in the compiler's vector extensions: +, -, *, /, comparisons
// of Vectors, and of a Vector and a float, are the language's. Intrinsics stand where they pay, each beside a generic body.
//
// NaN goes through every function below but `maximum` and `minimum`.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

#if defined(__AVX512F__)
#include <immintrin.h>
#endif

namespace ribsr::RIBSR_ISA {

#if defined(__AVX512F__)
constexpr int kLanes = 16, kRegisters = 32;
#elif defined(__AVX__)
constexpr int kLanes = 8, kRegisters = 16;
#elif defined(__aarch64__)
constexpr int kLanes = 4, kRegisters = 32;
#else
constexpr int kLanes = 4, kRegisters = 16;
#endif

typedef float Vector __attribute__((vector_size(4 * kLanes)));
typedef int32_t Integers __attribute__((vector_size(4 * kLanes)));
typedef uint32_t Bits __attribute__((vector_size(4 * kLanes)));

inline Bits bits(Vector x) { return reinterpret_cast<Bits>(x); }
inline Vector from_bits(Bits x) { return reinterpret_cast<Vector>(x); }

// x - 0 is x for every x, so nothing is left of this but the broadcast.
inline Vector broadcast(float x) { return x - Vector{}; }

// No alignment is asked for.
inline Vector load(const float *from) {
  Vector x;
  std::memcpy(&x, from, sizeof x);
  return x;
}

inline void store(float *to, Vector x) { std::memcpy(to, &x, sizeof x); }

// The first `count` lanes, 0 to kLanes; the others are 0, and memory behind is not touched.
inline Vector load(const float *from, int count) {
#if defined(__AVX512F__)
  return _mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << count) - 1), from);
#else
  Vector x{};
  std::memcpy(&x, from, sizeof(float) * static_cast<unsigned>(count));
  return x;
#endif
}

inline void store(float *to, Vector x, int count) {
#if defined(__AVX512F__)
  _mm512_mask_storeu_ps(to, static_cast<__mmask16>((1u << count) - 1), x);
#else
  std::memcpy(to, &x, sizeof(float) * static_cast<unsigned>(count));
#endif
}

// The first `count` lanes, which may be more than there are.
inline Vector load_up_to(const float *from, int count) { return count >= kLanes ? load(from) : load(from, count); }

inline void store_up_to(float *to, Vector x, int count) { count >= kLanes ? store(to, x) : store(to, x, count); }

// a * b + c, rounded once where the instruction set has it (the build sets -ffp-contract=fast).
inline Vector fma(Vector a, Vector b, Vector c) { return a * b + c; }
inline Vector fma(float a, Vector b, Vector c) { return a * b + c; }

// The larger and the smaller; where one is NaN, b.
inline Vector maximum(Vector a, Vector b) { return a > b ? a : b; }
inline Vector minimum(Vector a, Vector b) { return a < b ? a : b; }

// ---- exponentials ---------------------------------------------------------------------------------------------------

// x + kShift - kShift is the nearest integer, for the last place of 2^23 to 2^24 is worth 1; the sum itself has that
// integer in its last bits.
constexpr float kShift = 12582912.0f;  // 1.5 * 2^23

// 2^n of n + kShift, -127 <= n <= 128: of -127 it is 0, of 128 infinite.
inline Vector power_of_two(Vector shifted) { return from_bits((bits(shifted) << 23) + 0x3f800000u); }

// 2^x for |x| <= 0.5: a polynomial that is exact at 0 and fitted for the least relative error, 9.1e-8 of degree 5 and
// 1.0e-4 of degree 3.
template <int kDegree = 5>
inline Vector exp2_polynomial(Vector x) {
  static_assert(kDegree == 5 || kDegree == 3);
  Vector p;
  if constexpr (kDegree == 5) {
    p = 1.32647285e-3f * x + 9.67151299e-3f;
    p = p * x + 5.55073358e-2f;
    p = p * x + 0.240222424f;
    p = p * x + 0.693147004f;
  } else {
    p = 5.50089516e-2f * x + 0.242211014f;
    p = p * x + 0.693282902f;
  }
  return p * x + 1.0f;
}

// 2^x for x that is not above 0, off by 2.5 units in the last place at most; of degree 3 good enough for what is rounded to
// bfloat16. 0 where x < -126.5.
template <int kDegree = 5>
inline Vector exp2_of_nonpositive(Vector x) {
#if defined(__AVX512F__)
  const Vector integer = _mm512_maskz_roundscale_ps(0xffff, x, 0);  // to the nearest; without a mask g++ 12 warns of it
  const __mmask16 normal = _mm512_cmp_ps_mask(integer, broadcast(-126.0f), _CMP_NLT_UQ);
  return _mm512_maskz_scalef_ps(normal, exp2_polynomial<kDegree>(x - integer), integer);
#else
  x = maximum(broadcast(-127.0f), x);
  const Vector shifted = x + kShift;
  return exp2_polynomial<kDegree>(x - (shifted - kShift)) * power_of_two(shifted);
#endif
}

// e^x, off by 2.5 units in the last place at most.
inline Vector exp(Vector x) {
  x = minimum(broadcast(88.7f), maximum(broadcast(-88.0f), x));
  const Vector shifted = 1.44269504f * x + kShift, integer = shifted - kShift;
  const Vector rest = (x - integer * 0.693359375f) - integer * -2.12194440e-4f;  // ln 2 in two parts
  return exp2_polynomial(rest * 1.44269504f) * power_of_two(shifted);
}

// 1 / (1 + e^-x)
inline Vector logistic(Vector x) { return 1.0f / (1.0f + exp(-x)); }

// ---- transposition --------------------------------------------------------------------------------------------------

// Swaps the odd blocks of `Step` lanes of a with the even ones of b.
template <int Step, int... Lane>
inline void swap_blocks(Vector &a, Vector &b, std::integer_sequence<int, Lane...>) {
  const Vector even = __builtin_shufflevector(a, b, (Lane & Step ? kLanes + Lane - Step : Lane)...);
  b = __builtin_shufflevector(a, b, (Lane & Step ? kLanes + Lane : Lane + Step)...);
  a = even;
}

template <int Step = 1>
inline void transpose(Vector (&rows)[kLanes]) {
  if constexpr (Step < kLanes) {
    for (int i = 0; i < kLanes; ++i)
      if ((i & Step) == 0)
        swap_blocks<Step>(rows[i], rows[i + Step], std::make_integer_sequence<int, kLanes>{});
    transpose<2 * Step>(rows);
  }
}

// ---- bfloat16 -------------------------------------------------------------------------------------------------------

// Two bfloat16 a lane, the first in the lower bits.
typedef Bits Pairs;

// The nearest bfloat16, the even one of two, in the upper half of each lane.
inline Bits rounded_to_bfloat16(Vector x) {
  const Bits raw = bits(x), quiet = raw | 0x400000u;
  const Bits rounded = raw + (0x7fffu + ((raw >> 16) & 1u));
  return (x == x ? rounded : quiet) & 0xffff0000u;
}

// Lane i: (first[i], second[i]).
inline Pairs pairs(Vector first, Vector second) {
#if defined(__AVX512BF16__)
  alignas(64) static constexpr uint16_t kOrder[32] = {0,  16, 1,  17, 2,  18, 3,  19, 4,  20, 5,  21, 6,  22, 7,  23,
                                                      8,  24, 9,  25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
  const __m512i halves = (__m512i)_mm512_cvtne2ps_pbh(second, first);
  return (Pairs)_mm512_permutexvar_epi16(_mm512_load_si512(kOrder), halves);
#else
  return rounded_to_bfloat16(first) >> 16 | rounded_to_bfloat16(second);
#endif
}

// 2 * kLanes floats in a row: lane i gets (from[2i], from[2i + 1]).
inline Pairs load_pairs(const float *from) {
#if defined(__AVX512BF16__)
  return (Pairs)_mm512_cvtne2ps_pbh(load(from + kLanes), load(from));
#else
  Pairs x;
  uint32_t lanes[2 * kLanes];
  const Bits low = rounded_to_bfloat16(load(from)), high = rounded_to_bfloat16(load(from + kLanes));
  std::memcpy(lanes, &low, sizeof low);
  std::memcpy(lanes + kLanes, &high, sizeof high);
  for (int i = 0; i < kLanes; ++i) x[i] = lanes[2 * i] >> 16 | lanes[2 * i + 1];
  return x;
#endif
}

inline Pairs load(const uint32_t *from) {
  Pairs x;
  std::memcpy(&x, from, sizeof x);
  return x;
}

inline void store(uint32_t *to, Pairs x) { std::memcpy(to, &x, sizeof x); }

inline Pairs broadcast_pair(uint32_t pair) { return pair | Pairs{}; }

// sum[i] + a[i].first * b[i].first + a[i].second * b[i].second, in float32.
inline Vector dot(Vector sum, Pairs a, Pairs b) {
#if defined(__AVX512BF16__)
  return _mm512_dpbf16_ps(sum, (__m512bh)a, (__m512bh)b);
#else
  sum += from_bits(a << 16) * from_bits(b << 16);
  return sum + from_bits(a & 0xffff0000u) * from_bits(b & 0xffff0000u);
#endif
}

// ---- factors of products --------------------------------------------------------------------------------------------

// They are `float`, or `uint32_t`: two bfloat16 that are neighbours in the dimension that is summed over.
template <class Factor>
constexpr int kWide = std::is_same_v<Factor, uint32_t> ? 2 : 1;  // numbers in a Factor

inline Vector multiply_add(float a, Vector b, Vector sum) { return fma(a, b, sum); }
inline Vector multiply_add(uint32_t a, Pairs b, Vector sum) { return dot(sum, broadcast_pair(a), b); }

}  // namespace ribsr::RIBSR_ISA
