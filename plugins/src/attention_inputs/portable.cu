// ribsr_attention_inputs: what a layer's attention takes, qkv = project(n) and gate = mix(depthwise(n)) of n = norm(in), in
// one kernel that reads a map and writes four times as much. For widths whose weights fit into shared memory; for that of
// sst-l there is hopper.cu.
//
// A block stays, its weights in shared memory, and walks over tiles of 16 columns and Height rows. Of a tile and the
// pixels around it, 16 at a time are normalised in registers and put back as n; then each warp makes all of a row or two of
// 16 pixels: the depthwise convolution as a product, whose operands and result are those of the 1x1 convolutions. Writing is
// most of the work: results go through shared memory, so that what a warp stores at a time lies together. The next
// tile's pixels come meanwhile, into a second place.
#include <algorithm>

#include "attention_inputs/hopper.h"
#include "attention_inputs/portable_wide.h"
#include "shared/interface.h"
#include "shared/tile.cuh"
#include "shared/tile_launch.h"

using namespace ribsr;

namespace {

constexpr int kWarps = 8;
constexpr int kThreads = 32 * kWarps;
constexpr int kResident = 2;  // blocks per multiprocessor: one computes while the other waits

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

struct Problem : Input {
  Map qkv, gate;
  const uint16_t *project_weight, *project_bias, *depthwise_weight, *depthwise_bias, *mix_weight, *mix_bias;
};

// Where things are in shared memory, in bytes.
template <int Channels, int Height, int Rows>
struct Layout {
  static constexpr int kChannels = Channels, kHeight = Height;
  static constexpr int kRows = Rows;  // of a warp
  static_assert(Height <= kWarps * Rows, "a warp has no other rows");
  static constexpr int kGroups = Channels / 8;
  static constexpr int kPixels = kAround * (Height + 2);
  static constexpr int kSixteens = (kPixels + 15) / 16;
  static constexpr int kTurns = (kSixteens + kWarps - 1) / kWarps;  // sixteens of a warp
  static constexpr int kPixelStep = kStep<kGroups>;
  static constexpr int kPartWeights = Channels * kPixelStep;  // of q, k, v or gate
  static constexpr int kGroupTaps = kTapRows * kTapStep;

