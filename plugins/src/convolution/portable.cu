// ribsr_convolution: a dense convolution, 1x1 or 3x3, with what networks put behind it: bias, LeakyReLU, a residual.
//
// A product whose rows are pixels: of a tile of 16 columns and some rows, each row of 16 pixels is an operand, and the taps
// of a 3x3 convolution are the same pixels in shared memory from other places on. A block has some outputs, and walks over
// tiles. What it multiplies comes through a ring of stages by cp.async: of some channels the tile's pixels with those
// around it, and the weights, unless these fit into shared memory all together: then they come with the first tile and
// stay. A ring does not end with a tile: while one is finished, the next ones are on their way.
//
// In shared memory, 16 channels of a pixel, or of a tap of an output, are 32 bytes; their halves change places every four
// pixels or outputs, so that ldmatrix finds eight neighbours in different banks. Of a warp's 4 rows of pixels 3x3 taps
// that are above each other share the operands: 6 rows for 3 taps.
#include <math.h>

#include "shared/interface.h"
#include "shared/tile.cuh"
#include "shared/tile_launch.h"

using namespace ribsr;

namespace {

constexpr int kWarps = 4;
constexpr int kThreads = 32 * kWarps;
constexpr int kResident = 3;  // blocks per multiprocessor: 168 registers for a thread, of which sums are up to 96
constexpr int kRows = 4;      // of pixels, for a warp
constexpr int kStages = 3;    // of the ring: one in use, two on their way
constexpr int kPiece = 8;     // channels in 16 bytes
constexpr int kPart = 16;     // channels of a product
constexpr int kRow = 32;      // bytes of these

struct Problem {
  Map in, residual, out;
  const uint16_t *weight, *bias;
  int channels, outputs, height, width;
  int tiles_x, tiles_y, tiles;
  int slices;    // of the outputs: as many blocks walk over the same tiles
  int walkers;   // blocks of a slice: the first has the tiles 0, walkers, 2 walkers, ...
  int chunks;    // of the channels: as many stages make up a tile
  bool keeps;    // the weights stay in shared memory
  bool by_four;  // four channels of out and residual are one access
  float negative_slope;
};

// Warps stand Down times Across: the former have other pixels, the latter other outputs, Width of them each.
//
// Where things are in shared memory, in bytes. The parts of a stage, of 16 channels each, are 32 bytes further apart than
// they are long: pieces that threads fetch side by side go to different banks.
template <int Kernel, int Down, int Across, int Width>
struct Layout {
  static_assert(Down * Across == kWarps && Width % 16 == 0 && (Kernel == 1 || Kernel == 3));
  static constexpr int kKernel = Kernel, kAcross = Across, kWidth = Width;
  static constexpr int kTaps = Kernel * Kernel, kMargin = Kernel / 2;
  static constexpr int kHeight = kRows * Down;  // of a tile
  static constexpr int kOutputs = Width * Across;
  static constexpr int kPitch = kColumns + 2 * kMargin;
  static constexpr int kPixels = kPitch * (kHeight + 2 * kMargin);
  // Products by 9 taps are enough for a stage; of 1x1 convolutions it has about 16 KiB of pixels.
  static constexpr int kParts = Kernel == 3 ? 1 : Down == 4 ? 2 : 4;
  static constexpr int kPieces = 2 * kParts;
  static constexpr int kPixelPart = kRow * kPixels + kRow;
  static constexpr int kWeightPart = kRow * kTaps * kOutputs + kRow;
  static constexpr int kPixelStage = kParts * kPixelPart;
  static constexpr int kWeightStage = kParts * kWeightPart;

