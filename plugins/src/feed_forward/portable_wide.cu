// ribsr_feed_forward for wide layers, whose weights are too many for shared memory: sst's, sst-l's and sst-xl's.
//
// A block of 8 warps stays and walks over tiles of 16 columns and 8 rows, or 6. The hidden channels come 48 at a time, their
// weights as a first kernel has arranged them: as lanes hold them in operands, one after the other, so that they need no
// addresses. Warps have different tasks and meet at barriers only:
//   - four expand. Half the deviations from the mean of the pixels of a tile, and of those around it, straight from the map,
//     are their operands for as long as the tile lasts: a warp has 48 pixels, so that each weight which it loads serves
//     three times. gelu of the product goes to shared memory as u;
//   - four contract. A warp has half the rows, and of them makes v = u + gelu(depthwise(u)), the convolution a product by
//     diagonal matrices, of half the channels, to shared memory in the order of operands; then of half the outputs the
//     product of v, whose sums stay in registers and begin as x.
// There is room for two chunks of u: while these work at one, the others are at the next or the one after, be it the next
// tile's. Weights of `expand` come 16 hidden channels at a time.
#include "feed_forward/portable_wide.h"

#include "feed_forward/portable.cuh"
#include "shared/fragments.cuh"
#include "shared/gelu.cuh"
#include "shared/tile_launch.h"

namespace ribsr {
namespace {

constexpr int kTeam = 128;  // threads that expand, and as many that contract
constexpr int kThreads = 2 * kTeam;
constexpr int kTurns = 3;    // sixteens of pixels of a warp
constexpr int kChunk = 48;   // hidden channels at a time
constexpr int kParts = kChunk / 16;
enum Barrier { kExpanding = 1, kContracting, kFull, kEmpty = kFull + 2 };  // two of the last ones; 0 is __syncthreads'

constexpr int kUStep = kStep<kChunk / 8>;
constexpr int kGroupTaps = kTapRows * kTapStep;
constexpr int kTapBytes = kChunk / 8 * kGroupTaps;

// Places in shared memory and in the workspace, in bytes. Channels, Hidden: with those that are zero.
template <int Channels, int Hidden, int Height>
struct Layout {
  static constexpr int kChannels = Channels, kHidden = Hidden, kHeight = Height;
  static constexpr int kPixels = kAround * (Height + 2), kSixteens = (kPixels + 15) / 16;
  static_assert(kSixteens <= kTurns * kTeam / 32);
  static constexpr int kRows = Height / 2;      // of a warp that contracts
  static constexpr int kSteps = Channels / 16;  // of the first product
  static constexpr int kChunks = Hidden / kChunk;
  static constexpr int kTiles = Channels / 16;  // of 16 outputs
  static constexpr int kOwn = kTiles / 2;       // of a warp that contracts
  static_assert(Channels % 32 == 0 && Hidden % kChunk == 0);

  // In the workspace a chunk has, of 16 channels each, its weights of `expand` and biases; then weights of `contract`; then
  // taps and biases of `depthwise`.
  static constexpr int kExpandWeights = kSteps * kFragment, kExpandBytes = kExpandWeights + 4 * 16;  // of a part
  static constexpr int kContractBytes = kTiles * kParts * kFragment;
  static constexpr int kDepthwiseBytes = kTapBytes + 4 * kChunk;
  static constexpr int kContractOf = kParts * kExpandBytes, kDepthwiseOf = kContractOf + kContractBytes;
  static constexpr int kChunkBytes = kDepthwiseOf + kDepthwiseBytes;
  static constexpr int kBiases = kChunks * kChunkBytes;  // of `contract`, in float32
  static constexpr int kWorkspace = kBiases + 4 * Channels;

