// ribsr_attention_inputs for the width of sst-l, compute capability 9.0: the weights are too many for shared memory. A
// block stays and walks over tiles of 16 columns and 12 rows, of which it needs the pixels around them, too. Warp
// groups have different tasks and go at their own pace; barriers in shared memory say what is there:
//   - four warps normalise a tile's pixels, from the map to n in shared memory, and a lane of theirs fetches the
//     weights in between, 96 outputs at a time, as a first kernel has arranged them;
//   - three warp groups compute, a warp one row of the tile: first gate, for which the depthwise convolution is a
//     product by diagonal matrices, whose result, in registers, is an operand of `mix`; then qkv, with n as
//     operands in registers, so that meanwhile the next tile's n can take its place. While one group stores, others
//     multiply.
#include "attention_inputs/hopper.h"

#include "attention_inputs/wide.h"
#include "shared/hopper_tiles.cuh"
#include "shared/tile_launch.h"

namespace ribsr {
namespace {

constexpr int kChannels = kWideInputsChannels;
constexpr int kGroups = 3, kHeight = 4 * kGroups;  // warp groups that compute; rows of a tile
constexpr int kPixels = kAround * (kHeight + 2);
constexpr int kSteps = kChannels / 16;  // of a product
constexpr int kChunk = 96;              // outputs at a time
constexpr int kGateChunks = kChannels / kChunk, kQkvChunks = 3 * kGateChunks, kChunks = kGateChunks + kQkvChunks;
constexpr int kThreads = 128 * (kGroups + 1);
constexpr int kNormalisers = 4;  // warps
constexpr int kComputeRegisters = 144, kFetchRegisters = 80;
static_assert(kGroups * kComputeRegisters + kFetchRegisters == 65536 / 128);

// Weights in parts of 32 inputs with rows of 64 bytes. Of n, a pixel is a row.
constexpr int kPart = kChunk * 64, kChunkBytes = kChannels / 32 * kPart;
constexpr int kStages = 3;
constexpr int kNStep = kStep<kChannels / 8>;

// The depthwise convolutions of 32 channels take turns. Of each step of theirs and each of 8 channels a lane's words
// lie side by side, one for each group of 8: two taps in the order of kTapOrder; in the last step the bias and a tap.
constexpr int kTogether = 4, kBlocks = kChannels / (8 * kTogether);
constexpr int kConvolveSteps = kTaps / 2;
constexpr int kStepTaps = 8 * 4 * kTogether, kBlockTaps = kConvolveSteps * kStepTaps;

// What is in shared memory as the first kernel has made it, in bytes: taps; the weights of the norm and its biases, of
// each 64 channels the first four of each eight, then the others; words of biases of outputs, of each 32 those of the
// same one of each 8 side by side.
constexpr int kTapTable = 0;
constexpr int kNormTable = kTapTable + kBlocks * kBlockTaps;
constexpr int kBiasTable = kNormTable + 8 * kChannels;
constexpr int kTableBytes = kBiasTable + 4 * kChunks * kChunk;

// Where things are in shared memory, in bytes.
constexpr int kWeights = 0;
constexpr int kN = kWeights + kStages * kChunkBytes;
constexpr int kTables = kN + kPixels * kNStep;
constexpr int kBarriers = kTables + kTableBytes;
constexpr int kWeightsFull = kBarriers, kWeightsEmpty = kWeightsFull + 8 * kStages;
constexpr int kNFull = kWeightsEmpty + 8 * kStages, kNEmpty = kNFull + 8 * kGroups;  // of the rows that a group needs
constexpr int kBytes = kNEmpty + 8 * kGroups;
static_assert(kBytes <= 227 * 1024);

// The workspace has the chunks of both matrices, those of `mix` first, and the tables.
constexpr int kMatrices = kChunks * kChunkBytes;
constexpr int kWorkspace = kMatrices + kTableBytes;

using Weights = InputsWeights;
using Problem = InputsProblem;

// A thread has 8 weights of one output, and perhaps an output's bias and all else of a channel.
constexpr int kArrangers = 256, kPieces = kChannels / 8;

template <bool BF16>
__global__ void __launch_bounds__(kArrangers) arrange_attention_inputs(const __grid_constant__ Weights weights) {
  const int index = blockIdx.x * kArrangers + threadIdx.x;
  const int place = index / kPieces, piece = index % kPieces;
  // What there is of each output: that of gate, then that of qkv.
  const auto of_output = [](const uint16_t *gate, const uint16_t *qkv, int at, int count) {
    const int output = channel_at<32>(at);
    return output < kChannels ? gate + output * count : qkv + (output - kChannels) * count;
  };
  *reinterpret_cast<uint4 *>(weights.workspace + place / kChunk * kChunkBytes + piece / 4 * kPart +
                             swizzled<64>(place % kChunk, piece % 4)) =
      *reinterpret_cast<const uint4 *>(of_output(weights.mix_weight, weights.project_weight, place, kChannels) +
                                       8 * piece);

  uint8_t *tables = weights.workspace + kMatrices;
  if (index < kChunks * kChunk) {
    const int at = index / 32 * 128 + index % 8 * 16 + index / 8 % 4 * 4;
    *reinterpret_cast<uint32_t *>(tables + kBiasTable + at) =
        *of_output(weights.mix_bias, weights.project_bias, index, 1);
  }
  if (index >= kChannels) return;
  auto *norm = reinterpret_cast<float *>(tables + kNormTable) + index / 64 * 128 + index % 8 / 4 * 32 +
               index % 64 / 8 * 4 + index % 4;
  norm[0] = unpack<BF16>(weights.norm_weight[index]).x;
  norm[64] = unpack<BF16>(weights.norm_bias[index]).x;
  auto *taps = reinterpret_cast<uint16_t *>(tables + kTapTable + index / 32 * kBlockTaps + index % 8 * 16 +
                                            index / 8 % kTogether * 4);
#pragma unroll
  for (int i = 0; i < kTaps; ++i) {
    const uint16_t tap = weights.depthwise_weight[9 * index + static_cast<int>(kTapOrder >> 4 * i & 15)];
    taps[i / 2 * (kStepTaps / 2) + i % 2] = i == kTaps - 2 ? weights.depthwise_bias[index] : tap;
  }
}

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

// ---- fetching -------------------------------------------------------------------------------------------------------

// Four warps. Eight lanes have a pixel, of each 64 channels 8 each; kPair pixels at a time, as each sum of eight lanes
// waits for shuffles. Pixels come to where their n will be, some turns ahead, and a lane reads what it has copied
// itself. Neighbouring lanes have the same channels, as shared memory gives vectors to two lanes at once if they are
// the same, and pixels two apart, whose vectors lie in different banks.
template <bool BF16>
struct Normalise {
  static constexpr int kPair = 2, kTurn = 4 * kPair * kNormalisers;  // pixels of a lane, of all
  static constexpr int kTurns = (kPixels + kTurn - 1) / kTurn, kAhead = 3;
  static constexpr int kOwn = kChannels / 8;  // channels of a lane

