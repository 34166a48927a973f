// ribsr_depthwise: 3x3 convolution of every channel by itself, alone or as in + gelu(convolution), of in or of gelu(in).
//
// Channels-last: a thread owns a few channels of neighbouring columns, their weights in registers, and walks down a strip
// of rows. Every row that comes in is converted once and goes into three sums, those of the row above, its own and the row
// below. A block's rows come through shared memory by cp.async, two to four ahead; there gelu is applied to them, once,
// and there a thread finds its neighbours' columns. Other layouts: one thread per element.
#include "shared/device.cuh"
#include "shared/gelu.cuh"
#include "shared/interface.h"

using namespace ribsr;

namespace {

struct Problem {
  Map in, out;
  const uint16_t *weight, *bias;
  int batch, channels, height, width;
  // Of the walk: units of kChannels channels, those of a block, such blocks; blocks per row; rows per strip.
  int units, block_units, unit_blocks, column_blocks, rows, strips;
};

constexpr int kThreads = 320;
constexpr int kResident = 2;  // blocks per multiprocessor
constexpr int kChannels = 4;  // of a thread: 8 bytes of a pixel
constexpr int kColumns = 2;   // of a thread
constexpr int kUnits = 24;    // the most of a block: 192 bytes of a pixel
constexpr int kWords = kChannels / 2;

// A row in shared memory, in units of 8 bytes: the columns of all threads, last one first, and in front and behind what
// the first and the last kUnits threads need from other blocks. So everybody's neighbours are as far away.
constexpr int kRow = kUnits + kColumns * kThreads + kUnits;
constexpr int kPair = 2 * kRow;

// 8 bytes from global to shared memory; zeros when not valid.
__device__ __forceinline__ void copy_half(uint32_t to, const void *from, bool valid) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 8, %2;" ::"r"(to), "l"(from), "r"(valid ? 8 : 0) : "memory");
}

__device__ __forceinline__ uint2 load_half(uint32_t from) {
  uint2 v;
  asm volatile("ld.shared.v2.b32 {%0, %1}, [%2];" : "=r"(v.x), "=r"(v.y) : "r"(from) : "memory");
  return v;
}

__device__ __forceinline__ void store_half(void *to, uint32_t low, uint32_t high) {
  asm volatile("st.global.v2.b32 [%0], {%1, %2};" ::"l"(to), "r"(low), "r"(high) : "memory");
}

__device__ __forceinline__ void store_half_shared(uint32_t to, uint32_t low, uint32_t high) {
  asm volatile("st.shared.v2.b32 [%0], {%1, %2};" ::"r"(to), "r"(low), "r"(high) : "memory");
}

using Row = uint2[kColumns + 2];  // a thread's columns and one more on either side
using Sums = float[kColumns][kChannels];

// An address `pieces` times 16 bytes on, in one instruction. Within a vectorised map such offsets fit 32 bits.
template <class T>
__device__ __forceinline__ T *advance(T *from, unsigned pieces) {
  uint64_t result;
  asm("mad.wide.u32 %0, %1, 16, %2;" : "=l"(result) : "r"(pieces), "l"(from));
  return reinterpret_cast<T *>(result);
}

// A thread's channels at one of its columns.
struct Part {
  uint16_t *first;  // in the image's first row
  unsigned row, column;

  __device__ __forceinline__ Part(const Map &map, int image, int channel, int x)
      : first(map.data + image * map.batch + channel + x * map.column),
        row(static_cast<unsigned>(map.row / 8)),
        column(static_cast<unsigned>(map.column / 8)) {}
};

