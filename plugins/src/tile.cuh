// What kernels share that walk over tiles of a channels-last map with its pixels as rows of matrices: the walk, pixels on
// their way into shared memory, their layer norm as operands of products, and the depthwise convolution as a product.
#pragma once

#include "common.cuh"

namespace ribsr {

constexpr int kWarps = 8;
constexpr int kThreads = 32 * kWarps;
constexpr int kResident = 2;  // blocks per multiprocessor: one computes while the other waits
constexpr int kColumns = 16;  // of a tile: the rows of a product
constexpr int kWide = kColumns + 2;
constexpr int kMostChannels = 64;

struct Tile {
  int image, top, left, index;
};

// A map in tiles, and the layer norm of its pixels.
struct Input {
  Map in;
  const uint16_t *norm_weight, *norm_bias;
  int channels, height, width;
  int tiles_x, tiles_y, tiles;
  Tile step;  // from one of a block's tiles to its next, before columns carry to rows and rows to images
  float epsilon, inverse_channels;
  float exists[kMostChannels / 8];  // of each 8 channels: 1 if they exist, else 0
};

// Rows of Groups times 8 channels in shared memory are an odd number of 16-byte pieces apart, so that eight of them at the
// same place lie in different banks.
template <int Groups>
constexpr int kStep = 16 * (Groups | 1);

__device__ __forceinline__ Tile locate(const Input &input, int index, int height) {
  const int line = index / input.tiles_x;
  const int image = line / input.tiles_y;
  return {image, (line - image * input.tiles_y) * height, (index - line * input.tiles_x) * kColumns, index};
}

// The block's next tile: as `locate`, without a division. The index may be one beyond the last.
__device__ __forceinline__ Tile advance(const Input &input, Tile tile, int height) {
  tile.index += input.step.index;
  tile.left += input.step.left;
  tile.top += input.step.top;
  tile.image += input.step.image;
  if (tile.left >= input.tiles_x * kColumns) {
    tile.left -= input.tiles_x * kColumns;
    tile.top += height;
  }
  if (tile.top >= input.tiles_y * height) {
    tile.top -= input.tiles_y * height;
    ++tile.image;
  }
  return tile;
}

// This thread. What follows from it is worked out where it is asked for, and not kept from one tile to the next: there
// are no registers for that.
__device__ __forceinline__ int own_thread() {
  int thread;
  asm volatile("mov.u32 %0, %%tid.x;" : "=r"(thread));
  return thread;
}

// Whether a pixel of the map is there, for coordinates that may be negative.
__device__ __forceinline__ bool inside(const Input &input, int y, int x) {
  return static_cast<unsigned>(y) < static_cast<unsigned>(input.height) &&
         static_cast<unsigned>(x) < static_cast<unsigned>(input.width);
}

template <bool BF16>
__device__ __forceinline__ float value_or_zero(const uint16_t *from, int index, int count) {
  return index < count ? unpack<BF16>(from[index]).x : 0.0f;
}

// A [rows, columns] matrix of weights; zeros where it is smaller than Rows x 8 Groups.
template <int Rows, int Groups>
__device__ __forceinline__ void load_matrix(uint32_t to, const uint16_t *from, int rows, int columns) {
  for (int i = threadIdx.x; i < Rows * Groups; i += kThreads) {
    const int row = i / Groups, group = i - Groups * row;
    const bool valid = row < rows && 8 * group < columns;
    copy_async(to + kStep<Groups> * row + 16 * group, valid ? from + row * columns + 8 * group : from, valid);
  }
}

// Weights and biases of the layer norm of Groups times 8 channels, of each two channels the weights, then the biases.
template <int Groups, bool BF16>
__device__ __forceinline__ void load_norm(const Input &input, uint32_t to) {
  const int i = threadIdx.x;
  if (i >= 8 * Groups) return;
  const uint32_t place = to + 16 * (i / 2) + 4 * (i % 2);
  store_shared_float(place, value_or_zero<BF16>(input.norm_weight, i, input.channels));
  store_shared_float(place + 8, value_or_zero<BF16>(input.norm_bias, i, input.channels));
}

// The pixels that this warp will normalise, from the map to shared memory; zeros outside of it. They are sixteens, this
// warp's every kWarps-th, of all Pixels of a tile and those around it. A lane finds one of 16 pixels in the map and tells
// those that copy its pieces.
template <int Groups, int Pixels>
__device__ __forceinline__ void fetch_pixels(const Input &input, const Tile &tile, uint32_t to) {
  constexpr int kPieces = Groups / 2;  // of a lane
  constexpr int kTurns = ((Pixels + 15) / 16 + kWarps - 1) / kWarps;
  constexpr unsigned kNowhere = 0xffffffffu;
  const int thread = own_thread(), warp = thread / 32, lane = thread % 32;
  const auto *image = reinterpret_cast<const uint4 *>(input.in.data + tile.image * input.in.batch);
  const auto row_step = static_cast<unsigned>(input.in.row >> 3);
  const auto column_step = static_cast<unsigned>(input.in.column >> 3);
  int pixel[kPieces], group[kPieces];
#pragma unroll
  for (int i = 0; i < kPieces; ++i) {
    pixel[i] = (lane + 32 * i) / Groups;
    group[i] = lane + 32 * i - Groups * pixel[i];
  }
  to += 16 * warp * kStep<Groups>;
#pragma unroll
  for (int turn = 0; turn < kTurns; ++turn) {
    const int first = 16 * (warp + kWarps * turn);
    const int own = first + lane % 16;
    const int row = own / kWide;
    const int y = tile.top + row - 1, x = tile.left + own - kWide * row - 1;
    const unsigned place = inside(input, y, x) ? y * row_step + x * column_step : kNowhere;
#pragma unroll
    for (int i = 0; i < kPieces; ++i) {
      const unsigned offset = __shfl_sync(kAllLanes, place, pixel[i]);
      const bool valid = offset != kNowhere && 8 * group[i] < input.channels;
      if (first >= Pixels) continue;
      copy_async(to + (16 * kWarps * turn + pixel[i]) * kStep<Groups> + 16 * group[i],
                 image + (valid ? offset + group[i] : 0), valid);
    }
  }
  copy_commit();
}

// Where a lane's row of a matrix of weights begins, for ldmatrix: lanes 0 to 15 name rows of 8 outputs, their first 8
// inputs and the next, the others those of the next 8 outputs.
__device__ __forceinline__ uint32_t matrix_row(int lane, int step) {
  return (lane % 8 + lane / 16 * 8) * step + 16 * (lane / 8 % 2);
}

// 16 pixels, normalised, as operands of 16 channels each. This thread has two pixels, two channels of each 8.
// From the first one's place in shared memory; `affine` is where load_norm has put weights and biases.
template <int Groups, bool BF16>
__device__ __forceinline__ void normalise(uint32_t (&a)[Groups / 2][4], const Input &input, uint32_t affine,
                                          uint32_t first_pixel) {
  const int lane = own_thread() % 32;
  const uint32_t from = first_pixel + lane % 16 * kStep<Groups> + 16 * (lane / 16);
  float x[Groups][4];
  float sum[2] = {}, squares[2] = {};
#pragma unroll
  for (int k = 0; k < Groups / 2; ++k) {
    uint32_t words[4];
    load_matrices(words, from + 32 * k);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float2 pair = unpack<BF16>(words[i]);
      x[2 * k + i / 2][2 * (i % 2)] = pair.x;
      x[2 * k + i / 2][2 * (i % 2) + 1] = pair.y;
      sum[i % 2] += pair.x + pair.y;
    }
  }
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const float mean = quad_sum(sum[half]) * input.inverse_channels;
#pragma unroll
    for (int j = 0; j < Groups; ++j) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        float &deviation = x[j][2 * half + i];
        deviation = fmaf(-mean, input.exists[j], deviation);
        squares[half] = fmaf(deviation, deviation, squares[half]);
      }
    }
    squares[half] = rsqrtf(fmaf(quad_sum(squares[half]), input.inverse_channels, input.epsilon));
  }