  // The weights lie between the tiles' two places: operands reach a row too far, where the other tile must not be.
  static constexpr int kFirst = 0;
  static constexpr int kWeights = kFirst + 16 * kSixteens * kPixelStep;
  static constexpr int kSecond = kWeights + 4 * kPartWeights;
  static constexpr int kDiagonals = kSecond + 16 * kSixteens * kPixelStep;
  static constexpr int kNorm = kDiagonals + kGroups * kGroupTaps;
  static constexpr int kBias = kNorm + 8 * Channels;  // of q, k, v, gate
  static constexpr int kStage = kBias + 16 * Channels;
  static constexpr int kTile = kStage + 16 * kWarps * kPixelStep;  // each warp's latest
  static constexpr int kBytes = kTile + 16 * kWarps;
};

// The depthwise bias lies behind the taps, where a channel's row has two words left: that of a group's first two channels
// in its first row, of the next two in its second.
constexpr int kBehindTaps = 4 * kTaps;

// The block's next tile: as tile_of, without a division. The index may be one beyond the last.
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
    const int row = own / kAround;
    const int y = tile.top + row - 1, x = tile.left + own - kAround * row - 1;
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

template <class L, bool BF16>
__device__ __forceinline__ void load_weights(const Problem &problem, uint32_t shared) {
  const int channels = problem.channels;
  load_matrix<3 * L::kChannels, L::kGroups>(shared + L::kWeights, problem.project_weight, 3 * channels, channels);
  load_matrix<L::kChannels, L::kGroups>(shared + L::kWeights + 3 * L::kPartWeights, problem.mix_weight, channels,
                                        channels);
  copy_commit();
  load_diagonals<L::kGroups>(problem.depthwise_weight, channels, shared + L::kDiagonals);
  load_norm<L::kGroups, BF16>(problem, shared + L::kNorm);
  const int i = threadIdx.x;
  if (i < 3 * L::kChannels) {
    store_shared_float(shared + L::kBias + 4 * i, value_or_zero<BF16>(problem.project_bias, i, 3 * channels));
  }
  if (i < L::kChannels) {
    store_shared_float(shared + L::kBias + 12 * L::kChannels + 4 * i,
                       value_or_zero<BF16>(problem.mix_bias, i, channels));
    store_shared_float(
        shared + L::kDiagonals + i / 8 * L::kGroupTaps + i % 8 / 2 * kTapStep + kBehindTaps + i % 2 * 4,
        value_or_zero<BF16>(problem.depthwise_bias, i, channels));
  }
}

// This warp's sixteens of pixels, normalised where they lie. Outside the map they are zero, as the depthwise convolution
// is padded.
template <class L, bool BF16>
__device__ __forceinline__ void normalise_pixels(const Problem &problem, const Tile &tile, uint32_t shared,
                                                 uint32_t pixels) {
  const int thread = own_thread(), warp = thread / 32, lane = thread % 32;
  const bool surrounded = tile.top > 0 && tile.left > 0 && tile.top + L::kHeight < problem.height &&
                          tile.left + kColumns < problem.width;
#pragma unroll 1
  for (int turn = 0; turn < L::kTurns; ++turn) {
    const int first = 16 * (warp + kWarps * turn);
    const bool busy = first < L::kPixels && tile.top - 1 + first / kAround <= problem.height;
    if (!busy) continue;  // nothing that counts depends on these pixels
    uint32_t a[L::kGroups / 2][4];
    normalise<L::kGroups, BF16>(a, problem, shared + L::kNorm, pixels + first * L::kPixelStep);
    __syncwarp();  // all have read
    const int own = first + lane / 4;
    const uint32_t to = pixels + own * L::kPixelStep + 4 * (lane % 4);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
#pragma unroll
      for (int n = 0; n < L::kGroups; ++n) {
        store_shared(to + 8 * half * L::kPixelStep + 16 * n, static_cast<int>(a[n / 2][2 * (n % 2) + half]));
      }
    }
    if (surrounded) continue;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = (own + 8 * half) / kAround;
      if (inside(problem, tile.top + row - 1, tile.left + own + 8 * half - kAround * row - 1)) continue;
#pragma unroll
      for (int n = 0; n < L::kGroups; ++n) store_shared(to + 8 * half * L::kPixelStep + 16 * n, 0);
    }
  }
}

// The one that this warp fetched last.
template <class L>
__device__ __forceinline__ Tile latest_tile(uint32_t shared) {
  return load_tile(shared + L::kTile + own_thread() / 32 * 16);
}

// The pixels of a tile that this warp will normalise, and the tile itself, whose pixels do not come if it does not exist.
template <class L>
__device__ __forceinline__ void fetch(const Problem &problem, const Tile &tile, uint32_t shared, uint32_t to) {
  const int thread = own_thread();
  __syncwarp();
  if (thread % 32 == 0) store_tile(shared + L::kTile + thread / 32 * 16, tile);
  if (tile.index < problem.tiles) fetch_pixels<L::kGroups, L::kPixels>(problem, tile, to);
  __syncwarp();
}

template <class L>
using Sums = float[L::kRows][L::kGroups][4];

// The products' sums of one of q, k, v, gate begin with the bias.
template <class L>
__device__ __forceinline__ void begin(Sums<L> &sums, uint32_t shared, int part) {
  const uint32_t bias = shared + L::kBias + part * 4 * L::kChannels + 8 * (own_thread() % 4);
#pragma unroll
  for (int n = 0; n < L::kGroups; ++n) {
    const float2 b = load_shared_pair(bias + 32 * n);
#pragma unroll
    for (int row = 0; row < L::kRows; ++row) {
      sums[row][n][0] = sums[row][n][2] = b.x;
      sums[row][n][1] = sums[row][n][3] = b.y;
    }
  }
}