template <bool InputGelu, bool Gelu, bool BF16>
__global__ void __launch_bounds__(kThreads, kResident) convolve(const __grid_constant__ Problem problem) {
  __shared__ __align__(16) float block_weight[kUnits * kChannels][9];
  __shared__ __align__(16) float block_bias[kUnits * kChannels];
  __shared__ uint2 ring[3 * kPair];  // pairs of rows: one in use, one on its way, one that some have not left yet
  int block = blockIdx.x;
  const int first_unit = block % problem.unit_blocks * problem.block_units;
  block /= problem.unit_blocks;
  const int item = block % problem.column_blocks * kThreads + threadIdx.x;
  block /= problem.column_blocks;
  const int top = block % problem.strips * problem.rows;
  const int image = block / problem.strips;

  const int first_channel = first_unit * kChannels;
  for (int i = threadIdx.x; i < problem.block_units * kChannels * 9; i += kThreads) {
    const int channel = i / 9;
    const bool exists = first_channel + channel < problem.channels;
    block_weight[channel][i - 9 * channel] = exists ? unpack<BF16>(problem.weight[first_channel * 9 + i]).x : 0.0f;
  }
  for (int i = threadIdx.x; i < problem.block_units * kChannels; i += kThreads) {
    const bool exists = first_channel + i < problem.channels;
    block_bias[i] = exists ? unpack<BF16>(problem.bias[first_channel + i]).x : 0.0f;
  }
  __syncthreads();

  const int column_group = item / problem.block_units;
  const int own_unit = item - column_group * problem.block_units;
  const int left = column_group * kColumns;
  const bool idle = first_unit + own_unit >= problem.units;
  const int channel = first_channel + own_unit * kChannels;

  float weight[kChannels][9], bias[kChannels];
  uint32_t existing[kWords];  // channels, as masks: zeros are written to padding
  {
    const auto *from = reinterpret_cast<const float4 *>(block_weight[own_unit * kChannels]);
    float flat[kChannels * 9];
#pragma unroll
    for (int i = 0; i < kChannels * 9 / 4; ++i) {
      const float4 four = from[i];
      flat[4 * i] = four.x;
      flat[4 * i + 1] = four.y;
      flat[4 * i + 2] = four.z;
      flat[4 * i + 3] = four.w;
    }
#pragma unroll
    for (int c = 0; c < kChannels; ++c) {
      bias[c] = block_bias[own_unit * kChannels + c];
#pragma unroll
      for (int t = 0; t < 9; ++t) weight[c][t] = flat[9 * c + t];
    }
#pragma unroll
    for (int word = 0; word < kWords; ++word) {
      const int count = problem.channels - channel - 2 * word;
      existing[word] = count >= 2 ? 0xffffffffu : count == 1 ? 0xffffu : 0;
      asm volatile("" : "+r"(existing[word]));  // not to be worked out again for each row
    }
  }

  // Rows top - 1 to bottom go in, two at a time, and rows top to bottom - 1 come out.
  const int bottom = min(top + problem.rows, problem.height);
  const unsigned last = min(bottom, problem.height - 1);
  const Part in(problem.in, image, channel, left), out(problem.out, image, channel, left);
  const auto inside = [&](int column) { return !idle && static_cast<unsigned>(left + column) < problem.width; };

  const auto place = [](int column) { return kUnits + (kColumns - 1 - column) * kThreads; };
  const uint32_t ring_address = shared_address(ring);
  uint32_t pair = ring_address + 8 * threadIdx.x;  // the one in use, and this thread's place in it
  uint32_t spare = pair + 2 * 8 * kPair;            // the one that rows are fetched to
  const uint32_t all = 3 * pair + 3 * 8 * kPair;   // sum of the three
  const int before = 8 * (place(kColumns - 1) - problem.block_units);  // where the neighbours' columns are
  const int after = 8 * (place(0) + problem.block_units);
  // The first and the last threads fetch them too.
  const bool first = threadIdx.x < problem.block_units, halo = first || threadIdx.x >= kThreads - problem.block_units;
  const int halo_column = first ? -1 : kColumns;
  const bool halo_inside = inside(halo_column);
  const Part halo_in(problem.in, image, channel, left + halo_column);
  int halo_place = first ? before : after;
  asm volatile("" : "+r"(halo_place));  // not to be worked out again for each row

  // Rows y and y + 1 to `spare`. What is outside the map is not read, and zero.
  const auto fetch = [&](int y) {
#pragma unroll
    for (int slot = 0; slot < 2; ++slot) {
      const unsigned row = y + slot;  // beyond every other when above the map
      const uint32_t to = spare + 8 * kRow * slot;
      const uint16_t *line = advance(in.first, row * in.row);
#pragma unroll
      for (int c = 0; c < kColumns; ++c) {
        copy_half(to + 8 * place(c), advance(line, c * in.column), inside(c) && row <= last);
      }
      if (halo) copy_half(to + halo_place, advance(halo_in.first, row * in.row), halo_inside && row <= last);
    }
    copy_commit();
  };
  const auto apply_gelu = [&](uint32_t address) {
    const uint2 both = load_half(address);
    uint32_t words[kWords] = {both.x, both.y};
#pragma unroll
    for (int word = 0; word < kWords; ++word) words[word] = gelu_packed<BF16>(words[word]);
    store_half_shared(address, words[0], words[1]);
  };
  // Once all have the next pair and nobody is at `spare` any more, fetch rows y and y + 1 there.
  const auto turn = [&](int y) {
    copy_wait<1>();
    if constexpr (InputGelu) {
#pragma unroll
      for (int slot = 0; slot < 2; ++slot) {
#pragma unroll
        for (int c = 0; c < kColumns; ++c) apply_gelu(pair + 8 * (kRow * slot + place(c)));
        if (halo) apply_gelu(pair + 8 * kRow * slot + halo_place);
      }
    }
    __syncthreads();
    fetch(y);
  };
  const auto leave = [&] {
    const uint32_t next = all - pair - spare;
    spare = pair;
    pair = next;
  };

  uint2 centre[kColumns];  // of the row above
  Sums begun = {};         // of the row at hand: its upper taps
  Sums awaited = {};       // of the row above: all but its lower taps
  // The row in a slot of the pair goes in, and the one above it is done.
  const auto take = [&](int slot, Row &row, Sums &done) {
    const uint32_t from = pair + 8 * kRow * slot;
    row[0] = load_half(from + before);
#pragma unroll
    for (int c = 0; c < kColumns; ++c) row[c + 1] = load_half(from + 8 * place(c));
    row[kColumns + 1] = load_half(from + after);
#pragma unroll
    for (int word = 0; word < kWords; ++word) {
      float2 x[kColumns + 2];
#pragma unroll
      for (int i = 0; i < kColumns + 2; ++i) x[i] = unpack<BF16>(word == 0 ? row[i].x : row[i].y);
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int c = 2 * word + half;
#pragma unroll
        for (int column = 0; column < kColumns; ++column) {
          float above = awaited[column][c], own = begun[column][c], below = bias[c];
#pragma unroll
          for (int tap = 0; tap < 3; ++tap) {
            const float value = half == 0 ? x[column + tap].x : x[column + tap].y;
            above = fmaf(value, weight[c][6 + tap], above);
            own = fmaf(value, weight[c][3 + tap], own);
            below = fmaf(value, weight[c][tap], below);
          }
          done[column][c] = above;
          awaited[column][c] = own;
          begun[column][c] = below;
        }
      }
    }
  };
  const auto keep = [&](const Row &row) {
#pragma unroll
    for (int column = 0; column < kColumns; ++column) centre[column] = row[column + 1];
  };
  const auto emit = [&](const Sums &done, int y) {
    uint16_t *line = advance(out.first, y * out.row);
#pragma unroll
    for (int column = 0; column < kColumns; ++column) {
      uint32_t words[kWords];
#pragma unroll
      for (int word = 0; word < kWords; ++word) {
        const float low = done[column][2 * word], high = done[column][2 * word + 1];
        const uint32_t middle = word == 0 ? centre[column].x : centre[column].y;
        if constexpr (Gelu && BF16) {
          const float2 x = unpack<BF16>(middle);
          words[word] = pack<BF16>(x.x + gelu(low), x.y + gelu(high));
        } else if constexpr (Gelu) {
          words[word] = add_packed<BF16>(middle, gelu_packed<BF16>(low, high));
        } else {
          words[word] = pack<BF16>(low, high);
        }
        words[word] &= existing[word];
      }
      if (y < bottom && inside(column)) store_half(advance(line, column * out.column), words[0], words[1]);
    }
  };

  // The first two fetches go to the pairs that are first in use.
  leave();
  fetch(top - 1);
  leave();
  fetch(top + 1);
  leave();
  Row row;
  Sums done;
  turn(top + 3);