  const Problem &problem;
  uint32_t shared;
  int warp, lane;
  Chunks<kStages> weights;  // what is left of them is for one thread

  // Some of the last turn do not exist.
  __device__ __forceinline__ int pixel(int turn, int i) const {
    return kTurn * turn + 4 * kPair * warp + kPair * (lane % 4) + i;
  }
  __device__ __forceinline__ uint32_t place_of(int pixel) const {
    return shared + kN + pixel * kNStep + 16 * (lane / 4);
  }

  // Until a warp group no longer needs the rows of n of the tile before.
  __device__ __forceinline__ void wait_for(int group, uint32_t phase) {
    while (!__all_sync(kAllLanes, barrier_passed(shared + kNEmpty + 8 * group, phase))) weights.fetch();
  }

  // This lane's part of a turn's pixels, if there is such a turn. A warp group must be done with its first row before that
  // is overwritten; the group before, which needs this row and the next as well, has been waited for in an earlier turn.
  __device__ __forceinline__ void fetch(const Tile &tile, int turn, uint32_t phase) {
#pragma unroll
    for (int group = 0; group < kGroups; ++group) {
      if (turn == 4 * group * kAround / kTurn) wait_for(group, phase ^ 1);
    }
#pragma unroll
    for (int i = 0; i < kPair; ++i) {
      const int own = pixel(turn, i);
      const uint4 *from = nearest(problem, tile, pixel_of(tile, own)) + lane / 4;
      if (own >= kPixels) continue;
      asm volatile("" : "+l"(from));  // or else there are three of it
#pragma unroll
      for (int j = 0; j < kOwn / 8; ++j) copy_async(place_of(own) + 128 * j, from + 8 * j);
    }
    copy_commit();
  }

