// ribsr_attention_inputs for wide layers, whose weights are too many for shared memory: sst-l's and sst-xl's.
//
// A block stays and walks over tiles of 16 columns and a few rows. The pixels of a tile and those around it come to shared
// memory and are normalised there, to n. Then each warp has a row: first it makes gate, for which the depthwise convolution,
// a product by diagonal matrices, is in registers as operands; then qkv, with the row's own n in the same registers, so
// that meanwhile the next tile's pixels take its place. 32 outputs at a time, their weights as a first kernel has arranged
// them: as lanes hold them in operands.
#include "attention_inputs/portable_wide.h"

#include "attention_inputs/wide.h"
#include "shared/fragments.cuh"
#include "shared/tile.cuh"
#include "shared/tile_launch.h"

namespace ribsr {
namespace {

constexpr int kResident = 2;  // blocks per multiprocessor, where there is room
constexpr int kChunk = 32;    // outputs at a time
constexpr int kTapWords = 6;  // of a channel: two taps each in the order of kTapOrder, and the bias in float32

// Places in shared memory and in the workspace, in bytes.
template <int Channels, int Height>
struct Layout {
  static constexpr int kChannels = Channels, kHeight = Height;
  static constexpr int kWarps = Height, kThreads = 32 * kWarps;
  static constexpr int kPixels = kAround * (Height + 2);
  static constexpr int kSixteens = (kPixels + 15) / 16;
  static constexpr int kGroups = Channels / 8, kSteps = Channels / 16;
  static constexpr int kGateChunks = Channels / kChunk, kChunks = 4 * kGateChunks;
  static_assert(Channels % kChunk == 0 && kChunks % 2 == 0);
  static constexpr int kPieces = kPixels * kGroups;  // of 16 bytes
  // Of a thread, while one chunk of qkv is multiplied; not the first, as n is still needed then.
  static constexpr int kPieceThreads = kThreads * (kChunks - kGateChunks - 1);
  static constexpr int kPiecesAtOnce = (kPieces + kPieceThreads - 1) / kPieceThreads;

  static constexpr int kChunkBytes = kChunk / 16 * kSteps * kFragment;
  static constexpr int kTapBytes = 4 * kTapWords * Channels;
  static constexpr int kTaps = kChunks * kChunkBytes;  // in the workspace
  static constexpr int kBiases = kTaps + kTapBytes;    // of outputs, in float32
  static constexpr int kNorm = kBiases + 16 * Channels;  // of each two channels the weights and the biases
  static constexpr int kWorkspace = kNorm + 8 * Channels;

