// What kernels share that walk over tiles of a channels-last map with its pixels as rows of matrices, and have the
// depthwise convolution as a product.
#pragma once

#include "shared/common.cuh"

namespace ribsr {

constexpr int kColumns = 16;  // of a tile: the rows of a product
constexpr int kAround = kColumns + 2;  // with the columns beside it
constexpr int kMostChannels = 64;

struct Tile {
  int image, top, left, index;
};

// A warp's tile lies in shared memory while it computes: the registers are wanted otherwise.
__device__ __forceinline__ Tile load_tile(uint32_t from) {
  const uint4 v = load_shared(from);
  return {static_cast<int>(v.x), static_cast<int>(v.y), static_cast<int>(v.z), static_cast<int>(v.w)};
}

__device__ __forceinline__ void store_tile(uint32_t to, const Tile &tile) {
  store_shared(to, tile.image, tile.top, tile.left, tile.index);
}

// Rows of Groups times 8 channels in shared memory are an odd number of 16-byte pieces apart, so that eight of them at the
// same place lie in different banks.
template <int Groups>
constexpr int kStep = 16 * (Groups | 1);

// This thread. What follows from it is worked out where it is asked for, and not kept from one tile to the next: there
// are no registers for that.
__device__ __forceinline__ int own_thread() {
  int thread;
  asm volatile("mov.u32 %0, %%tid.x;" : "=r"(thread));
  return thread;
}

// Whether a pixel of a problem's map is there, for coordinates that may be negative.
template <class Problem>
__device__ __forceinline__ bool inside(const Problem &problem, int y, int x) {
  return static_cast<unsigned>(y) < static_cast<unsigned>(problem.height) &&
         static_cast<unsigned>(x) < static_cast<unsigned>(problem.width);
}

// Where a lane's row of a matrix of weights begins, for ldmatrix: lanes 0 to 15 name rows of 8 outputs, their first 8
// inputs and the next, the others those of the next 8 outputs.
__device__ __forceinline__ uint32_t matrix_row(int lane, int step) {
  return (lane % 8 + lane / 16 * 8) * step + 16 * (lane / 8 % 2);
}

// ---- the depthwise convolution as a product of 8 channels by diagonal matrices ---------------------------------------

// The taps in the order that products take them in, pairs where two make up an operand: see convolve. The last is twice
// there, as two rows of a map are as many products with the columns to their right, but not the same.
constexpr int kTaps = 10;
constexpr uint64_t kTapOrder = 0x8552764310;  // the first in the lowest digit
constexpr int kTapStep = 48;                  // ten 32-bit words of taps, those of a channel
constexpr int kTapRows = 9;                   // of 8 channels: theirs, and one of zeros

// Where this lane's taps of the first 8 channels are: the lanes that hold a diagonal matrix's diagonal have some.
__device__ __forceinline__ uint32_t own_taps(int lane) {
  return kTapStep * (lane % 4 == lane / 8 ? lane / 4 : 8);
}

// Of 8 channels: 16 columns of some rows of u and what lies around them, as operands.
template <int Rows>
struct Window {
  uint32_t near[Rows + 2][4];           // of each row: the columns to the left, and the columns themselves
  uint32_t right[(Rows + 3) / 2][4];    // of each two rows: the columns to the right

  // From where this lane's row of the first operands lies in shared memory; rows of the map are row_step apart.
  __device__ __forceinline__ void load(uint32_t left_place, uint32_t right_place, int row_step) {
#pragma unroll
    for (int row = 0; row < Rows + 2; ++row) load_matrices(near[row], left_place + row * row_step);
#pragma unroll
    for (int pair = 0; pair < (Rows + 3) / 2; ++pair) {
      load_matrices(right[pair], right_place + 2 * pair * row_step);
    }
  }
};

struct Taps {
  uint32_t left[3][2];   // of each row: the left tap and the middle one
  uint32_t right[2][2];  // of each two rows, 0 and 1, 1 and 2: the right taps
};

__device__ __forceinline__ Taps load_taps(uint32_t from) {
  const uint4 low = load_shared(from), high = load_shared(from + 16);
  const uint2 last = load_shared_words(from + 32);
  return {{{low.x, low.y}, {low.z, low.w}, {high.x, high.y}}, {{high.z, high.w}, {last.x, last.y}}};
}

// Adds the convolution of 16 columns of a row of the window to a product's sums.
template <int Rows, bool BF16>
__device__ __forceinline__ void convolve(float (&sums)[4], const Window<Rows> &u, int row, const Taps &taps) {
#pragma unroll
  for (int y = 0; y < 3; ++y) multiply_add<BF16>(sums, u.near[row + y], taps.left[y][0], taps.left[y][1]);
  // Of the three rows' right columns, those two that came in together.
  const int odd = row % 2;
  const uint32_t(&single)[4] = u.right[odd ? row / 2 : row / 2 + 1];
  multiply_add<BF16>(sums, u.right[(row + 1) / 2], taps.right[odd][0], taps.right[odd][1]);
  multiply_add<BF16>(sums, single[2 * odd], single[2 * odd + 1], odd ? taps.right[0][0] : taps.right[1][1]);
}

}  // namespace ribsr