  // From memory to the second-level cache.
  __device__ __forceinline__ void announce(const Tile &tile) const {
#pragma unroll 1
    for (int i = 32 * warp + lane; i < kPixels; i += 32 * kNormalisers) {
      const uint4 *from = nearest(problem, tile, pixel_of(tile, i));
#pragma unroll
      for (int j = 0; j < kOwn / 8; ++j) prefetch(from + 8 * j);
    }
  }

  // Of eight lanes each, for each of their pixels.
  __device__ __forceinline__ static void eighth_sums(float (&x)[kPair]) {
#pragma unroll
    for (int step = 4; step < 32; step *= 2) {
#pragma unroll
      for (float &one : x) one += __shfl_xor_sync(kAllLanes, one, step);
    }
  }

  // A turn's pixels to n; outside the map zeros, as the depthwise convolution is padded.
  __device__ __forceinline__ void step(const Tile &tile, int turn, uint32_t phase) {
    float x[kPair][kOwn], sums[kPair];
    weights.fetch();  // often, as the products wait for them
    fetch(tile, turn + kAhead, phase);
    copy_wait<kAhead>();
#pragma unroll
    for (int i = 0; i < kPair; ++i) {
      float two[2] = {};
#pragma unroll
      for (int j = 0; j < kOwn / 8; ++j) {
        const uint4 v = load_shared(place_of(pixel(turn, i)) + 128 * j);
        const uint32_t words[] = {v.x, v.y, v.z, v.w};
#pragma unroll
        for (int k = 0; k < 4; ++k) {
          const float2 both = unpack<BF16>(words[k]);
          two[0] += x[i][8 * j + 2 * k] = both.x;
          two[1] += x[i][8 * j + 2 * k + 1] = both.y;
        }
      }
      sums[i] = two[0] + two[1];
    }
    weights.fetch();
    eighth_sums(sums);
    float squares[kPair];
#pragma unroll
    for (int i = 0; i < kPair; ++i) {
      const float mean = sums[i] * (1.0f / kChannels);
      float two[2] = {};
#pragma unroll
      for (int j = 0; j < kOwn; ++j) {
        x[i][j] -= mean;
        two[j % 2] = fmaf(x[i][j], x[i][j], two[j % 2]);
      }
      squares[i] = two[0] + two[1];
    }
    weights.fetch();
    eighth_sums(squares);
    const uint32_t norm = shared + kTables + kNormTable + 16 * (lane / 4);
    float scale[kPair];
    bool there[kPair];
#pragma unroll
    for (int i = 0; i < kPair; ++i) {
      scale[i] = rsqrtf(fmaf(squares[i], 1.0f / kChannels, problem.epsilon));
      const Pixel p = pixel_of(tile, pixel(turn, i));
      there[i] = inside(problem, p.y, p.x);
    }
#pragma unroll
    for (int j = 0; j < kOwn / 8; ++j) {
      uint32_t words[kPair][4];
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const uint4 w = load_shared(norm + 512 * j + 128 * half), b = load_shared(norm + 512 * j + 128 * half + 256);
        const uint32_t weights[] = {w.x, w.y, w.z, w.w}, biases[] = {b.x, b.y, b.z, b.w};
#pragma unroll
        for (int i = 0; i < kPair; ++i) {
          float n[4];
#pragma unroll
          for (int k = 0; k < 4; ++k) {
            n[k] = fmaf(x[i][8 * j + 4 * half + k] * scale[i], __uint_as_float(weights[k]), __uint_as_float(biases[k]));
          }
          words[i][2 * half] = there[i] ? pack<BF16>(n[0], n[1]) : 0;
          words[i][2 * half + 1] = there[i] ? pack<BF16>(n[2], n[3]) : 0;
        }
      }
#pragma unroll
      for (int i = 0; i < kPair; ++i) {
        if (pixel(turn, i) >= kPixels) continue;
        store_shared(place_of(pixel(turn, i)) + 128 * j, words[i][0], words[i][1], words[i][2], words[i][3]);
      }
    }
  }

