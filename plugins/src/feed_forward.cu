// ribsr_feed_forward: the feed-forward half of a layer, x + contract(u + gelu(depthwise(u))) of u = gelu(expand(norm(x))),
// in one kernel that reads x and writes the sum. For widths whose weights and a tile of u fit into shared memory.
//
// A block stays, its weights in shared memory, and walks over tiles of 16 columns and Height rows. Of a tile and the
// pixels around it, 16 at a time are the rows of a matrix: x comes into registers by ldmatrix, is normalised there (a
// row's channels lie in four lanes) and is multiplied by the weights of `expand`; gelu of that goes back to shared memory
// as u. The depthwise convolution is a product, too, of 8 channels by diagonal matrices: nine taps are 72 products of
// which 9 count, but the tensor cores have little else to do, and no lane converts or adds. Its result lies where the
// product by the weights of `contract` wants its operand, and its middle tap is u where the sum wants it.
#include "gelu.cuh"
#include "interface.h"
#include "tile.cuh"
#include "tile_launch.h"

using namespace ribsr;

namespace {

struct Problem : Input {
  Map out;
  const uint16_t *expand_weight, *expand_bias, *depthwise_weight, *depthwise_bias, *contract_weight, *contract_bias;
  int hidden;
};

// Where things are in shared memory, in bytes.
template <int Channels, int Hidden, int Height>
struct Layout {
  static constexpr int kOuter = Channels / 8, kInner = Hidden / 8;  // groups of 8 channels
  static constexpr int kHeight = Height;
  static constexpr int kPixels = kWide * (Height + 2);
  static constexpr int kSixteens = (kPixels + 15) / 16;
  static constexpr int kTurns = (kSixteens + kWarps - 1) / kWarps;   // sixteens of a warp
  static constexpr int kRows = Channels <= 48 && Height >= 2 * kWarps ? 2 : 1;  // of a warp at a time
  static constexpr int kOuterStep = kStep<kOuter>, kInnerStep = kStep<kInner>;

  static constexpr int kX = 0;
  static constexpr int kU = kX + 16 * kSixteens * kOuterStep;
  static constexpr int kExpand = kU + 16 * kSixteens * kInnerStep;
  static constexpr int kContract = kExpand + Hidden * kOuterStep;
  static constexpr int kTaps = kContract + Channels * kInnerStep;
  static constexpr int kNorm = kTaps + kInner * kTapRows * kTapStep;
  static constexpr int kExpandBias = kNorm + 8 * Channels;
  static constexpr int kDepthwiseBias = kExpandBias + 4 * Hidden;
  static constexpr int kContractBias = kDepthwiseBias + 4 * Hidden;
  static constexpr int kTile = kContractBias + 4 * Channels;  // each warp's
  static constexpr int kBytes = kTile + 16 * kWarps;
};

// A warp's tile lies in shared memory while it computes: the registers are wanted otherwise.
template <class L>
__device__ __forceinline__ uint32_t tile_place(uint32_t shared) {
  return shared + L::kTile + 16 * (own_thread() / 32);
}
template <class L>
__device__ __forceinline__ Tile current_tile(uint32_t shared) {
  const uint4 v = load_shared(tile_place<L>(shared));
  return {static_cast<int>(v.x), static_cast<int>(v.y), static_cast<int>(v.z), static_cast<int>(v.w)};
}

template <class L, bool BF16>
__device__ __forceinline__ void load_weights(const Problem &problem, uint32_t shared) {
  constexpr int kChannels = 8 * L::kOuter, kHidden = 8 * L::kInner;
  load_matrix<kHidden, L::kOuter>(shared + L::kExpand, problem.expand_weight, problem.hidden, problem.channels);
  load_matrix<kChannels, L::kInner>(shared + L::kContract, problem.contract_weight, problem.channels, problem.hidden);
  copy_commit();
  load_diagonals<L::kInner>(problem.depthwise_weight, problem.hidden, shared + L::kTaps);
  load_norm<L::kOuter, BF16>(problem, shared + L::kNorm);
  const int i = threadIdx.x;
  if (i < kChannels) {
    store_shared_float(shared + L::kContractBias + 4 * i,
                       value_or_zero<BF16>(problem.contract_bias, i, problem.channels));
  }
  if (i < kHidden) {
    store_shared_float(shared + L::kExpandBias + 4 * i, value_or_zero<BF16>(problem.expand_bias, i, problem.hidden));
    store_shared_float(shared + L::kDepthwiseBias + 4 * i,
                       value_or_zero<BF16>(problem.depthwise_bias, i, problem.hidden));
  }
}

// The pixels of a tile that this warp will normalise, and the tile itself.
template <class L>
__device__ __forceinline__ void fetch(const Problem &problem, int index, uint32_t shared) {
  const Tile tile = locate(problem, index, L::kHeight);
  if (own_thread() % 32 == 0) store_shared(tile_place<L>(shared), tile.image, tile.top, tile.left, tile.index);
  fetch_pixels<L::kOuter, L::kPixels>(problem, tile, shared + L::kX);
}

// What a warp needs of the sixteens of pixels that it brings from x to u.
template <class L>
struct Batch {
  uint32_t x[L::kTurns][L::kOuter / 2][4];  // normalised, as operands
  uint32_t exists[L::kTurns][2];            // masks of this thread's two pixels
  bool busy[L::kTurns];                     // else nothing that counts depends on these pixels
};

// u of Count times 8 hidden channels. Outside the map it is zero, as the depthwise convolution is padded.
template <class L, int Count, bool BF16>
__device__ __forceinline__ void expand_groups(const Batch<L> &batch, uint32_t weights, uint32_t bias, uint32_t to) {
  float sums[L::kTurns][Count][4];
#pragma unroll
  for (int i = 0; i < Count; ++i) {
    const float2 b = load_shared_pair(bias + 32 * i);
#pragma unroll
    for (int turn = 0; turn < L::kTurns; ++turn) {
      sums[turn][i][0] = sums[turn][i][2] = b.x;
      sums[turn][i][1] = sums[turn][i][3] = b.y;
    }
  }
#pragma unroll
  for (int k = 0; k < L::kOuter / 2; ++k) {
    uint32_t b[4];
    load_matrices(b, weights + 32 * k);
#pragma unroll
    for (int turn = 0; turn < L::kTurns; ++turn) {
#pragma unroll
      for (int i = 0; i < Count; ++i) multiply_add<BF16>(sums[turn][i], batch.x[turn][k], b[2 * i], b[2 * i + 1]);
    }
  }
#pragma unroll
  for (int turn = 0; turn < L::kTurns; ++turn) {
    if (!batch.busy[turn]) continue;
#pragma unroll
    for (int i = 0; i < Count; ++i) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const float *h = sums[turn][i] + 2 * half;
        store_shared(to + (16 * kWarps * turn + 8 * half) * L::kInnerStep + 16 * i,
                     static_cast<int>(pack<BF16>(gelu(h[0]), gelu(h[1])) & batch.exists[turn][half]));
      }
    }
  }
}

