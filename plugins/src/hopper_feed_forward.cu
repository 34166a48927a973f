// ribsr_feed_forward for the widths of sst-l, compute capability 9.0: the weights are too many for shared memory.
//
// A block stays and walks over tiles of 16 columns and 8 rows, of which it needs the pixels around them, too: 180 rows of
// the first product, three blocks of 64. The hidden channels come 48 at a time, as a first kernel has arranged their
// weights. Warp groups have different tasks and go at their own pace; barriers in shared memory say what is there:
//   - one expands: tensor cores multiply x itself, as it comes from the map, by weights that have the norm's in them; what
//     normalises is applied to the result, and gelu of that goes to shared memory as u. The products of two blocks are
//     under way while the third is made into u;
//   - two contract, a warp one row of the tile: the depthwise convolution is a product by diagonal matrices (tile.cuh) and
//     its result, in registers, an operand of the next, whose sums for all channels stay in registers until the last
//     hidden channels are done. They begin as x;
//   - of the last one, a warp each fetches the two kinds of weights, and two fetch x and work out means and deviations.
#include "hopper_feed_forward.h"
#include "gelu.cuh"
#include "tile_launch.h"

namespace ribsr {
namespace {

constexpr int kChannels = kWideChannels, kHidden = kWideHidden;
constexpr int kHeight = 8;  // of a tile
constexpr int kPixels = kWide * (kHeight + 2);
constexpr int kBlockRows = 64, kBlocks = (kPixels + kBlockRows - 1) / kBlockRows;  // of the first product
constexpr int kChunk = 48, kChunks = kHidden / kChunk;                             // hidden channels at a time
constexpr int kThreads = 512;
constexpr int kTogether = 3;  // groups of 8 hidden channels whose depthwise convolutions take turns
constexpr int kContractRegisters = 160, kExpandRegisters = 136, kFetchRegisters = 56;

// Operands in shared memory: x in parts of 32 channels with rows of 64 bytes, the weights of `expand` likewise, those of
// `contract` in parts of 16 hidden channels with rows of 32 bytes.
constexpr int kXPart = kBlockRows * 64, kXBytes = kChannels / 32 * kXPart;
constexpr int kExpandPart = kChunk * 64, kExpandBytes = kChannels / 32 * kExpandPart;
constexpr int kContractPart = kChannels * 32, kContractBytes = kChunk / 16 * kContractPart;
constexpr int kUStep = kStep<kChunk / 8>, kUBytes = kPixels * kUStep;
constexpr int kTapBytes = 4 * kTaps;  // of a channel

// How many of each are in shared memory.
constexpr int kSlots = kBlocks + 1, kStages = 2;

// Where things are in shared memory, in bytes.
constexpr int kX = 0;
constexpr int kExpand = kX + kSlots * kXBytes;
constexpr int kContract = kExpand + kStages * kExpandBytes;
constexpr int kU = kContract + kStages * kContractBytes;
constexpr int kTapPlace = kU + kStages * kUBytes;                    // of all hidden channels, and zeros
constexpr int kStatistics = kTapPlace + (kHidden + 1) * kTapBytes;  // of pixels: mean / deviation, 1 / deviation
constexpr int kStatisticsBytes = kPixels * 8;
constexpr int kBarriers = kStatistics + kStages * kStatisticsBytes;
constexpr int kExpandFull = kBarriers, kExpandEmpty = kExpandFull + 8 * kStages;
constexpr int kContractFull = kExpandEmpty + 8 * kStages, kContractEmpty = kContractFull + 8 * kStages;
constexpr int kUFull = kContractEmpty + 8 * kStages, kUEmpty = kUFull + 8 * kStages;
constexpr int kStatisticsFull = kUEmpty + 8 * kStages, kStatisticsEmpty = kStatisticsFull + 8 * kStages;
constexpr int kXFull = kStatisticsEmpty + 8 * kStages, kXEmpty = kXFull + 8 * kSlots;
constexpr int kBytes = kXEmpty + 8 * kSlots;

// What the first kernel makes of the weights, in bytes: chunks of both matrices; of two hidden channels their biases, which
// have the norm's in them, and the sums of their weights; taps.
constexpr int kChunkBytes = kExpandBytes + kContractBytes;
constexpr int kTable = kChunks * kChunkBytes;
constexpr int kTapTable = kTable + 8 * kHidden;
constexpr int kWorkspace = kTapTable + kHidden * kTapBytes;

struct Weights {
  const uint16_t *norm_weight, *norm_bias, *expand_weight, *expand_bias, *depthwise_weight, *contract_weight;
  uint8_t *workspace;
};

struct Problem {
  Map in, out;
  const uint8_t *workspace;
  const uint16_t *depthwise_bias, *contract_bias;
  int height, width;
  int tiles_x, tiles_y, tiles;
  float epsilon;
};

// Channels of each 32 are taken in an order in which a thread's eight lie side by side in the map. The channel in a place:
__device__ __forceinline__ int channel_at(int place) {
  return (place & ~31) + 8 * (place % 8 / 2) + 2 * (place / 8 % 4) + place % 2;
}

__device__ __forceinline__ float warp_sum(float x) {
#pragma unroll
  for (int step = 16; step > 0; step /= 2) x += __shfl_xor_sync(kAllLanes, x, step);
  return x;
}

// A warp has a hidden channel; a thread 8 weights of one channel of the second product besides. The weights of `expand`
// have the norm's weight in them, and, but for rounding, sum to zero, which makes the mean of x nearly nothing to them.
constexpr int kArrangers = 256;

template <bool BF16>
__global__ void __launch_bounds__(kArrangers) arrange(const __grid_constant__ Weights weights) {
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
  const float mean = warp_sum(sum) * (1.0f / kChannels);
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
  rest = warp_sum(rest);
  bias = warp_sum(bias);
  if (lane == 0) {
    auto *table = reinterpret_cast<float *>(weights.workspace + kTable) + row / 2 * 4 + row % 2;
    table[0] = bias + unpack<BF16>(weights.expand_bias[row]).x;
    table[2] = rest;
  }
  if (lane < kTaps) {
    const uint32_t tap = weights.depthwise_weight[9 * row + static_cast<int>(kTapOrder >> 4 * lane & 15)];
    reinterpret_cast<uint32_t *>(weights.workspace + kTapTable)[kTaps * row + lane] = row % 2 ? tap << 16 : tap;
  }
  constexpr int kPieces = kHidden / 8;  // of a channel
  const int piece = blockIdx.x * kArrangers + threadIdx.x;
  if (piece >= kChannels * kPieces) return;
  const int place = piece / kPieces, k = piece % kPieces * 8;
  const uint4 eight = *reinterpret_cast<const uint4 *>(weights.contract_weight + channel_at(place) * kHidden + k);
  const int part = k / kChunk * kChunkBytes + kExpandBytes + k % kChunk / 16 * kContractPart;
  *reinterpret_cast<uint4 *>(weights.workspace + part + swizzled<32>(place, k % 16 / 8)) = eight;
}

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

__device__ __forceinline__ Tile locate(const Problem &problem, int index) {
  const int line = index / problem.tiles_x, image = line / problem.tiles_y;
  return {image, (line - image * problem.tiles_y) * kHeight, (index - line * problem.tiles_x) * kColumns, index};
}

// A pixel of a tile and what is around it, in the map.
__device__ __forceinline__ Pixel pixel_of(const Tile &tile, int place) {
  const int row = place / kWide;
  return {tile.top + row - 1, tile.left + place - kWide * row - 1};
}

// The nearest one that is there: what is outside is not used, but must be read from somewhere.
__device__ __forceinline__ const uint16_t *nearest(const Problem &problem, const Tile &tile, int place) {
  const Pixel p = pixel_of(tile, min(place, kPixels - 1));
  const int y = min(max(p.y, 0), problem.height - 1), x = min(max(p.x, 0), problem.width - 1);
  return problem.in.data + tile.image * problem.in.batch + y * problem.in.row + x * problem.in.column;
}

__device__ __forceinline__ uint32_t x_place(uint32_t shared, int slot) { return shared + kX + slot * kXBytes; }

// Where a block of a tile is whose first one is in `slot`.
__device__ __forceinline__ Ring slot_of(Ring slot, int block) {
  slot.advance<kSlots>(block);
  return slot;
}

// ---- fetching -------------------------------------------------------------------------------------------------------

// Chunks of one kind of weights, for one thread.
__device__ __forceinline__ void fetch_weights(const Problem &problem, uint32_t to, const uint8_t *from, int bytes,
                                              uint32_t full, uint32_t empty) {
  Ring stage;
#pragma unroll 1
  for (int index = blockIdx.x; index < problem.tiles; index += gridDim.x) {
#pragma unroll 1
    for (int chunk = 0; chunk < kChunks; ++chunk) {
      barrier_wait(empty + 8 * stage.slot, stage.phase ^ 1);
      barrier_expect(full + 8 * stage.slot, bytes);
      copy_bulk(to + stage.slot * bytes, from + chunk * kChunkBytes, bytes, full + 8 * stage.slot);
      stage.advance<kStages>();
    }
  }
}

// Two warps.
__device__ __forceinline__ void fetch_block(const Problem &problem, const Tile &tile, int block, uint32_t shared,
                                            Ring &slot, int warp, int lane) {
  constexpr int kRows = kBlockRows / 2;
  barrier_wait(shared + kXEmpty + 8 * slot.slot, slot.phase ^ 1);
  const int first = kRows * warp + lane / 8;
  const uint32_t to = x_place(shared, slot.slot) + lane % 8 / 4 * kXPart + swizzled<64>(first, lane % 4);
#pragma unroll 2
  for (int row = 0; row < kRows; row += 4) {
    const uint16_t *from = nearest(problem, tile, kBlockRows * block + first + row) + 8 * (lane % 8);
    // Rows 4 apart lie 256 bytes apart, but for the swizzle, whose pattern repeats every 8.
    const uint32_t there = (to ^ (row % 8 ? 0x20 : 0)) + 64 * row;
#pragma unroll
    for (int i = 0; i < kChannels / 64; ++i) copy_async(there + 2 * i * kXPart, from + 64 * i);
  }
  copy_commit();
  copy_wait<0>();
  fence_async_proxy();
  __syncwarp();
  if (lane == 0) barrier_arrive(shared + kXFull + 8 * slot.slot);
  slot.advance<kSlots>();
}

// Of 8 lanes.
__device__ __forceinline__ float eighth_sum(float x) {
#pragma unroll
  for (int step = 4; step > 0; step /= 2) x += __shfl_xor_sync(kAllLanes, x, step);
  return x;
}

struct Vectors {
  uint4 of[kChannels / 64];
};

__device__ __forceinline__ Vectors load_vectors(const uint16_t *from) {
  Vectors v;
#pragma unroll
  for (int i = 0; i < kChannels / 64; ++i) v.of[i] = __ldcg(reinterpret_cast<const uint4 *>(from) + 8 * i);
  return v;
}

// The sum of f of this lane's channels.
template <bool BF16, class F>
__device__ __forceinline__ float sum_of(const Vectors &v, F f) {
  float sums[2] = {};
#pragma unroll
  for (const uint4 &four : v.of) {
    for (const uint32_t word : {four.x, four.y, four.z, four.w}) {
      const float2 both = unpack<BF16>(word);
      sums[0] = f(both.x, sums[0]);
      sums[1] = f(both.y, sums[1]);
    }
  }
  return sums[0] + sums[1];
}

// Mean and deviation of a tile's pixels. Two warps; eight lanes have a pixel, and the next one on its way.
template <bool BF16>
__device__ __forceinline__ void make_statistics(const Problem &problem, const Tile &tile, uint32_t to, int warp, int lane) {
  int place = 4 * warp + lane / 8;
  Vectors next = load_vectors(nearest(problem, tile, place) + 8 * (lane % 8));
#pragma unroll 1
  while (place < kPixels) {
    const Vectors v = next;
    const int following = place + 8;
    next = load_vectors(nearest(problem, tile, following) + 8 * (lane % 8));
    const float mean = eighth_sum(sum_of<BF16>(v, [](float x, float sum) { return sum + x; })) * (1.0f / kChannels);
    const float squares = eighth_sum(sum_of<BF16>(v, [=](float x, float sum) { return fmaf(x - mean, x - mean, sum); }));
    const float inverse = rsqrtf(fmaf(squares, 1.0f / kChannels, problem.epsilon));
    if (lane % 8 == 0) {
      store_shared(to + 8 * place, __float_as_int(mean * inverse), __float_as_int(inverse));
    }
    place = following;
  }
}

template <bool BF16>
__device__ __forceinline__ void fetch_x(const Problem &problem, uint32_t shared, int warp, int lane) {
  Ring slot, statistics;
#pragma unroll 1
  for (int index = blockIdx.x; index < problem.tiles; index += gridDim.x) {
    const Tile tile = locate(problem, index);
    fetch_block(problem, tile, 0, shared, slot, warp, lane);
    barrier_wait(shared + kStatisticsEmpty + 8 * statistics.slot, statistics.phase ^ 1);
    make_statistics<BF16>(problem, tile, shared + kStatistics + statistics.slot * kStatisticsBytes, warp, lane);
    __syncwarp();
    if (lane == 0) barrier_arrive(shared + kStatisticsFull + 8 * statistics.slot);
    statistics.advance<kStages>();
#pragma unroll 1
    for (int block = 1; block < kBlocks; ++block) fetch_block(problem, tile, block, shared, slot, warp, lane);
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
  Ring stage, slot, u, statistics;
  Sums sums[kBlocks];
  float4 table[kChunk / 8];  // of this thread's pairs of hidden channels
  uint32_t outside;          // a bit of each of this thread's pixels: not in the map

  __device__ __forceinline__ int first_place() const { return 16 * warp + lane / 4; }

  // The product of a block of x with the chunk of weights in `stage`.
  template <int Block>
  __device__ __forceinline__ void start() {
    multiply_x<BF16>(sums[Block], descriptor_address(x_place(shared, slot_of(slot, Block).slot)),
                     descriptor_address(shared + kExpand + stage.slot * kExpandBytes));
  }

  template <int Block>
  __device__ __forceinline__ void start_first() {
    const Ring own = slot_of(slot, Block);
    barrier_wait(shared + kXFull + 8 * own.slot, own.phase);
    start<Block>();
  }

  __device__ __forceinline__ void release_x() {
#pragma unroll
    for (int block = 0; block < kBlocks; ++block) {
      if (lane == 0) barrier_arrive(shared + kXEmpty + 8 * slot_of(slot, block).slot);
    }
  }

  // gelu of a block's sums, to shared memory. Outside the map u is zero, as the depthwise convolution is padded.
  template <int Block>
  __device__ __forceinline__ void finish() {
    const uint32_t from = shared + kStatistics + statistics.slot * kStatisticsBytes + 8 * first_place();
    const uint32_t to = shared + kU + u.slot * kUBytes + first_place() * kUStep + 4 * (lane % 4);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      constexpr int kFirst = kBlockRows * Block;
      const float2 place = load_shared_pair(from + 8 * (kFirst + 8 * half));
      const uint32_t there = to + (kFirst + 8 * half) * kUStep;
      if (kFirst + kBlockRows > kPixels && first_place() + kFirst + 8 * half >= kPixels) continue;
#pragma unroll
      for (int i = 0; i < kChunk / 8; ++i) {
        const float *h = sums[Block] + 4 * i + 2 * half;
        const float low = fmaf(h[0], place.y, fmaf(-place.x, table[i].z, table[i].x));
        const float high = fmaf(h[1], place.y, fmaf(-place.x, table[i].w, table[i].y));
        store_shared(there + 16 * i, static_cast<int>(gelu_packed<BF16>(low, high)));
      }
      if (__builtin_expect(outside >> (2 * Block + half) & 1, 0)) {
#pragma unroll
        for (int i = 0; i < kChunk / 8; ++i) store_shared(there + 16 * i, 0);
      }
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
    const auto *from = reinterpret_cast<const float4 *>(problem.workspace + kTable) + kChunk / 2 * index + lane % 4;
#pragma unroll
    for (int i = 0; i < kChunk / 8; ++i) table[i] = __ldg(from + 4 * i);
    // Of all three, as ptxas makes products wait for each other that it does not see the end of. Two are done long since.
    group_wait<0>();
#pragma unroll
    for (Sums &block : sums) group_results(block);
    if (lane == 0) barrier_arrive(shared + kExpandEmpty + 8 * stage.slot);
    stage.advance<kStages>();
    if constexpr (Last) {
      release_x();
    } else {
      barrier_wait(shared + kExpandFull + 8 * stage.slot, stage.phase);
    }
    barrier_wait(shared + kUEmpty + 8 * u.slot, u.phase ^ 1);
    step<0, Last>();
    step<1, Last>();
    step<2, Last>();
    __syncwarp();
    if (lane == 0) barrier_arrive(shared + kUFull + 8 * u.slot);
    u.advance<kStages>();
  }

  __device__ __forceinline__ void run() {
    static_assert(kBlocks == 3);
#pragma unroll 1
    for (int index = blockIdx.x; index < problem.tiles; index += gridDim.x) {
      const Tile tile = locate(problem, index);
      outside = 0;
#pragma unroll
      for (int i = 0; i < 2 * kBlocks; ++i) {
        const Pixel p = pixel_of(tile, first_place() + 32 * i - 24 * (i % 2));
        if (!inside(problem, p.y, p.x)) outside |= 1u << i;
      }
      barrier_wait(shared + kExpandFull + 8 * stage.slot, stage.phase);
      start_first<0>();
      start_first<1>();
      start_first<2>();
      barrier_wait(shared + kStatisticsFull + 8 * statistics.slot, statistics.phase);
#pragma unroll 1
      for (int i = 0; i < kChunks - 1; ++i) chunk<false>(i);
      chunk<true>(kChunks - 1);
      __syncwarp();
      if (lane == 0) barrier_arrive(shared + kStatisticsEmpty + 8 * statistics.slot);
      statistics.advance<kStages>();
      slot.advance<kSlots>(kBlocks);
    }
  }
};

// ---- the depthwise convolution and the second product ---------------------------------------------------------------

template <bool BF16>
struct Contract {
  const Problem &problem;
  uint32_t shared;
  int row, lane;  // of the tile; of the warp
  Ring stage, slot, u;
  float sums[kChannels / 2];

  // x and bias. Channels as the map has them: those of a thread lie side by side.
  __device__ __forceinline__ void begin() {
    const auto *bias = reinterpret_cast<const uint4 *>(problem.contract_bias) + lane % 4;
    uint4 biases[kChannels / 32];
#pragma unroll
    for (int n = 0; n < kChannels / 32; ++n) biases[n] = __ldg(bias + 4 * n);
#pragma unroll
    for (int block = 0; block < kBlocks; ++block) {
      const Ring own = slot_of(slot, block);
      barrier_wait(shared + kXFull + 8 * own.slot, own.phase);
    }
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int place = kWide * (row + 1) + 1 + lane / 4 + 8 * half;
      const uint32_t from = x_place(shared, slot_of(slot, place / kBlockRows).slot) + swizzled<64>(place % kBlockRows, lane % 4);
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
#pragma unroll
    for (int block = 0; block < kBlocks; ++block) {
      if (lane == 0) barrier_arrive(shared + kXEmpty + 8 * slot_of(slot, block).slot);
    }
    slot.advance<kSlots>(kBlocks);
  }

  // u + gelu(depthwise(u)) of kTogether times 8 channels, the i-th and those that follow, as operands: the products of one
  // wait for each other, and those of warp groups get between. What they are is in tile.cuh.
  __device__ __forceinline__ void convolve_groups(uint32_t (&a)[kChunk / 16][4], int i, uint32_t left, uint32_t right,
                                                  uint32_t taps, int tap_step, const uint32_t (&biases)[kChunk / 8]) {
    float sums[kTogether][4];
    uint32_t own[kTogether][2];  // u
#pragma unroll
    for (int g = 0; g < kTogether; ++g) {
      const float2 bias = unpack<BF16>(biases[i + g]);
      sums[g][0] = sums[g][2] = bias.x;
      sums[g][1] = sums[g][3] = bias.y;
    }
#pragma unroll
    for (int step = 0; step < 5; ++step) {
      uint32_t operand[kTogether][4];
      uint2 tap[kTogether];
#pragma unroll
      for (int g = 0; g < kTogether; ++g) {
        const uint32_t from = step < 3 ? left + step * kWide * kUStep : right + 2 * (step - 3) * kWide * kUStep;
        load_matrices(operand[g], from + 16 * g);
        tap[g] = load_shared_words(taps + tap_step * g + 8 * step);
      }
#pragma unroll
      for (int g = 0; g < kTogether; ++g) {
        if (step < 4) {
          multiply_add<BF16>(sums[g], operand[g], tap[g].x, tap[g].y);
        } else {
          multiply_add<BF16>(sums[g], operand[g][0], operand[g][1], tap[g].y);
        }
        if (step == 1) {
          own[g][0] = operand[g][2];
          own[g][1] = operand[g][3];
        }
      }
    }
#pragma unroll
    for (int g = 0; g < kTogether; ++g) {
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        a[(i + g) / 2][(i + g) % 2 * 2 + j] =
            add_packed<BF16>(own[g][j], gelu_packed<BF16>(sums[g][2 * j], sums[g][2 * j + 1]));
      }
    }
  }

  // u + gelu(depthwise(u)) of a chunk, as operands.
  __device__ __forceinline__ void convolve_chunk(uint32_t (&a)[kChunk / 16][4], int chunk) {
    const uint32_t here = shared + kU + u.slot * kUBytes;
    const int second = lane / 16;  // lanes from 16 on name the pixels of an operand's second half
    const uint32_t left = here + (row * kWide + lane % 16 + second) * kUStep;
    const uint32_t right = here + ((row + second) * kWide + lane % 16 + 2) * kUStep;
    const bool diagonal = lane % 4 == lane / 8;
    const uint32_t taps = shared + kTapPlace + kTapBytes * (diagonal ? kChunk * chunk + lane / 4 : kHidden);
    const int tap_step = diagonal ? 8 * kTapBytes : 0;
    const auto *bias = reinterpret_cast<const uint32_t *>(problem.depthwise_bias) + kChunk / 2 * chunk + lane % 4;
    uint32_t biases[kChunk / 8];
#pragma unroll
    for (int i = 0; i < kChunk / 8; ++i) biases[i] = __ldg(bias + 4 * i);
#pragma unroll
    for (int i = 0; i < kChunk / 8; i += kTogether) {
      convolve_groups(a, i, left + 16 * i, right + 16 * i, taps + tap_step * i, tap_step, biases);
    }
    __syncwarp();
    if (lane == 0) barrier_arrive(shared + kUEmpty + 8 * u.slot);
    u.advance<kStages>();
  }

  __device__ __forceinline__ void store(const Tile &tile) const {
    const int y = tile.top + row;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int x = tile.left + lane / 4 + 8 * half;
      auto *to = reinterpret_cast<uint4 *>(problem.out.data + tile.image * problem.out.batch + y * problem.out.row +
                                           x * problem.out.column) + lane % 4;
      if (y >= problem.height || x >= problem.width) continue;
#pragma unroll
      for (int n = 0; n < kChannels / 32; ++n) {
        uint32_t words[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const float *two = sums + 16 * n + 4 * i + 2 * half;
          words[i] = pack<BF16>(two[0], two[1]);
        }
        to[4 * n] = make_uint4(words[0], words[1], words[2], words[3]);
      }
    }
  }

