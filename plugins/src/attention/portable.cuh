// Compute capability 8.0 and later: mma.sync. Any layout, any D and R up to 64.
//
// A block is up to eight warps of 32 query rows of one (window, head). A warp's rows are two blocks of 16, so that what
// it reads of a key serves twice: with one, ldmatrix would be the limit. Queries go straight from global memory to
// registers. Keys pass in tiles of 64 or 128, as a ring of three in shared memory, which needs one barrier a tile. A
// warp has the scores of 32 keys at a time, so that 128 registers suffice and 16 warps fit a multiprocessor, on
// consumers' GPUs too, where blocks share 100 KiB.
//
// The address of a token's pixel is that of the window's row plus the offset of the window's column. A block computes
// both for all rows and columns in advance, with all that rolling and reflecting takes.
//
// Keys, values and RIB factors lie in shared memory as one row per token, swizzled: the pieces of one pixel stay
// together, and ldmatrix meets no bank conflict. VARIANTS.md says what else was counted.
#pragma once

#include "attention/common.cuh"

namespace ribsr {
namespace portable {

constexpr int kWarps = 8;      // of a block, at most
constexpr int kResident = 16;  // warps of a multiprocessor, which bounds the registers, unless D + R is more than 64
constexpr int kRows = 32;      // queries of a warp
constexpr int kBlocks = 2;     // of 16 rows
constexpr int kTaken = 32;     // keys whose scores a warp has at a time
constexpr int kStages = 3;     // tiles in shared memory
constexpr int kSide = 128;     // of a window, at most

// What a block needs to know of its (window, head): in shared memory, as there are no registers to spare.
struct alignas(128) Places {
  const char *rows[kSide];   // the head's first channel of the keys in each row's column 0
  long long columns[kSide];  // bytes from there
  const uint16_t *rib_q, *rib_k;
  Unit unit;
  int first_query;
};

template <int D, int R>
struct Layout {
  static constexpr int kKeys = D + R <= 40 ? 128 : 64;  // of a tile: two blocks are to share 100 KiB
  static constexpr int kValueOffset = kKeys * D * 2;    // in a stage: keys, values, factors
  static constexpr int kFactorOffset = 2 * kValueOffset;
  static constexpr int kStageBytes = kFactorOffset + kKeys * R * 2;
  static constexpr int kSteps = D / 16 + (R + 15) / 16;  // of a product with [k, rib_k], the last one perhaps a half

