// ribsr_feed_forward: the feed-forward half of a layer, x + contract(u + gelu(depthwise(u))) of u = gelu(expand(norm(x))),
// in one kernel that reads x and writes the sum. For widths whose weights and a tile of u fit into shared memory.
//
// A block stays, its weights in shared memory, and walks over tiles of 16 columns and Height rows. Of a tile and the
// pixels around it, 16 at a time are the rows of a matrix: x comes from the map in the order of operands, and the tensor
// cores sum its channels and squares. They multiply the deviations from the mean by the weights of `expand`, which have the
// norm's own in them; its standard deviation is applied to the result. gelu of that goes to shared memory as u. The
// depthwise convolution is a product, too, of 8 channels by diagonal matrices: nine taps are 72 products of which 9 count,
// but the tensor cores have little else to do, and no lane converts or adds. Its result lies where the product by the
// weights of `contract` wants its operand, and its middle tap is u where the sum wants it; x is added as x times the
// identity. Blocks are small, so that one computes while others wait.
#include <algorithm>

#include "feed_forward/hopper.h"
#include "feed_forward/portable.cuh"
#include "feed_forward/portable_wide.h"
#include "shared/gelu.cuh"
#include "shared/interface.h"
#include "shared/tile.cuh"
#include "shared/tile_launch.h"

using namespace ribsr;

namespace {

constexpr int kWarps = 4;
constexpr int kThreads = 32 * kWarps;
constexpr int kResident = 4;  // blocks per multiprocessor

struct Problem {
  Map in, out;
  const uint16_t *norm_weight, *norm_bias, *expand_weight, *expand_bias;
  const uint16_t *depthwise_weight, *depthwise_bias, *contract_weight, *contract_bias;
  int channels, hidden, height, width;
  int tiles_x, tiles_y, tiles;
  unsigned tiles_x_magic, tiles_y_magic;
  float quarter_epsilon, inverse_channels, half_inverse;
};

// Where things are in shared memory, in bytes. Exact: all of the channels exist.
template <int Channels, int Hidden, int Height, bool Exact = false>
struct Layout {
  static constexpr bool kExact = Exact;
  static constexpr int kOuter = Channels / 8, kInner = Hidden / 8;  // groups of 8 channels
  static constexpr int kHeight = Height;
  static constexpr int kPixels = kAround * (Height + 2);
  static constexpr int kTurns = (kPixels + 16 * kWarps - 1) / (16 * kWarps);  // sixteens of a warp
  static constexpr int kRows = Channels <= 48 && Height >= 2 * kWarps ? 2 : 1;  // of a warp at a time
  static constexpr int kOuterStep = kStep<kOuter>, kInnerStep = kStep<kInner>;