// Where this lane finds the weights of one of q, k, v, gate.
template <class L>
__device__ __forceinline__ uint32_t weights_of(uint32_t shared, int part) {
  return shared + L::kWeights + part * L::kPartWeights + matrix_row(own_thread() % 32, L::kPixelStep);
}

// Of each row 16 channels, as an operand.
template <class L>
using Operands = uint32_t[L::kRows][4];

// Adds what 16 channels make.
template <class L, bool BF16>
__device__ __forceinline__ void add(Sums<L> &sums, const Operands<L> &a, uint32_t weights) {
#pragma unroll
  for (int n = 0; n < L::kGroups; n += 2) {
    uint32_t b[4];
    load_matrices(b, weights + 8 * n * L::kPixelStep);
#pragma unroll
    for (int row = 0; row < L::kRows; ++row) {
      multiply_add<BF16>(sums[row][n], a[row], b[0], b[1]);
      multiply_add<BF16>(sums[row][n + 1], a[row], b[2], b[3]);
    }
  }
}

// The gate of rows of the tile, from `first` on.
template <class L, bool BF16>
__device__ __forceinline__ void make_gate(Sums<L> &sums, uint32_t shared, uint32_t pixels, int first) {
  const int lane = own_thread() % 32;
  const int second = lane / 16;  // lanes from 16 on name the pixels of an operand's second half
  uint32_t left = pixels + (first * kAround + lane % 16 + second) * L::kPixelStep;
  uint32_t right = pixels + ((first + second) * kAround + lane % 16 + 2) * L::kPixelStep;
  uint32_t taps = shared + L::kDiagonals + own_taps(lane);
  uint32_t bias = shared + L::kDiagonals + lane % 4 * kTapStep + kBehindTaps;
  uint32_t weights = weights_of<L>(shared, 3);
  begin<L>(sums, shared, 3);
#pragma unroll 1
  for (int k = 0; k < L::kGroups / 2; ++k) {
    Operands<L> a;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      Window<L::kRows> window;
      window.load(left + 16 * half, right + 16 * half, kAround * L::kPixelStep);
      const Taps own = load_taps(taps + half * L::kGroupTaps);
      const float2 own_bias = load_shared_pair(bias + half * L::kGroupTaps);
#pragma unroll
      for (int row = 0; row < L::kRows; ++row) {
        float convolved[4];
        convolved[0] = convolved[2] = own_bias.x;
        convolved[1] = convolved[3] = own_bias.y;
        convolve<L::kRows, BF16>(convolved, window, row, own);
#pragma unroll
        for (int i = 0; i < 2; ++i) a[row][2 * half + i] = pack<BF16>(convolved[2 * i], convolved[2 * i + 1]);
      }
    }
    add<L, BF16>(sums, a, weights);
    left += 32;
    right += 32;
    taps += 2 * L::kGroupTaps;
    bias += 2 * L::kGroupTaps;
    weights += 32;
  }
}

// The pixels of n of rows of the tile, from `first` on.
template <class L>
__device__ __forceinline__ void load_rows(Operands<L> (&a)[L::kGroups / 2], uint32_t pixels, int first) {
  const int lane = own_thread() % 32;
  const uint32_t from = pixels + ((first + 1) * kAround + 1 + lane % 16) * L::kPixelStep + 16 * (lane / 16);
#pragma unroll
  for (int k = 0; k < L::kGroups / 2; ++k) {
#pragma unroll
    for (int row = 0; row < L::kRows; ++row) load_matrices(a[k][row], from + row * kAround * L::kPixelStep + 32 * k);
  }
}

