// ribsr_feed_forward for the widths of sst-l, compute capability 9.0: the weights are too many for shared memory.
//
// A block stays and walks over tiles of 16 columns and 8 rows, of which it needs the pixels around them, too: 180 rows
// of the first product, three blocks of 64. The hidden channels come 48 at a time, as a first kernel has arranged their
// weights. Warp groups have different tasks and go at their own pace; barriers in shared memory say what is there:
//   - one expands: tensor cores multiply x itself, as it comes from the map, by weights that have the norm's in them;
//     what normalises is applied to the result, and gelu of that goes to shared memory as u. The products of two blocks
//     are under way while the third is made into u;
//   - two contract, a warp 8 columns of two rows: the depthwise convolution is a product by diagonal matrices and its
//     result, in registers, an operand of the next, whose sums for all channels stay in registers until the last hidden
//     channels are done. They begin as x;
//   - of the last one, three warps work out means and deviations, and a lane of the fourth fetches x and the weights.
#include "feed_forward/hopper.h"

#include <cuda.h>

#include "shared/gelu.cuh"
#include "shared/hopper_tiles.cuh"
#include "shared/tile_launch.h"

namespace ribsr {
namespace {

constexpr int kChannels = kWideChannels, kHidden = kWideHidden;
constexpr int kHeight = 8;  // of a tile
constexpr int kPixels = kAround * (kHeight + 2);
constexpr int kBlockRows = 64, kBlocks = (kPixels + kBlockRows - 1) / kBlockRows;  // of the first product
constexpr int kChunk = 48, kChunks = kHidden / kChunk;                             // hidden channels at a time
constexpr int kThreads = 512;
constexpr int kStatisticsWarps = 3;
constexpr int kPairs = 5;  // of the nine taps, as products take them: the last is a single one
constexpr int kContractRegisters = 168, kFetchRegisters = 48;  // the others keep the 128 that all begin with
static_assert(2 * kContractRegisters + 128 + kFetchRegisters == 65536 / 128);

// Operands in shared memory: x in parts of 32 channels with rows of 64 bytes, the weights of `expand` likewise, those
// of `contract` in parts of 16 hidden channels with rows of 32 bytes. There is room for kBlocks * kBlockRows pixels: the
// last ones, which a tile has not, are made of whatever lies there, and nobody reads what becomes of them.
constexpr int kXPart = kBlocks * kBlockRows * 64, kXBytes = kChannels / 32 * kXPart;
constexpr int kExpandPart = kChunk * 64, kExpandBytes = kChannels / 32 * kExpandPart;
constexpr int kContractPart = kChannels * 32, kContractBytes = kChunk / 16 * kContractPart;
constexpr int kUStep = kStep<kChunk / 8>, kUBytes = kBlocks * kBlockRows * kUStep;

constexpr int kStages = 2, kUStages = 3;  // of weights and tiles' statistics, and of u: how many are in shared memory

// Where things are in shared memory, in bytes.
constexpr int kX = 0;
constexpr int kExpand = kX + kXBytes;
constexpr int kContract = kExpand + kStages * kExpandBytes;
constexpr int kU = kContract + kStages * kContractBytes;
constexpr int kTapPlace = kU + kUStages * kUBytes;    // of each hidden channel four pairs
constexpr int kLastTap = kTapPlace + 16 * kHidden;    // and the last one
constexpr int kBiases = kLastTap + 4 * kHidden;       // of depthwise, as accumulators have them: each pair twice
constexpr int kSumPlace = kBiases + 8 * kHidden;      // of `expand`: biases of a pair, sums of their weights
constexpr int kStatistics = kSumPlace + 8 * kHidden;  // of pixels: half of mean / deviation, of 1 / deviation
constexpr int kStatisticsBytes = 8 * kBlocks * kBlockRows;
constexpr int kBarriers = kStatistics + kStages * kStatisticsBytes;
constexpr int kXFull = kBarriers, kXEmpty = kXFull + 8;
constexpr int kExpandFull = kXEmpty + 8, kExpandEmpty = kExpandFull + 8 * kStages;
constexpr int kContractFull = kExpandEmpty + 8 * kStages, kContractEmpty = kContractFull + 8 * kStages;
constexpr int kStatisticsFull = kContractEmpty + 8 * kStages, kStatisticsEmpty = kStatisticsFull + 8 * kStages;
constexpr int kUFull = kStatisticsEmpty + 8 * kStages, kUEmpty = kUFull + 8 * kUStages;
constexpr int kBytes = kUEmpty + 8 * kUStages;
static_assert(kBytes <= 227 * 1024);

// What the first kernel makes of the weights, in bytes: chunks of both matrices, then what goes to shared memory from
// kTapPlace on as it is. The biases of `expand` have the norm's in them. What gelu is taken of comes as its half: see
// gelu_of_half.
constexpr int kChunkBytes = kExpandBytes + kContractBytes;
constexpr int kTables = kChunks * kChunkBytes;
constexpr int kTableBytes = kStatistics - kTapPlace;
constexpr int kWorkspace = kTables + kTableBytes;

struct Weights {
  const uint16_t *norm_weight, *norm_bias, *expand_weight, *expand_bias, *depthwise_weight, *depthwise_bias;
  const uint16_t *contract_weight;
  uint8_t *workspace;
};

struct Problem {
  CUtensorMap x;  // the map `in` as tiles, of 32 channels
  Map in, out;
  const uint8_t *workspace;
  const uint16_t *contract_bias;
  int height, width;
  int tiles_x, tiles_y, tiles;
  float epsilon;
};

// The pairs of taps that products take at once: the upper and the lower ones of three columns, then the middle row's.
__device__ __forceinline__ int first_tap(int pair) { return pair < 3 ? pair : 3 + 2 * (pair - 3); }
__device__ __forceinline__ int second_tap(int pair) { return pair < 3 ? 6 + pair : 4; }

// A warp has a hidden channel; a thread 8 weights of one channel of the second product besides. The weights of `expand`
// have the norm's weight in them, and, but for rounding, sum to zero, which makes the mean of x nearly nothing to them.
constexpr int kArrangers = 256;

template <bool BF16>
__global__ void __launch_bounds__(kArrangers) arrange_feed_forward(const __grid_constant__ Weights weights) {
  const int lane = threadIdx.x % 32, row = blockIdx.x * (kArrangers / 32) + threadIdx.x / 32;
  float2 w[kChannels / 64];
  float sum = 0.0f, bias = 0.0f;
#pragma unroll
  for (int i = 0; i < kChannels / 64; ++i) {
    const int pair = lane + 32 * i;
    const auto both = [&](const uint16_t *from) {
      return make_float2(unpack<BF16>(from[2 * pair]).x, unpack<BF16>(from[2 * pair + 1]).x);
    };
    const float2 given = both(weights.expand_weight + row * kChannels), norm = both(weights.norm_weight);
    const float2 shift = both(weights.norm_bias);
    w[i] = make_float2(given.x * norm.x, given.y * norm.y);
    bias = fmaf(given.x, shift.x, fmaf(given.y, shift.y, bias));
    sum += w[i].x + w[i].y;
  }
  const float mean = sum_lanes<32>(sum) * (1.0f / kChannels);
  float rest = 0.0f;
  uint8_t *chunk = weights.workspace + row / kChunk * kChunkBytes;
#pragma unroll
  for (int i = 0; i < kChannels / 64; ++i) {
    const int channel = 2 * lane + 64 * i;
    const uint32_t rounded = pack<BF16>(w[i].x - mean, w[i].y - mean);
    const float2 taken = unpack<BF16>(rounded);
    rest += taken.x + taken.y;
    const int place = channel / 32 * kExpandPart + swizzled<64>(row % kChunk, channel % 32 / 8) + channel % 8 * 2;
    *reinterpret_cast<uint32_t *>(chunk + place) = rounded;
  }
  rest = sum_lanes<32>(rest);
  bias = sum_lanes<32>(bias);
  uint8_t *tables = weights.workspace + kTables - kTapPlace;  // by places in shared memory
  const auto half_of = [](uint16_t x) { return 0.5f * unpack<BF16>(x).x; };
  const int pair = row / 2 * 16 + row % 2 * 4;
  if (lane == 0) {
    auto *sums = reinterpret_cast<float *>(tables + kSumPlace + pair);
    sums[0] = 0.5f * bias + half_of(weights.expand_bias[row]);
    sums[2] = rest;
    auto *biases = reinterpret_cast<float *>(tables + kBiases + pair);
    biases[0] = biases[2] = half_of(weights.depthwise_bias[row]);
  }
  if (lane < kPairs) {
    const uint16_t *taps = weights.depthwise_weight + 9 * row;
    const bool single = lane == kPairs - 1;
    const float first = half_of(taps[first_tap(lane)]), second = single ? 0.0f : half_of(taps[second_tap(lane)]);
    const int place = single ? kLastTap + 4 * row : kTapPlace + 16 * row + 4 * lane;
    *reinterpret_cast<uint32_t *>(tables + place) = pack<BF16>(first, second);
  }
  constexpr int kPieces = kHidden / 8;  // of a channel
  const int piece = blockIdx.x * kArrangers + threadIdx.x;
  if (piece >= kChannels * kPieces) return;
  const int place = piece / kPieces, k = piece % kPieces * 8;
  const uint4 eight = *reinterpret_cast<const uint4 *>(weights.contract_weight + channel_at<32>(place) * kHidden + k);
  const int part = k / kChunk * kChunkBytes + kExpandBytes + k % kChunk / 16 * kContractPart;
  *reinterpret_cast<uint4 *>(weights.workspace + part + swizzled<32>(place, k % 16 / 8)) = eight;
}

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

// ---- fetching -------------------------------------------------------------------------------------------------------

// The weights of both products, and x, for one thread. It asks for whatever there is room for: for a tile's x when the
// last chunk of the tile before has been multiplied.
__device__ __forceinline__ void fetch_operands(const Problem &problem, uint32_t shared) {
  int index = blockIdx.x;
  uint32_t phase = 1;
  const int left = own_tiles(problem) * kChunks;
  const auto weights = [&](int to, int full, int empty, int from, int bytes) {
    return Chunks<kStages>{shared + to, shared + full, shared + empty, problem.workspace + from, bytes, kChunkBytes,
                           kChunks, left};
  };
  auto expand = weights(kExpand, kExpandFull, kExpandEmpty, 0, kExpandBytes);
  auto contract = weights(kContract, kContractFull, kContractEmpty, kExpandBytes, kContractBytes);
#pragma unroll 1
  while (index < problem.tiles || expand.left > 0 || contract.left > 0) {
    expand.fetch();
    if (index < problem.tiles && barrier_passed(shared + kXEmpty, phase)) {
      const Tile tile = tile_of(problem, index, kHeight);
      barrier_expect(shared + kXFull, kChannels * kPixels * 2);
#pragma unroll 1
      for (int part = 0; part < kChannels / 32; ++part) {
        copy_box(shared + kX + part * kXPart, problem.x, 32 * part, tile.left - 1, tile.top - 1, tile.image,
                 shared + kXFull);
      }
      phase ^= 1;
      index += gridDim.x;
    }
    contract.fetch();
  }
}

struct Vectors {
  uint4 of[kChannels / 64];
};

// A lane's part of a pixel, of which 8 lanes have 8 channels each of every 64.
__device__ __forceinline__ Vectors load_vectors(const uint4 *from) {
  Vectors v;
#pragma unroll
  for (int i = 0; i < kChannels / 64; ++i) v.of[i] = __ldcg(from + 8 * i);
  return v;
}

// Mean and deviation of a tile's pixels. Three warps; eight lanes have a pixel, and the next ones on their way. Sums are
// of differences from the pixel's first channel. None of C numbers is further from their mean than sqrt(C) deviations, so
// that a factor of C of float32's precision is lost at most.
template <bool BF16>
__device__ __forceinline__ void make_statistics(const Problem &problem, const Tile &tile, uint32_t to, int warp,
                                                int lane) {
  constexpr int kStride = 4 * kStatisticsWarps, kAhead = 2;
  const int first = 4 * warp + lane / 8;
  const auto load = [&](int place) { return load_vectors(nearest(problem, tile, pixel_of(tile, place)) + lane % 8); };
  Vectors ahead[kAhead];
#pragma unroll
  for (int i = 0; i < kAhead; ++i) ahead[i] = load(first + kStride * i);
#pragma unroll 1
  for (int place = first; place < kPixels; place += kStride) {
    const Vectors v = ahead[0];
#pragma unroll
    for (int i = 1; i < kAhead; ++i) ahead[i - 1] = ahead[i];
    ahead[kAhead - 1] = load(place + kAhead * kStride);
    const float near = __shfl_sync(kAllLanes, unpack<BF16>(v.of[0].x).x, lane & ~7);
    float sums[2] = {}, squares[2] = {};
#pragma unroll
    for (const uint4 &four : v.of) {
      for (const uint32_t word : {four.x, four.y, four.z, four.w}) {
        const float2 both = unpack<BF16>(word);
        const float low = both.x - near, high = both.y - near;
        sums[0] += low;
        sums[1] += high;
        squares[0] = fmaf(low, low, squares[0]);
        squares[1] = fmaf(high, high, squares[1]);
      }
    }
    const float rest = sum_lanes<8>(sums[0] + sums[1]) * (1.0f / kChannels);
    const float square = sum_lanes<8>(squares[0] + squares[1]) * (1.0f / kChannels);
    const float inverse = 0.5f * rsqrtf(fmaxf(fmaf(-rest, rest, square), 0.0f) + problem.epsilon);
    if (lane % 8 == 0) {
      store_shared(to + 8 * place, __float_as_int((near + rest) * inverse), __float_as_int(inverse));
    }
  }
}

template <bool BF16>
__device__ __forceinline__ void fetch_statistics(const Problem &problem, uint32_t shared, int warp, int lane) {
  Ring stage;
#pragma unroll 1
  for (int index = blockIdx.x; index < problem.tiles; index += gridDim.x) {
    barrier_wait(shared + kStatisticsEmpty + 8 * stage.slot, stage.phase ^ 1);
    make_statistics<BF16>(problem, tile_of(problem, index, kHeight),
                          shared + kStatistics + stage.slot * kStatisticsBytes, warp, lane);
    if (lane % 8 == 0) barrier_arrive(shared + kStatisticsFull + 8 * stage.slot);  // those that have stored
    stage.advance<kStages>();
  }
}

// ---- the first product ----------------------------------------------------------------------------------------------

using Sums = float[kChunk / 2];

template <bool BF16>
__device__ __forceinline__ void multiply_x(Sums &sums, uint32_t x, uint32_t weights) {
  asm volatile("" : "+r"(x), "+r"(weights));  // or else the descriptors are kept for all blocks, in too many registers
  group_fence();
#pragma unroll
  for (int k = 0; k < kChannels / 16; ++k) {
    group_multiply<BF16>(sums, matrix_descriptor<64>(x + k / 2 * (kXPart / 16) + 2 * (k % 2)),
                         matrix_descriptor<64>(weights + k / 2 * (kExpandPart / 16) + 2 * (k % 2)), k > 0);
  }
  group_commit();
}

template <bool BF16>
struct Expand {
  const Problem &problem;
  uint32_t shared;
  int warp, lane;
  Ring stage, u, statistics;
  Sums sums[kBlocks];
  float4 table[kChunk / 8];  // of this thread's pairs of hidden channels: half their biases, the sums of their weights
  uint32_t outside;          // a bit of each of this thread's pixels: not in the map
  bool edge;                 // whether any thread of the warp has one

