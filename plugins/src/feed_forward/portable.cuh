// What the kernels of compute capability 8.0 share, for narrow and for wide layers.
#pragma once

#include "shared/tile.cuh"

namespace ribsr {

// Half of 16 pixels' deviations from their means, as operands of 16 channels each, and twice what normalises them. This
// thread has two pixels. The tensor cores sum; the mean is rounded before it is subtracted, which the weights, summing to
// zero, undo. groups: of four channels, how many of this thread's exist.
template <int Steps, bool BF16, class Problem>
__device__ __forceinline__ void normalise(uint32_t (&a)[Steps][4], float (&scale)[2], const Problem &problem,
                                          int groups) {
  constexpr uint32_t kOnes = BF16 ? 0x3f803f80u : 0x3c003c00u, kHalves = BF16 ? 0x3f003f00u : 0x38003800u;
  float sums[4] = {};
#pragma unroll
  for (int k = 0; k < Steps; ++k) multiply_add<BF16>(sums, a[k], kOnes, kOnes);
  float rest[2];
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const float mean = sums[2 * half] * problem.half_inverse;  // half of it, negative
    const uint32_t rounded = pack<BF16>(mean, mean);
    rest[half] = mean - unpack<BF16>(rounded).x;
#pragma unroll
    for (int k = 0; k < Steps; ++k) {
      const uint32_t subtracted = k < groups ? rounded : 0;
      a[k][half] = multiply_add_packed<BF16>(a[k][half], kHalves, subtracted);
      a[k][2 + half] = multiply_add_packed<BF16>(a[k][2 + half], kHalves, subtracted);
    }
  }
  // The products of 8 pixels with themselves: their squares are on the diagonal, in one lane of four.
  float low[4] = {}, high[4] = {};
#pragma unroll
  for (int k = 0; k < Steps; ++k) {
    multiply_add<BF16>(low, a[k][0], a[k][1], a[k][0]);
    multiply_add<BF16>(high, a[k][0], a[k][1], a[k][1]);
    multiply_add<BF16>(low, a[k][2], a[k][3], a[k][2]);
    multiply_add<BF16>(high, a[k][2], a[k][3], a[k][3]);
  }
  const int lane = own_thread() % 32;
  const bool odd = lane / 4 % 2;
  const float squares[2] = {odd ? low[1] : low[0], odd ? high[3] : high[2]};
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const float sum = __shfl_sync(kAllLanes, squares[half], lane / 4 * 4 + lane / 8);
    const float variance = fmaxf(fmaf(sum, problem.inverse_channels, -rest[half] * rest[half]), 0.0f);
    scale[half] = inverse_root(variance + problem.quarter_epsilon);
  }
}

}  // namespace ribsr