  static constexpr int kUBytes = 16 * kSixteens * kUStep;  // with the last sixteen's pixels that a tile has not
  static constexpr int kU = 0;  // of two chunks
  static constexpr int kV = kU + 2 * kUBytes;
  static constexpr int kExpand = kV + Height * kParts * kFragment;
  static constexpr int kContract = kExpand + kParts * kExpandBytes;  // of `expand` this part's and the next two's
  static constexpr int kDepthwise = kContract + kContractBytes;      // of this chunk and the next one
  static constexpr int kTile = kDepthwise + 2 * kDepthwiseBytes;     // of each warp that contracts
  static constexpr int kBytes = kTile + 16 * (kTeam / 32);
  static_assert(kBytes <= 99 * 1024, "some devices give a block no more: compute capability 8.6, 8.9, 12.0");
};

struct Weights {
  const uint16_t *norm_weight, *norm_bias, *expand_weight, *expand_bias, *depthwise_weight, *depthwise_bias;
  const uint16_t *contract_weight, *contract_bias;
  uint8_t *workspace;
  int channels, hidden;
  float inverse_channels;
};

struct Problem {
  Map in, out;
  const uint8_t *workspace;
  int channels, stored;  // of a pixel of `out`: with the zeros behind the last one, or without
  int height, width;
  int tiles_x, tiles_y, tiles;
  float quarter_epsilon, inverse_channels, half_inverse;
};

// ---- weights --------------------------------------------------------------------------------------------------------

constexpr int kArrangers = 256, kArrangerWarps = kArrangers / 32;

// A warp has a hidden channel. What gelu is taken of comes as its half: see gelu_of_half. The weights of `expand` have the
// norm's weight and bias in them, and sum to zero: what is added to all channels is nothing to them.
template <class L, bool BF16>
__device__ __forceinline__ void arrange_expand(const Weights &weights, uint8_t *chunk, int row, int lane) {
  constexpr int kFours = (L::kChannels / 4 + 31) / 32;  // of a lane
  const auto value = [](const uint16_t *from, int index, bool exists) {
    return exists ? unpack<BF16>(from[index]).x : 0.0f;
  };
  const bool exists = row < weights.hidden;
  uint8_t *part = chunk + row % kChunk / 16 * L::kExpandBytes;
  float w[kFours][4], sum = 0.0f, bias = 0.0f;
#pragma unroll
  for (int i = 0; i < kFours; ++i) {
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const int channel = 4 * (lane + 32 * i) + j;
      const bool there = exists && channel < weights.channels;
      const float given = value(weights.expand_weight, row * weights.channels + channel, there);
      w[i][j] = given * value(weights.norm_weight, channel, there);
      bias = fmaf(given, value(weights.norm_bias, channel, there), bias);
      sum += w[i][j];
    }
  }
  const float mean = sum_lanes<32>(sum) * weights.inverse_channels;
  bias = 0.5f * (sum_lanes<32>(bias) + value(weights.expand_bias, row, exists));
#pragma unroll
  for (int i = 0; i < kFours; ++i) {
    const int channel = 4 * (lane + 32 * i);  // at places 2p, 2p + 1, 2p + 8 and 2p + 9 of 16: see channel_at
    if (channel >= L::kChannels) continue;
    const bool there = channel < weights.channels;
    const uint32_t low = there ? pack<BF16>(w[i][0] - mean, w[i][1] - mean) : 0;
    const uint32_t high = there ? pack<BF16>(w[i][2] - mean, w[i][3] - mean) : 0;
    const int place = channel / 16 * kFragment + fragment_place(row % 16, channel % 16 / 2);
    *reinterpret_cast<uint2 *>(part + place) = make_uint2(low, high);
  }
  if (lane == 0) reinterpret_cast<float *>(part + L::kExpandWeights)[row % 16] = bias;
}

template <class L, bool BF16>
__device__ __forceinline__ void arrange_depthwise(const Weights &weights, uint8_t *chunk, int row, int lane) {
  const bool exists = row < weights.hidden;
  const int own = row % kChunk;
  auto *taps = reinterpret_cast<uint32_t *>(chunk + L::kDepthwiseOf + own / 8 * kGroupTaps);
  constexpr int kWords = kTapStep / 4;
  if (lane < kWords) {  // of its column a pair of neighbouring rows: one is zero
    const int tap = lane < kTaps ? static_cast<int>(kTapOrder >> 4 * lane & 15) : 0;
    const float weight = exists && lane < kTaps ? 0.5f * unpack<BF16>(weights.depthwise_weight[9 * row + tap]).x : 0.0f;
    taps[kWords * (own % 8) + lane] = own % 2 ? pack<BF16>(0.0f, weight) : pack<BF16>(weight, 0.0f);
    if (own % 8 == 0) taps[kWords * 8 + lane] = 0;
  }
  if (lane == 0) {
    auto *biases = reinterpret_cast<float *>(chunk + L::kDepthwiseOf + kTapBytes);
    biases[own] = exists ? 0.5f * unpack<BF16>(weights.depthwise_bias[row]).x : 0.0f;
  }
}

// Outputs are at the places of channel_at, so that a thread has four of each 16 side by side.
template <class L, bool BF16>
__device__ __forceinline__ void arrange_contract(const Weights &weights, int first, int step) {
  constexpr int kPairs = L::kHidden / 2;
  for (int i = first; i < L::kChannels * kPairs; i += step) {
    const int place = i / kPairs, row = 2 * (i - place * kPairs), channel = channel_at<16>(place);
    const auto weight = [&](int at) {
      const bool there = channel < weights.channels && at < weights.hidden;
      return there ? static_cast<uint32_t>(weights.contract_weight[channel * weights.hidden + at]) : 0;
    };
    const int operand = place / 16 * kParts + row % kChunk / 16;
    uint8_t *to = weights.workspace + row / kChunk * L::kChunkBytes + L::kContractOf + operand * kFragment;
    *reinterpret_cast<uint32_t *>(to + fragment_place(place, row % kChunk)) = weight(row) | weight(row + 1) << 16;
  }
  auto *biases = reinterpret_cast<float *>(weights.workspace + L::kBiases);
  if (first < L::kChannels) {
    biases[first] = first < weights.channels ? unpack<BF16>(weights.contract_bias[first]).x : 0.0f;
  }
}

template <class L, bool BF16>
__global__ void __launch_bounds__(kArrangers) arrange(const __grid_constant__ Weights weights) {
  const int lane = threadIdx.x % 32, row = blockIdx.x * kArrangerWarps + threadIdx.x / 32;
  uint8_t *chunk = weights.workspace + row / kChunk * L::kChunkBytes;
  arrange_expand<L, BF16>(weights, chunk, row, lane);
  arrange_depthwise<L, BF16>(weights, chunk, row, lane);
  arrange_contract<L, BF16>(weights, blockIdx.x * kArrangers + threadIdx.x, gridDim.x * kArrangers);
}

// ---- a block --------------------------------------------------------------------------------------------------------

// Of u of a chunk, `count` of all: two are in shared memory.
template <class L>
__device__ __forceinline__ uint32_t u_of(uint32_t shared, int count) {
  return shared + L::kU + count % 2 * L::kUBytes;
}

// All of u is there, or nobody needs it any more: who makes it and who uses it meet, and one of them does not wait.
template <int First>
__device__ __forceinline__ void meet_at_u(int count) {
  if (count % 2 == 0) {
    meet<First, kThreads>();
  } else {
    meet<First + 1, kThreads>();
  }
}
template <int First>
__device__ __forceinline__ void arrive_at_u(int count) {
  if (count % 2 == 0) {
    arrive<First, kThreads>();
  } else {
    arrive<First + 1, kThreads>();
  }
}

// This thread in its team, and its warp.
__device__ __forceinline__ int team_thread() { return static_cast<unsigned>(own_thread()) % kTeam; }
__device__ __forceinline__ int team_warp() { return static_cast<unsigned>(own_thread()) % kTeam / 32; }
__device__ __forceinline__ int own_lane() { return static_cast<unsigned>(own_thread()) % 32; }

// Four channels of a pixel; zeros where they do not exist.
__device__ __forceinline__ uint2 load_four(const Problem &problem, const uint16_t *pixel, int channel) {
  return channel < problem.channels ? __ldg(reinterpret_cast<const uint2 *>(pixel + channel)) : make_uint2(0, 0);
}

// A pixel of a map of four-channel vectors, or the nearest one that is there.
__device__ __forceinline__ uint16_t *pixel_at(const Problem &problem, const Map &map, int image, int y, int x) {
  const auto row_step = static_cast<unsigned>(map.row >> 2), column_step = static_cast<unsigned>(map.column >> 2);
  y = min(max(y, 0), problem.height - 1);
  x = min(max(x, 0), problem.width - 1);
  return map.data + image * map.batch + 4ull * (y * row_step + x * column_step);
}

// The next tile's pixels on their way to the cache, by a team.
template <class L>
__device__ __forceinline__ void prefetch_pixels(const Problem &problem, const Tile &tile) {
  constexpr int kLines = (2 * L::kChannels + 127) / 128;
  for (int i = team_thread(); i < kLines * L::kPixels; i += kTeam) {
    const Pixel p = pixel_of(tile, i / kLines);
    prefetch(pixel_at(problem, problem.in, tile.image, p.y, p.x) + min(64 * (i % kLines), problem.channels - 1));
  }
}

// ---- the team that expands ------------------------------------------------------------------------------------------

// What a thread has of its warp's pixels, every kTeam / 32-th sixteen of a tile's.
template <class L>
struct Pixels {
  uint32_t x[kTurns][L::kSteps][4];  // half the deviations from their means, as operands
  float scale[kTurns][2];            // of this thread's two of each 16: what makes of their products half of h
  uint32_t outside;                  // a bit of each of them: not in the map
  bool edge;                         // whether any thread of the warp has one
};

__device__ __forceinline__ int first_of(int turn) { return 16 * (team_warp() + kTeam / 32 * turn); }

template <class L, bool BF16>
__device__ __forceinline__ void load_pixels(Pixels<L> &pixels, const Problem &problem, const Tile &tile) {
  const int channel = 4 * (own_lane() % 4);
  pixels.outside = 0;
#pragma unroll
  for (int turn = 0; turn < kTurns; ++turn) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const Pixel p = pixel_of(tile, first_of(turn) + own_lane() / 4 + 8 * half);
      if (!inside(problem, p.y, p.x)) pixels.outside |= 1u << (2 * turn + half);
      const uint16_t *from = pixel_at(problem, problem.in, tile.image, p.y, p.x);
#pragma unroll
      for (int k = 0; k < L::kSteps; ++k) {
        const uint2 four = load_four(problem, from, 16 * k + channel);
        pixels.x[turn][k][half] = four.x;
        pixels.x[turn][k][2 + half] = four.y;
      }
    }
  }
  pixels.edge = __any_sync(kAllLanes, pixels.outside);