  __device__ __forceinline__ int first_place() const { return 16 * warp + lane / 4; }

  // The product of a block of x with the chunk of weights in `stage`.
  template <int Block>
  __device__ __forceinline__ void start() {
    multiply_x<BF16>(sums[Block], descriptor_address(shared + kX + Block * kBlockRows * 64),
                     descriptor_address(shared + kExpand + stage.slot * kExpandBytes));
  }

  // gelu of a block's sums, to shared memory. Outside the map u is zero, as the depthwise convolution is padded.
  template <int Block>
  __device__ __forceinline__ void finish() {
    const uint32_t from =
        shared + kStatistics + statistics.slot * kStatisticsBytes + 8 * (kBlockRows * Block + first_place());
    const float2 own[2] = {load_shared_pair(from), load_shared_pair(from + 8 * 8)};
    const uint32_t to = shared + kU + u.slot * kUBytes +
                        (kBlockRows * Block + 16 * warp + lane % 16) * kUStep + 16 * (lane / 16);
#pragma unroll
    for (int i = 0; i < kChunk / 8; i += 2) {
      uint32_t words[4];
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        const float *h = sums[Block] + 4 * i + 2 * k;
        const float4 &pair = table[i + k / 2];
        const float2 &pixel = own[k % 2];
        const float low = fmaf(h[0], pixel.y, fmaf(-pixel.x, pair.z, pair.x));
        const float high = fmaf(h[1], pixel.y, fmaf(-pixel.x, pair.w, pair.y));
        words[k] = gelu_of_half<BF16>(low, high);
      }
      if (__builtin_expect(edge, 0)) {
#pragma unroll
        for (int k = 0; k < 4; ++k) words[k] = outside >> (2 * Block + k % 2) & 1 ? 0 : words[k];
      }
      store_matrices(to + 16 * i, words);
    }
  }

