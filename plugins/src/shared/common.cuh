// What kernels share: pixels, operands and rings of buffers in shared memory, sums over the lanes of a row.
//
// Register fragments are those of mma.m16n8k16 and wgmma alike: in a tile of 16 rows, a thread of quad g = lane / 4 and
// place p = lane % 4 holds, for each 8 columns j, d[4j], d[4j+1] = row g, columns 8j + 2p, 8j + 2p + 1, and d[4j+2],
// d[4j+3] = row g + 8, the same columns.
#pragma once

#include "shared/device.cuh"

namespace ribsr {

constexpr unsigned kAllLanes = 0xffffffffu;

struct Pixel {
  int y, x;
};

// Where the 16-byte `piece` of a row goes in a tile of rows of `Width` bytes: see matrix_descriptor. The same piece of
// 8 rows spreads over all banks, which it does by itself if rows have an odd number of them.
template <int Width>
__device__ __forceinline__ int swizzled(int row, int piece) {
  static_assert((Width & (Width - 1)) == 0 || Width / 16 % 2 != 0, "unwritten width");
  const int offset = row * Width + piece * 16;
  return offset ^ (offset >> 3 & (Width / 16 % 2 == 0 ? Width - 16 : 0));
}

// Rows of Groups times 8 channels in shared memory are an odd number of 16-byte pieces apart, so that eight of them at the
// same place lie in different banks.
template <int Groups>
constexpr int kStep = 16 * (Groups | 1);

// Where a lane's row of a right operand begins, for ldmatrix: lanes 0 to 15 name rows of 8 outputs, their first 8 inputs
// and the next, the others those of the next 8 outputs.
__device__ __forceinline__ uint32_t matrix_row(int lane, int step) {
  return (lane % 8 + lane / 16 * 8) * step + 16 * (lane / 8 % 2);
}

struct Ring {  // position in a ring of buffers
  int slot = 0;
  uint32_t phase = 0;
  template <int Size>
  __device__ __forceinline__ void advance(int steps = 1) {
    slot += steps;
    if (slot >= Size) {
      slot -= Size;
      phase ^= 1;
    }
  }
};

__device__ __forceinline__ float quad_sum(float x) {
  x += __shfl_xor_sync(kAllLanes, x, 1);
  return x + __shfl_xor_sync(kAllLanes, x, 2);
}

}  // namespace ribsr