  static constexpr int kU = 0;  // of the tile
  static constexpr int kExpand = kU + 16 * kTurns * kWarps * kInnerStep;
  static constexpr int kContract = kExpand + Hidden * kOuterStep;
  static constexpr int kDiagonals = kContract + Channels * kInnerStep;
  static constexpr int kExpandBias = kDiagonals + kInner * kTapRows * kTapStep;
  static constexpr int kDepthwiseBias = kExpandBias + 4 * Hidden;
  static constexpr int kContractBias = kDepthwiseBias + 8 * Hidden;  // as accumulators have them: each pair twice
  static constexpr int kTile = kContractBias + 8 * Channels;          // each warp's
  static constexpr int kBytes = kTile + 16 * kWarps;
};

// a / b, magic the largest number up to 2^32 / b that fits.
__device__ __forceinline__ int divide(unsigned a, unsigned b, unsigned magic) {
  const unsigned quotient = __umulhi(a, magic);
  return quotient + (a - quotient * b >= b);
}

__device__ __forceinline__ Tile locate(const Problem &problem, int index, int height) {
  const int line = divide(index, problem.tiles_x, problem.tiles_x_magic);
  const int image = divide(line, problem.tiles_y, problem.tiles_y_magic);
  return {image, (line - image * problem.tiles_y) * height, (index - line * problem.tiles_x) * kColumns, index};
}

__device__ __forceinline__ unsigned thread_index() { return static_cast<unsigned>(own_thread()); }
__device__ __forceinline__ int own_lane() { return thread_index() % 32; }
__device__ __forceinline__ int own_warp() { return thread_index() / 32 % kWarps; }

template <class L>
__device__ __forceinline__ uint32_t tile_place(uint32_t shared) {
  return shared + L::kTile + 16 * (thread_index() / 32);
}
template <class L>
__device__ __forceinline__ Tile current_tile(uint32_t shared) {
  return load_tile(tile_place<L>(shared));
}

// A [rows, columns] matrix of weights; zeros where it is smaller than Rows x 8 Groups.
template <int Rows, int Groups>
__device__ __forceinline__ void load_matrix(uint32_t to, const uint16_t *from, int rows, int columns) {
  for (int i = threadIdx.x; i < Rows * Groups; i += kThreads) {
    const int place = i / Groups, group = i - Groups * place;
    const int row = channel_at<16>(place);
    const bool valid = row < rows && 8 * group < columns;
    copy_async(to + 16 * ((Groups | 1) * place + group), valid ? from + row * columns + 8 * group : from, valid);
  }
}

// What a block keeps. All is asked for before any of it is awaited.
//
// The weights of `expand` have the norm's weight and bias in them, and sum to zero: what is added to all channels is
// nothing to them. Four lanes have a row.
template <class L, bool BF16>
__device__ __forceinline__ void load_weights(const Problem &problem, uint32_t shared) {
  constexpr int kChannels = 8 * L::kOuter, kHidden = 8 * L::kInner, kSteps = L::kOuter / 2;
  constexpr int kRowsOf = (4 * kHidden + kThreads - 1) / kThreads;  // of a thread
  constexpr int kTapWords = L::kInner * kTapRows * kTaps, kWordsOf = (kTapWords + kThreads - 1) / kThreads;
  const int thread = thread_index(), lane = thread & 3;
  load_matrix<kChannels, L::kInner>(shared + L::kContract, problem.contract_weight, problem.channels, problem.hidden);
  copy_commit();
  uint2 weights[kRowsOf][kSteps];
  uint16_t row_bias[kRowsOf], norm[kSteps][4], norm_bias[kSteps][4], taps[kWordsOf];
  const bool has_hidden = thread < problem.hidden, has_channel = channel_at<16>(thread) < problem.channels;
#pragma unroll
  for (int r = 0; r < kRowsOf; ++r) {
    const int row = (thread + kThreads * r) / 4;
    const uint16_t *from = problem.expand_weight + row * problem.channels + 4 * lane;
    row_bias[r] = row < problem.hidden ? problem.expand_bias[row] : 0;
#pragma unroll
    for (int k = 0; k < kSteps; ++k) {
      weights[r][k] = row < problem.hidden && 16 * k + 4 * lane < problem.channels
                          ? __ldg(reinterpret_cast<const uint2 *>(from + 16 * k))
                          : make_uint2(0, 0);
    }
  }
#pragma unroll
  for (int k = 0; k < kSteps; ++k) {
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const int channel = 16 * k + 4 * lane + j;
      norm[k][j] = channel < problem.channels ? problem.norm_weight[channel] : 0;
      norm_bias[k][j] = channel < problem.channels ? problem.norm_bias[channel] : 0;
    }
  }
  // A tap's word is a pair of neighbouring rows of its diagonal matrix in the column of channel i: one is zero.
#pragma unroll
  for (int w = 0; w < kWordsOf; ++w) {
    const int i = thread + kThreads * w, row = i / kTaps, place = i - kTaps * row;
    const int group = row / kTapRows, column = row - kTapRows * group;
    const int channel = 8 * group + column, tap = static_cast<int>(kTapOrder >> 4 * place & 15);
    taps[w] = i < kTapWords && column < 8 && channel < problem.hidden ? problem.depthwise_weight[9 * channel + tap] : 0;
  }
  const uint16_t depthwise_bias = has_hidden ? problem.depthwise_bias[thread] : 0;
  const uint16_t contract_bias = has_channel && thread < kChannels ? problem.contract_bias[channel_at<16>(thread)] : 0;

#pragma unroll
  for (int r = 0; r < kRowsOf; ++r) {
    const int row = (thread + kThreads * r) / 4;
    float w[kSteps][4], sum = 0.0f, bias = 0.0f;
#pragma unroll
    for (int k = 0; k < kSteps; ++k) {
      const float2 low = unpack<BF16>(weights[r][k].x), high = unpack<BF16>(weights[r][k].y);
      const float given[4] = {low.x, low.y, high.x, high.y};
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        w[k][j] = given[j] * unpack<BF16>(norm[k][j]).x;
        bias = fmaf(given[j], unpack<BF16>(norm_bias[k][j]).x, bias);
        sum += w[k][j];
      }
    }
    const float mean = quad_sum(sum) * problem.inverse_channels;
    bias = quad_sum(bias) + unpack<BF16>(row_bias[r]).x;
    if (row >= kHidden) continue;
    const uint32_t to = shared + L::kExpand + row * L::kOuterStep + 4 * lane;
#pragma unroll
    for (int k = 0; k < kSteps; ++k) {
      const bool exists = 16 * k + 4 * lane < problem.channels;
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        store_shared(to + 32 * k + 16 * j,
                     exists ? static_cast<int>(pack<BF16>(w[k][2 * j] - mean, w[k][2 * j + 1] - mean)) : 0);
      }
    }
    if (lane == 0) store_shared_float(shared + L::kExpandBias + 4 * row, bias);
  }