  // Makes a block's sums into u and starts those of the next chunk, if there is one: Last says there is not.
  template <int Block, bool Last>
  __device__ __forceinline__ void step() {
    finish<Block>();
    if constexpr (!Last) start<Block>();
  }

  template <bool Last>
  __device__ __forceinline__ void chunk(int index) {
    const uint32_t from = shared + kSumPlace + 8 * kChunk * index + 16 * (lane % 4);
#pragma unroll
    for (int i = 0; i < kChunk / 8; ++i) table[i] = load_shared_floats(from + 64 * i);
    // For all three: ptxas makes products wait for each other whose end it does not see. Two are done long since.
    group_wait<0>();
#pragma unroll
    for (Sums &block : sums) group_results(block);
    if (lane == 0) barrier_arrive(shared + kExpandEmpty + 8 * stage.slot);
    stage.advance<kStages>();
    if constexpr (Last) {
      if (lane == 0) barrier_arrive(shared + kXEmpty);
    } else {
      barrier_wait(shared + kExpandFull + 8 * stage.slot, stage.phase);
    }
    barrier_wait(shared + kUEmpty + 8 * u.slot, u.phase ^ 1);
    step<0, Last>();
    step<1, Last>();
    step<2, Last>();
    __syncwarp();
    if (lane == 0) barrier_arrive(shared + kUFull + 8 * u.slot);
    u.advance<kUStages>();
  }