#pragma unroll
  for (int slot = 0; slot < 2; ++slot) {
    take(slot, row, done);
    keep(row);
  }
  leave();
  for (int y = top; y < bottom; y += 2) {
    turn(y + 5);
#pragma unroll
    for (int slot = 0; slot < 2; ++slot) {
      take(slot, row, done);
      emit(done, y + slot);
      keep(row);
    }
    leave();
  }
  copy_wait<0>();
}

// `fast`: the axis along which neighbouring threads go, channels where they are adjacent in memory, else columns.
template <bool InputGelu, bool Gelu, bool BF16>
__global__ void __launch_bounds__(kThreads) convolve_any(const __grid_constant__ Problem problem) {
  const bool by_channel = problem.in.channel == 1;
  const int fast = by_channel ? problem.channels : problem.width, slow = by_channel ? problem.width : problem.channels;
  const long long lines = 1ll * problem.batch * problem.height * slow;
  for (long long line = blockIdx.y; line < lines; line += gridDim.y) {
    const int across = line % slow;
    const int y = line / slow % problem.height;
    const int image = line / slow / problem.height;
    for (int i = blockIdx.x * kThreads + threadIdx.x; i < fast; i += gridDim.x * kThreads) {
      const int channel = by_channel ? i : across, x = by_channel ? across : i;
      const uint16_t *from = problem.in.data + image * problem.in.batch + channel * problem.in.channel;
      const uint16_t *weight = problem.weight + 9ll * channel;
      const auto input = [&](int row, int column) {
        const float x = unpack<BF16>(from[row * problem.in.row + column * problem.in.column]).x;
        return InputGelu ? gelu(x) : x;
      };
      float sum = unpack<BF16>(problem.bias[channel]).x;
      for (int tap = 0; tap < 9; ++tap) {
        const int row = y + tap / 3 - 1, column = x + tap % 3 - 1;
        if (row < 0 || row >= problem.height || column < 0 || column >= problem.width) continue;
        sum = fmaf(input(row, column), unpack<BF16>(weight[tap]).x, sum);
      }
      if constexpr (Gelu) sum = input(y, x) + gelu(sum);
      problem.out.data[image * problem.out.batch + channel * problem.out.channel + y * problem.out.row +
                       x * problem.out.column] = static_cast<uint16_t>(pack<BF16>(sum, 0.0f));
    }
  }
}