  static constexpr int kBias = 0;
  static constexpr int kIn = kBias + 4 * kOutputs;
  static constexpr int kWeights = kIn + kStages * kPixelStage;
};

// Half of a row of 32 bytes: where it is in its part.
__device__ __forceinline__ int place_of(int row, int phase, int half) { return kRow * row + 16 * (half ^ (phase / 4 & 1)); }

// Outputs of each 16 are taken in an order in which a thread's four of a pixel lie side by side in the map: of sums of 16
// columns a thread has two of the first 8 and two of the next. The place of an output:
__device__ __forceinline__ int place_of_output(int output) {
  return (output & ~15) + 8 * (output / 2 % 2) + 2 * (output / 4 % 4) + output % 2;
}

__device__ __forceinline__ Tile locate(const Problem &problem, int index, int height) {
  const int line = static_cast<unsigned>(index) / problem.tiles_x;
  const int image = static_cast<unsigned>(line) / problem.tiles_y;
  return {image, (line - image * problem.tiles_y) * height, (index - line * problem.tiles_x) * kColumns, index};
}

// ---- from the map and the weights to shared memory -------------------------------------------------------------------

// A tile's pixels and those around it, of a stage's channels. Zeros outside of the map, and behind the last channel.
template <class L>
__device__ __forceinline__ void fetch_pixels(const Problem &problem, const Tile &tile, int first_channel, uint32_t to) {
  const uint16_t *image = problem.in.data + tile.image * problem.in.batch;
  const auto row_step = static_cast<unsigned>(problem.in.row / kPiece);
  const auto column_step = static_cast<unsigned>(problem.in.column / kPiece);
#pragma unroll
  for (int i = threadIdx.x; i < L::kPixels * L::kPieces; i += kThreads) {
    const int pixel = i / L::kPieces, piece = i % L::kPieces;
    const int row = pixel / L::kPitch, column = pixel - L::kPitch * row;
    const int y = tile.top + row - L::kMargin, x = tile.left + column - L::kMargin;
    const int channel = first_channel + kPiece * piece;
    const bool valid = channel < problem.channels && inside(problem, y, x);
    const unsigned offset = y * row_step + x * column_step + channel / kPiece;
    copy_async(to + piece / 2 * L::kPixelPart + place_of(pixel, column, piece % 2),
               image + (valid ? 1ll * kPiece * offset : 0), valid);
  }
}

// The taps of the block's outputs, of a stage's channels. Zeros behind the last output, and behind the last channel.
template <class L>
__device__ __forceinline__ void fetch_weights(const Problem &problem, int first_output, int first_channel, uint32_t to) {
  const int rows = (problem.outputs - first_output) * L::kTaps;
  const uint16_t *from = problem.weight + 1ll * first_output * L::kTaps * problem.channels;
#pragma unroll
  for (int i = threadIdx.x; i < L::kOutputs * L::kTaps * L::kPieces; i += kThreads) {
    const int row = i / L::kPieces, piece = i % L::kPieces;
    const int output = row / L::kTaps, tap = row - L::kTaps * output;
    const int place = place_of_output(output);
    const int channel = first_channel + kPiece * piece;
    const bool valid = channel < problem.channels && row < rows;
    copy_async(to + piece / 2 * L::kWeightPart + place_of(L::kTaps * place + tap, place, piece % 2),
               from + (valid ? row * problem.channels + channel : 0), valid);
  }
}

// A position in what a block goes through: the tiles, of each all channels, while the slots of the ring come in turn.
struct Walk {
  int tile, chunk, slot;
};

__device__ __forceinline__ void advance(Walk &walk, const Problem &problem) {
  walk.slot = walk.slot == kStages - 1 ? 0 : walk.slot + 1;
  if (++walk.chunk < problem.chunks) return;
  walk.chunk = 0;
  walk.tile += problem.walkers;
}

template <class L>
__device__ __forceinline__ uint32_t pixel_stage(uint32_t shared, const Walk &walk) {
  return shared + L::kIn + L::kPixelStage * walk.slot;
}

// Weights that stay have a place for each chunk; others share the ring's slots.
template <class L>
__device__ __forceinline__ uint32_t weight_stage(uint32_t shared, const Walk &walk, bool keeps) {
  return shared + L::kWeights + L::kWeightStage * (keeps ? walk.chunk : walk.slot);
}

// The next stage, and on. There is always one more group of copies, with nothing in it behind the last tile.
template <class L>
__device__ __forceinline__ void fetch(Walk &walk, const Problem &problem, int first_output, uint32_t shared) {
  if (walk.tile < problem.tiles) {
    const int channel = kPart * L::kParts * walk.chunk;
    fetch_pixels<L>(problem, locate(problem, walk.tile, L::kHeight), channel, pixel_stage<L>(shared, walk));
    if (walk.tile < problem.walkers || !problem.keeps) {
      fetch_weights<L>(problem, first_output, channel, weight_stage<L>(shared, walk, problem.keeps));
    }
  }
  copy_commit();
  advance(walk, problem);
  __syncwarp();  // lanes have fetched more or less often; what follows are instructions of whole warps
}

// ---- products ---------------------------------------------------------------------------------------------------------

template <class L>
using Sums = float[kRows][L::kWidth / 8][4];

// Where this lane's rows of operands are in a part: pixels of the warp's first row, outputs of the warp.
template <class L>
__device__ __forceinline__ uint32_t own_pixels(int column) {
  const int lane = threadIdx.x % 32, down = threadIdx.x / 32 / L::kAcross;
  const int x = lane % 16 + column;
  return place_of(kRows * down * L::kPitch + x, x, lane / 16);
}

template <class L>
__device__ __forceinline__ uint32_t own_weights() {
  const int lane = threadIdx.x % 32, across = threadIdx.x / 32 % L::kAcross;
  const int output = L::kWidth * across + lane % 8 + lane / 16 * 8;
  return place_of(L::kTaps * output, output, lane / 8 % 2);
}

// Adds all taps' products of 16 channels. The weights are loaded one step ahead.
template <class L, bool BF16>
__device__ __forceinline__ void multiply_part(Sums<L> &sums, uint32_t pixels, uint32_t weights) {
  constexpr int kGroups = L::kWidth / 16, kCount = L::kKernel * kGroups;
  weights += own_weights<L>();
#pragma unroll
  for (int column = 0; column < L::kKernel; ++column) {
    uint32_t a[kRows + 2 * L::kMargin][4], b[2][4];
    const auto load = [&](int i) {  // by taps of this column, from above, and of each by groups of outputs
      const int row = i / kGroups, tap = L::kKernel * row + column;
      load_matrices(b[i % 2], weights + kRow * (tap + 16 * L::kTaps * (i - kGroups * row)));
    };
    load(0);
    const uint32_t from = pixels + own_pixels<L>(column);
#pragma unroll
    for (int row = 0; row < kRows + 2 * L::kMargin; ++row) load_matrices(a[row], from + kRow * L::kPitch * row);
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      if (i + 1 < kCount) load(i + 1);
      const int row = i / kGroups, group = i - kGroups * row;
#pragma unroll
      for (int m = 0; m < kRows; ++m) {
        multiply_add<BF16>(sums[m][2 * group], a[m + row], b[i % 2][0], b[i % 2][1]);
        multiply_add<BF16>(sums[m][2 * group + 1], a[m + row], b[i % 2][2], b[i % 2][3]);
      }
    }
  }
}