// Where a lane's 16-byte pieces of 16 pixels lie: where they are staged, and in the map from the row's first pixel on.
template <class L>
struct Pieces {
  uint32_t staged[L::kGroups / 2];
  unsigned offset[L::kGroups / 2];
  int group[L::kGroups / 2];  // of 8 channels; no map has so many if there is no such pixel
};

template <class L>
__device__ __forceinline__ Pieces<L> pieces_of(const Map &map, int columns, uint32_t stage) {
  const int lane = own_thread() % 32;
  Pieces<L> pieces;
#pragma unroll
  for (int i = 0; i < L::kGroups / 2; ++i) {
    const int column = (lane + 32 * i) / L::kGroups, group = (lane + 32 * i) % L::kGroups;
    pieces.staged[i] = stage + column * L::kPixelStep + 16 * group;
    pieces.offset[i] = column * static_cast<unsigned>(map.column >> 3) + group;
    pieces.group[i] = column < columns ? group : kMostChannels;
  }
  return pieces;
}

// A row of sums, rounded, by way of shared memory to `line`, so that what is stored to the map are whole vectors. There
// are `groups` times 8 channels.
template <class L, bool BF16>
__device__ __forceinline__ void store(const float (&sums)[L::kGroups][4], uint32_t stage, const Pieces<L> &pieces,
                                      uint4 *line, int groups) {
  const int lane = own_thread() % 32;
  const uint32_t to = stage + lane / 4 * L::kPixelStep + 4 * (lane % 4);
#pragma unroll
  for (int n = 0; n < L::kGroups; ++n) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      store_shared(to + 8 * half * L::kPixelStep + 16 * n,
                   static_cast<int>(pack<BF16>(sums[n][2 * half], sums[n][2 * half + 1])));
    }
  }
  __syncwarp();
#pragma unroll
  for (int i = 0; i < L::kGroups / 2; ++i) {
    const uint4 piece = load_shared(pieces.staged[i]);
    if (pieces.group[i] < groups) line[pieces.offset[i]] = piece;
  }
  __syncwarp();
}

// One of q, k, v, gate to a map, which has channels from `first_group` times 8 on for it.
template <class L, bool BF16>
__device__ __forceinline__ void store_rows(const Sums<L> &sums, const Problem &problem, const Map &map,
                                           const Tile &tile, uint32_t stage, const Pieces<L> &pieces, int first,
                                           int first_group, int groups) {
  const auto row_step = static_cast<unsigned>(map.row >> 3), column_step = static_cast<unsigned>(map.column >> 3);
  auto *line = reinterpret_cast<uint4 *>(map.data + tile.image * map.batch) +
               ((tile.top + first) * row_step + tile.left * column_step + first_group);
#pragma unroll
  for (int row = 0; row < L::kRows; ++row) {
    if (tile.top + first + row < problem.height) {
      store<L, BF16>(sums[row], stage, pieces, line + row * row_step, groups - first_group);
    }
  }
}

// qkv and gate of rows of the tile, from `first` on.
template <class L, bool BF16>
__device__ __forceinline__ void make_rows(const Problem &problem, const Tile &tile, uint32_t shared, uint32_t pixels,
                                          int first) {
  const uint32_t stage = shared + L::kStage + 16 * (own_thread() / 32) * L::kPixelStep;
  const int columns = problem.width - tile.left, groups = problem.channels / 8;
  Sums<L> sums;
  make_gate<L, BF16>(sums, shared, pixels, first);
  store_rows<L, BF16>(sums, problem, problem.gate, tile, stage, pieces_of<L>(problem.gate, columns, stage), first, 0,
                      groups);
  Operands<L> a[L::kGroups / 2];
  load_rows<L>(a, pixels, first);
  const Pieces<L> pieces = pieces_of<L>(problem.qkv, columns, stage);
#pragma unroll 1
  for (int part = 0; part < 3; ++part) {
    const uint32_t weights = weights_of<L>(shared, part);
    begin<L>(sums, shared, part);
#pragma unroll
    for (int k = 0; k < L::kGroups / 2; ++k) add<L, BF16>(sums, a[k], weights + 32 * k);
    store_rows<L, BF16>(sums, problem, problem.qkv, tile, stage, pieces, first, part * L::kGroups, 3 * groups);
  }
}