  static constexpr int kNStep = kStep<kGroups>;
  static constexpr int kN = 0;
  static constexpr int kWeights = kN + kPixels * kNStep;  // of this chunk and the next
  static constexpr int kTapTable = kWeights + 2 * kChunkBytes;
  static constexpr int kBytes = kTapTable + kTapBytes;
  static_assert(kBytes <= 99 * 1024, "some devices give a block no more: compute capability 8.6, 8.9, 12.0");
};

using Weights = InputsWeights;
using Problem = InputsProblem;

// ---- weights --------------------------------------------------------------------------------------------------------

constexpr int kArrangers = 256;

// A thread has two weights of one output; outputs are those of gate, then those of qkv, at the places of channel_at.
template <class L, bool BF16>
__global__ void __launch_bounds__(kArrangers) arrange(const __grid_constant__ Weights weights) {
  constexpr int kChannels = L::kChannels, kPairs = kChannels / 2;
  const int index = blockIdx.x * kArrangers + threadIdx.x;
  const int place = index / kPairs, input = 2 * (index - place * kPairs);
  const auto of_output = [&](const uint16_t *gate, const uint16_t *qkv, int output, int count) {
    return output < kChannels ? gate + output * count : qkv + (output - kChannels) * count;
  };
  const uint16_t *from = of_output(weights.mix_weight, weights.project_weight, channel_at<32>(place), kChannels) + input;
  const int operand = place / 16 * L::kSteps + input / 16;
  *reinterpret_cast<uint32_t *>(weights.workspace + operand * kFragment + fragment_place(place, input)) =
      *reinterpret_cast<const uint32_t *>(from);

  if (index < 4 * kChannels) {
    reinterpret_cast<float *>(weights.workspace + L::kBiases)[index] =
        unpack<BF16>(*of_output(weights.mix_bias, weights.project_bias, index, 1)).x;
  }
  if (index >= kChannels) return;
  float *norm = reinterpret_cast<float *>(weights.workspace + L::kNorm) + index / 2 * 4 + index % 2;
  norm[0] = unpack<BF16>(weights.norm_weight[index]).x;
  norm[2] = unpack<BF16>(weights.norm_bias[index]).x;
  auto *taps = reinterpret_cast<uint32_t *>(weights.workspace + L::kTaps) + index * kTapWords;
#pragma unroll
  for (int i = 0; i < kTaps / 2; ++i) {
    const auto tap = [&](int at) {
      return static_cast<uint32_t>(weights.depthwise_weight[9 * index + static_cast<int>(kTapOrder >> 4 * at & 15)]);
    };
    taps[i] = tap(2 * i) | tap(2 * i + 1) << 16;
  }
  taps[kTaps / 2] = __float_as_uint(unpack<BF16>(weights.depthwise_bias[index]).x);
}

// ---- pixels ---------------------------------------------------------------------------------------------------------

// Pieces of a tile's pixels to shared memory, this thread's from `first` on; zeros outside the map.
template <class L, int Count>
__device__ __forceinline__ void fetch_pieces(const Problem &problem, const Tile &tile, uint32_t shared, int first) {
  const auto row_step = static_cast<unsigned>(problem.in.row >> 3);
  const auto column_step = static_cast<unsigned>(problem.in.column >> 3);
  const auto *image = reinterpret_cast<const uint4 *>(problem.in.data + tile.image * problem.in.batch);
#pragma unroll 1
  for (int i = 0; i < Count; ++i) {
    const int index = first + i * L::kThreads + own_thread();
    if (index >= L::kPieces) return;
    const int place = index / L::kGroups, piece = index - place * L::kGroups;
    const Pixel p = pixel_of(tile, place);
    const bool there = inside(problem, p.y, p.x);
    const unsigned offset = there ? p.y * row_step + p.x * column_step + piece : 0;
    copy_async(shared + L::kN + place * L::kNStep + 16 * piece, image + offset, there);
  }
}

// Pixels become n where they lie, 16 at a time. Outside the map it is zero, as the depthwise convolution is padded.
template <class L, bool BF16>
__device__ __forceinline__ void normalise(const Problem &problem, const Tile &tile, uint32_t shared) {
  const int lane = own_thread() % 32;
  const auto *affine = reinterpret_cast<const float4 *>(problem.workspace + L::kNorm) + lane % 4;
#pragma unroll 1
  for (int sixteen = own_thread() / 32; sixteen < L::kSixteens; sixteen += L::kWarps) {
    const int first = 16 * sixteen;
    const uint32_t from = shared + L::kN + min(first + lane % 16, L::kPixels - 1) * L::kNStep + lane / 16 * 16;
    uint32_t a[L::kSteps][4];
    float sums[2] = {};
#pragma unroll
    for (int k = 0; k < L::kSteps; ++k) {
      load_matrices(a[k], from + 32 * k);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float2 pair = unpack<BF16>(a[k][i]);
        sums[i % 2] += pair.x + pair.y;
      }
    }
    float mean[2], scale[2] = {};
#pragma unroll
    for (int half = 0; half < 2; ++half) mean[half] = quad_sum(sums[half]) * (1.0f / L::kChannels);
#pragma unroll
    for (int k = 0; k < L::kSteps; ++k) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float2 pair = unpack<BF16>(a[k][i]);
        const float low = pair.x - mean[i % 2], high = pair.y - mean[i % 2];
        scale[i % 2] = fmaf(low, low, fmaf(high, high, scale[i % 2]));
      }
    }
    bool there[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      scale[half] = rsqrtf(fmaf(quad_sum(scale[half]), 1.0f / L::kChannels, problem.epsilon));
      const Pixel p = pixel_of(tile, first + lane / 4 + 8 * half);
      there[half] = inside(problem, p.y, p.x);
    }
    __syncwarp();  // all have read
    const uint32_t to = shared + L::kN + (first + lane / 4) * L::kNStep + 4 * (lane % 4);
#pragma unroll
    for (int group = 0; group < L::kGroups; ++group) {
      const float4 v = __ldg(affine + 4 * group);
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const float2 pair = unpack<BF16>(a[group / 2][group % 2 * 2 + half]);
        const uint32_t n = pack<BF16>(fmaf((pair.x - mean[half]) * scale[half], v.x, v.z),
                                      fmaf((pair.y - mean[half]) * scale[half], v.y, v.w));
        if (first + lane / 4 + 8 * half < L::kPixels) {
          store_shared(to + 8 * half * L::kNStep + 16 * group, static_cast<int>(there[half] ? n : 0));
        }
      }
    }
  }
}

// ---- products -------------------------------------------------------------------------------------------------------

// A row of 16 pixels, as operands.
template <class L>
using Row = uint32_t[L::kSteps][4];

__device__ __forceinline__ int own_row() { return own_thread() / 32; }