#pragma unroll
  for (int turn = 0; turn < kTurns; ++turn) {
    normalise<L::kSteps, BF16>(pixels.x[turn], pixels.scale[turn], problem, (problem.channels - channel + 15) / 16);
#pragma unroll
    for (float &scale : pixels.scale[turn]) scale *= 0.5f;
  }
}

// Of 16 hidden channels: the products of a warp's pixels, and where this thread's u goes.
struct Part {
  float sums[kTurns][2][4];
  float2 bias[2];
};
constexpr int kWords = 4 * kTurns;  // of u that a thread makes of them

// Where the word `index` of u of a part is, from this thread's first one on.
__device__ __forceinline__ constexpr int word_place(int index) {
  return (index / 4 * kTeam / 32 * 16 + index % 2 * 8) * kUStep + index / 2 % 2 * 16;
}

template <class L>
__device__ __forceinline__ bool has_word(int index) {
  constexpr int kFull = L::kSixteens * 16 / (kTeam / 2);  // turns in which all warps have pixels
  return index / 4 < kFull || first_of(index / 4) < L::kPixels;
}

template <class L, bool BF16>
__device__ __forceinline__ void store_word(const Part &part, const Pixels<L> &pixels, uint32_t to, int index) {
  const int turn = index / 4, group = index / 2 % 2, half = index % 2;
  const float *h = part.sums[turn][group] + 2 * half;
  const float scale = pixels.scale[turn][half];
  const float2 bias = part.bias[group];
  const uint32_t u = gelu_of_half<BF16>(fmaf(h[0], scale, bias.x), fmaf(h[1], scale, bias.y));
  if (has_word<L>(index)) store_shared(to + word_place(index), static_cast<int>(u));
}

