// The Gaussian error linear unit on CPUs: x/2 + |x| (Phi(|x|) - 1/2), Phi the normal distribution function. Infinity gives
// infinity, minus infinity NaN as in PyTorch, and NaN goes through.
#pragma once

#include <cstdint>

#include "simd.h"

namespace ribsr::RIBSR_ISA {

// Factor: of which product the result goes into, float or uint32_t (pairs of bfloat16). The error is below 1.8e-7, for
// bfloat16 2.3e-5, times the larger of 1 and |x|.
template <class Factor>
inline Vector gelu(Vector x);

#if defined(__AVX512F__)

// Sixteen polynomials, each for |x| as near as half a step to a multiple of the step, of the distance from there: from the
// highest power, each power's coefficients the lanes of a table that one instruction looks up, half of them beside the
// multiplications. They have the least greatest error of the result (by Lawson's algorithm). From the last on, Phi is 1.
template <int Powers>
inline Vector gelu_by_table(Vector x, float step, const float (&table)[Powers][kLanes]) {
  const float magic = 12582912.0f;  // 1.5 * 2^23: the last places of a sum with it are an integer
  const Vector size = from_bits(bits(x) & 0x7fffffffu), within = minimum(size, broadcast(15 * step));
  const Vector place = fma(1 / step, within, broadcast(magic)), distance = within - (place - magic) * step;
  const auto coefficients = [&](int power) {
    return (Vector)_mm512_maskz_permutexvar_ps(0xffff, (__m512i)place, load(table[power]));  // takes the last four bits
  };
  Vector p = coefficients(0);
#pragma GCC unroll 8
  for (int power = 1; power < Powers; ++power) p = fma(p, distance, coefficients(power));
  return fma(size, p, 0.5f * x);
}

template <>
inline Vector gelu<float>(Vector x) {
  alignas(64) static constexpr float kTable[5][kLanes] = {
      {0.0f, 0.0164606366f, 0.0227754824f, 0.0178585909f, 0.00722624641f, -0.0018644447f, -0.00589227583f, -0.00569013599f,
      -0.00375563442f, -0.00192216458f, -0.000799262954f, -0.000276303239f, -8.04762094e-05f, -1.99173992e-05f,
      -4.21320101e-06f, 0.0f},
      {-0.0660757869f, -0.0536073819f, -0.0236900002f, 0.00716941105f, 0.0257269647f, 0.0291351471f, 0.022834003f,
      0.0140048871f, 0.00703010755f, 0.00295177056f, 0.00104960322f, 0.000318549341f, 8.29509445e-05f, 1.86028574e-05f,
      3.60285981e-06f, 0.0f},
      {0.0f, -0.068206951f, -0.111625612f, -0.11989449f, -0.100153476f, -0.0686243996f, -0.0394944809f, -0.019334428f,
      -0.00811222289f, -0.00293139182f, -0.000915321347f, -0.000247550983f, -5.80901433e-05f, -1.18429243e-05f,
      -2.09979407e-06f, 0.0f},
      {0.398938835f, 0.373160839f, 0.305396467f, 0.218680501f, 0.137003869f, 0.0750983283f, 0.0360163674f, 0.015112591f,
      0.00554809161f, 0.00178200891f, 0.000500763766f, 0.000123113976f, 2.64805549e-05f, 4.98293684e-06f, 8.2030391e-07f,
      0.0f},
      {0.0f, 0.142637357f, 0.267620951f, 0.3635813f, 0.428138852f, 0.466194153f, 0.485850036f, 0.494745582f, 0.498272955f,
      0.499498457f, 0.499871492f, 0.499970973f, 0.499994218f, 0.499998987f, 0.499999851f, 0.5f}};
  return gelu_by_table(x, 0.365517229f, kTable);
}

template <>
inline Vector gelu<uint32_t>(Vector x) {
  alignas(64) static constexpr float kTable[3][kLanes] = {
      {0.0f, -0.0567958802f, -0.0978222638f, -0.118380062f, -0.117693886f, -0.101019822f, -0.0765694007f, -0.0519027635f,
      -0.0317023434f, -0.0175336711f, -0.00881006196f, -0.00403124746f, -0.00168272993f, -0.000641624618f,
      -0.000223711162f, 0.0f},
      {0.3978993f, 0.381649077f, 0.336735994f, 0.27331534f, 0.204077914f, 0.140179694f, 0.0885779336f, 0.0514893606f,
      0.0275334418f, 0.0135442177f, 0.00612910464f, 0.00255146157f, 0.000977077638f, 0.000344204222f, 0.00011154481f,
      0.0f},
      {0.0f, 0.113978051f, 0.218814731f, 0.307565987f, 0.376692832f, 0.426229209f, 0.458888531f, 0.478699267f,
      0.489755392f, 0.495432258f, 0.49811399f, 0.499279499f, 0.499745518f, 0.499916971f, 0.499974966f, 0.5f}};
  return gelu_by_table(x, 0.289655179f, kTable);
}

#else

// One polynomial, of u, which runs from -1 to 1 as x^2 does from 0 to the square of where Phi is taken as 1: Phi(x) - 1/2
// is x P(u), with the least greatest error that P's degree allows (by Lawson's algorithm; coefficients from the highest).
// The degree is even, and so the highest coefficient positive: beyond, x P(u) only grows and is cut.
template <int Count>
inline Vector gelu_by_polynomial(Vector x, float end, const float (&coefficients)[Count]) {
  const Vector u = fma(2 / (end * end), x * x, broadcast(-1.0f));
  Vector p = broadcast(coefficients[0]);
#pragma GCC unroll 16
  for (int i = 1; i < Count; ++i) p = fma(p, u, broadcast(coefficients[i]));
  const Vector half = broadcast(0.5f);
  return fma(x, minimum(maximum(x * p, -half), half), half * x);
}

template <>
inline Vector gelu<float>(Vector x) {
  static constexpr float kCoefficients[] = {
      0.00028363039f, -0.000764566066f, 0.000732078275f, -0.00109594688f, 0.00313493097f,
      -0.00584955141f, 0.00882816873f,  -0.0131854732f,  0.0189258363f,   -0.0252983011f,
      0.0320795216f,   -0.0395889319f,  0.0492641628f,   -0.0665185079f,  0.133392558f};
  return gelu_by_polynomial(x, 5.3f, kCoefficients);
}

template <>
inline Vector gelu<uint32_t>(Vector x) {
  static constexpr float kCoefficients[] = {0.00219664746f, -0.00581759261f, 0.00810460746f, -0.0136753609f, 0.0250049699f,
                                            -0.0389556326f, 0.055814445f,    -0.0814820379f, 0.167856142f};
  return gelu_by_polynomial(x, 4.2f, kCoefficients);
}

#endif

}  // namespace ribsr::RIBSR_ISA