#pragma unroll
  for (int w = 0; w < kWordsOf; ++w) {
    const int i = thread + kThreads * w, row = i / kTaps, place = i - kTaps * row;
    const uint32_t weight = taps[w];
    if (i < kTapWords) {
      store_shared(shared + L::kDiagonals + kTapStep * row + 4 * place,
                   static_cast<int>(row % kTapRows & 1 ? weight << 16 : weight));
    }
  }
  // Biases of neighbours as accumulators have them: twice.
  const int place = 16 * (thread / 2) + 4 * (thread % 2);
  if (thread < kChannels) {  // in the order of places in the products, as the rows of weights
    store_shared_float(shared + L::kContractBias + place, unpack<BF16>(contract_bias).x);
    store_shared_float(shared + L::kContractBias + place + 8, unpack<BF16>(contract_bias).x);
  }
  if (thread < kHidden) {
    store_shared_float(shared + L::kDepthwiseBias + place, unpack<BF16>(depthwise_bias).x);
    store_shared_float(shared + L::kDepthwiseBias + place + 8, unpack<BF16>(depthwise_bias).x);
  }
}

template <class L>
__device__ __forceinline__ void set_tile(const Problem &problem, int index, uint32_t shared) {
  const Tile tile = locate(problem, index, L::kHeight);
  __syncwarp();
  if (own_lane() == 0) store_tile(tile_place<L>(shared), tile);
  __syncwarp();
}

// How many of this thread's groups of four channels, 16 channels apart, exist.
template <class L>
__device__ __forceinline__ int own_groups(const Problem &problem) {
  if constexpr (L::kExact) return L::kOuter / 2;
  return (problem.channels - 4 * (own_lane() % 4) + 15) / 16;
}

// What a warp needs of the sixteens of pixels that it brings from x to u.
template <class L>
struct Batch {
  uint32_t x[L::kTurns][L::kOuter / 2][4];  // half the deviations from the mean, as operands
  float scale[L::kTurns][2];                // of this thread's two pixels
  uint32_t outside;                         // a bit of each of this thread's pixels: not in the map
};

