// The Gaussian error linear unit by the error function, in float32.
#pragma once

#include "device.cuh"

namespace ribsr {

// max(x, 0), but NaN for NaN.
__device__ __forceinline__ float positive_part(float x) {
  float y;
  asm("max.NaN.f32 %0, %1, %2;" : "=f"(y) : "f"(x), "f"(0.0f));
  return y;
}

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
  return fmaf(-u, exp2_special(p), positive_part(h));
}

}  // namespace ribsr