  __device__ __forceinline__ void run() {
#pragma unroll 1
    for (int index = blockIdx.x; index < problem.tiles; index += gridDim.x) {
      begin();
      uint32_t previous = 0;  // barrier of the stage that is being multiplied
#pragma unroll 1
      for (int chunk = 0; chunk < kChunks; ++chunk) {
        barrier_wait(shared + kUFull + 8 * u.slot, u.phase);
        group_wait<0>();  // its operands are the same registers
        if (chunk > 0 && lane == 0) barrier_arrive(previous);
        uint32_t a[kChunk / 16][4];
        convolve_chunk(a, chunk);
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
      if (lane == 0) barrier_arrive(previous);
      store(locate(problem, index));
    }
  }
};

__device__ __forceinline__ void prepare(const Problem &problem, uint32_t shared) {
  if (threadIdx.x == 0) {
    const auto init = [&](int first, int count, int arrivals) {
      for (int i = 0; i < count; ++i) barrier_init(shared + first + 8 * i, arrivals);
    };
    constexpr int kExpandWarps = 4, kContractWarps = 8, kFetchWarps = 2;
    init(kExpandFull, kStages, 1);
    init(kExpandEmpty, kStages, kExpandWarps);
    init(kContractFull, kStages, 1);
    init(kContractEmpty, kStages, kContractWarps);
    init(kUFull, kStages, kExpandWarps);
    init(kUEmpty, kStages, kContractWarps);
    init(kStatisticsFull, kStages, kFetchWarps);
    init(kStatisticsEmpty, kStages, kExpandWarps);
    init(kXFull, kSlots, kFetchWarps);
    init(kXEmpty, kSlots, kExpandWarps + kContractWarps);
  }
  for (int i = threadIdx.x; i < (kHidden + 1) * kTaps; i += kThreads) {
    const auto *taps = reinterpret_cast<const int *>(problem.workspace + kTapTable);
    store_shared(shared + kTapPlace + 4 * i, i < kHidden * kTaps ? taps[i] : 0);
  }
  fence_async_proxy();
  __syncthreads();
}

#endif  // __CUDA_ARCH_FEAT_SM90_ALL

template <bool BF16>
__global__ void __launch_bounds__(kThreads, 1) feed_forward_wide(const __grid_constant__ Problem problem) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  extern __shared__ __align__(1024) uint8_t memory[];
  const uint32_t shared = __shfl_sync(kAllLanes, shared_address(memory), 0);
  prepare(problem, shared);
  const int group = __shfl_sync(kAllLanes, threadIdx.x / 128, 0), lane = threadIdx.x % 32;
  const int warp = __shfl_sync(kAllLanes, threadIdx.x / 32 % 4, 0);
  if (group < 2) {
    take_registers<kContractRegisters>();
    Contract<BF16>{problem, shared, 4 * group + warp, lane}.run();
  } else if (group == 2) {
    take_registers<kExpandRegisters>();
    Expand<BF16>{problem, shared, warp, lane}.run();
  } else {
    give_registers<kFetchRegisters>();
    if (warp >= 2) {
      fetch_x<BF16>(problem, shared, warp - 2, lane);
    } else if (lane == 0 && warp == 0) {
      fetch_weights(problem, shared + kExpand, problem.workspace, kExpandBytes, shared + kExpandFull,
                    shared + kExpandEmpty);
    } else if (lane == 0) {
      fetch_weights(problem, shared + kContract, problem.workspace + kExpandBytes, kContractBytes,
                    shared + kContractFull, shared + kContractEmpty);
    }
  }
#endif
}

}  // namespace