// This lane's words of a diagonal matrix: those that hold the diagonal have some.
template <class L>
__device__ __forceinline__ Taps load_diagonal(uint32_t shared, int group) {
  const int lane = own_thread() % 32, channel = lane / 4;
  const uint32_t from = shared + L::kTapTable + 4 * kTapWords * (8 * group + channel);
  uint32_t words[kTaps];
#pragma unroll
  for (int i = 0; i < kTaps / 2; ++i) {
    const uint32_t both = lane % 4 == lane / 8 ? static_cast<uint32_t>(load_shared_int(from + 4 * i)) : 0;
    words[2 * i] = channel % 2 ? both << 16 : both & 0xffff;
    words[2 * i + 1] = channel % 2 ? both & 0xffff0000u : both >> 16;
  }
  return {{{words[0], words[1]}, {words[2], words[3]}, {words[4], words[5]}},
          {{words[6], words[7]}, {words[8], words[9]}}};
}

// The depthwise convolution of this warp's row.
template <class L, bool BF16>
__device__ __forceinline__ void convolve_row(Row<L> &row, uint32_t shared) {
  const int lane = own_thread() % 32, second = lane / 16;
  const uint32_t left = shared + L::kN + (own_row() * kAround + lane % 16 + second) * L::kNStep;
  const uint32_t right = shared + L::kN + ((own_row() + second) * kAround + lane % 16 + 2) * L::kNStep;
  const uint32_t biases = shared + L::kTapTable + 4 * kTapWords * 2 * (lane % 4) + 4 * (kTaps / 2);
#pragma unroll
  for (int group = 0; group < L::kGroups; ++group) {
    Window<1> window;
    window.load(left + 16 * group, right + 16 * group, kAround * L::kNStep);
    const Taps taps = load_diagonal<L>(shared, group);
    float bias[2];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      bias[i] = __uint_as_float(load_shared_int(biases + 4 * kTapWords * (8 * group + i)));
    }
    float sums[4] = {bias[0], bias[1], bias[0], bias[1]};
    convolve<1, BF16>(sums, window, 0, taps);
    row[group / 2][group % 2 * 2] = pack<BF16>(sums[0], sums[1]);
    row[group / 2][group % 2 * 2 + 1] = pack<BF16>(sums[2], sums[3]);
  }
}

// n of this warp's row.
template <class L>
__device__ __forceinline__ void load_row(Row<L> &row, uint32_t shared) {
  const int lane = own_thread() % 32, pixel = (own_row() + 1) * kAround + lane % 16 + 1;
#pragma unroll
  for (int k = 0; k < L::kSteps; ++k) {
    load_matrices(row[k], shared + L::kN + pixel * L::kNStep + lane / 16 * 16 + 32 * k);
  }
}

// 32 outputs of this warp's row: of each 8 the sums of two neighbours, of two pixels.
using Sums = float[kChunk / 8][4];

// They begin with the biases, those from `output` on.
template <class L>
__device__ __forceinline__ void begin(Sums &sums, const Problem &problem, int output) {
  const auto *biases = reinterpret_cast<const float4 *>(problem.workspace + L::kBiases) + output / 4;
#pragma unroll
  for (int n = 0; n < kChunk / 8; n += 2) {
    const float4 four = __ldg(biases + own_thread() % 4 * 2 + n / 2);
    sums[n][0] = sums[n][2] = four.x;
    sums[n][1] = sums[n][3] = four.y;
    sums[n + 1][0] = sums[n + 1][2] = four.z;
    sums[n + 1][1] = sums[n + 1][3] = four.w;
  }
}

template <class L, bool BF16>
__device__ __forceinline__ void multiply(Sums &sums, const Row<L> &row, uint32_t weights) {
  weights += 16 * (own_thread() % 32);
#pragma unroll
  for (int k = 0; k < L::kSteps; ++k) {
#pragma unroll
    for (int n = 0; n < kChunk / 16; ++n) {
      const uint4 b = load_shared(weights + (n * L::kSteps + k) * kFragment);
      multiply_add<BF16>(sums[2 * n], row[k], b.x, b.y);
      multiply_add<BF16>(sums[2 * n + 1], row[k], b.z, b.w);
    }
  }
}

// To a map, which has the outputs from `channel` on.
template <bool BF16>
__device__ __forceinline__ void store(const Sums &sums, const Problem &problem, const Tile &tile, const Map &map,
                                      int channel) {
  const int lane = own_thread() % 32, y = tile.top + own_row();
  const auto row_step = static_cast<unsigned>(map.row >> 3), column_step = static_cast<unsigned>(map.column >> 3);
  auto *image = reinterpret_cast<uint4 *>(map.data + tile.image * map.batch) + channel / 8 + lane % 4;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int x = tile.left + lane / 4 + 8 * half;
    if (inside(problem, y, x)) image[y * row_step + x * column_step] = eight_of<BF16>(sums[0], half);
  }
}