// u of this warp's pixels, to shared memory.
template <class L, bool BF16>
__device__ __forceinline__ void expand(const Problem &problem, uint32_t shared) {
  const Tile tile = current_tile<L>(shared);
  const int thread = own_thread(), warp = thread / 32, lane = thread % 32;
  Batch<L> batch{};
#pragma unroll
  for (int turn = 0; turn < L::kTurns; ++turn) {
    const int first = 16 * (warp + kWarps * turn);
    batch.busy[turn] = first < L::kPixels && tile.top - 1 + first / kWide <= problem.height;
    if (batch.busy[turn]) {
      normalise<L::kOuter, BF16>(batch.x[turn], problem, shared + L::kNorm, shared + L::kX + first * L::kOuterStep);
    }
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int pixel = first + lane / 4 + 8 * half;
      const int row = pixel / kWide;
      const int y = tile.top + row - 1, x = tile.left + pixel - kWide * row - 1;
      batch.exists[turn][half] = inside(problem, y, x) ? 0xffffffffu : 0;
    }
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
}

// u + gelu(depthwise(u)) of 8 channels, for each row two registers of an operand.
template <int Rows, bool BF16>
__device__ __forceinline__ void activate(uint32_t (&a)[Rows][4], int half, const Window<Rows> &u, const Taps &taps,
                                         float2 bias) {
#pragma unroll
  for (int row = 0; row < Rows; ++row) {
    float sums[4];
    convolve<Rows, BF16>(sums, u, row, taps, bias);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const float2 own = unpack<BF16>(u.near[row + 1][2 + i]);
      a[row][2 * half + i] = pack<BF16>(own.x + gelu(sums[2 * i]), own.y + gelu(sums[2 * i + 1]));
    }
  }
}

template <int Rows, int Groups>
using Sums = float[Rows][Groups][4];

// Where the tile's pixel in row `first` and this thread's column has this thread's two channels of x, and where these are
// in another row, 8 columns further if half, of the n-th 8 channels.
template <class L>
__device__ __forceinline__ uint32_t own_x(uint32_t shared, int first) {
  const int lane = own_thread() % 32;
  return shared + L::kX + ((first + 1) * kWide + 1 + lane / 4) * L::kOuterStep + 4 * (lane % 4);
}
template <class L>
__device__ __forceinline__ int x_offset(int row, int half, int n) {
  return (row * kWide + 8 * half) * L::kOuterStep + 16 * n;
}