template <class L, bool BF16>
__device__ __forceinline__ void multiply_stage(Sums<L> &sums, const Problem &problem, const Walk &walk, uint32_t shared) {
  uint32_t pixels = pixel_stage<L>(shared, walk), weights = weight_stage<L>(shared, walk, problem.keeps);
  const int left = problem.channels - kPart * L::kParts * walk.chunk;
  const int parts = min(L::kParts, (left + kPart - 1) / kPart);
#pragma unroll 1
  for (int part = 0; part < parts; ++part) {
    multiply_part<L, BF16>(sums, pixels, weights);
    pixels += L::kPixelPart;
    weights += L::kWeightPart;
  }
}

// ---- results ----------------------------------------------------------------------------------------------------------

// The residual of a tile, to be near when it is wanted.
template <class L>
__device__ __forceinline__ void prefetch_residual(const Problem &problem, int index, int first_output) {
  constexpr int kSectors = L::kOutputs / 16;  // of 32 bytes, of a pixel
  const Tile tile = locate(problem, index, L::kHeight);
  const uint16_t *image = problem.residual.data + tile.image * problem.residual.batch;
#pragma unroll 1
  for (int i = threadIdx.x; i < kColumns * L::kHeight * kSectors; i += kThreads) {
    const int pixel = i / kSectors, output = first_output + 16 * (i % kSectors);
    const int y = tile.top + pixel / kColumns, x = tile.left + pixel % kColumns;
    if (inside(problem, y, x) && output < problem.outputs) {
      prefetch(image + y * problem.residual.row + x * problem.residual.column + output);
    }
  }
}