// u of Count times 8 hidden channels. Outside the map it is zero, as the depthwise convolution is padded.
template <class L, int Count, bool BF16>
__device__ __forceinline__ void expand_groups(const Batch<L> &batch, uint32_t weights, uint32_t bias, uint32_t to) {
  float sums[L::kTurns][Count][4] = {};
  float2 b[Count];
#pragma unroll
  for (int i = 0; i < Count; ++i) b[i] = load_shared_pair(bias + 32 * i);
#pragma unroll
  for (int k = 0; k < L::kOuter / 2; ++k) {
    uint32_t w[4];
    load_matrices(w, weights + 32 * k);
#pragma unroll
    for (int turn = 0; turn < L::kTurns; ++turn) {
#pragma unroll
      for (int i = 0; i < Count; ++i) multiply_add<BF16>(sums[turn][i], batch.x[turn][k], w[2 * i], w[2 * i + 1]);
    }
  }
#pragma unroll
  for (int turn = 0; turn < L::kTurns; ++turn) {
#pragma unroll
    for (int i = 0; i < Count; ++i) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const float scale = batch.scale[turn][half];
        const float *h = sums[turn][i] + 2 * half;
        store_shared(to + (16 * kWarps * turn + 8 * half) * L::kInnerStep + 16 * i,
                     static_cast<int>(gelu_packed<BF16>(fmaf(h[0], scale, b[i].x), fmaf(h[1], scale, b[i].y))));
      }
    }
  }
}

// u of this warp's pixels, to shared memory.
template <class L, bool BF16>
__device__ __forceinline__ void expand(const Problem &problem, uint32_t shared) {
  const Tile tile = current_tile<L>(shared);
  const int warp = own_warp(), lane = own_lane();
  const int groups = own_groups<L>(problem);
  const auto *image = reinterpret_cast<const uint2 *>(problem.in.data + tile.image * problem.in.batch) + lane % 4;
  const auto row_step = static_cast<unsigned>(problem.in.row >> 2);
  const auto column_step = static_cast<unsigned>(problem.in.column >> 2);
  Batch<L> batch{};
#pragma unroll
  for (int turn = 0; turn < L::kTurns; ++turn) {
    const int first = 16 * (warp + kWarps * turn);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const unsigned pixel = first + lane / 4 + 8 * half;
      const int row = pixel / kAround;
      const int y = tile.top + row - 1, x = tile.left + static_cast<int>(pixel) - kAround * row - 1;
      if (!inside(problem, y, x)) batch.outside |= 1u << (2 * turn + half);
      // Outside of the map any of its pixels will do.
      const uint2 *from = image + (min(max(y, 0), problem.height - 1) * row_step +
                                   min(max(x, 0), problem.width - 1) * column_step);
#pragma unroll
      for (int k = 0; k < L::kOuter / 2; ++k) {
        const uint2 four = k < groups ? __ldg(from + 4 * k) : make_uint2(0, 0);
        batch.x[turn][k][half] = four.x;
        batch.x[turn][k][2 + half] = four.y;
      }
    }
  }
#pragma unroll
  for (int turn = 0; turn < L::kTurns; ++turn) {
    normalise<L::kOuter / 2, BF16>(batch.x[turn], batch.scale[turn], problem, groups);
  }
  uint32_t weights = shared + L::kExpand + matrix_row(lane, L::kOuterStep);
  uint32_t bias = shared + L::kExpandBias + 8 * (lane % 4);
  uint32_t to = shared + L::kU + (16 * warp + lane / 4) * L::kInnerStep + 4 * (lane % 4);
#pragma unroll 1
  for (int pair = 0; pair < L::kInner / 2; ++pair) {
    expand_groups<L, 2, BF16>(batch, weights, bias, to);
    weights += 16 * L::kOuterStep;
    bias += 64;
    to += 32;
  }
  if constexpr (L::kInner % 2 != 0) expand_groups<L, 1, BF16>(batch, weights, bias, to);
  if (__any_sync(kAllLanes, batch.outside)) {
    to -= L::kInner / 2 * 32;
#pragma unroll
    for (int i = 0; i < 2 * L::kTurns; ++i) {
      if (!(batch.outside >> i & 1)) continue;
#pragma unroll
      for (int j = 0; j < L::kInner; ++j) {
        store_shared(to + (16 * kWarps * (i / 2) + 8 * (i % 2)) * L::kInnerStep + 16 * j, 0);
      }
    }
  }
}