long long divide_up(long long size, long long part) { return (size + part - 1) / part; }

// Strips such that the last of the waves of blocks is full and few rows are read twice; blocks of the whole grid.
long long plan_walk(Problem &p, int multiprocessors) {
  p.units = 2 * static_cast<int>(divide_up(p.channels, 2 * kChannels));
  p.unit_blocks = static_cast<int>(divide_up(p.units, kUnits));
  p.block_units = static_cast<int>(divide_up(p.units, p.unit_blocks));
  p.column_blocks = static_cast<int>(divide_up(divide_up(p.width, kColumns) * p.block_units, kThreads));
  const long long columns = 1ll * p.batch * p.unit_blocks * p.column_blocks;
  const long long resident = static_cast<long long>(kResident) * multiprocessors;
  long long least = 0;
  for (int strips = 1; strips <= p.height && strips <= 4096; ++strips) {
    const auto rows = static_cast<int>(divide_up(p.height, strips));
    const auto used = static_cast<int>(divide_up(p.height, rows));
    constexpr int kStart = 4;  // two rows more than come out, and what a block costs before its first
    const long long cost = divide_up(columns * used, resident) * (rows + kStart);
    if (least == 0 || cost < least) {
      least = cost;
      p.rows = rows;
      p.strips = used;
    }
  }
  return columns * p.strips;
}