  __device__ __forceinline__ void run() {
    static_assert(kBlocks == 3);
    uint32_t phase = 0;
#pragma unroll 1
    for (int index = blockIdx.x; index < problem.tiles; index += gridDim.x) {
      const Tile tile = tile_of(problem, index, kHeight);
      outside = 0;
#pragma unroll
      for (int i = 0; i < 2 * kBlocks; ++i) {
        const Pixel p = pixel_of(tile, first_place() + kBlockRows * (i / 2) + 8 * (i % 2));
        if (!inside(problem, p.y, p.x)) outside |= 1u << i;
      }
      edge = __any_sync(kAllLanes, outside);
      barrier_wait(shared + kExpandFull + 8 * stage.slot, stage.phase);
      barrier_wait(shared + kXFull, phase);
      phase ^= 1;
      start<0>();
      start<1>();
      start<2>();
      barrier_wait(shared + kStatisticsFull + 8 * statistics.slot, statistics.phase);
#pragma unroll 1
      for (int i = 0; i < kChunks - 1; ++i) chunk<false>(i);
      chunk<true>(kChunks - 1);
      barrier_arrive(shared + kStatisticsEmpty + 8 * statistics.slot);
      statistics.advance<kStages>();
    }
  }
};

// ---- the depthwise convolution and the second product ---------------------------------------------------------------

template <bool BF16>
struct Contract {
  const Problem &problem;
  uint32_t shared;
  int warp, lane;
  int leader;      // of its warp: not 0
  Ring stage, u;
  uint32_t phase;  // of x
  // Where this thread's parts are, of the first chunk.
  uint32_t u_place, tap_place, last_place, bias_place;
  float sums[kChannels / 2];
  Selectors select;