// Up to four channels that lie side by side.
__device__ __forceinline__ uint2 load_four(const uint16_t *from, int count, bool at_once) {
  if (at_once) return count > 0 ? *reinterpret_cast<const uint2 *>(from) : make_uint2(0, 0);
  uint32_t one[4] = {};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    if (i < count) one[i] = from[i];
  }
  return make_uint2(one[0] | one[1] << 16, one[2] | one[3] << 16);
}

__device__ __forceinline__ void store_four(uint16_t *to, uint2 four, int count, bool at_once) {
  if (at_once) {
    if (count > 0) *reinterpret_cast<uint2 *>(to) = four;
    return;
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    if (i < count) to[i] = static_cast<uint16_t>((i < 2 ? four.x : four.y) >> 16 * (i % 2));
  }
}

// Two neighbours of the result, from their sums, in the same order as `bias` and what is added.
template <bool BF16>
__device__ __forceinline__ uint32_t result(float low, float high, float2 bias, uint32_t added, float slope) {
  low += bias.x;
  high += bias.y;
  const float2 more = unpack<BF16>(added);
  return pack<BF16>((low >= 0.0f ? low : slope * low) + more.x, (high >= 0.0f ? high : slope * high) + more.y);
}

// Where a thread's outputs of a pixel begin in a map, in the warp's first row.
__device__ __forceinline__ uint16_t *first_of(const Map &map, const Tile &tile, int y, int x, int output) {
  return map.data + tile.image * map.batch + y * map.row + x * map.column + output;
}

// Bias, LeakyReLU and residual, and to the map. All of the residual of two rows is asked for before any of it is awaited:
// it may be the memory that the result goes to, so that the compiler could not do so by itself.
template <class L, bool BF16>
__device__ __forceinline__ void finish(const Sums<L> &sums, const Problem &problem, int index, int first_output,
                                       uint32_t shared) {
  constexpr int kGroups = L::kWidth / 16, kAtOnce = 2;
  const Tile tile = locate(problem, index, L::kHeight);
  const int thread = own_thread(), lane = thread % 32, warp = thread / 32;
  const int own = L::kWidth * (warp % L::kAcross) + 4 * (lane % 4), output = first_output + own;
  const int top = tile.top + kRows * (warp / L::kAcross), left = tile.left + lane / 4;
  uint16_t *out = first_of(problem.out, tile, top, left, output);
  const uint16_t *residual = first_of(problem.residual, tile, top, left, output);
  const bool adds = problem.residual.data != nullptr;
  float4 bias[kGroups];
#pragma unroll
  for (int k = 0; k < kGroups; ++k) bias[k] = load_shared_floats(shared + L::kBias + 4 * (own + 16 * k));
  const auto count = [&](int m, int half, int k) {  // of the four that exist
    return inside(problem, top + m, left + 8 * half) ? problem.outputs - output - 16 * k : 0;
  };
#pragma unroll
  for (int first = 0; first < kRows; first += kAtOnce) {
    uint2 added[kAtOnce][2][kGroups] = {};
    if (adds) {
#pragma unroll
      for (int i = 0; i < 2 * kAtOnce * kGroups; ++i) {
        const int k = i % kGroups, half = i / kGroups % 2, m = i / kGroups / 2;
        const uint16_t *from = residual + (first + m) * problem.residual.row + 8 * half * problem.residual.column;
        added[m][half][k] = load_four(from + 16 * k, count(first + m, half, k), problem.by_four);
      }
    }
#pragma unroll
    for (int i = 0; i < 2 * kAtOnce * kGroups; ++i) {
      const int k = i % kGroups, half = i / kGroups % 2, m = i / kGroups / 2;
      const float *low = sums[first + m][2 * k] + 2 * half, *high = sums[first + m][2 * k + 1] + 2 * half;
      const uint2 more = added[m][half][k];
      const float slope = problem.negative_slope;
      const uint2 four = make_uint2(result<BF16>(low[0], low[1], make_float2(bias[k].x, bias[k].y), more.x, slope),
                                    result<BF16>(high[0], high[1], make_float2(bias[k].z, bias[k].w), more.y, slope));
      uint16_t *to = out + (first + m) * problem.out.row + 8 * half * problem.out.column;
      store_four(to + 16 * k, four, count(first + m, half, k), problem.by_four);
    }
  }
}