template <bool InputGelu, bool Gelu, bool BF16>
int32_t launch(const Problem &problem, int multiprocessors, bool fast, cudaStream_t stream) {
  Problem p = problem;
  if (fast) {
    const long long blocks = plan_walk(p, multiprocessors);
    RIBSR_CHECK(blocks < (1ll << 31), "the map is too large: %lld blocks", blocks);
    convolve<InputGelu, Gelu, BF16><<<static_cast<unsigned>(blocks), kThreads, 0, stream>>>(p);
  } else {
    const bool by_channel = p.in.channel == 1;
    const long long lines = 1ll * p.batch * p.height * (by_channel ? p.width : p.channels);
    const dim3 grid(static_cast<unsigned>(divide_up(by_channel ? p.channels : p.width, kThreads)),
                    static_cast<unsigned>(lines < 65535 ? lines : 65535));
    convolve_any<InputGelu, Gelu, BF16><<<grid, kThreads, 0, stream>>>(p);
  }
  return launched(cudaGetLastError());
}

}  // namespace

extern "C" int32_t ribsr_depthwise(const RibsrDepthwiseParams *params, void *stream) {
  clear_message();
  int32_t code = check_common(params);
  if (code != RIBSR_OK) return code;
  const RibsrDepthwiseParams &p = *params;
  RIBSR_CHECK(p.epilogue == RIBSR_EPILOGUE_NONE || p.epilogue == RIBSR_EPILOGUE_ADD_GELU,
              "epilogue %d is unknown: use 0 or 1", p.epilogue);
  RIBSR_CHECK(p.input_gelu == 0 || p.input_gelu == 1, "input_gelu is %d: it must be 0 or 1", p.input_gelu);
  RIBSR_CHECK(p.channels > 0 && p.channels <= (1 << 20), "channels is %d: it must be 1 to 2^20", p.channels);
  RIBSR_CHECK(p.in.data && p.out.data && p.weight && p.bias, "an array is null");
  RIBSR_CHECK(p.in.data != p.out.data, "in and out are the same memory: they must not overlap");
  Device device;
  code = current_device(&device);
  if (code != RIBSR_OK) return code;

  Problem problem{};
  problem.in = map_of(p.in);
  problem.out = map_of(p.out);
  problem.weight = static_cast<const uint16_t *>(p.weight);
  problem.bias = static_cast<const uint16_t *>(p.bias);
  problem.batch = p.batch;
  problem.channels = p.channels;
  problem.height = p.height;
  problem.width = p.width;
  const bool fast = vectorised(p.in, p.height, p.width) && vectorised(p.out, p.height, p.width) &&
                    whole_vectors(p.out, p.channels);
  constexpr decltype(&launch<false, false, false>) kLaunchers[] = {
      launch<false, false, false>, launch<false, false, true>, launch<false, true, false>, launch<false, true, true>,
      launch<true, false, false>,  launch<true, false, true>,  launch<true, true, false>,  launch<true, true, true>};
  const bool add_gelu = p.epilogue == RIBSR_EPILOGUE_ADD_GELU, bf16 = p.dtype == RIBSR_BFLOAT16;
  const auto launcher = kLaunchers[4 * p.input_gelu + 2 * add_gelu + bf16];
  return launcher(problem, device.multiprocessors, fast, static_cast<cudaStream_t>(stream));
}