  // A warp has 8 columns of two rows of the tile: the first of its pixels in what the tile needs.
  __device__ __forceinline__ int first_place() const { return kAround * (warp / 2 * 2) + warp % 2 * 8; }

  // x and bias. Channels as the map has them: those of a thread lie side by side.
  __device__ __forceinline__ void begin() {
    const auto *bias = reinterpret_cast<const uint4 *>(problem.contract_bias) + lane % 4;
    uint4 biases[kChannels / 32];
#pragma unroll
    for (int n = 0; n < kChannels / 32; ++n) biases[n] = __ldg(bias + 4 * n);
    barrier_wait(shared + kXFull, phase);
    phase ^= 1;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const uint32_t from =
          shared + kX + swizzled<64>(first_place() + kAround * (1 + half) + 1 + lane / 4, lane % 4);
#pragma unroll
      for (int n = 0; n < kChannels / 32; ++n) {
        const uint4 x = load_shared(from + n * kXPart), b = biases[n];
        const uint32_t words[] = {x.x, x.y, x.z, x.w}, added[] = {b.x, b.y, b.z, b.w};
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const float2 value = unpack<BF16>(words[i]), more = unpack<BF16>(added[i]);
          sums[16 * n + 4 * i + 2 * half] = value.x + more.x;
          sums[16 * n + 4 * i + 2 * half + 1] = value.y + more.y;
        }
      }
    }
    __syncwarp();
    if (leader) barrier_arrive(shared + kXEmpty);
  }

  // u + gelu(depthwise(u)) of a chunk, as operands. A product is one of 8 channels by diagonal matrices, of two taps: of
  // the two rows of pixels that are an operand's rows and the next two, as they come from shared memory, or of the middle
  // two in two columns.
  __device__ __forceinline__ void convolve(uint32_t (&a)[kChunk / 16][4], int chunk) {
    const uint32_t from = u_place + u.slot * kUBytes;
    const uint32_t tap_from = tap_place + 16 * kChunk * chunk, last_from = last_place + 4 * kChunk * chunk;
    const uint32_t bias_from = bias_place + 8 * kChunk * chunk;
#pragma unroll
    for (int i = 0; i < kChunk / 8; ++i) {
      uint32_t columns[3][4];  // to the left, in the middle and to the right: four rows
#pragma unroll
      for (int x = 0; x < 3; ++x) load_matrices(columns[x], from + x * kUStep + 16 * i);
      const uint4 four = load_shared(tap_from + 128 * i);
      const uint32_t taps[kPairs] = {four.x, four.y, four.z, four.w,
                                     static_cast<uint32_t>(load_shared_int(last_from + 32 * i))};
      const float4 bias = load_shared_floats(bias_from + 64 * i);
      float h[4] = {bias.x, bias.y, bias.z, bias.w};
#pragma unroll
      for (int pair = 0; pair < kPairs; ++pair) {
        const uint32_t first = __byte_perm(taps[pair], 0, select.low);
        const uint32_t second = __byte_perm(taps[pair], 0, select.high);
        if (pair < 3) {
          multiply_add<BF16>(h, columns[pair], first, second);
        } else if (pair == 3) {
          const uint32_t middle[4] = {columns[0][1], columns[0][2], columns[1][1], columns[1][2]};
          multiply_add<BF16>(h, middle, first, second);
        } else {
          multiply_add<BF16>(h, columns[2][1], columns[2][2], first);
        }
      }
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        a[i / 2][i % 2 * 2 + j] = add_packed<BF16>(columns[1][1 + j], gelu_of_half<BF16>(h[2 * j], h[2 * j + 1]));
      }
    }
    __syncwarp();
    if (leader) barrier_arrive(shared + kUEmpty + 8 * u.slot);
    u.advance<kUStages>();
  }

  __device__ __forceinline__ void store(const Tile &tile) const {
    const int x = tile.left + warp % 2 * 8 + lane / 4;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int y = tile.top + warp / 2 * 2 + half;
      auto *to = reinterpret_cast<uint4 *>(problem.out.data + tile.image * problem.out.batch + y * problem.out.row +
                                           x * problem.out.column) + lane % 4;
      if (y >= problem.height || x >= problem.width) continue;
#pragma unroll
      for (int n = 0; n < kChannels / 32; ++n) to[4 * n] = eight_of<BF16>(sums + 16 * n, half);
    }
  }

  __device__ __forceinline__ void run() {
    select = selectors_of(lane);
    u_place = shared + kU + (first_place() + lane / 8 * kAround + lane % 8) * kUStep;
    tap_place = shared + kTapPlace + 16 * (lane / 4);
    last_place = shared + kLastTap + 4 * (lane / 4);
    bias_place = shared + kBiases + 16 * (lane % 4);
    for (uint32_t *kept : {&u_place, &tap_place, &last_place, &bias_place, &select.low, &select.high}) {
      *kept = __shfl_sync(kAllLanes, *kept, lane);  // what comes from here is not made again
    }
    leader = __shfl_sync(kAllLanes, leader, lane);
#pragma unroll 1
    for (int index = blockIdx.x; index < problem.tiles; index += gridDim.x) {
      begin();
      uint32_t previous = 0;  // barrier of the stage that is being multiplied
#pragma unroll 1
      for (int chunk = 0; chunk < kChunks; ++chunk) {
        barrier_wait(shared + kUFull + 8 * u.slot, u.phase);
        group_wait<0>();  // its operands are the same registers
        if (chunk > 0 && leader) barrier_arrive(previous);
        uint32_t a[kChunk / 16][4];
        convolve(a, chunk);
        barrier_wait(shared + kContractFull + 8 * stage.slot, stage.phase);
        const uint32_t weights = descriptor_address(shared + kContract + stage.slot * kContractBytes);
        group_fence();
#pragma unroll
        for (int k = 0; k < kChunk / 16; ++k) {
          group_multiply_registers<BF16>(sums, a[k], matrix_descriptor<32>(weights + k * (kContractPart / 16)));
        }
        group_commit();
        previous = shared + kContractEmpty + 8 * stage.slot;
        stage.advance<kStages>();
      }
      group_wait<0>();
      group_results(sums);
      if (leader) barrier_arrive(previous);
      store(tile_of(problem, index, kHeight));
    }
  }
};