int64_t wide_feed_forward_workspace() { return kWorkspace; }

int32_t launch_wide_feed_forward(const RibsrFeedForwardParams &p, const Device &device, cudaStream_t stream) {
  if (device.major != 9 || device.minor != 0) {
    return fail(RIBSR_UNSUPPORTED, "channels, hidden are %d, %d: supported on compute capability 9.0 alone, not %d.%d",
                p.channels, p.hidden, device.major, device.minor);
  }
  if (!aligned(p.depthwise_bias) || !aligned(p.contract_bias)) {
    return fail(RIBSR_UNSUPPORTED, "the biases of depthwise and contract must be aligned to 16 bytes");
  }
  RIBSR_CHECK(p.workspace != nullptr && reinterpret_cast<uintptr_t>(p.workspace) % 256 == 0,
              "workspace must be %d bytes, aligned to 256", kWorkspace);
  const auto weights = [](const void *data) { return static_cast<const uint16_t *>(data); };
  auto *workspace = static_cast<uint8_t *>(p.workspace);
  const Weights given = {weights(p.norm_weight),      weights(p.norm_bias),        weights(p.expand_weight),
                         weights(p.expand_bias),      weights(p.depthwise_weight), weights(p.contract_weight),
                         workspace};
  Problem problem{};
  problem.in = map_of(p.in);
  problem.out = map_of(p.out);
  problem.workspace = workspace;
  problem.depthwise_bias = weights(p.depthwise_bias);
  problem.contract_bias = weights(p.contract_bias);
  problem.height = p.height;
  problem.width = p.width;
  problem.epsilon = p.epsilon;
  const bool bf16 = p.dtype == RIBSR_BFLOAT16;
  const auto kernel = bf16 ? feed_forward_wide<true> : feed_forward_wide<false>;
  int blocks = 0;
  const int32_t code = prepare_tiles(&blocks, kernel, problem, p.batch, kHeight, kBytes, 1, device);
  if (code != RIBSR_OK) return code;
  static_assert(kHidden % (kArrangers / 32) == 0 && kHidden * 32 >= kChannels * kHidden / 8);
  (bf16 ? arrange<true> : arrange<false>)<<<kHidden / (kArrangers / 32), kArrangers, 0, stream>>>(given);
  kernel<<<blocks, kThreads, kBytes, stream>>>(problem);
  return launched(cudaGetLastError());
}

}  // namespace ribsr