// u + gelu(depthwise(u)) of 8 channels, for each row two registers of an operand.
template <int Rows, bool BF16>
__device__ __forceinline__ void convolve_and_add(uint32_t (&a)[Rows][4], int half, const Window<Rows> &u,
                                                 const Taps &taps, uint4 bias) {
#pragma unroll
  for (int row = 0; row < Rows; ++row) {
    float sums[4] = {__uint_as_float(bias.x), __uint_as_float(bias.y), __uint_as_float(bias.z),
                     __uint_as_float(bias.w)};
    convolve<Rows, BF16>(sums, u, row, taps);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      a[row][2 * half + i] = add_packed<BF16>(u.near[row + 1][2 + i], gelu_packed<BF16>(sums[2 * i], sums[2 * i + 1]));
    }
  }
}

template <int Rows, int Groups>
using Sums = float[Rows][Groups][4];

// This thread's channels of x and where they go: of rows of the tile, two columns, all groups of four channels.
template <class L>
using Own = uint2[L::kRows][2][L::kOuter / 2];

template <class L>
__device__ __forceinline__ void load_own(Own<L> &own, const Problem &problem, uint32_t shared, int first) {
  const Tile tile = current_tile<L>(shared);
  const int lane = own_lane(), groups = own_groups<L>(problem);
  const auto *image = reinterpret_cast<const uint2 *>(problem.in.data + tile.image * problem.in.batch) + lane % 4;
  const auto row_step = static_cast<unsigned>(problem.in.row >> 2);
  const auto column_step = static_cast<unsigned>(problem.in.column >> 2);
#pragma unroll
  for (int row = 0; row < L::kRows; ++row) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int y = min(tile.top + first + row, problem.height - 1);
      const int x = min(tile.left + lane / 4 + 8 * half, problem.width - 1);
      const uint2 *from = image + (y * row_step + x * column_step);
#pragma unroll
      for (int k = 0; k < L::kOuter / 2; ++k) own[row][half][k] = k < groups ? __ldg(from + 4 * k) : make_uint2(0, 0);
    }
  }
}

// Where a lane finds its part of what Count times 8 hidden channels add to the sums.
struct Places {
  uint32_t left, right;  // rows of the window's operands
  uint32_t taps, bias, weights;
};

template <class L>
__device__ __forceinline__ Places places_of(uint32_t shared, int first) {
  const int lane = own_lane();
  const int second = lane / 16;               // lanes from 16 on name the pixels of an operand's second half
  Places places;
  places.left = shared + L::kU + (first * kAround + lane % 16 + second) * L::kInnerStep;
  places.right = shared + L::kU + ((first + second) * kAround + lane % 16 + 2) * L::kInnerStep;
  places.taps = shared + L::kDiagonals + own_taps(lane);
  places.bias = shared + L::kDepthwiseBias + 16 * (lane % 4);
  places.weights = shared + L::kContract + matrix_row(lane, L::kInnerStep);
  return places;
}

// Adds contract(u + gelu(depthwise(u))) of Count times 8 hidden channels, and goes on to the next ones.
template <class L, int Count, bool BF16>
__device__ __forceinline__ void contract_groups(Sums<L::kRows, L::kOuter> &sums, Places &places) {
  uint32_t a[L::kRows][4];
#pragma unroll
  for (int half = 0; half < Count; ++half) {
    Window<L::kRows> window;
    window.load(places.left + 16 * half, places.right + 16 * half, kAround * L::kInnerStep);
    const Taps taps = load_taps(places.taps + kTapRows * kTapStep * half);
    convolve_and_add<L::kRows, BF16>(a, half, window, taps, load_shared(places.bias + 64 * half));
  }
#pragma unroll
  for (int n = 0; n < L::kOuter; n += 2) {
    uint32_t b[4];
    load_matrices(b, places.weights + 8 * n * L::kInnerStep);
#pragma unroll
    for (int row = 0; row < L::kRows; ++row) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        // What lies behind the last 8 channels are no weights: it is not multiplied, not even by zero.
        if constexpr (Count == 2) {
          multiply_add<BF16>(sums[row][n + i], a[row], b[2 * i], b[2 * i + 1]);
        } else {
          multiply_add<BF16>(sums[row][n + i], a[row][0], a[row][1], b[2 * i]);
        }
      }
    }
  }
  places.left += 32;
  places.right += 32;
  places.taps += 2 * kTapRows * kTapStep;
  places.bias += 128;
  places.weights += 32;
}