__device__ __forceinline__ void prepare(const Problem &problem, uint32_t shared) {
  if (threadIdx.x == 0) {
    const auto init = [&](int first, int count, int arrivals) {
      for (int i = 0; i < count; ++i) barrier_init(shared + first + 8 * i, arrivals);
    };
    constexpr int kExpandWarps = 4, kContractWarps = 8;
    init(kXFull, 1, 1);
    init(kXEmpty, 1, kExpandWarps + kContractWarps);
    init(kExpandFull, kStages, 1);
    init(kExpandEmpty, kStages, kExpandWarps);
    init(kContractFull, kStages, 1);
    init(kContractEmpty, kStages, kContractWarps);
    init(kStatisticsFull, kStages, 4 * kStatisticsWarps);  // who has stored, as racecheck wants it
    init(kStatisticsEmpty, kStages, 32 * kExpandWarps);
    init(kUFull, kUStages, kExpandWarps);
    init(kUEmpty, kUStages, kContractWarps);
  }
  static_assert(kTableBytes % 16 == 0);
  for (int i = 16 * threadIdx.x; i < kTableBytes; i += 16 * kThreads) {
    copy_async(shared + kTapPlace + i, problem.workspace + kTables + i);
  }
  copy_commit();
  copy_wait<0>();
  fence_async_proxy();
  __syncthreads();
}

