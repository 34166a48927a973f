// The Gaussian error linear unit on CPUs.
#pragma once

#include <cstdint>

#include "simd.h"

namespace ribsr::RIBSR_ISA {

// x (1/2 + x P(u)), where x P(u) stands for Phi(x) - 1/2, Phi the normal distribution function, and u runs from -1 to 1 as
// x^2 does from 0 to the square of where Phi is taken as 1. P has the least greatest error that its degree allows (Remez's
// algorithm, coefficients from the highest). An even degree, and so a positive highest coefficient: beyond, x P(u) only
// grows and is cut. Nothing else is, so that NaN goes through. Infinity gives infinity, minus infinity NaN as in PyTorch.
template <int Count>
inline Vector gelu(Vector x, float inverse_half_square, const float (&coefficients)[Count]) {
  const Vector u = fma(inverse_half_square, x * x, broadcast(-1.0f));
  Vector p = broadcast(coefficients[0]);
#pragma GCC unroll 16
  for (int i = 1; i < Count; ++i) p = fma(p, u, broadcast(coefficients[i]));
  const Vector half = broadcast(0.5f);
  return fma(x, minimum(maximum(x * p, -half), half), half * x);
}

// Factor: of which product the result goes into, float or uint32_t (pairs of bfloat16). The error is below 1.8e-7, for
// bfloat16 1.4e-5, times the larger of 1 and |x|.
template <class Factor>
inline Vector gelu(Vector x);

template <>
inline Vector gelu<float>(Vector x) {
  static constexpr float kCoefficients[] = {
      0.00028363039f, -0.000764566066f, 0.000732078275f, -0.00109594688f, 0.00313493097f,
      -0.00584955141f, 0.00882816873f,  -0.0131854732f,  0.0189258363f,   -0.0252983011f,
      0.0320795216f,   -0.0395889319f,  0.0492641628f,   -0.0665185079f,  0.133392558f};
  return gelu(x, 2.0f / (5.3f * 5.3f), kCoefficients);
}

template <>
inline Vector gelu<uint32_t>(Vector x) {
  static constexpr float kCoefficients[] = {0.00219664746f, -0.00581759261f, 0.00810460746f, -0.0136753609f, 0.0250049699f,
                                            -0.0389556326f, 0.055814445f,    -0.0814820379f, 0.167856142f};
  return gelu(x, 2.0f / (4.2f * 4.2f), kCoefficients);
}

}  // namespace ribsr::RIBSR_ISA