template <class L, bool BF16>
__global__ void __launch_bounds__(kThreads, kResident) attention_inputs(const __grid_constant__ Problem problem) {
  extern __shared__ __align__(16) uint8_t memory[];
  const uint32_t shared = shared_address(memory);
  uint32_t pixels = shared + L::kFirst;
  fetch<L>(problem, tile_of(problem, blockIdx.x, L::kHeight), shared, pixels);
  load_weights<L, BF16>(problem, shared);
  copy_wait<0>();
  __syncthreads();
  for (;;) {
    const Tile tile = latest_tile<L>(shared);
    if (tile.index >= problem.tiles) break;
    copy_wait<0>();
    __syncwarp();  // a warp normalises what it fetched itself
    normalise_pixels<L, BF16>(problem, tile, shared, pixels);
    __syncthreads();  // and nobody reads the other place any more
    const uint32_t other = 2 * shared + L::kFirst + L::kSecond - pixels;
    fetch<L>(problem, advance(problem, latest_tile<L>(shared), L::kHeight), shared, other);
    const int first = own_thread() / 32 * L::kRows;
    if (first < L::kHeight && tile.top + first < problem.height) {
      make_rows<L, BF16>(problem, tile, shared, pixels, first);
    }
    pixels = 2 * shared + L::kFirst + L::kSecond - pixels;
  }
}

// For widths up to so many channels, and rows of a tile, best first. The second and the fourth are for devices that give a
// block 99 KiB (compute capability 8.6, 8.9, 12.0).
struct Instance {
  int channels, height, bytes;
  void (*fp16)(Problem), (*bf16)(Problem);
};

template <int Channels, int Height, int Rows>
constexpr Instance instance() {
  using L = Layout<Channels, Height, Rows>;
  return {Channels, Height, L::kBytes, attention_inputs<L, false>, attention_inputs<L, true>};
}

constexpr Instance kInstances[] = {instance<48, 16, 2>(), instance<48, 8, 1>(), instance<64, 8, 1>(),
                                  instance<64, 5, 1>()};

const Instance *choose(int channels, int available) {
  for (const Instance &one : kInstances) {
    if (channels <= one.channels && one.bytes <= available) return &one;
  }
  return nullptr;
}

int32_t check_supported(const RibsrAttentionInputsParams &p, bool wide) {
  if (!wide && (p.channels % 8 != 0 || p.channels > kMostChannels)) {
    return fail(RIBSR_UNSUPPORTED, "channels is %d: multiples of 8 up to %d are supported, and 192 and 224", p.channels,
                kMostChannels);
  }
  for (const RibsrMap *map : {&p.in, &p.qkv, &p.gate}) {
    if (vectorised(*map, p.height, p.width)) continue;
    return fail(RIBSR_UNSUPPORTED,
                "in, qkv and gate must be channels-last with strides of multiples of 8, aligned to 16 bytes");
  }
  if (!aligned(p.project_weight) || !aligned(p.mix_weight)) {
    return fail(RIBSR_UNSUPPORTED, "project_weight and mix_weight must be aligned to 16 bytes");
  }
  return wide ? check_workspace(p.workspace, ribsr_attention_inputs_workspace(p.channels)) : RIBSR_OK;
}

}  // namespace

extern "C" int64_t ribsr_attention_inputs_workspace(int32_t channels) {
  if (!takes_wide_attention_inputs(channels)) return 0;
  const int64_t portable = wide_attention_inputs_workspace(channels);
  return channels == kWideInputsChannels ? std::max(portable, hopper_attention_inputs_workspace()) : portable;
}