#endif  // __CUDA_ARCH_FEAT_SM90_ALL

template <bool BF16>
__global__ void __launch_bounds__(kThreads, 1) hopper_feed_forward(const __grid_constant__ Problem problem) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  extern __shared__ __align__(1024) uint8_t memory[];
  const uint32_t shared = __shfl_sync(kAllLanes, shared_address(memory), 0);
  prepare(problem, shared);
  const int group = __shfl_sync(kAllLanes, threadIdx.x / 128, 0), lane = threadIdx.x % 32;
  const int warp = __shfl_sync(kAllLanes, threadIdx.x / 32 % 4, 0);
  if (group < 2) {
    take_registers<kContractRegisters>();
    Contract<BF16>{problem, shared, 4 * group + warp, lane, lane == 0}.run();
  } else if (group == 2) {
    Expand<BF16>{problem, shared, warp, lane}.run();
  } else {
    give_registers<kFetchRegisters>();
    if (warp < kStatisticsWarps) {
      fetch_statistics<BF16>(problem, shared, warp, lane);
    } else if (lane == 0) {
      fetch_operands(problem, shared);
    }
  }
#endif
}

// The driver's function that describes a map for copies; the library is not linked with the driver's.
decltype(&cuTensorMapEncodeTiled) find_encoder() {
  void *function = nullptr;
  cudaDriverEntryPointQueryResult found;
#if CUDART_VERSION >= 12050
  const cudaError_t error =
      cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, 12000, cudaEnableDefault, &found);