// x + contract(u + gelu(depthwise(u))) of rows of the tile, from `first` on.
template <class L, bool BF16>
__device__ __forceinline__ void contract(Sums<L::kRows, L::kOuter> &sums, const Own<L> &own, uint32_t shared,
                                         int first) {
  // x times the identity, which the tensor cores add to the bias.
  const int lane = own_lane();
  constexpr uint32_t kOne = BF16 ? 0x3f80 : 0x3c00;
  const uint32_t identity = lane / 8 == lane % 4 ? kOne << 16 * (lane / 4 % 2) : 0;
  const uint32_t bias_place = shared + L::kContractBias + 16 * (lane % 4);
#pragma unroll
  for (int n = 0; n < L::kOuter; ++n) {
    const uint4 bias = load_shared(bias_place + 64 * n);
#pragma unroll
    for (int row = 0; row < L::kRows; ++row) {
      sums[row][n][0] = __uint_as_float(bias.x);
      sums[row][n][1] = __uint_as_float(bias.y);
      sums[row][n][2] = __uint_as_float(bias.z);
      sums[row][n][3] = __uint_as_float(bias.w);
      const uint2 low = own[row][0][n / 2], high = own[row][1][n / 2];
      multiply_add<BF16>(sums[row][n], n % 2 ? low.y : low.x, n % 2 ? high.y : high.x, identity);
    }
  }
  Places places = places_of<L>(shared, first);
#pragma unroll 1
  for (int pair = 0; pair < L::kInner / 2; ++pair) contract_groups<L, 2, BF16>(sums, places);
  if constexpr (L::kInner % 2 != 0) contract_groups<L, 1, BF16>(sums, places);
}

template <class L, bool BF16>
__device__ __forceinline__ void store(const Sums<L::kRows, L::kOuter> &sums, const Problem &problem, uint32_t shared,
                                      int first) {
  const Tile tile = current_tile<L>(shared);
  const int lane = own_lane(), groups = own_groups<L>(problem);
  auto *image = reinterpret_cast<uint2 *>(problem.out.data + tile.image * problem.out.batch) + lane % 4;
  const auto row_step = static_cast<unsigned>(problem.out.row >> 2);
  const auto column_step = static_cast<unsigned>(problem.out.column >> 2);
#pragma unroll
  for (int row = 0; row < L::kRows; ++row) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int y = tile.top + first + row, x = tile.left + lane / 4 + 8 * half;
      uint2 *to = image + (y * row_step + x * column_step);
      const bool valid = y < problem.height && x < problem.width;
#pragma unroll
      for (int k = 0; k < L::kOuter / 2; ++k) {
        const float *low = sums[row][2 * k] + 2 * half, *high = sums[row][2 * k + 1] + 2 * half;
        const uint2 four = make_uint2(pack<BF16>(low[0], low[1]), pack<BF16>(high[0], high[1]));
        if (valid && k < groups) to[4 * k] = four;
      }
    }
  }
}

