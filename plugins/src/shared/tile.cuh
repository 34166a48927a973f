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

template <class Problem>
__device__ __forceinline__ Tile tile_of(const Problem &problem, int index, int height) {
  const int line = index / problem.tiles_x, image = line / problem.tiles_y;
  return {image, (line - image * problem.tiles_y) * height, (index - line * problem.tiles_x) * kColumns, index};
}

// A pixel of a tile and what is around it, in the map.
__device__ __forceinline__ Pixel pixel_of(const Tile &tile, int place) {
  const int row = place / kAround;
  return {tile.top + row - 1, tile.left + place - kAround * row - 1};
}

// Channels of each `Of` are taken in an order in which those of a thread lie side by side in the map, which reads and
// writes them as one: of each 8 columns of an operand a thread has two neighbours. The channel in a place:
template <int Of>
__device__ __forceinline__ int channel_at(int place) {
  return (place & ~(Of - 1)) + Of / 4 * (place % 8 / 2) + 2 * (place / 8 % (Of / 8)) + place % 2;
}

// A thread's eight outputs of 32, of one of its two pixels, rounded.
template <bool BF16>
__device__ __forceinline__ uint4 eight_of(const float *sums, int pixel) {
  uint32_t words[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) words[i] = pack<BF16>(sums[4 * i + 2 * pixel], sums[4 * i + 2 * pixel + 1]);
  return make_uint4(words[0], words[1], words[2], words[3]);
}

// A warp's tile lies in shared memory while it computes: the registers are wanted otherwise.
__device__ __forceinline__ Tile load_tile(uint32_t from) {
  const uint4 v = load_shared(from);
  return {static_cast<int>(v.x), static_cast<int>(v.y), static_cast<int>(v.z), static_cast<int>(v.w)};
}

__device__ __forceinline__ void store_tile(uint32_t to, const Tile &tile) {
  store_shared(to, tile.image, tile.top, tile.left, tile.index);
}

// Whether a pixel of a problem's map is there, for coordinates that may be negative.
template <class Problem>
__device__ __forceinline__ bool inside(const Problem &problem, int y, int x) {
  return static_cast<unsigned>(y) < static_cast<unsigned>(problem.height) &&
         static_cast<unsigned>(x) < static_cast<unsigned>(problem.width);
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

// Adds the convolution of 16 columns of a row of the window to a product's sums: what the left columns and the columns
// themselves are to it, and the right ones.
template <int Rows, bool BF16>
__device__ __forceinline__ void convolve_near(float (&sums)[4], const Window<Rows> &u, int row, const Taps &taps) {
#pragma unroll
  for (int y = 0; y < 3; ++y) multiply_add<BF16>(sums, u.near[row + y], taps.left[y][0], taps.left[y][1]);
}

template <int Rows, bool BF16>
__device__ __forceinline__ void convolve_right(float (&sums)[4], const Window<Rows> &u, int row, const Taps &taps) {
  // Of the three rows' right columns, those two that came in together.
  const int odd = row % 2;
  const uint32_t(&single)[4] = u.right[odd ? row / 2 : row / 2 + 1];
  multiply_add<BF16>(sums, u.right[(row + 1) / 2], taps.right[odd][0], taps.right[odd][1]);
  multiply_add<BF16>(sums, single[2 * odd], single[2 * odd + 1], odd ? taps.right[0][0] : taps.right[1][1]);
}

template <int Rows, bool BF16>
__device__ __forceinline__ void convolve(float (&sums)[4], const Window<Rows> &u, int row, const Taps &taps) {
  convolve_near<Rows, BF16>(sums, u, row, taps);
  convolve_right<Rows, BF16>(sums, u, row, taps);
}

}  // namespace ribsr