template <class L, bool BF16>
__global__ void __launch_bounds__(L::kThreads, kResident) wide_attention_inputs(const __grid_constant__ Problem problem) {
  extern __shared__ __align__(16) uint8_t memory[];
  const uint32_t shared = shared_address(memory);
  if (blockIdx.x >= problem.tiles) return;
  constexpr int kEvery = (L::kPieces + L::kThreads - 1) / L::kThreads;
  fetch<L::kThreads, L::kTapBytes>(shared + L::kTapTable, problem.workspace + L::kTaps, own_thread());
  fetch<L::kThreads, L::kChunkBytes>(shared + L::kWeights, problem.workspace, own_thread());
  fetch_pieces<L, kEvery>(problem, tile_of(problem, blockIdx.x, L::kHeight), shared, 0);
  copy_commit();
#pragma unroll 1
  for (int index = blockIdx.x; index < problem.tiles; index += gridDim.x) {
    const Tile tile = tile_of(problem, index, L::kHeight);
    copy_wait<0>();
    __syncthreads();  // pixels and the first chunk are there
    normalise<L, BF16>(problem, tile, shared);
    __syncthreads();
    Row<L> row;
    convolve_row<L, BF16>(row, shared);
    const int next = index + gridDim.x;
#pragma unroll 1
    for (int chunk = 0; chunk < L::kChunks; ++chunk) {
      Sums sums;
      begin<L>(sums, problem, chunk * kChunk);
      if (chunk > 0) {
        copy_wait<0>();
        __syncthreads();  // this chunk is there, and nobody needs the one before
      }
      const int ahead = chunk + 1 < L::kChunks ? chunk + 1 : 0, of_qkv = chunk - L::kGateChunks;
      fetch<L::kThreads, L::kChunkBytes>(shared + L::kWeights + ahead % 2 * L::kChunkBytes,
                                         problem.workspace + ahead * L::kChunkBytes, own_thread());
      if (of_qkv > 0 && next < problem.tiles) {  // everybody has n in registers
        fetch_pieces<L, L::kPiecesAtOnce>(problem, tile_of(problem, next, L::kHeight), shared,
                                          (of_qkv - 1) * L::kPiecesAtOnce * L::kThreads);
      }
      copy_commit();
      if (of_qkv == 0) load_row<L>(row, shared);
      multiply<L, BF16>(sums, row, shared + L::kWeights + chunk % 2 * L::kChunkBytes);
      const bool gate = of_qkv < 0;
      store<BF16>(sums, problem, tile, gate ? problem.gate : problem.qkv, (gate ? chunk : of_qkv) * kChunk);
    }
  }
  copy_wait<0>();
}

// ---- the host -------------------------------------------------------------------------------------------------------

struct Instance {
  int channels, height, threads;
  int bytes, workspace, arrangers;
  void (*arrange_fp16)(Weights), (*arrange_bf16)(Weights), (*fp16)(Problem), (*bf16)(Problem);
};

template <int Channels, int Height>
constexpr Instance instance() {
  using L = Layout<Channels, Height>;
  constexpr int kWords = 4 * Channels * Channels / 2;
  static_assert(kWords % kArrangers == 0);
  return {Channels,          Height,
          L::kThreads,       L::kBytes,
          L::kWorkspace,     kWords / kArrangers,
          arrange<L, false>, arrange<L, true>,
          wide_attention_inputs<L, false>, wide_attention_inputs<L, true>};
}

constexpr Instance kInstances[] = {instance<192, 8>(), instance<224, 6>()};

const Instance *find(int channels) {
  for (const Instance &one : kInstances) {
    if (one.channels == channels) return &one;
  }
  return nullptr;
}

}  // namespace

bool takes_wide_attention_inputs(int channels) { return find(channels) != nullptr; }

int64_t wide_attention_inputs_workspace(int channels) { return find(channels)->workspace; }

int32_t launch_wide_attention_inputs(const RibsrAttentionInputsParams &p, const Device &device, cudaStream_t stream) {
  const Instance &chosen = *find(p.channels);
  int available = 0;
  int32_t code = shared_memory(&available, device);
  if (code != RIBSR_OK) return code;
  if (chosen.bytes > available) return too_little_memory(device, available);
  Problem problem = problem_of(p);
  const bool bf16 = p.dtype == RIBSR_BFLOAT16;
  const auto kernel = bf16 ? chosen.bf16 : chosen.fp16;
  int blocks = 0;
  code = prepare_tiles(&blocks, kernel, problem, p.batch, chosen.height, chosen.bytes, chosen.bytes, kResident, device);
  if (code != RIBSR_OK) return code;
  const auto first = bf16 ? chosen.arrange_bf16 : chosen.arrange_fp16;
  first<<<chosen.arrangers, kArrangers, 0, stream>>>(weights_of(p));
  kernel<<<blocks, chosen.threads, chosen.bytes, stream>>>(problem);
  return launched(cudaGetLastError());
}

}  // namespace ribsr