extern "C" int32_t ribsr_attention_inputs(const RibsrAttentionInputsParams *params, void *stream) {
  clear_message();
  int32_t code = check_common(params);
  if (code == RIBSR_OK) code = check_path(params->path);
  if (code != RIBSR_OK) return code;
  const RibsrAttentionInputsParams &p = *params;
  RIBSR_CHECK(p.channels > 0, "channels is %d: it must be positive", p.channels);
  RIBSR_CHECK(p.epsilon >= 0.0f, "epsilon is %g: it must not be negative", static_cast<double>(p.epsilon));
  RIBSR_CHECK(p.in.data && p.qkv.data && p.gate.data && p.norm_weight && p.norm_bias && p.project_weight &&
                  p.project_bias && p.depthwise_weight && p.depthwise_bias && p.mix_weight && p.mix_bias,
              "an array is null");
  RIBSR_CHECK(p.in.data != p.qkv.data && p.in.data != p.gate.data && p.qkv.data != p.gate.data,
              "two of in, qkv and gate are the same memory: they must not overlap");
  const bool wide = takes_wide_attention_inputs(p.channels);
  code = check_supported(p, wide);
  if (code != RIBSR_OK) return code;
  Device device;
  code = current_device(&device);
  if (code != RIBSR_OK) return code;
  const auto on = static_cast<cudaStream_t>(stream);
  const bool hopper = is_hopper(device) && p.channels == kWideInputsChannels;
  if (p.path == RIBSR_PATH_HOPPER && !hopper) {
    return fail(RIBSR_UNSUPPORTED,
                "the Hopper path was asked for, but needs compute capability 9.0 (here %d.%d) and %d channels (here %d)",
                device.major, device.minor, kWideInputsChannels, p.channels);
  }
  if (hopper && p.path != RIBSR_PATH_PORTABLE) return launch_hopper_attention_inputs(p, device, on);
  if (wide) return launch_wide_attention_inputs(p, device, on);
  int available = 0;
  code = shared_memory(&available, device);
  if (code != RIBSR_OK) return code;
  const Instance *chosen = choose(p.channels, available);
  if (chosen == nullptr) return too_little_memory(device, available);

  const auto weights = [](const void *data) { return static_cast<const uint16_t *>(data); };
  Problem problem{};
  problem.in = map_of(p.in);
  problem.qkv = map_of(p.qkv);
  problem.gate = map_of(p.gate);
  problem.norm_weight = weights(p.norm_weight);
  problem.norm_bias = weights(p.norm_bias);
  problem.project_weight = weights(p.project_weight);
  problem.project_bias = weights(p.project_bias);
  problem.depthwise_weight = weights(p.depthwise_weight);
  problem.depthwise_bias = weights(p.depthwise_bias);
  problem.mix_weight = weights(p.mix_weight);
  problem.mix_bias = weights(p.mix_bias);
  problem.channels = p.channels;
  problem.height = p.height;
  problem.width = p.width;
  problem.epsilon = p.epsilon;
  problem.inverse_channels = 1.0f / static_cast<float>(p.channels);
  for (int j = 0; j < kMostChannels / 8; ++j) problem.exists[j] = 8 * j < p.channels ? 1.0f : 0.0f;

  const auto kernel = p.dtype == RIBSR_BFLOAT16 ? chosen->bf16 : chosen->fp16;
  int blocks = 0;
  code = prepare_tiles(&blocks, kernel, problem, p.batch, chosen->height, chosen->bytes, chosen->bytes,
                       kResident, device);
  if (code != RIBSR_OK) return code;
  const int per_image = problem.tiles_x * problem.tiles_y;
  problem.step = {blocks / per_image, blocks % per_image / problem.tiles_x * chosen->height,
                  blocks % problem.tiles_x * kColumns, blocks};
  kernel<<<blocks, kThreads, chosen->bytes, on>>>(problem);
  return launched(cudaGetLastError());
}
