// What kernels share whose weights lie in memory as the lanes of a warp hold them in operands: no addresses are worked out
// for them, and no bank of shared memory is asked twice. Compute capability 8.0 and later.
#pragma once

#include "shared/common.cuh"

namespace ribsr {

constexpr int kFragment = 512;  // bytes of a right operand of 16 outputs and 16 inputs: of each lane 16

// Where in it the word is of an output and of two inputs side by side, of which this is the first.
__device__ __forceinline__ int fragment_place(int output, int input) {
  const int lane = output % 8 * 4 + input % 8 / 2, word = output % 16 / 8 * 2 + input % 16 / 8;
  return 16 * lane + 4 * word;
}

// Bytes from global to shared memory, by all of so many threads, of which this is one.
template <int Threads, int Bytes>
__device__ __forceinline__ void fetch(uint32_t to, const uint8_t *from, int thread) {
  static_assert(Bytes % 16 == 0);
#pragma unroll
  for (int i = 0; i < (Bytes + 16 * Threads - 1) / (16 * Threads); ++i) {
    const int at = 16 * (thread + Threads * i);
    if (Bytes % (16 * Threads) == 0 || at < Bytes) copy_async(to + at, from + at);
  }
}

}  // namespace ribsr