// Where a lane finds its part of what Count times 8 hidden channels add to the sums.
struct Places {
  uint32_t left, right;  // rows of the window's operands
  uint32_t taps, bias, weights;
};

template <class L>
__device__ __forceinline__ Places places_of(uint32_t shared, int first) {
  const int lane = own_thread() % 32;
  const int second = lane / 16;  // lanes from 16 on name the pixels of an operand's second half
  Places places;
  places.left = shared + L::kU + (first * kWide + lane % 16 + second) * L::kInnerStep;
  places.right = shared + L::kU + ((first + second) * kWide + lane % 16 + 2) * L::kInnerStep;
  places.taps = shared + L::kTaps + own_taps(lane);
  places.bias = shared + L::kDepthwiseBias + 8 * (lane % 4);
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
    window.load(places.left + 16 * half, places.right + 16 * half, kWide * L::kInnerStep);
    const Taps taps = load_taps(places.taps + kTapRows * kTapStep * half);
    activate<L::kRows, BF16>(a, half, window, taps, load_shared_pair(places.bias + 32 * half));
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
  places.bias += 64;
  places.weights += 32;
}

// x + contract(u + gelu(depthwise(u))) of rows of the tile, from `first` on.
template <class L, bool BF16>
__device__ __forceinline__ void contract(Sums<L::kRows, L::kOuter> &sums, uint32_t shared, int first) {
  const uint32_t x_place = own_x<L>(shared, first), bias_place = shared + L::kContractBias + 8 * (own_thread() % 4);
#pragma unroll
  for (int n = 0; n < L::kOuter; ++n) {
    const float2 bias = load_shared_pair(bias_place + 32 * n);
#pragma unroll
    for (int row = 0; row < L::kRows; ++row) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const auto x = static_cast<uint32_t>(load_shared_int(x_place + x_offset<L>(row, half, n)));
        const float2 pair = unpack<BF16>(x);
        sums[row][n][2 * half] = pair.x + bias.x;
        sums[row][n][2 * half + 1] = pair.y + bias.y;
      }
    }
  }
  Places places = places_of<L>(shared, first);
#pragma unroll 1
  for (int pair = 0; pair < L::kInner / 2; ++pair) contract_groups<L, 2, BF16>(sums, places);
  if constexpr (L::kInner % 2 != 0) contract_groups<L, 1, BF16>(sums, places);
}

// By way of x's place in shared memory, so that what is stored to the map are whole vectors.
template <class L, bool BF16>
__device__ __forceinline__ void store(const Sums<L::kRows, L::kOuter> &sums, const Problem &problem, uint32_t shared,
                                      int first) {
  const Tile tile = current_tile<L>(shared);
  const int lane = own_thread() % 32;
  const uint32_t line = shared + L::kX + ((first + 1) * kWide + 1) * L::kOuterStep;  // of the first pixel
  const uint32_t own = own_x<L>(shared, first);
#pragma unroll
  for (int row = 0; row < L::kRows; ++row) {
#pragma unroll
    for (int n = 0; n < L::kOuter; ++n) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const float *pair = sums[row][n] + 2 * half;
        store_shared(own + x_offset<L>(row, half, n), static_cast<int>(pack<BF16>(pair[0], pair[1])));
      }
    }
  }
  __syncwarp();
  auto *image = reinterpret_cast<uint4 *>(problem.out.data + tile.image * problem.out.batch);
  const auto row_step = static_cast<unsigned>(problem.out.row >> 3);
  const auto column_step = static_cast<unsigned>(problem.out.column >> 3);
#pragma unroll
  for (int i = 0; i < L::kOuter / 2; ++i) {
    const int piece = lane + 32 * i;
    const int column = piece / L::kOuter, group = piece % L::kOuter;
    const int x = tile.left + column;
    const bool valid = x < problem.width && 8 * group < problem.channels;
#pragma unroll
    for (int row = 0; row < L::kRows; ++row) {
      const int y = tile.top + first + row;
      if (valid && y < problem.height) {
        image[y * row_step + x * column_step + group] =
            load_shared(line + (row * kWide + column) * L::kOuterStep + 16 * group);
      }
    }
  }
}

template <class L, bool BF16>
__global__ void __launch_bounds__(kThreads, kResident) feed_forward(const __grid_constant__ Problem problem) {
  extern __shared__ __align__(16) uint8_t memory[];
  const uint32_t shared = shared_address(memory);
  fetch<L>(problem, blockIdx.x, shared);
  load_weights<L, BF16>(problem, shared);
  copy_wait<0>();
  __syncthreads();
  for (;;) {
    copy_wait<0>();
    __syncwarp();  // a warp normalises what it fetched itself
    expand<L, BF16>(problem, shared);
    __syncthreads();
    const int rows = problem.height - current_tile<L>(shared).top;
#pragma unroll 1
    for (int first = own_thread() / 32 * L::kRows; first < min(L::kHeight, rows); first += kWarps * L::kRows) {
      Sums<L::kRows, L::kOuter> sums;
      contract<L, BF16>(sums, shared, first);
      store<L, BF16>(sums, problem, shared, first);
    }
    const int next = current_tile<L>(shared).index + gridDim.x;
    if (next >= problem.tiles) break;
    __syncthreads();
    fetch<L>(problem, next, shared);
  }
}