// Multiplies, and between the products makes u of the part before, if there is one.
template <class L, bool BF16>
__device__ __forceinline__ void multiply(Part &part, const Part *before, const Pixels<L> &pixels, uint32_t weights,
                                         uint32_t to) {
  static_assert(L::kSteps >= kWords);
  const int lane = own_lane();
#pragma unroll
  for (int group = 0; group < 2; ++group) {
    part.bias[group] = load_shared_pair(weights + L::kExpandWeights + 32 * group + 8 * (lane % 4));
#pragma unroll
    for (auto &turn : part.sums) {
#pragma unroll
      for (float &x : turn[group]) x = 0.0f;
    }
  }
#pragma unroll
  for (int k = 0; k < L::kSteps; ++k) {
    const uint4 b = load_shared(weights + k * kFragment + 16 * lane);
#pragma unroll
    for (int turn = 0; turn < kTurns; ++turn) {
      multiply_add<BF16>(part.sums[turn][0], pixels.x[turn][k], b.x, b.y);
      multiply_add<BF16>(part.sums[turn][1], pixels.x[turn][k], b.z, b.w);
    }
    if (before != nullptr && k < kWords) store_word<L, BF16>(*before, pixels, to, k);
  }
}

// Outside the map u is zero, as the depthwise convolution is padded.
template <class L>
__device__ __forceinline__ void clear_outside(const Pixels<L> &pixels, uint32_t to) {
#pragma unroll
  for (int index = 0; index < kWords; ++index) {
    if (!(pixels.outside >> (index / 4 * 2 + index % 2) & 1) || !has_word<L>(index)) continue;
#pragma unroll
    for (int part = 0; part < kParts; ++part) store_shared(to + word_place(index) + 32 * part, 0);
  }
}