  static int bytes(int tokens) {
    const int tiles = (tokens + kKeys - 1) / kKeys;
    return static_cast<int>(sizeof(Places)) + (tiles < kStages ? tiles : kStages) * kStageBytes;
  }
};

__device__ __forceinline__ void locate_places(Places &places, const Shape &shape) {
  const Unit unit = locate(shape, blockIdx.x / shape.query_blocks);
  if (threadIdx.x == 0) {
    const long long factors = static_cast<long long>(unit.head) * shape.tokens * shape.rank;
    places.rib_q = shape.rib_q + factors;
    places.rib_k = shape.rib_k + factors;
    places.unit = unit;
    places.first_query = blockIdx.x % shape.query_blocks * blockDim.x;  // a thread a query
  }
  const int n = blockIdx.x % shape.query_blocks * blockDim.x + threadIdx.x;  // a thread a query
  const Pixel p = padded_pixel(shape, unit, n);
  if (n < shape.tokens && p.y < shape.height && p.x < shape.width) {
    // Needed at the end, when there is nothing to wait with.
    prefetch(shape.gate.data + element(shape.gate, unit.batch, unit.head * shape.head_width, p));
  }
  const Map &map = shape.qkv;
  const uint16_t *head = map.data + element(map, unit.batch, (shape.heads + unit.head) * shape.head_width, {0, 0});
  for (int i = threadIdx.x; i < shape.window_height + shape.window_width; i += blockDim.x) {
    const int column = i - shape.window_height;
    if (column < 0) {
      const int y = source_coordinate(unit.row + i, shape.padded_height, shape.height);
      places.rows[i] = reinterpret_cast<const char *>(head + y * map.row);
    } else {
      const int x = source_coordinate(unit.column + column, shape.padded_width, shape.width);
      places.columns[column] = x * map.column * static_cast<long long>(sizeof(uint16_t));
    }
  }
}

// The keys of token n. Tokens past the window repeat the last one: their scores are masked, so that only their being
// finite matters.
__device__ __forceinline__ const uint16_t *key_of(const Places &places, const Shape &shape, int n) {
  n = min(n, shape.tokens - 1);
  const int row = __umulhi(n, shape.row_magic);
  return reinterpret_cast<const uint16_t *>(places.rows[row] + places.columns[n - row * shape.window_width]);
}

__device__ __forceinline__ const uint16_t *factor_of(const uint16_t *factors, const Shape &shape, int n) {
  return factors + min(n, shape.tokens - 1) * shape.rank;
}

// Two channels from a strided array, zeros past `count`.
template <bool Vectorised>
__device__ __forceinline__ uint32_t load_pair(const uint16_t *from, long long stride, int channel, int count) {
  if constexpr (Vectorised) {
    return channel < count ? __ldg(reinterpret_cast<const uint32_t *>(from + channel)) : 0;
  } else {
    const uint32_t low = channel < count ? __ldg(from + channel * stride) : 0;
    const uint32_t high = channel + 1 < count ? __ldg(from + (channel + 1) * stride) : 0;
    return low | high << 16;
  }
}

// Eight likewise, to shared memory.
template <bool Vectorised>
__device__ __forceinline__ void load_piece(uint32_t to, const uint16_t *from, long long stride, int channel,
                                           int count) {
  if constexpr (Vectorised) {
    copy_async(to, from + (channel < count ? channel : 0), channel < count);
  } else {
    uint32_t v[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) v[i] = load_pair<false>(from, stride, channel + 2 * i, count);
    store_shared(to, v[0], v[1], v[2], v[3]);
  }
}

// From the keys to the values, and from the queries to the keys.
template <bool Vectorised>
__device__ __forceinline__ long long apart(const Shape &shape) {
  const int channels = shape.heads * shape.head_width;
  return Vectorised ? channels : channels * shape.qkv.channel;
}

// Keys, values and RIB factors of a tile's tokens from `first` on, as many as a warp's steps read.
template <int D, int R, bool Vectorised>
__device__ __forceinline__ void load_keys(uint32_t to, const Shape &shape, const Places &places, int first) {
  using L = Layout<D, R>;
  const unsigned keys = min(L::kKeys, (shape.tokens - first + kTaken - 1) / kTaken * kTaken);
#pragma unroll 1
  for (unsigned i = threadIdx.x; i < keys * (D / 8); i += blockDim.x) {
    const uint16_t *key = key_of(places, shape, first + i / (D / 8));
    const int channel = i % (D / 8) * 8;
    const uint32_t there = to + swizzled<2 * D>(0, i);
    load_piece<Vectorised>(there, key, shape.qkv.channel, channel, shape.head_width);
    load_piece<Vectorised>(there + L::kValueOffset, key + apart<Vectorised>(shape), shape.qkv.channel, channel,
                           shape.head_width);
  }
#pragma unroll 1
  for (unsigned i = blockDim.x - 1 - threadIdx.x; i < keys * (R / 8); i += blockDim.x) {  // begun by the last threads
    load_piece<Vectorised>(to + L::kFactorOffset + swizzled<2 * R>(0, i),
                           factor_of(places.rib_k, shape, first + i / (R / 8)), 1, i % (R / 8) * 8, shape.rank);
  }
}

// [q, rib_q] of a warp's rows from `first` on, as A operands of 16 channels each.
template <int D, int R, bool Vectorised>
__device__ __forceinline__ void load_queries(uint32_t (&query)[kBlocks][Layout<D, R>::kSteps][4], const Shape &shape,
                                             const Places &places, int first) {
  const int channel = 2 * (threadIdx.x & 3);
#pragma unroll
  for (int i = 0; i < 2 * kBlocks; ++i) {
    const int n = first + 8 * i + ((threadIdx.x & 31) >> 2);
    const uint16_t *q = key_of(places, shape, n) - apart<Vectorised>(shape);
    const uint16_t *factor = factor_of(places.rib_q, shape, n);
#pragma unroll
    for (int j = 0; j < D / 8; ++j) {
      query[i / 2][j / 2][2 * (j % 2) + i % 2] =
          load_pair<Vectorised>(q, shape.qkv.channel, 8 * j + channel, shape.head_width);
    }
#pragma unroll
    for (int j = 0; j < R / 8; ++j) {
      query[i / 2][D / 16 + j / 2][2 * (j % 2) + i % 2] = load_pair<Vectorised>(factor, 1, 8 * j + channel, shape.rank);
    }
  }
}

// Where in a tile a lane's row for ldmatrix is; k times 16 channels further on it is at that address exclusive or 32 k,
// as tiles begin at multiples of 128 bytes. Kept in registers, not to be worked out again for each step.
template <int D, int R>
struct Lane {
  uint32_t keys, factors;  // matrices: 8 keys' first 8 channels, their second 8; the same of the next 8 keys
  uint32_t values;         // 8 keys' first 8 channels, the next 8 keys'; the same of the second 8 channels
  uint32_t rest;           // 32 keys' last 8 channels of the factors