#pragma unroll
  for (int j = 0; j < Groups; ++j) {
    const uint4 v = load_shared(affine + 64 * j + 16 * (lane % 4));
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float scale = squares[half];
      a[j / 2][2 * (j % 2) + half] =
          pack<BF16>(fmaf(x[j][2 * half] * scale, __uint_as_float(v.x), __uint_as_float(v.z)),
                     fmaf(x[j][2 * half + 1] * scale, __uint_as_float(v.y), __uint_as_float(v.w)));
    }
  }
}

// ---- the depthwise convolution as a product of 8 channels by diagonal matrices ---------------------------------------

// The taps in the order that products take them in, pairs where two make up an operand: see convolve. The last is twice
// there, as two rows of a map are as many products with the columns to their right, but not the same.
constexpr int kTaps = 10;
constexpr uint64_t kTapOrder = 0x8552764310;  // the first in the lowest digit
constexpr int kTapStep = 48;                  // ten 32-bit words of taps, those of a channel
constexpr int kTapRows = 9;                   // of 8 channels: theirs, and one of zeros

// Taps of Groups times 8 channels, of which `channels` exist.
template <int Groups>
__device__ __forceinline__ void load_diagonals(const uint16_t *from, int channels, uint32_t to) {
  // A tap's word is a pair of neighbouring rows of its diagonal matrix in the column of channel i: one is zero.
#pragma unroll 3
  for (int i = threadIdx.x; i < Groups * kTapRows * kTaps; i += kThreads) {
    const int row = i / kTaps, place = i - kTaps * row;
    const int group = row / kTapRows, column = row - kTapRows * group;
    const int channel = 8 * group + column, tap = static_cast<int>(kTapOrder >> 4 * place & 15);
    const bool exists = column < 8 && channel < channels;
    const uint32_t weight = exists ? from[9 * channel + tap] : 0;
    store_shared(to + kTapStep * row + 4 * place, static_cast<int>(column & 1 ? weight << 16 : weight));
  }
}

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

// The convolution of 16 columns of a row of the window: as a product's sums, which begin with the bias.
template <int Rows, bool BF16>
__device__ __forceinline__ void convolve(float (&sums)[4], const Window<Rows> &u, int row, const Taps &taps, float2 bias) {
  sums[0] = sums[2] = bias.x;
  sums[1] = sums[3] = bias.y;
#pragma unroll
  for (int y = 0; y < 3; ++y) multiply_add<BF16>(sums, u.near[row + y], taps.left[y][0], taps.left[y][1]);
  // Of the three rows' right columns, those two that came in together.
  const int odd = row % 2;
  const uint32_t(&single)[4] = u.right[odd ? row / 2 : row / 2 + 1];
  multiply_add<BF16>(sums, u.right[(row + 1) / 2], taps.right[odd][0], taps.right[odd][1]);
  multiply_add<BF16>(sums, single[2 * odd], single[2 * odd + 1], odd ? taps.right[0][0] : taps.right[1][1]);
}

}  // namespace ribsr