template <class L, bool BF16>
__device__ __forceinline__ void expand(const Problem &problem, uint32_t shared) {
  const auto weights_of = [&](int part) { return shared + L::kExpand + part * L::kExpandBytes; };
  const auto fetch_weights = [&](int chunk, int part) {
    const int from = (chunk < L::kChunks ? chunk : 0) * L::kChunkBytes + part * L::kExpandBytes;
    fetch<kTeam, L::kExpandBytes>(weights_of(part), problem.workspace + from, team_thread());
    copy_commit();
  };
  int count = 0;  // of chunks, over all tiles
  fetch_weights(0, 0);
  fetch_weights(0, 1);
#pragma unroll 1
  for (int index = blockIdx.x; index < problem.tiles; index += gridDim.x) {
    Pixels<L> pixels;
    load_pixels<L, BF16>(pixels, problem, tile_of(problem, index, L::kHeight));
    const int next = index + gridDim.x;
#pragma unroll 1
    for (int chunk = 0; chunk < L::kChunks; ++chunk, ++count) {
      if (chunk == 0 && next < problem.tiles) prefetch_pixels<L>(problem, tile_of(problem, next, L::kHeight));
      const uint32_t to = u_of<L>(shared, count) + (first_of(0) + own_lane() / 4) * kUStep + 4 * (own_lane() % 4);
      Part parts[2];
#pragma unroll
      for (int part = 0; part < kParts; ++part) {
        copy_wait<1>();
        meet<kExpanding, kTeam>();  // this part's weights are there, and nobody needs those before
        fetch_weights(chunk + (part > 0), (part + 2) % kParts);
        if (part == 1 && count > 1) meet_at_u<kEmpty>(count);
        multiply<L, BF16>(parts[part % 2], part > 0 ? &parts[1 - part % 2] : nullptr, pixels, weights_of(part),
                          to + 32 * (part - 1));
      }
#pragma unroll
      for (int index = 0; index < kWords; ++index) {
        store_word<L, BF16>(parts[(kParts - 1) % 2], pixels, to + 32 * (kParts - 1), index);
      }
      if (__builtin_expect(pixels.edge, 0)) clear_outside<L>(pixels, to);
      arrive_at_u<kFull>(count);
    }
  }
  copy_wait<0>();
}

// ---- the team that contracts ----------------------------------------------------------------------------------------

// Where a warp works.
template <class L>
__device__ __forceinline__ int own_rows() {
  return L::kRows * (team_warp() % 2);
}
__device__ __forceinline__ int own_half() { return team_warp() / 2; }  // of channels and outputs

// Of each row and 16 outputs the first 8 and the next.
template <class L>
using Sums = float[L::kRows][L::kOwn][2][4];