  // Whether with this turn a warp group has the six rows that it needs, the last of which is the group's.
  __device__ __forceinline__ static bool completes(int turn, int group) {
    return turn == (kAround * (4 * group + 6) + kTurn - 1) / kTurn - 1;
  }

  __device__ __forceinline__ void run() {
    static_assert((kTurn * kTurns - kPixels) * kNStep <= kTableBytes, "what is not there is read nevertheless");
    uint32_t phase = 0;
    announce(tile_of(problem, blockIdx.x, kHeight));
#pragma unroll 1
    for (int index = blockIdx.x; index < problem.tiles; index += gridDim.x) {
      const Tile tile = tile_of(problem, index, kHeight);
#pragma unroll 1
      for (int turn = 0; turn < kAhead; ++turn) fetch(tile, turn, phase);
      int group = 0;
#pragma unroll 1
      for (int turn = 0; turn < kTurns; ++turn) {
        step(tile, turn, phase);
        if (!completes(turn, group)) continue;
        barrier_arrive(shared + kNFull + 8 * group);
        ++group;
      }
      copy_wait<0>();  // nothing, but the count begins again
      phase ^= 1;
      const int next = index + static_cast<int>(gridDim.x);
      if (next < problem.tiles) announce(tile_of(problem, next, kHeight));
    }
    while (weights.left > 0) weights.fetch();
  }
};

// ---- the products ---------------------------------------------------------------------------------------------------

using Operands = uint32_t[kSteps][4];  // 16 pixels, all channels
using Sums = float[kChunk / 2];

// A bias comes into sums as a product: a column of ones, of which a lane has this, by a row of biases, of which it has
// a word in the lower half of which is its own.
template <bool BF16>
__device__ __forceinline__ uint32_t column_of_ones(int lane) {
  return lane % 4 == 0 ? (BF16 ? 0x3f80 : 0x3c00) : 0;
}

__device__ __forceinline__ void load_four(uint32_t (&to)[4], uint32_t from) {
  const uint4 v = load_shared(from);
  to[0] = v.x;
  to[1] = v.y;
  to[2] = v.z;
  to[3] = v.w;
}

// What a step of the depthwise convolutions of 32 channels takes: the taps of kTapOrder. The last one takes one
// column of pixels, not two, so that those of two groups are loaded at once.
struct Step {
  uint32_t pixels[kTogether][4];
  uint32_t taps[kTogether];
};

// Where a lane finds that.
struct Places {
  uint32_t left, right, last, taps;
};

__device__ __forceinline__ Places places_of(uint32_t shared, int row, int lane) {
  const int second = lane / 16;  // lanes from 16 on name the pixels of an operand's second half
  const uint32_t n = shared + kN + (row * kAround + lane % 16) * kNStep;
  return {n + second * kNStep, n + (second * kAround + 2) * kNStep, n + (2 * kAround + 2) * kNStep + 16 * second,
          shared + kTables + kTapTable + 16 * (lane / 4)};
}

__device__ __forceinline__ void load_step(Step &to, const Places &from, int block, int step) {
  const uint32_t channels = 16 * kTogether * block;
  if (step < kConvolveSteps - 1) {
#pragma unroll
    for (int g = 0; g < kTogether; ++g) {
      load_matrices(to.pixels[g], (step < 3 ? from.left + step * kAround * kNStep : from.right) + channels + 16 * g);
    }
  } else {
#pragma unroll
    for (int g = 0; g < kTogether; g += 2) load_matrices(to.pixels[g], from.last + channels + 16 * g);
  }
  load_four(to.taps, from.taps + kBlockTaps * block + kStepTaps * step);
}

template <bool BF16>
struct Compute {
  const Problem &problem;
  uint32_t shared;
  int row, lane;  // of the tile; of the warp
  Ring stage;