  __device__ __forceinline__ Lane() {
    const int lane = threadIdx.x & 31, key = lane >> 4 << 3 | (lane & 7), half = lane >> 3 & 1;
    keys = swizzled<2 * D>(key, half);
    values = swizzled<2 * D>(lane & 15, lane >> 4);
    asm volatile("" : "+r"(keys), "+r"(values));
    factors = D == R ? keys : swizzled<2 * R>(key, half);
    if constexpr (D != R) asm volatile("" : "+r"(factors));
    rest = swizzled<2 * R>(lane, R / 8 - 1);
    if constexpr (R % 16 != 0 && D <= 16) asm volatile("" : "+r"(rest));  // else there is no register left
  }
};

// scores = [q, rib_q] [k, rib_k], of kTaken keys.
template <int D, int R, bool BF16>
__device__ __forceinline__ void multiply_queries(float (&scores)[kBlocks][kTaken / 2],
                                                 const uint32_t (&query)[kBlocks][Layout<D, R>::kSteps][4],
                                                 uint32_t keys, uint32_t factors, const Lane<D, R> &lane) {
  keys += lane.keys;
#pragma unroll
  for (int k = 0; k < D / 16 + R / 16; ++k) {
    const int j = k - D / 16;
    const uint32_t from = j < 0 ? keys ^ 32 * k : (factors + lane.factors) ^ 32 * j;
#pragma unroll
    for (int n = 0; n < kTaken / 16; ++n) {
      uint32_t b[4];  // keys 16n .. 16n + 7: b[0], b[1]; the next eight: b[2], b[3]
      load_matrices(b, from + 16 * n * (j < 0 ? 2 * D : 2 * R));
#pragma unroll
      for (int i = 0; i < kBlocks; ++i) {
        if (k == 0) {
          multiply<BF16>(scores[i] + 8 * n, query[i][k], b[0], b[1]);
          multiply<BF16>(scores[i] + 8 * n + 4, query[i][k], b[2], b[3]);
        } else {
          multiply_add<BF16>(scores[i] + 8 * n, query[i][k], b[0], b[1]);
          multiply_add<BF16>(scores[i] + 8 * n + 4, query[i][k], b[2], b[3]);
        }
      }
    }
  }
  if constexpr (R % 16 != 0) {  // eight channels are left
#pragma unroll
    for (int n = 0; n < kTaken / 32; ++n) {
      uint32_t b[4];  // of eight keys each
      load_matrices(b, factors + lane.rest + 32 * n * 2 * R);
#pragma unroll
      for (int i = 0; i < kBlocks; ++i) {
        const uint32_t(&a)[4] = query[i][D / 16 + R / 16];
#pragma unroll
        for (int j = 0; j < 4; ++j) multiply_add<BF16>(scores[i] + 16 * n + 4 * j, a[0], a[1], b[j]);
      }
    }
  }
}

// What a warp has summed of its rows.
template <int D>
struct Sums {
  float output[kBlocks][D / 2];
  Rows rows[kBlocks];
};

// Adds kTaken keys, of which the first `valid` exist. keys, factors: where their rows begin. begin: they are the first.
template <int D, int R, bool BF16>
__device__ __forceinline__ void attend(Sums<D> &sums, const Shape &shape,
                                       const uint32_t (&query)[kBlocks][Layout<D, R>::kSteps][4], uint32_t keys,
                                       uint32_t factors, int valid, bool begin, const Lane<D, R> &lane) {
  float sum[kBlocks][2];
  uint32_t probabilities[kBlocks][kTaken / 16][4];
  bool move = begin, again;
  do {  // once more if the references must move: there are no registers to keep the scores in
    float scores[kBlocks][kTaken / 2], all;
    multiply_queries<D, R, BF16>(scores, query, keys, factors, lane);
    if (move || valid < kTaken) {
#pragma unroll
      for (int i = 0; i < kBlocks; ++i) {
        if (valid < kTaken) mask<kTaken>(scores[i], valid);
        if (move) move_reference<kTaken>(scores[i], sums.output[i], sums.rows[i], shape.exponent_scale);
      }
    }
#pragma unroll
    for (int i = 0; i < kBlocks; ++i) {
      exponentials<kTaken, BF16>(scores[i], probabilities[i], sum[i], sums.rows[i], shape.exponent_scale);
      all = i == 0 ? sum[i][0] + sum[i][1] : all + (sum[i][0] + sum[i][1]);
    }
    again = !move && __any_sync(kAllLanes, !(all <= kLimit));
    move = true;
  } while (again);
#pragma unroll
  for (int i = 0; i < kBlocks; ++i) {
    sums.rows[i].sum[0] += sum[i][0];
    sums.rows[i].sum[1] += sum[i][1];
  }
  const uint32_t values = keys + Layout<D, R>::kValueOffset + lane.values;
#pragma unroll
  for (int k = 0; k < kTaken / 16; ++k) {
#pragma unroll
    for (int n = 0; n < D / 16; ++n) {
      uint32_t b[4];  // channels 16n .. 16n + 7: b[0], b[1]; the next eight: b[2], b[3]
      load_matrices_transposed(b, (values ^ 32 * n) + 16 * k * 2 * D);
#pragma unroll
      for (int i = 0; i < kBlocks; ++i) {
        multiply_add<BF16>(sums.output[i] + 8 * n, probabilities[i][k], b[0], b[1]);
        multiply_add<BF16>(sums.output[i] + 8 * n + 4, probabilities[i][k], b[2], b[3]);
      }
    }
  }
}

template <int D, int R, bool BF16>
__global__ void __launch_bounds__(32 * kWarps, D + R <= 64 ? kResident / kWarps : 1)
    attention(const __grid_constant__ Shape shape) {
  using L = Layout<D, R>;
  extern __shared__ __align__(128) uint8_t memory[];
  Places &places = *reinterpret_cast<Places *>(memory);
  const uint32_t stages = shared_address(memory) + sizeof(Places);
  const auto first_row = [&] { return places.first_query + static_cast<int>(threadIdx.x) / kRows * kRows; };

  const auto load_tile = [&](uint32_t to, int first) {
    if (first < shape.tokens) {
      if (shape.vectorised) {
        load_keys<D, R, true>(to, shape, places, first);
      } else {
        load_keys<D, R, false>(to, shape, places, first);
      }
    }
    copy_commit();
  };

  locate_places(places, shape);
  __syncthreads();
#pragma unroll 1
  for (int i = 0; i < kStages - 1; ++i) load_tile(stages + i * L::kStageBytes, i * L::kKeys);
  uint32_t query[kBlocks][L::kSteps][4];
  if (shape.vectorised) {
    load_queries<D, R, true>(query, shape, places, first_row());
  } else {
    load_queries<D, R, false>(query, shape, places, first_row());
  }

  Sums<D> sums;
#pragma unroll
  for (int i = 0; i < kBlocks; ++i) {
    reset(sums.rows[i]);
#pragma unroll
    for (float &x : sums.output[i]) x = 0.0f;
  }

  const Lane<D, R> lane;
  constexpr uint32_t kLast = (kStages - 1) * L::kStageBytes;
  uint32_t stage = 0;
#pragma unroll 1
  for (int left = shape.tokens; left > 0; left -= L::kKeys) {
    copy_wait<kStages - 2>();
    __syncthreads();
    load_tile(stages + (stage == 0 ? kLast : stage - L::kStageBytes), shape.tokens - left + (kStages - 1) * L::kKeys);
    if (first_row() < shape.tokens) {
#pragma unroll
      for (int first = 0; first < L::kKeys; first += kTaken) {
        if (first < left) {
          const uint32_t keys = stages + stage + first * 2 * D;
          const uint32_t factors = stages + stage + L::kFactorOffset + first * 2 * R;
          attend<D, R, BF16>(sums, shape, query, keys, factors, left - first, left - first == shape.tokens, lane);
        }
      }
    }
    stage = stage == kLast ? 0 : stage + L::kStageBytes;
  }

  const Unit unit = places.unit;
  Pieces<D> pieces[kBlocks];
  uint4 gate[kBlocks][D / 16];
  if (shape.vectorised) {
#pragma unroll
    for (int i = 0; i < kBlocks; ++i) {
      locate_pieces<D>(pieces[i], shape, unit, first_row() + 16 * i);
      load_gate<D>(gate[i], pieces[i], shape, unit);
    }
  }
#pragma unroll
  for (int i = 0; i < kBlocks; ++i) {
    const float *sum = sums.rows[i].sum;
    const float inverse[2] = {1.0f / quad_sum(sum[0]), 1.0f / quad_sum(sum[1])};
    if (shape.vectorised) {
      store_vectorised<D, BF16>(sums.output[i], inverse, gate[i], pieces[i], shape, unit);
    } else {
      store_elements<D, BF16>(sums.output[i], inverse, shape, unit, first_row() + 16 * i);
    }
  }
}

}  // namespace portable
}  // namespace ribsr