// This thread's sums begin as x and the bias.
template <class L, bool BF16>
__device__ __forceinline__ void begin(Sums<L> &sums, const Problem &problem, const Tile &tile) {
  const int lane = own_lane(), first = 16 * L::kOwn * own_half() + 4 * (lane % 4);
  const auto *biases = reinterpret_cast<const float4 *>(problem.workspace + L::kBiases);
#pragma unroll
  for (int row = 0; row < L::kRows; ++row) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int y = tile.top + own_rows<L>() + row, x = tile.left + lane / 4 + 8 * half;
      const uint16_t *from = pixel_at(problem, problem.in, tile.image, y, x);
#pragma unroll
      for (int n = 0; n < L::kOwn; ++n) {
        const uint2 four = load_four(problem, from, first + 16 * n);
        const float4 bias = __ldg(biases + first / 4 + 4 * n);
        const float2 low = unpack<BF16>(four.x), high = unpack<BF16>(four.y);
        sums[row][n][0][2 * half] = bias.x + low.x;
        sums[row][n][0][2 * half + 1] = bias.y + low.y;
        sums[row][n][1][2 * half] = bias.z + high.x;
        sums[row][n][1][2 * half + 1] = bias.w + high.y;
      }
    }
  }
}

template <class L, bool BF16>
__device__ __forceinline__ void store(const Sums<L> &sums, const Problem &problem, const Tile &tile) {
  const int lane = own_lane(), first = 16 * L::kOwn * own_half() + 4 * (lane % 4);
#pragma unroll
  for (int row = 0; row < L::kRows; ++row) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int y = tile.top + own_rows<L>() + row, x = tile.left + lane / 4 + 8 * half;
      if (!inside(problem, y, x)) continue;
      uint16_t *to = pixel_at(problem, problem.out, tile.image, y, x);
#pragma unroll
      for (int n = 0; n < L::kOwn; ++n) {
        const int channel = first + 16 * n;
        const auto &own = sums[row][n];
        const uint2 four = make_uint2(pack<BF16>(own[0][2 * half], own[0][2 * half + 1]),
                                      pack<BF16>(own[1][2 * half], own[1][2 * half + 1]));
        if (channel < problem.stored) *reinterpret_cast<uint2 *>(to + channel) = four;
      }
    }
  }
}

// Where a lane finds its parts of 8 channels of this warp's rows, and where v of them goes.
struct Places {
  uint32_t left, right;  // rows of the window's operands
  uint32_t taps, bias, v;
};

// v of Rows of this warp's rows, from `row` on, and 8 channels.
template <int Rows, bool BF16>
__device__ __forceinline__ void convolve_group(const Places &places, int row) {
  Window<Rows> window;
  window.load(places.left + row * kAround * kUStep, places.right + row * kAround * kUStep, kAround * kUStep);
  const Taps taps = load_taps(places.taps);
  const float2 bias = load_shared_pair(places.bias);
  // A warp has few others beside it: sums in two parts, so that products wait less for the ones before.
  float near[Rows][4], right[Rows][4] = {};
#pragma unroll
  for (int i = 0; i < Rows; ++i) {
    near[i][0] = near[i][2] = bias.x;
    near[i][1] = near[i][3] = bias.y;
    convolve_near<Rows, BF16>(near[i], window, i, taps);
    convolve_right<Rows, BF16>(right[i], window, i, taps);
  }
#pragma unroll
  for (int i = 0; i < Rows; ++i) {
    float h[4];
#pragma unroll
    for (int j = 0; j < 4; ++j) h[j] = near[i][j] + right[i][j];
    const uint32_t low = add_packed<BF16>(window.near[i + 1][2], gelu_of_half<BF16>(h[0], h[1]));
    const uint32_t high = add_packed<BF16>(window.near[i + 1][3], gelu_of_half<BF16>(h[2], h[3]));
    store_shared(places.v + (row + i) * kParts * kFragment, static_cast<int>(low), static_cast<int>(high));
  }
}

template <class L, bool BF16>
__device__ __forceinline__ void convolve_chunk(uint32_t shared, uint32_t u, uint32_t depthwise) {
  constexpr int kGroups = kChunk / 16;  // of a warp
  const int lane = own_lane(), second = lane / 16, row = own_rows<L>(), first = kGroups * own_half();
  Places places;
  places.left = u + 16 * first + (row * kAround + lane % 16 + second) * kUStep;
  places.right = u + 16 * first + ((row + second) * kAround + lane % 16 + 2) * kUStep;
  places.taps = depthwise + own_taps(lane) + first * kGroupTaps;
  places.bias = depthwise + kTapBytes + 8 * (lane % 4) + 32 * first;
  places.v = shared + L::kV + (row * kParts + first / 2) * kFragment + 16 * lane + first % 2 * 8;
#pragma unroll 1
  for (int group = first; group < first + kGroups; ++group) {
    convolve_group<2, BF16>(places, 0);
    convolve_group<L::kRows - 2, BF16>(places, 2);
    places.left += 16;
    places.right += 16;
    places.taps += kGroupTaps;
    places.bias += 32;
    places.v += group % 2 == 0 ? 8 : kFragment - 8;
  }
}

