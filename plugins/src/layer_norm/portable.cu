// ribsr_layer_norm: layer normalisation over the channels of every pixel.
//
// Channels-last: a pixel lies in the registers of a few neighbouring lanes, so that memory is read once and the variance
// is taken around the mean; blocks stay and walk over the pixels, weight and bias in shared memory. Other layouts: one
// thread per pixel, which reads it three times.
#include "shared/device.cuh"
#include "shared/interface.h"

using namespace ribsr;

namespace {

// The pixels of both maps as lines of evenly spaced ones: rows, or whole images or batches where nothing lies between.
struct Lines {
  int count, per_image;
  int pixels;  // of one line
};

struct Problem {
  Map in, out;
  const uint16_t *weight, *bias;
  int channels;
  float epsilon;
  Lines lines;
};

template <bool BF16>
__device__ __forceinline__ float to_float(uint16_t bits) {
  return unpack<BF16>(bits).x;
}

__device__ __forceinline__ uint16_t *line_of(const Map &map, const Lines &lines, int line) {
  const int image = line / lines.per_image;
  return map.data + image * map.batch + (line - image * lines.per_image) * map.row;
}

constexpr int kThreads = 256;

// Blocks that fit a multiprocessor: what the registers for this many vectors of 8 channels allow.
template <int Vectors>
constexpr int kResident = Vectors <= 3 ? 4 : 3;

template <bool BF16>
__device__ __forceinline__ void unpack_vector(float (&x)[8], const uint4 &v) {
  const uint32_t words[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const float2 pair = unpack<BF16>(words[i]);
    x[2 * i] = pair.x;
    x[2 * i + 1] = pair.y;
  }
}

// Vector v of a lane is the (v * Lanes + lane)-th of the pixel. With more lanes than one, a pixel has more than 2 * Lanes
// vectors, as fewer lanes would do otherwise: the first two of a lane are whole.
template <int Lanes>
__device__ __forceinline__ bool exists(int v, int channel_of_vector, int kept) {
  return (Lanes > 1 && v < 2) || channel_of_vector < kept;
}

template <int Lanes, int Vectors, bool BF16>
__global__ void __launch_bounds__(kThreads, kResident<Vectors>) normalise(const __grid_constant__ Problem problem) {
  constexpr int kPixels = kThreads / Lanes;
  const int lane = threadIdx.x % Lanes;
  __shared__ __align__(16) uint16_t shared[2][Lanes * Vectors * 8];
  for (int i = threadIdx.x; i < Lanes * Vectors * 8; i += kThreads) {
    const bool exists = i < problem.channels;
    shared[0][i] = exists ? problem.weight[i] : 0;
    shared[1][i] = exists ? problem.bias[i] : 0;
  }
  __syncthreads();
  const uint32_t weight = shared_address(shared[0]) + 16 * lane, bias = shared_address(shared[1]) + 16 * lane;
  int kept[Vectors];  // how many of a vector's channels exist: what lies in the padding may be anything
#pragma unroll
  for (int v = 0; v < Vectors; ++v) kept[v] = problem.channels - 8 * (v * Lanes + lane);
  const auto channels = static_cast<float>(problem.channels);
  const long long from_step = problem.in.column / 8, to_step = problem.out.column / 8;

  for (int line = blockIdx.y; line < problem.lines.count; line += gridDim.y) {
    const auto *from = reinterpret_cast<const uint4 *>(line_of(problem.in, problem.lines, line)) + lane;
    auto *to = reinterpret_cast<uint4 *>(line_of(problem.out, problem.lines, line)) + lane;
    // The same number of rounds for all lanes: they exchange sums.
    for (int first = blockIdx.x * kPixels; first < problem.lines.pixels; first += gridDim.x * kPixels) {
      const int pixel = first + threadIdx.x / Lanes;
      const bool inside = pixel < problem.lines.pixels;
      uint4 packed[Vectors];
#pragma unroll
      for (int v = 0; v < Vectors; ++v) {
        packed[v] = make_uint4(0, 0, 0, 0);
        if (inside && exists<Lanes>(v, 0, kept[v])) packed[v] = from[pixel * from_step + v * Lanes];
      }
      float x[Vectors][8];
      float sum = 0.0f;
#pragma unroll
      for (int v = 0; v < Vectors; ++v) {
        unpack_vector<BF16>(x[v], packed[v]);
#pragma unroll
        for (int i = 0; i < 8; ++i) sum += exists<Lanes>(v, i, kept[v]) ? x[v][i] : 0.0f;
      }
      const float mean = sum_lanes<Lanes>(sum) / channels;
      float squares = 0.0f;
#pragma unroll
      for (int v = 0; v < Vectors; ++v) {
#pragma unroll
        for (int i = 0; i < 8; ++i) {
          x[v][i] = exists<Lanes>(v, i, kept[v]) ? x[v][i] - mean : 0.0f;
          squares = fmaf(x[v][i], x[v][i], squares);
        }
      }
      const float scale = rsqrtf(sum_lanes<Lanes>(squares) / channels + problem.epsilon);
#pragma unroll
      for (int v = 0; v < Vectors; ++v) {
        float w[8], b[8];
        unpack_vector<BF16>(w, load_shared(weight + 16 * v * Lanes));
        unpack_vector<BF16>(b, load_shared(bias + 16 * v * Lanes));
        uint32_t words[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          words[i] = pack<BF16>(fmaf(x[v][2 * i] * scale, w[2 * i], b[2 * i]),
                                fmaf(x[v][2 * i + 1] * scale, w[2 * i + 1], b[2 * i + 1]));
        }
        if (inside && exists<Lanes>(v, 0, kept[v])) {
          to[pixel * to_step + v * Lanes] = make_uint4(words[0], words[1], words[2], words[3]);
        }
      }
    }
  }
}

template <bool BF16>
__global__ void __launch_bounds__(kThreads) normalise_any(const __grid_constant__ Problem problem) {
  const auto channels = static_cast<float>(problem.channels);
  for (int line = blockIdx.y; line < problem.lines.count; line += gridDim.y) {
    for (int pixel = blockIdx.x * kThreads + threadIdx.x; pixel < problem.lines.pixels;
         pixel += gridDim.x * kThreads) {
      const uint16_t *from = line_of(problem.in, problem.lines, line) + pixel * problem.in.column;
      uint16_t *to = line_of(problem.out, problem.lines, line) + pixel * problem.out.column;
      float sum = 0.0f, squares = 0.0f;
      for (int c = 0; c < problem.channels; ++c) sum += to_float<BF16>(from[c * problem.in.channel]);
      const float mean = sum / channels;
      for (int c = 0; c < problem.channels; ++c) {
        const float x = to_float<BF16>(from[c * problem.in.channel]) - mean;
        squares = fmaf(x, x, squares);
      }
      const float scale = rsqrtf(squares / channels + problem.epsilon);
      for (int c = 0; c < problem.channels; ++c) {
        const float x = (to_float<BF16>(from[c * problem.in.channel]) - mean) * scale;
        const float y = fmaf(x, to_float<BF16>(problem.weight[c]), to_float<BF16>(problem.bias[c]));
        to[c * problem.out.channel] = static_cast<uint16_t>(pack<BF16>(y, 0.0f));
      }
    }
  }
}

// Lines as long as the strides of both maps allow.
Lines lines_of(const RibsrLayerNormParams &p) {
  const auto evenly = [](const RibsrMap &map, long long row, long long rows, bool images) {
    return map.row_stride == row * map.column_stride && (!images || map.batch_stride == rows * map.row_stride);
  };
  const auto both = [&](bool images) {
    return evenly(p.in, p.width, p.height, images) && evenly(p.out, p.width, p.height, images);
  };
  if (p.batch == 1 ? both(false) : both(true)) return {1, 1, p.batch * p.height * p.width};
  if (both(false)) return {p.batch, 1, p.height * p.width};
  return {p.batch * p.height, p.height, p.width};
}

dim3 grid_of(const Lines &lines, int pixels_per_block, int resident) {
  const int needed = (lines.pixels + pixels_per_block - 1) / pixels_per_block;
  return dim3(needed < resident ? needed : resident, lines.count < 65535 ? lines.count : 65535);
}

template <int Lanes, int Vectors, bool BF16>
void launch(const Problem &problem, int multiprocessors, cudaStream_t stream) {
  const dim3 grid = grid_of(problem.lines, kThreads / Lanes, multiprocessors * kResident<Vectors>);
  normalise<Lanes, Vectors, BF16><<<grid, kThreads, 0, stream>>>(problem);
}

template <int Lanes, bool BF16>
void launch_vectors(const Problem &problem, int multiprocessors, cudaStream_t stream) {
  if (problem.channels <= Lanes * 3 * 8) return launch<Lanes, 3, BF16>(problem, multiprocessors, stream);
  launch<Lanes, 4, BF16>(problem, multiprocessors, stream);
}

constexpr int kWidest = 32 * 4 * 8;

// The fewest lanes whose registers hold a pixel.
template <bool BF16>
void launch_lanes(const Problem &problem, int multiprocessors, cudaStream_t stream) {
  const int vectors = (problem.channels + 7) / 8;
  if (vectors <= 4) return launch_vectors<1, BF16>(problem, multiprocessors, stream);
  if (vectors <= 8) return launch_vectors<2, BF16>(problem, multiprocessors, stream);
  if (vectors <= 16) return launch_vectors<4, BF16>(problem, multiprocessors, stream);
  if (vectors <= 32) return launch_vectors<8, BF16>(problem, multiprocessors, stream);
  if (vectors <= 64) return launch_vectors<16, BF16>(problem, multiprocessors, stream);
  launch_vectors<32, BF16>(problem, multiprocessors, stream);
}

template <bool BF16>
void launch_any(const Problem &problem, int multiprocessors, cudaStream_t stream) {
  normalise_any<BF16><<<grid_of(problem.lines, kThreads, 8 * multiprocessors), kThreads, 0, stream>>>(problem);
}

}  // namespace