  // depthwise(n) of a row of the tile. What a step takes is loaded during the one before.
  __device__ __forceinline__ void convolve(Operands &a) const {
    const Places from = places_of(shared, row, lane);
    const Selectors select = selectors_of(lane);
    const uint32_t ones = column_of_ones<BF16>(lane);
    Step steps[2];
    load_step(steps[0], from, 0, 0);
#pragma unroll
    for (int block = 0; block < kBlocks; ++block) {
      float sums[kTogether][4] = {};
#pragma unroll
      for (int step = 0; step < kConvolveSteps; ++step) {
        const int index = kConvolveSteps * block + step;
        const Step &now = steps[index % 2];
        if (index + 1 < kBlocks * kConvolveSteps) {
          load_step(steps[(index + 1) % 2], from, (index + 1) / kConvolveSteps, (index + 1) % kConvolveSteps);
        }
#pragma unroll
        for (int g = 0; g < kTogether; ++g) {
          if (step < kConvolveSteps - 1) {
            multiply_add<BF16>(sums[g], now.pixels[g], __byte_perm(now.taps[g], 0, select.low),
                               __byte_perm(now.taps[g], 0, select.high));
          } else {
            const uint32_t *two = now.pixels[g / 2 * 2] + g % 2 * 2;
            const uint32_t pixels_and_ones[] = {two[0], two[1], ones, ones};
            multiply_add<BF16>(sums[g], pixels_and_ones, __byte_perm(now.taps[g], 0, select.high), now.taps[g]);
          }
        }
      }
#pragma unroll
      for (int g = 0; g < kTogether; ++g) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          a[(kTogether * block + g) / 2][g % 2 * 2 + i] = pack<BF16>(sums[g][2 * i], sums[g][2 * i + 1]);
        }
      }
    }
  }

  // n of a row of the tile.
  __device__ __forceinline__ void load_row(Operands &a) const {
    const uint32_t from = shared + kN + ((row + 1) * kAround + 1 + lane % 16) * kNStep + 16 * (lane / 16);
#pragma unroll
    for (int k = 0; k < kSteps; ++k) load_matrices(a[k], from + 32 * k);
  }

  // This thread's pixels of a map, which has `there` for those that exist.
  struct Pixels {
    uint4 *first;
    long long second;  // from the first one on
    bool there[2];
  };

  __device__ __forceinline__ Pixels pixels_of(const Map &map, const Tile &tile) const {
    const int y = tile.top + row, x = tile.left + lane / 4;
    const auto there = [&](int at) { return y < problem.height && at < problem.width; };
    return {reinterpret_cast<uint4 *>(map.data + tile.image * map.batch + y * map.row + x * map.column) + lane % 4,
            map.column, {there(x), there(x + 8)}};  // eight columns in units of eight channels
  }

  // A chunk of outputs.
  __device__ __forceinline__ void make(const Operands &a, uint32_t biases, const Pixels &to) {
    Sums sums;
    const uint32_t ones = column_of_ones<BF16>(lane);
#pragma unroll
    for (int n = 0; n < kChunk / 32; ++n) {
      uint32_t words[4];
      load_four(words, biases + 128 * n);
#pragma unroll
      for (int i = 0; i < 4; ++i) multiply<BF16>(sums + 16 * n + 4 * i, ones, ones, words[i]);
    }
    const uint32_t weights = descriptor_address(shared + kWeights + stage.slot * kChunkBytes);
    barrier_wait(shared + kWeightsFull + 8 * stage.slot, stage.phase);
    group_fence();
#pragma unroll
    for (int k = 0; k < kSteps; ++k) {
      group_multiply_registers<BF16>(sums, a[k], matrix_descriptor<64>(weights + k / 2 * (kPart / 16) + 2 * (k % 2)));
    }
    group_commit();
    group_wait<0>();
    group_results(sums);
    if (lane == 0) barrier_arrive(shared + kWeightsEmpty + 8 * stage.slot);
    stage.advance<kStages>();
#pragma unroll
    for (int n = 0; n < kChunk / 32; ++n) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const uint4 eight = eight_of<BF16>(sums + 16 * n, half);
        if (to.there[half]) to.first[half * to.second + 4 * n] = eight;
      }
    }
  }

  // So many chunks of outputs, to the channels of a map.
  template <int Chunks>
  __device__ __forceinline__ void make_map(const Operands &a, uint32_t biases, Pixels to) {
#pragma unroll 1
    for (int chunk = 0; chunk < Chunks; ++chunk) {
      make(a, biases, to);
      biases += 4 * kChunk;
      to.first += kChunk / 8;
    }
  }

  __device__ __forceinline__ void run() {
    const uint32_t biases = shared + kTables + kBiasTable + 16 * (lane / 4);
    const uint32_t full = shared + kNFull + 8 * (row / 4), empty = shared + kNEmpty + 8 * (row / 4);
    uint32_t phase = 0;
#pragma unroll 1
    for (int index = blockIdx.x; index < problem.tiles; index += gridDim.x) {
      const Tile tile = tile_of(problem, index, kHeight);
      Operands a;
      barrier_wait(full, phase);
      convolve(a);
      make_map<kGateChunks>(a, biases, pixels_of(problem.gate, tile));
      load_row(a);
      barrier_arrive(empty);
      phase ^= 1;
      make_map<kQkvChunks>(a, biases + 4 * kChannels, pixels_of(problem.qkv, tile));
    }
  }
};