// Adds what a chunk's v comes to.
template <class L, bool BF16>
__device__ __forceinline__ void multiply_v(Sums<L> &sums, uint32_t shared) {
  const uint32_t rows = shared + L::kV + own_rows<L>() * kParts * kFragment + 16 * own_lane();
  const uint32_t weights = shared + L::kContract + own_half() * L::kOwn * kParts * kFragment + 16 * own_lane();
#pragma unroll
  for (int k = 0; k < kParts; ++k) {
    uint32_t a[L::kRows][4];
#pragma unroll
    for (int row = 0; row < L::kRows; ++row) {
      const uint4 four = load_shared(rows + (row * kParts + k) * kFragment);
      a[row][0] = four.x;
      a[row][1] = four.y;
      a[row][2] = four.z;
      a[row][3] = four.w;
    }
#pragma unroll
    for (int n = 0; n < L::kOwn; ++n) {
      const uint4 b = load_shared(weights + (n * kParts + k) * kFragment);
#pragma unroll
      for (int row = 0; row < L::kRows; ++row) {
        multiply_add<BF16>(sums[row][n][0], a[row], b.x, b.y);
        multiply_add<BF16>(sums[row][n][1], a[row], b.z, b.w);
      }
    }
  }
}

template <class L, bool BF16>
__device__ __forceinline__ void contract(const Problem &problem, uint32_t shared) {
  const auto depthwise_of = [&](int chunk) { return shared + L::kDepthwise + chunk % 2 * L::kDepthwiseBytes; };
  const auto fetch_depthwise = [&](int chunk, int to) {
    fetch<kTeam, L::kDepthwiseBytes>(depthwise_of(to), problem.workspace + chunk * L::kChunkBytes + L::kDepthwiseOf,
                                      team_thread());
  };
  int count = 0;  // of chunks, over all tiles
  fetch_depthwise(0, 0);
  copy_commit();
#pragma unroll 1
  for (int index = blockIdx.x; index < problem.tiles; index += gridDim.x) {
    const bool last_tile = index + gridDim.x >= problem.tiles;
    const uint32_t own_tile = shared + L::kTile + 16 * team_warp();
    __syncwarp();
    if (own_lane() == 0) store_tile(own_tile, tile_of(problem, index, L::kHeight));
    __syncwarp();
    Sums<L> sums;
    begin<L, BF16>(sums, problem, load_tile(own_tile));
#pragma unroll 1
    for (int chunk = 0; chunk < L::kChunks; ++chunk, ++count) {
      copy_wait<0>();
      meet<kContracting, kTeam>();  // this chunk's taps are there, and nobody needs v nor the weights before
      fetch<kTeam, L::kContractBytes>(shared + L::kContract,
                                      problem.workspace + chunk * L::kChunkBytes + L::kContractOf, team_thread());
      fetch_depthwise(chunk + 1 < L::kChunks ? chunk + 1 : 0, count + 1);
      copy_commit();
      meet_at_u<kFull>(count);
      convolve_chunk<L, BF16>(shared, u_of<L>(shared, count), depthwise_of(count));
      if (chunk + 2 < L::kChunks || !last_tile) arrive_at_u<kEmpty>(count);
      copy_wait<0>();
      meet<kContracting, kTeam>();  // v and the weights are there
      multiply_v<L, BF16>(sums, shared);
    }
    store<L, BF16>(sums, problem, load_tile(shared + L::kTile + 16 * team_warp()));
  }
  copy_wait<0>();
}

template <class L, bool BF16>
__global__ void __launch_bounds__(kThreads, 1) wide_feed_forward(const __grid_constant__ Problem problem) {
  extern __shared__ __align__(16) uint8_t memory[];
  const uint32_t shared = shared_address(memory);
  if (blockIdx.x >= problem.tiles) return;
  if (own_thread() < kTeam) {
    expand<L, BF16>(problem, shared);
  } else {
    contract<L, BF16>(problem, shared);
  }
}