template <class L, bool BF16>
__global__ void __launch_bounds__(kThreads, kResident) feed_forward(const __grid_constant__ Problem problem) {
  extern __shared__ __align__(16) uint8_t memory[];
  const uint32_t shared = shared_address(memory);
  load_weights<L, BF16>(problem, shared);
  copy_wait<0>();
  __syncthreads();
  if (blockIdx.x >= problem.tiles) return;
  set_tile<L>(problem, blockIdx.x, shared);
  for (;;) {
    expand<L, BF16>(problem, shared);
    int first = own_warp() * L::kRows;
    Own<L> own;
    load_own<L>(own, problem, shared, first);
    __syncthreads();
    if constexpr (L::kHeight == kWarps * L::kRows) {
      if (first < problem.height - current_tile<L>(shared).top) {
        Sums<L::kRows, L::kOuter> sums;
        contract<L, BF16>(sums, own, shared, first);
        store<L, BF16>(sums, problem, shared, own_warp() * L::kRows);
      }
    } else {
      const int rows = min(L::kHeight, problem.height - current_tile<L>(shared).top);
#pragma unroll 1
      while (first < rows) {
        Sums<L::kRows, L::kOuter> sums;
        contract<L, BF16>(sums, own, shared, first);
        store<L, BF16>(sums, problem, shared, first);
        first += kWarps * L::kRows;
        if (first < rows) load_own<L>(own, problem, shared, first);
      }
    }
    const int next = current_tile<L>(shared).index + gridDim.x;
    if (next >= problem.tiles) break;
    __syncthreads();
    set_tile<L>(problem, next, shared);
  }
}

// Of each instance the widths it is for at most and the rows of a tile, best first. All fit into the 99 KiB that some
// devices give a block (compute capability 8.6, 8.9, 12.0).
struct Instance {
  bool exact;  // the channels must be as many
  int channels, hidden, height, bytes;
  void (*fp16)(Problem), (*bf16)(Problem);
};

template <int Channels, int Hidden, int Height, bool Exact = false>
constexpr Instance instance() {
  using L = Layout<Channels, Hidden, Height, Exact>;
  return {Exact, Channels, Hidden, Height, L::kBytes, feed_forward<L, false>, feed_forward<L, true>};
}

constexpr Instance kInstances[] = {instance<48, 72, 8, true>(), instance<48, 72, 8>(), instance<64, 80, 8>(),
                                  instance<64, 96, 8>()};
constexpr int kMostHidden = 96;

const Instance *choose(const RibsrFeedForwardParams &p, int available) {
  for (const Instance &one : kInstances) {
    const bool fits = one.exact ? p.channels == one.channels : p.channels <= one.channels;
    if (fits && p.hidden <= one.hidden && one.bytes <= available) return &one;
  }
  return nullptr;
}

int32_t check_narrow(const RibsrFeedForwardParams &p) {
  if (p.channels % 8 != 0 || p.channels > kMostChannels || p.hidden % 8 != 0 || p.hidden > kMostHidden) {
    return fail(RIBSR_UNSUPPORTED,
                "channels, hidden are %d, %d: multiples of 8 up to %d, %d are supported, and 180, 225; 192, 384; 224, "
                "448", p.channels, p.hidden, kMostChannels, kMostHidden);
  }
  if (!vectorised(p.in, p.height, p.width) || !vectorised(p.out, p.height, p.width) || !aligned(p.expand_weight) ||
      !aligned(p.contract_weight)) {
    return fail(RIBSR_UNSUPPORTED,
                "in and out must be channels-last with strides of multiples of 8, they and the two matrices aligned to "
                "16 bytes");
  }
  return RIBSR_OK;
}

bool hopper_takes(int channels, int hidden) { return channels == kWideChannels && hidden == kWideHidden; }

bool hopper_takes(const RibsrFeedForwardParams &p) {
  return hopper_takes(p.channels, p.hidden) && vectorised(p.in, p.height, p.width) &&
         vectorised(p.out, p.height, p.width) && aligned(p.expand_weight) && aligned(p.contract_weight) &&
         aligned(p.contract_bias);
}

int32_t refuse_hopper(const RibsrFeedForwardParams &p, const Device &device) {
  return fail(RIBSR_UNSUPPORTED,
              "the Hopper path was asked for, but needs compute capability 9.0 (here %d.%d), channels, hidden of %d, %d "
              "(here %d, %d), channels-last maps aligned to 8 channels, and weights aligned to 16 bytes",
              device.major, device.minor, kWideChannels, kWideHidden, p.channels, p.hidden);
}