#else
  const cudaError_t error = cudaGetDriverEntryPoint("cuTensorMapEncodeTiled", &function, cudaEnableDefault, &found);
#endif
  if (error != cudaSuccess || found != cudaDriverEntryPointSuccess) return nullptr;
  return reinterpret_cast<decltype(&cuTensorMapEncodeTiled)>(function);
}

// `in` as the copies see it: boxes of a tile and what is around it, 32 channels; zeros outside the map.
int32_t make_boxes(CUtensorMap *map, const RibsrFeedForwardParams &p) {
  static const auto encode = find_encoder();
  if (encode == nullptr) return fail(RIBSR_CUDA_ERROR, "the driver lacks cuTensorMapEncodeTiled: CUDA 12 has it");
  const auto size = [](long long n) { return static_cast<cuuint64_t>(n); };
  const cuuint64_t sizes[] = {kChannels, size(p.width), size(p.height), size(p.batch)};
  const auto stride = [&](long long step, int count) { return size(2 * (count > 1 ? step : kChannels)); };
  const cuuint64_t strides[] = {stride(p.in.column_stride, p.width), stride(p.in.row_stride, p.height),
                                stride(p.in.batch_stride, p.batch)};
  const cuuint32_t box[] = {32, kAround, kHeight + 2, 1}, steps[] = {1, 1, 1, 1};
  const auto dtype = p.dtype == RIBSR_BFLOAT16 ? CU_TENSOR_MAP_DATA_TYPE_BFLOAT16 : CU_TENSOR_MAP_DATA_TYPE_FLOAT16;
  const CUresult result =
      encode(map, dtype, 4, p.in.data, sizes, strides, box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE,
             CU_TENSOR_MAP_SWIZZLE_64B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (result == CUDA_SUCCESS) return RIBSR_OK;
  return fail(RIBSR_UNSUPPORTED, "cuTensorMapEncodeTiled does not take in with strides of %lld, %lld, %lld: error %d",
              static_cast<long long>(p.in.column_stride), static_cast<long long>(p.in.row_stride),
              static_cast<long long>(p.in.batch_stride), static_cast<int>(result));
}

}  // namespace

int64_t hopper_feed_forward_workspace() { return kWorkspace; }

int32_t launch_hopper_feed_forward(const RibsrFeedForwardParams &p, const Device &device, cudaStream_t stream) {
  const auto weights = [](const void *data) { return static_cast<const uint16_t *>(data); };
  auto *workspace = static_cast<uint8_t *>(p.workspace);
  const Weights given = {weights(p.norm_weight),      weights(p.norm_bias),        weights(p.expand_weight),
                         weights(p.expand_bias),      weights(p.depthwise_weight), weights(p.depthwise_bias),
                         weights(p.contract_weight),  workspace};
  Problem problem{};
  problem.in = map_of(p.in);
  problem.out = map_of(p.out);
  problem.workspace = workspace;
  problem.contract_bias = weights(p.contract_bias);
  problem.height = p.height;
  problem.width = p.width;
  problem.epsilon = p.epsilon;
  const bool bf16 = p.dtype == RIBSR_BFLOAT16;
  int32_t code = make_boxes(&problem.x, p);
  if (code != RIBSR_OK) return code;
  const auto kernel = bf16 ? hopper_feed_forward<true> : hopper_feed_forward<false>;
  int blocks = 0;
  code = prepare_tiles(&blocks, kernel, problem, p.batch, kHeight, kBytes, kBytes, 1, device);
  if (code != RIBSR_OK) return code;
  static_assert(kHidden % (kArrangers / 32) == 0 && kHidden * 32 >= kChannels * kHidden / 8);
  const auto first = bf16 ? arrange_feed_forward<true> : arrange_feed_forward<false>;
  first<<<kHidden / (kArrangers / 32), kArrangers, 0, stream>>>(given);
  kernel<<<blocks, kThreads, kBytes, stream>>>(problem);
  return launched(cudaGetLastError());
}

}  // namespace ribsr