// ---- the host -------------------------------------------------------------------------------------------------------

struct Instance {
  int channels, hidden, height;
  int bytes, workspace, arrangers;
  void (*arrange_fp16)(Weights), (*arrange_bf16)(Weights), (*fp16)(Problem), (*bf16)(Problem);
};

template <int Channels, int Hidden, int Height>
constexpr Instance instance() {
  constexpr int kPadded = (Channels + 31) / 32 * 32, kChunked = (Hidden + kChunk - 1) / kChunk * kChunk;
  using L = Layout<kPadded, kChunked, Height>;
  static_assert(Channels % 4 == 0 && kChunked % kArrangerWarps == 0 && kChunked * 32 >= kPadded);
  return {Channels,          Hidden,
          Height,            L::kBytes,
          L::kWorkspace,     kChunked / kArrangerWarps,
          arrange<L, false>, arrange<L, true>,
          wide_feed_forward<L, false>, wide_feed_forward<L, true>};
}

constexpr Instance kInstances[] = {instance<180, 225, 8>(), instance<192, 384, 8>(), instance<224, 448, 6>()};

const Instance *find(int channels, int hidden) {
  for (const Instance &one : kInstances) {
    if (one.channels == channels && one.hidden == hidden) return &one;
  }
  return nullptr;
}

}  // namespace

bool takes_wide_feed_forward(int channels, int hidden) { return find(channels, hidden) != nullptr; }

int64_t wide_feed_forward_workspace(int channels, int hidden) { return find(channels, hidden)->workspace; }

int32_t check_wide_feed_forward(const RibsrFeedForwardParams &p) {
  if (!in_fours(p.in, p.height, p.width) || !in_fours(p.out, p.height, p.width)) {
    return fail(RIBSR_UNSUPPORTED,
                "in and out must be channels-last with strides of multiples of 4, and aligned to 8 bytes");
  }
  return check_workspace(p.workspace, wide_feed_forward_workspace(p.channels, p.hidden));
}

int32_t launch_wide_feed_forward(const RibsrFeedForwardParams &p, const Device &device, cudaStream_t stream) {
  const Instance &chosen = *find(p.channels, p.hidden);
  int available = 0;
  int32_t code = shared_memory(&available, device);
  if (code != RIBSR_OK) return code;
  if (chosen.bytes > available) return too_little_memory(device, available);
  const auto weights = [](const void *data) { return static_cast<const uint16_t *>(data); };
  auto *workspace = static_cast<uint8_t *>(p.workspace);
  const float inverse_channels = 1.0f / static_cast<float>(p.channels);
  const Weights given = {weights(p.norm_weight),      weights(p.norm_bias),        weights(p.expand_weight),
                         weights(p.expand_bias),      weights(p.depthwise_weight), weights(p.depthwise_bias),
                         weights(p.contract_weight),  weights(p.contract_bias),    workspace,
                         p.channels,                  p.hidden,                    inverse_channels};
  Problem problem{};
  problem.in = map_of(p.in);
  problem.out = map_of(p.out);
  problem.workspace = workspace;
  problem.channels = p.channels;
  problem.stored = whole_vectors(p.out, p.channels) ? (p.channels + 7) / 8 * 8 : p.channels;
  problem.height = p.height;
  problem.width = p.width;
  problem.quarter_epsilon = 0.25f * p.epsilon;
  problem.inverse_channels = inverse_channels;
  problem.half_inverse = -0.5f * inverse_channels;
  const bool bf16 = p.dtype == RIBSR_BFLOAT16;
  const auto kernel = bf16 ? chosen.bf16 : chosen.fp16;
  int blocks = 0;
  code = prepare_tiles(&blocks, kernel, problem, p.batch, chosen.height, chosen.bytes, chosen.bytes, 1, device);
  if (code != RIBSR_OK) return code;
  const auto first = bf16 ? chosen.arrange_bf16 : chosen.arrange_fp16;
  first<<<chosen.arrangers, kArrangers, 0, stream>>>(given);
  kernel<<<blocks, kThreads, chosen.bytes, stream>>>(problem);
  return launched(cudaGetLastError());
}

}  // namespace ribsr