// ---- the kernel -------------------------------------------------------------------------------------------------------

template <class L, bool BF16>
__global__ void __launch_bounds__(kThreads, kResident) convolve(const __grid_constant__ Problem problem) {
  extern __shared__ __align__(16) uint8_t memory[];
  const uint32_t shared = shared_address(memory);
  const int first_output = blockIdx.x % problem.slices * L::kOutputs;
  for (int i = threadIdx.x; i < L::kOutputs; i += kThreads) {  // visible to all behind the first barrier
    const bool exists = first_output + i < problem.outputs;
    store_shared_float(shared + L::kBias + 4 * i, exists ? unpack<BF16>(problem.bias[first_output + i]).x : 0.0f);
  }
  Walk now = {static_cast<int>(blockIdx.x / problem.slices), 0, 0}, ahead = now;
#pragma unroll 1
  for (int stage = 0; stage < kStages - 1; ++stage) fetch<L>(ahead, problem, first_output, shared);
  while (now.tile < problem.tiles) {
    const int index = now.tile;
    if (problem.residual.data != nullptr) prefetch_residual<L>(problem, index, first_output);
    Sums<L> sums = {};
    do {
      copy_wait<kStages - 2>();
      __syncthreads();  // all of the stage is there, and nobody is at the one before it any more: it is fetched to next
      fetch<L>(ahead, problem, first_output, shared);
      multiply_stage<L, BF16>(sums, problem, now, shared);
      advance(now, problem);
    } while (now.chunk != 0);
    finish<L, BF16>(sums, problem, index, first_output, shared);
  }
}

// ---- the host's part --------------------------------------------------------------------------------------------------

struct Instance {
  int kernel, outputs, height, channels;  // of a block, of a tile, of a stage
  int fixed_bytes, weight_bytes;          // shared memory: what there always is, and a stage's weights
  void (*fp16)(Problem), (*bf16)(Problem);
};

// What three blocks have on a device whose multiprocessors have 228 KiB; the system takes one for each.
constexpr int kThird = 75 * 1024;
constexpr int kLeast = 99 * 1024;  // what every device gives a block

template <int Kernel, int Down, int Across, int Width>
constexpr Instance instance() {
  using L = Layout<Kernel, Down, Across, Width>;
  static_assert(L::kWeights + kStages * L::kWeightStage <= (Kernel == 3 ? kThird : kLeast));
  return {Kernel,      L::kOutputs,     L::kHeight,         kPart * L::kParts,
          L::kWeights, L::kWeightStage, convolve<L, false>, convolve<L, true>};
}

// Of a 3x3 convolution the pixels are read once for every 48 outputs, which its products outlast; of a 1x1 convolution for
// every 192.
constexpr Instance kInstances[] = {instance<3, 4, 1, 16>(), instance<3, 4, 1, 32>(), instance<3, 4, 1, 48>(),
                                  instance<1, 4, 1, 16>(), instance<1, 4, 1, 32>(), instance<1, 4, 1, 48>(),
                                  instance<1, 2, 2, 48>(), instance<1, 1, 4, 48>()};
constexpr int kMostIn = 256, kMostOut = 512;

// The instance that multiplies least, where to read the pixels once more is as much as some outputs.
const Instance &choose(int kernel, int outputs) {
  const Instance *best = nullptr;
  int least = 0;
  for (const Instance &one : kInstances) {
    if (one.kernel != kernel) continue;
    const int reading = kernel == 3 ? 8 : 32;
    const int cost = divide_up(outputs, one.outputs) * (one.outputs + reading);
    if (best == nullptr || cost < least) {
      best = &one;
      least = cost;
    }
  }
  return *best;
}