extern "C" int32_t ribsr_layer_norm(const RibsrLayerNormParams *params, void *stream) {
  clear_message();
  int32_t code = check_common(params);
  if (code != RIBSR_OK) return code;
  const RibsrLayerNormParams &p = *params;
  RIBSR_CHECK(p.channels > 0 && p.channels <= (1 << 20), "channels is %d: it must be 1 to 2^20", p.channels);
  RIBSR_CHECK(1ll * p.batch * p.height * p.width <= (1 << 30),
              "batch, height, width are %d, %d, %d: at most 2^30 pixels", p.batch, p.height, p.width);
  RIBSR_CHECK(p.epsilon >= 0.0f, "epsilon is %g: it must not be negative", static_cast<double>(p.epsilon));
  RIBSR_CHECK(p.in.data && p.out.data && p.weight && p.bias, "an array is null");
  Device device;
  code = current_device(&device);
  if (code != RIBSR_OK) return code;

  const Problem problem{map_of(p.in),
                        map_of(p.out),
                        static_cast<const uint16_t *>(p.weight),
                        static_cast<const uint16_t *>(p.bias),
                        p.channels,
                        p.epsilon,
                        lines_of(p)};
  const bool fast = p.channels <= kWidest && vectorised(p.in, p.height, p.width) &&
                    vectorised(p.out, p.height, p.width) && whole_vectors(p.out, p.channels);
  const bool bf16 = p.dtype == RIBSR_BFLOAT16;
  const auto launcher = fast ? (bf16 ? launch_lanes<true> : launch_lanes<false>)
                             : (bf16 ? launch_any<true> : launch_any<false>);
  launcher(problem, device.multiprocessors, static_cast<cudaStream_t>(stream));
  return launched(cudaGetLastError());
}
