// The Gaussian error linear unit: by the error function, in float32, and of packed numbers faster.
#pragma once

#include "shared/device.cuh"

namespace ribsr {

// h Phi(h) with Phi the normal distribution function. Of u = |h|, h Phi(h) = max(h, 0) - u Phi(-u), and log2 Phi(-u) is
// smooth enough for a polynomial, fitted for small relative error of Phi(-u) (its last factor: 1), that falls for ever, so
// that nothing need be clamped. Phi(-u) is wrong by 3.3e-4 relatively, 4.5e-5 absolutely, where rounding to float16 costs
// 2.4e-4 relatively. NaN for infinite h.
__device__ __forceinline__ float gelu(float h) {
  const float u = fabsf(h);
  float p = fmaf(-2.27937562e-04f, u, 4.82753385e-03f);
  p = fmaf(p, u, -4.4577308e-02f);
  p = fmaf(p, u, -4.69232947e-01f);
  p = fmaf(p, u, -1.14716887f);
  p = fmaf(p, u, -1.0f);
  return fmaf(-u, exp2_special(p), maximum(h, 0.0f));
}

// gelu of twice two float16 numbers, all of it in float16: g (1 + tanh(g (a + b g^2))), wrong by 2.7e-4 at most, plus what
// tanh is wrong by (2^-11).
__device__ __forceinline__ uint32_t gelu_of_half(uint32_t g) {
  const auto both = [](float c) { return 0x10001u * (pack<false>(c, 0.0f) & 0xffffu); };
  const uint32_t inner = multiply_add_packed<false>(multiply_packed<false>(g, g), both(8 * 0.03472f), both(2 * 0.8001f));
  return multiply_add_packed<false>(g, tanh_packed(multiply_packed<false>(inner, g)), g);
}

// gelu of twice two numbers, rounded. In float16 as above: numbers that it does not hold become infinite or NaN.
template <bool BF16>
__device__ __forceinline__ uint32_t gelu_of_half(float a, float b) {
  if constexpr (BF16) return pack<BF16>(gelu(a + a), gelu(b + b));
  return gelu_of_half(pack<false>(a, b));
}

// gelu of two numbers, rounded: likewise, but for -inf, which many numbers become in float16: zero.
template <bool BF16>
__device__ __forceinline__ uint32_t gelu_packed(uint32_t h) {
  if constexpr (BF16) {
    const float2 both = unpack<BF16>(h);
    return pack<BF16>(gelu(both.x), gelu(both.y));
  }
  const uint32_t finite = maximum_packed(h, 0xfbfffbffu);
  return gelu_of_half(multiply_packed<false>(finite, 0x38003800u));
}

template <bool BF16>
__device__ __forceinline__ uint32_t gelu_packed(float a, float b) {
  if constexpr (BF16) return pack<BF16>(gelu(a), gelu(b));
  return gelu_packed<false>(pack<false>(a, b));
}

}  // namespace ribsr