int32_t launch(Problem &problem, const RibsrFeedForwardParams &p, const Device &device, cudaStream_t stream) {
  int available = 0;
  int32_t code = shared_memory(&available, device);
  if (code != RIBSR_OK) return code;
  const Instance *chosen = choose(p, available);
  if (chosen == nullptr) return too_little_memory(device, available);
  const auto kernel = p.dtype == RIBSR_BFLOAT16 ? chosen->bf16 : chosen->fp16;
  int blocks = 0;
  code = prepare_tiles(&blocks, kernel, problem, p.batch, chosen->height, chosen->bytes, chosen->bytes,
                       kResident, device);
  if (code != RIBSR_OK) return code;
  const auto magic = [](int by) { return by == 1 ? 0xffffffffu : static_cast<unsigned>((1ull << 32) / by); };
  problem.tiles_x_magic = magic(problem.tiles_x);
  problem.tiles_y_magic = magic(problem.tiles_y);
  kernel<<<blocks, kThreads, chosen->bytes, stream>>>(problem);
  return launched(cudaGetLastError());
}

}  // namespace

extern "C" int64_t ribsr_feed_forward_workspace(int32_t channels, int32_t hidden) {
  if (!takes_wide_feed_forward(channels, hidden)) return 0;
  const int64_t portable = wide_feed_forward_workspace(channels, hidden);
  return hopper_takes(channels, hidden) ? std::max(portable, hopper_feed_forward_workspace()) : portable;
}

extern "C" int32_t ribsr_feed_forward(const RibsrFeedForwardParams *params, void *stream) {
  clear_message();
  int32_t code = check_common(params);
  if (code == RIBSR_OK) code = check_path(params->path);
  if (code != RIBSR_OK) return code;
  const RibsrFeedForwardParams &p = *params;
  RIBSR_CHECK(p.channels > 0 && p.hidden > 0, "channels, hidden are %d, %d: both must be positive", p.channels,
              p.hidden);
  RIBSR_CHECK(p.epsilon >= 0.0f, "epsilon is %g: it must not be negative", static_cast<double>(p.epsilon));
  RIBSR_CHECK(p.in.data && p.out.data && p.norm_weight && p.norm_bias && p.expand_weight && p.expand_bias &&
                  p.depthwise_weight && p.depthwise_bias && p.contract_weight && p.contract_bias,
              "an array is null");
  RIBSR_CHECK(p.in.data != p.out.data, "in and out are the same memory: they must not overlap");
  const bool wide = takes_wide_feed_forward(p.channels, p.hidden);
  code = wide ? check_wide_feed_forward(p) : check_narrow(p);
  if (code != RIBSR_OK) return code;
  Device device;
  code = current_device(&device);
  if (code != RIBSR_OK) return code;
  const auto on = static_cast<cudaStream_t>(stream);
  const bool hopper = is_hopper(device) && hopper_takes(p);
  if (p.path == RIBSR_PATH_HOPPER && !hopper) return refuse_hopper(p, device);
  if (hopper && p.path != RIBSR_PATH_PORTABLE) return launch_hopper_feed_forward(p, device, on);
  if (wide) return launch_wide_feed_forward(p, device, on);

  const auto weights = [](const void *data) { return static_cast<const uint16_t *>(data); };
  Problem problem{};
  problem.in = map_of(p.in);
  problem.out = map_of(p.out);
  problem.norm_weight = weights(p.norm_weight);
  problem.norm_bias = weights(p.norm_bias);
  problem.expand_weight = weights(p.expand_weight);
  problem.expand_bias = weights(p.expand_bias);
  problem.depthwise_weight = weights(p.depthwise_weight);
  problem.depthwise_bias = weights(p.depthwise_bias);
  problem.contract_weight = weights(p.contract_weight);
  problem.contract_bias = weights(p.contract_bias);
  problem.channels = p.channels;
  problem.hidden = p.hidden;
  problem.height = p.height;
  problem.width = p.width;
  problem.quarter_epsilon = 0.25f * p.epsilon;
  problem.inverse_channels = 1.0f / static_cast<float>(p.channels);
  problem.half_inverse = -0.5f * problem.inverse_channels;
  return launch(problem, p, device, on);
}