// Of each instance the widths it is for at most and the rows of a tile, best first. The low tiles are for the widest
// weights, and of the narrower ones for devices that give a block 99 KiB (compute capability 8.6, 8.9, 12.0).
struct Instance {
  int channels, hidden, height, bytes;
  void (*fp16)(Problem), (*bf16)(Problem);
};

template <int Channels, int Hidden, int Height>
constexpr Instance instance() {
  using L = Layout<Channels, Hidden, Height>;
  return {Channels, Hidden, Height, L::kBytes, feed_forward<L, false>, feed_forward<L, true>};
}

constexpr Instance kInstances[] = {instance<48, 72, 16>(), instance<48, 72, 8>(), instance<64, 80, 12>(),
                                   instance<64, 80, 8>(), instance<64, 96, 8>()};
constexpr int kMostHidden = 96;

const Instance *choose(const RibsrFeedForwardParams &p, int available) {
  for (const Instance &one : kInstances) {
    if (p.channels <= one.channels && p.hidden <= one.hidden && one.bytes <= available) return &one;
  }
  return nullptr;
}

int32_t check_supported(const RibsrFeedForwardParams &p) {
  if (p.channels % 8 != 0 || p.channels > kMostChannels || p.hidden % 8 != 0 || p.hidden > kMostHidden) {
    return fail(RIBSR_UNSUPPORTED, "channels, hidden are %d, %d: multiples of 8 up to %d, %d are supported", p.channels,
                p.hidden, kMostChannels, kMostHidden);
  }
  if (!vectorised(p.in, p.height, p.width) || !vectorised(p.out, p.height, p.width) || !aligned(p.expand_weight) ||
      !aligned(p.contract_weight)) {
    return fail(RIBSR_UNSUPPORTED,
                "in and out must be channels-last with strides of multiples of 8, they and the two matrices aligned to "
                "16 bytes");
  }
  return RIBSR_OK;
}

int32_t launch(Problem &problem, const RibsrFeedForwardParams &p, const Device &device, cudaStream_t stream) {
  int available = 0;
  const int32_t code = shared_memory(&available, device);
  if (code != RIBSR_OK) return code;
  const Instance *chosen = choose(p, available);
  if (chosen == nullptr) return too_little_memory(device, available);
  return launch_tiles(p.dtype == RIBSR_BFLOAT16 ? chosen->bf16 : chosen->fp16, problem, p.batch, chosen->height,
                      chosen->bytes, device, stream);
}

}  // namespace

extern "C" int32_t ribsr_feed_forward(const RibsrFeedForwardParams *params, void *stream) {
  clear_message();
  int32_t code = check_common(params);
  if (code != RIBSR_OK) return code;
  const RibsrFeedForwardParams &p = *params;
  RIBSR_CHECK(p.channels > 0 && p.hidden > 0, "channels, hidden are %d, %d: both must be positive", p.channels,
              p.hidden);
  RIBSR_CHECK(p.epsilon >= 0.0f, "epsilon is %g: it must not be negative", static_cast<double>(p.epsilon));
  RIBSR_CHECK(p.in.data && p.out.data && p.norm_weight && p.norm_bias && p.expand_weight && p.expand_bias &&
                  p.depthwise_weight && p.depthwise_bias && p.contract_weight && p.contract_bias,
              "an array is null");
  RIBSR_CHECK(p.in.data != p.out.data, "in and out are the same memory: they must not overlap");
  code = check_supported(p);
  if (code != RIBSR_OK) return code;
  Device device;
  code = current_device(&device);
  if (code != RIBSR_OK) return code;

  const auto weights = [](const void *data) { return static_cast<const uint16_t *>(data); };
  Problem problem{};
  set_input(problem, p);
  problem.out = map_of(p.out);
  problem.expand_weight = weights(p.expand_weight);
  problem.expand_bias = weights(p.expand_bias);
  problem.depthwise_weight = weights(p.depthwise_weight);
  problem.depthwise_bias = weights(p.depthwise_bias);
  problem.contract_weight = weights(p.contract_weight);
  problem.contract_bias = weights(p.contract_bias);
  problem.hidden = p.hidden;
  return launch(problem, p, device, static_cast<cudaStream_t>(stream));
}