bool by_four(const RibsrMap &map) {
  return map.batch_stride % 4 == 0 && map.row_stride % 4 == 0 && map.column_stride % 4 == 0 &&
         reinterpret_cast<uintptr_t>(map.data) % 8 == 0;
}

int32_t check_supported(const RibsrConvolutionParams &p) {
  if (p.channels % kPiece != 0 || p.channels > kMostIn || p.outputs > kMostOut) {
    return fail(RIBSR_UNSUPPORTED, "channels, outputs are %d, %d: multiples of 8 up to %d, and any up to %d are supported",
                p.channels, p.outputs, kMostIn, kMostOut);
  }
  if (!vectorised(p.in, p.height, p.width) || !aligned(p.weight)) {
    return fail(RIBSR_UNSUPPORTED,
                "in must be channels-last with strides of multiples of 8, it and the weights aligned to 16 bytes");
  }
  if (p.out.channel_stride != 1 || (p.residual.data != nullptr && p.residual.channel_stride != 1)) {
    return fail(RIBSR_UNSUPPORTED, "out and residual must be channels-last");
  }
  return RIBSR_OK;
}

int32_t launch(Problem &problem, const RibsrConvolutionParams &p, const Device &device, cudaStream_t stream) {
  const Instance &chosen = choose(p.kernel, p.outputs);
  problem.slices = divide_up(p.outputs, chosen.outputs);
  problem.chunks = divide_up(p.channels, chosen.channels);
  const int kept = chosen.fixed_bytes + problem.chunks * chosen.weight_bytes;
  problem.keeps = problem.chunks <= kStages || kept <= kThird;
  const int bytes = problem.keeps ? kept : chosen.fixed_bytes + kStages * chosen.weight_bytes;
  const auto kernel = p.dtype == RIBSR_BFLOAT16 ? chosen.bf16 : chosen.fp16;
  int blocks = 0;
  const int32_t code = prepare_tiles(&blocks, kernel, problem, p.batch, chosen.height, bytes,
                                     chosen.kernel == 3 ? kThird : kLeast, kResident, device);
  if (code != RIBSR_OK) return code;
  problem.walkers = blocks;
  kernel<<<blocks * problem.slices, kThreads, bytes, stream>>>(problem);
  return launched(cudaGetLastError());
}

}  // namespace

extern "C" int32_t ribsr_convolution(const RibsrConvolutionParams *params, void *stream) {
  clear_message();
  int32_t code = check_common(params);
  if (code != RIBSR_OK) return code;
  const RibsrConvolutionParams &p = *params;
  RIBSR_CHECK(p.channels > 0 && p.outputs > 0, "channels, outputs are %d, %d: both must be positive", p.channels,
              p.outputs);
  RIBSR_CHECK(p.kernel == 1 || p.kernel == 3, "kernel is %d: it must be 1 or 3", p.kernel);
  RIBSR_CHECK(isfinite(p.negative_slope), "negative_slope is %g: it must be finite",
              static_cast<double>(p.negative_slope));
  RIBSR_CHECK(p.in.data && p.out.data && p.weight && p.bias, "an array is null");
  RIBSR_CHECK(p.in.data != p.out.data, "in and out are the same memory: they must not overlap");
  code = check_supported(p);
  if (code != RIBSR_OK) return code;
  Device device;
  code = current_device(&device);
  if (code != RIBSR_OK) return code;

  Problem problem{};
  problem.in = map_of(p.in);
  problem.residual = map_of(p.residual);
  problem.out = map_of(p.out);
  problem.weight = static_cast<const uint16_t *>(p.weight);
  problem.bias = static_cast<const uint16_t *>(p.bias);
  problem.channels = p.channels;
  problem.outputs = p.outputs;
  problem.height = p.height;
  problem.width = p.width;
  problem.by_four = p.outputs % 4 == 0 && by_four(p.out) && (p.residual.data == nullptr || by_four(p.residual));
  problem.negative_slope = p.negative_slope;
  return launch(problem, p, device, static_cast<cudaStream_t>(stream));
}
