// Compute capability 8.0 and later: mma.sync. Any layout, any D and R up to 64.
//
// A block is four warps of 16 query rows; keys pass in tiles of 64, double-buffered. Tiles lie in shared memory as
// [8 channels][row][8]: the rows of an 8x8 block are 128 contiguous bytes, so that ldmatrix meets no bank conflict.
#pragma once

#include "attention/common.cuh"

namespace ribsr {
namespace portable {

constexpr int kThreads = 128;
constexpr int kRows = 64;  // queries of a block, and keys of a tile
constexpr int kGroupBytes = kRows * 16 + 32;  // the 32 spread the pieces of one pixel over the banks

template <int D, int R>
constexpr int shared_bytes() {
  return kGroupBytes * ((D + R) / 8 + 2 * ((D + R) / 8 + D / 8));
}

// Eight channels of 16 bits from a strided array, zeros past `count`.
__device__ __forceinline__ void load_group(uint32_t to, const uint16_t *from, long long stride, int count) {
  uint32_t v[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const uint32_t low = 2 * i < count ? from[2 * i * stride] : 0;
    const uint32_t high = 2 * i + 1 < count ? from[(2 * i + 1) * stride] : 0;
    v[i] = low | high << 16;
  }
  store_shared(to, v[0], v[1], v[2], v[3]);
}

// Tokens first .. first + 63 of one of q, k, v (`channel`: of its first channel).
template <int D>
__device__ __forceinline__ void load_map(uint32_t to, const Shape &shape, const Unit &unit, int channel, int first) {
  for (int i = threadIdx.x; i < kRows * (D / 8); i += kThreads) {
    const int row = i / (D / 8), group = i % (D / 8), n = first + row;
    const uint32_t target = to + group * kGroupBytes + row * 16;
    const int count = n < shape.tokens ? shape.head_width - 8 * group : 0;
    const uint16_t *source = shape.qkv.data;
    if (count > 0) source += element(shape.qkv, unit.batch, channel + 8 * group, source_pixel(shape, unit, n));
    if (shape.vectorised) {
      copy_async(target, source, count > 0);
    } else {
      load_group(target, source, shape.qkv.channel, count);
    }
  }
}

// Rows first .. first + 63 of a head's RIB factor.
template <int R>
__device__ __forceinline__ void load_factor(uint32_t to, const Shape &shape, const uint16_t *factor, int head,
                                            int first) {
  const bool vectorised = shape.rank % 8 == 0 && reinterpret_cast<uintptr_t>(factor) % 16 == 0;
  for (int i = threadIdx.x; i < kRows * (R / 8); i += kThreads) {
    const int row = i / (R / 8), group = i % (R / 8), n = first + row;
    const uint32_t target = to + group * kGroupBytes + row * 16;
    const int count = n < shape.tokens ? shape.rank - 8 * group : 0;
    const uint16_t *source = factor;
    if (count > 0) source += (static_cast<long long>(head) * shape.tokens + n) * shape.rank + 8 * group;
    if (vectorised) {
      copy_async(target, source, count > 0);
    } else {
      load_group(target, source, 1, count);
    }
  }
}

template <int D, int R, bool BF16>
__global__ void __launch_bounds__(kThreads) attention(const __grid_constant__ Shape shape) {
  constexpr int kGroups = (D + R) / 8;  // of 8 channels, of [q, rib_q] and [k, rib_k]
  constexpr int kStage = (kGroups + D / 8) * kGroupBytes;
  extern __shared__ __align__(128) uint8_t memory[];
  const uint32_t queries = shared_address(memory), stages = queries + kGroups * kGroupBytes;

  const Unit unit = locate(shape, blockIdx.x / shape.query_blocks);
  const int first_query = blockIdx.x % shape.query_blocks * kRows;
  const int tiles = (shape.tokens + kRows - 1) / kRows;
  const int lane = threadIdx.x & 31, warp_row = threadIdx.x >> 5 << 4;
  const int channels = shape.heads * shape.head_width, channel = unit.head * shape.head_width;

  const auto load_keys = [&](int tile) {
    const uint32_t stage = stages + (tile & 1) * kStage;
    load_map<D>(stage, shape, unit, channels + channel, tile * kRows);
    load_factor<R>(stage + D / 8 * kGroupBytes, shape, shape.rib_k, unit.head, tile * kRows);
    load_map<D>(stage + kGroups * kGroupBytes, shape, unit, 2 * channels + channel, tile * kRows);
    copy_commit();
  };

  load_map<D>(queries, shape, unit, channel, first_query);
  load_factor<R>(queries + D / 8 * kGroupBytes, shape, shape.rib_q, unit.head, first_query);
  load_keys(0);

  float output[D / 2];
#pragma unroll
  for (float &x : output) x = 0.0f;
  Rows rows;
  reset(rows);
  uint32_t query[kGroups / 2][4];

  for (int tile = 0; tile < tiles; ++tile) {
    if (tile + 1 < tiles) {
      load_keys(tile + 1);
      copy_wait<1>();
    } else {
      copy_wait<0>();
    }
    __syncthreads();
    if (tile == 0) {
#pragma unroll
      for (int k = 0; k < kGroups / 2; ++k) {
        load_matrices(query[k], queries + (2 * k + (lane >> 4)) * kGroupBytes + (warp_row + (lane & 15)) * 16);
      }
    }

    const uint32_t keys = stages + (tile & 1) * kStage, values = keys + kGroups * kGroupBytes;
    float scores[kRows / 2];
#pragma unroll
    for (float &x : scores) x = 0.0f;
#pragma unroll
    for (int k = 0; k < kGroups / 2; ++k) {
#pragma unroll
      for (int n = 0; n < kRows / 16; ++n) {
        uint32_t b[4];  // keys 16n .. 16n + 7: b[0], b[1]; the next eight: b[2], b[3]
        load_matrices(b, keys + (2 * k + ((lane >> 3) & 1)) * kGroupBytes +
                             (16 * n + (lane >> 4) * 8 + (lane & 7)) * 16);
        multiply_add<BF16>(scores + 8 * n, query[k], b[0], b[1]);
        multiply_add<BF16>(scores + 8 * n + 4, query[k], b[2], b[3]);
      }
    }
    if ((tile + 1) * kRows > shape.tokens) mask<kRows>(scores, shape.tokens - tile * kRows);
    float sum[2];
    uint32_t probabilities[kRows / 16][4];
    bool redo = true;
    if (tile > 0) {
      exponentials<kRows, BF16>(scores, probabilities, sum, rows, shape.exponent_scale);
      redo = __any_sync(kAllLanes, !(sum[0] + sum[1] <= kLimit));
    }
    if (redo) {
      move_reference<kRows>(scores, output, rows, shape.exponent_scale);
      exponentials<kRows, BF16>(scores, probabilities, sum, rows, shape.exponent_scale);
    }
    rows.sum[0] += sum[0];
    rows.sum[1] += sum[1];
#pragma unroll
    for (int k = 0; k < kRows / 16; ++k) {
#pragma unroll
      for (int n = 0; n < D / 16; ++n) {
        uint32_t b[4];  // channels 16n .. 16n + 7: b[0], b[1]; the next eight: b[2], b[3]
        load_matrices_transposed(b, values + (2 * n + (lane >> 4)) * kGroupBytes + (16 * k + (lane & 15)) * 16);
        multiply_add<BF16>(output + 8 * n, probabilities[k], b[0], b[1]);
        multiply_add<BF16>(output + 8 * n + 4, probabilities[k], b[2], b[3]);
      }
    }
    __syncthreads();
  }

  const float inverse[2] = {1.0f / quad_sum(rows.sum[0]), 1.0f / quad_sum(rows.sum[1])};
  if (shape.vectorised) {
    Pieces<D> pieces;
    uint4 gate[D / 16];
    locate_pieces<D>(pieces, shape, unit, first_query + warp_row);
    load_gate<D>(gate, pieces, shape, unit);
    store_vectorised<D, BF16>(output, inverse, gate, pieces, shape, unit);
  } else {
    store_elements<D, BF16>(output, inverse, shape, unit, first_query + warp_row);
  }
}

}  // namespace portable
}  // namespace ribsr