__device__ __forceinline__ void prepare(const Problem &problem, uint32_t shared) {
  if (threadIdx.x == 0) {
    for (int i = 0; i < kStages; ++i) {
      barrier_init(shared + kWeightsFull + 8 * i, 1);
      barrier_init(shared + kWeightsEmpty + 8 * i, kHeight);
    }
    for (int i = 0; i < kGroups; ++i) {
      barrier_init(shared + kNFull + 8 * i, 32 * kNormalisers);  // every thread of its own, as racecheck wants it
      barrier_init(shared + kNEmpty + 8 * i, 32 * (kHeight / kGroups));
    }
  }
  const auto *tables = reinterpret_cast<const int *>(problem.workspace + kMatrices);
  for (int i = threadIdx.x; i < kTableBytes / 4; i += kThreads) store_shared(shared + kTables + 4 * i, tables[i]);
  fence_async_proxy();
  __syncthreads();
}

#endif  // __CUDA_ARCH_FEAT_SM90_ALL

template <bool BF16>
__global__ void __launch_bounds__(kThreads, 1) hopper_attention_inputs(const __grid_constant__ Problem problem) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  extern __shared__ __align__(1024) uint8_t memory[];
  const uint32_t shared = __shfl_sync(kAllLanes, shared_address(memory), 0);
  prepare(problem, shared);
  const int group = __shfl_sync(kAllLanes, threadIdx.x / 128, 0), lane = threadIdx.x % 32;
  const int warp = __shfl_sync(kAllLanes, threadIdx.x / 32 % 4, 0);
  if (group < kGroups) {
    take_registers<kComputeRegisters>();
    Compute<BF16>{problem, shared, 4 * group + warp, lane}.run();
  } else {
    give_registers<kFetchRegisters>();
    const int left = warp == 0 && lane == 0 ? own_tiles(problem) * kChunks : 0;
    Normalise<BF16>{problem, shared, warp, lane,
                    {shared + kWeights, shared + kWeightsFull, shared + kWeightsEmpty, problem.workspace, kChunkBytes,
                     kChunkBytes, kChunks, left}}
        .run();
  }
#endif
}

}  // namespace

int64_t hopper_attention_inputs_workspace() { return kWorkspace; }

int32_t launch_hopper_attention_inputs(const RibsrAttentionInputsParams &p, const Device &device, cudaStream_t stream) {
  Problem problem = problem_of(p);
  const bool bf16 = p.dtype == RIBSR_BFLOAT16;
  const auto kernel = bf16 ? hopper_attention_inputs<true> : hopper_attention_inputs<false>;
  int blocks = 0;
  const int32_t code = prepare_tiles(&blocks, kernel, problem, p.batch, kHeight, kBytes, kBytes, 1, device);
  if (code != RIBSR_OK) return code;
  constexpr int kItems = kChunks * kChunk * kPieces;
  static_assert(kItems % kArrangers == 0);
  const auto first = bf16 ? arrange_attention_inputs<true> : arrange_attention_inputs<false>;
  first<<<kItems / kArrangers, kArrangers, 0, stream>>>(weights_of(p));
  kernel<<<blocks, kThreads, kBytes, stream>>>(problem);
  return launched(cudaGetLastError());
}

}  // namespace ribsr
