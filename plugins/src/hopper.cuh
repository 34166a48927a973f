// Compute capability 9.0: wgmma, warp-specialised, persistent.
//
// One block per multiprocessor: four consumer warp groups of 64 query rows each, and producer warps that gather pixels
// with 16-byte asynchronous copies. A work item is either 256 query rows of one (window, head), whose key tiles the four
// groups share, or, for windows of at most 64 tokens, four (window, head) pairs, one per group. Producers run ahead
// over item boundaries. The groups drift apart, so that the softmax of some overlaps the matrix products of others.
//
// Operands lie in shared memory as [8 channels][row][8] without swizzle: 8x8 blocks are 128 contiguous bytes, which is
// the canonical layout both of [k, rib_k] (K-major) and of v (MN-major), and free of bank conflicts.
#pragma once

#include "common.cuh"

#ifndef RIBSR_POLYNOMIAL  // of each 4 exponentials, how many go to the FMA units (0 to 4 of 8 pairs' second members)
#define RIBSR_POLYNOMIAL 0
#endif
#ifndef RIBSR_SUM_COLUMN  // 1: row sums through the matrix units, as a column of ones beside v
#define RIBSR_SUM_COLUMN 0
#endif
#ifndef RIBSR_SPLIT  // v's products are issued in this many parts, each as soon as its probabilities are ready
#define RIBSR_SPLIT 2
#endif
#ifndef RIBSR_PRODUCERS
#define RIBSR_PRODUCERS 4
#endif
#ifndef RIBSR_KEYS
#define RIBSR_KEYS 64
#endif
#ifndef RIBSR_CONSUMERS
#define RIBSR_CONSUMERS 4
#endif
#ifndef RIBSR_TAKE
#define RIBSR_TAKE 104
#endif
#ifndef RIBSR_GIVE
#define RIBSR_GIVE 64
#endif

namespace ribsr {
namespace hopper {

constexpr int kConsumers = RIBSR_CONSUMERS;  // warp groups
constexpr int kProducers = RIBSR_PRODUCERS;  // warps
constexpr int kThreads = 128 * kConsumers + 32 * kProducers;
constexpr int kRows = 64;                    // queries of a warp group
constexpr int kLag = 2;                      // copies of this many later jobs are in flight when a job is handed over
constexpr bool kSumColumn = RIBSR_SUM_COLUMN;

template <int D, int R, bool Shared>
struct Layout {
  static constexpr int kKeys = Shared ? RIBSR_KEYS : 64;
  static constexpr int kFactorGroups = R / 8;
  static constexpr int kGroups = (D + R + 15) / 16 * 2;  // of 8 channels, of [q, rib_q] and [k, rib_k]; zeros at the end
  static constexpr int kQueryGroupBytes = kRows * 16 + 32;  // the 32 spread the pieces of one pixel over the banks
  static constexpr int kKeyGroupBytes = kKeys * 16 + 32;
  static constexpr int kQueryBytes = kGroups * kQueryGroupBytes;  // per warp group
  static constexpr int kStageBytes = (kGroups + D / 8 + kSumColumn) * kKeyGroupBytes;
  static constexpr int kStages = Shared ? 4 : 8;
  static constexpr int kBarriers = 2 * kStages + 4;
  static constexpr int kQueryOffset = (8 * kBarriers + 127) / 128 * 128;
  static constexpr int kStageOffset = kQueryOffset + 2 * kConsumers * kQueryBytes;
  static constexpr int kBytes = kStageOffset + kStages * kStageBytes;
};

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

struct Ring {  // position in a ring of buffers
  int slot = 0;
  uint32_t phase = 0;
  template <int Size>
  __device__ __forceinline__ void advance(int steps = 1) {
    slot += steps;
    if (slot >= Size) {
      slot -= Size;
      phase ^= 1;
    }
  }
};

template <int D, int R, bool Shared>
struct Producer {
  using L = Layout<D, R, Shared>;
  static constexpr uint32_t kNothing = 0xffffffffu;
  const Shape &shape;
  int warp, lane;
  uint32_t waiting[kLag] = {};  // full barriers of the jobs whose copies are in flight, oldest last

  // A job's copies have been issued; hand over the job issued kLag before it.
  __device__ __forceinline__ void commit(uint32_t full) {
    copy_commit();
    copy_wait<kLag>();
    hand_over(waiting[kLag - 1]);
#pragma unroll
    for (int i = kLag - 1; i > 0; --i) waiting[i] = waiting[i - 1];
    waiting[0] = full;
  }

  __device__ __forceinline__ void hand_over(uint32_t full) {
    fence_async_proxy();
    __syncwarp();
    if (full != 0 && lane == 0) barrier_arrive(full);
  }

  __device__ __forceinline__ void finish() {
    copy_wait<0>();
#pragma unroll
    for (int i = kLag - 1; i >= 0; --i) hand_over(waiting[i]);
  }

  // Warps take sets of 32 tokens in turn; `turn` says who begins, so that small jobs are spread too.
  // This warp's share of `Count` tokens from `first` on: D channels at `channel`, and, Values, those at `values` too.
  template <int Count, bool Values>
  __device__ __forceinline__ void pixels(uint32_t to, uint32_t to_values, int group_bytes, const Unit &unit, int first,
                                         const uint16_t *source, long long values, int turn) {
    constexpr int kPieces = D / 8, kTokens = 32 / kPieces;  // of a token; tokens per warp instruction
    static_assert(Count % 32 == 0, "a warp takes whole sets of 32 tokens");
    const int piece = lane % kPieces;
#pragma unroll 1
    for (int base = 32 * ((warp + turn) % kProducers); base < Count; base += 32 * kProducers) {
      const int n = first + base + lane;
      uint32_t mine = kNothing;  // in units of 8 elements
      if (n < shape.tokens) {
        const Pixel p = source_pixel(shape, unit, n);
        mine = static_cast<uint32_t>(p.y) * static_cast<uint32_t>(shape.qkv.row >> 3) +
               static_cast<uint32_t>(p.x) * static_cast<uint32_t>(shape.qkv.column >> 3);
      }
#pragma unroll
      for (int i = 0; i < kPieces; ++i) {
        const int token = i * kTokens + lane / kPieces;
        const uint32_t offset = __shfl_sync(kAllLanes, mine, token);
        const bool valid = offset != kNothing;
        const uint16_t *from = source + 8 * (valid ? static_cast<unsigned long long>(offset) : 0ull) + 8 * piece;
        const uint32_t place = piece * group_bytes + (base + token) * 16;
        copy_async(to + place, from, valid);
        if constexpr (Values) copy_async(to_values + place, from + values, valid);
      }
    }
  }

  // This warp's share of `Count` rows from `first` on of a head's RIB factor.
  template <int Count>
  __device__ __forceinline__ void factors(uint32_t to, int group_bytes, int head, int first, const uint16_t *factor,
                                          int turn) {
    constexpr int kPieces = R / 8;
    const uint16_t *source = factor + (static_cast<long long>(head) * shape.tokens + first) * R;
#pragma unroll 1
    for (int base = 32 * ((warp + turn) % kProducers); base < Count; base += 32 * kProducers) {
#pragma unroll
      for (int i = 0; i < kPieces; ++i) {
        const int piece = base * kPieces + 32 * i + lane;
        const int row = piece / kPieces;
        const bool valid = first + row < shape.tokens;
        copy_async(to + piece % kPieces * group_bytes + row * 16, valid ? source + 8 * piece : factor, valid);
      }
    }
  }

  __device__ __forceinline__ void run(uint32_t memory) {
    const uint32_t full = memory, empty = memory + 8 * L::kStages, query_full = empty + 8 * L::kStages,
                   query_empty = query_full + 16;
    const long long channels = static_cast<long long>(shape.heads) * shape.head_width;
    Ring stage, query;
    for (int item = blockIdx.x; item < shape.items; item += gridDim.x) {
      Unit unit = locate(shape, Shared ? item / shape.query_blocks : 0);
      const int first_query = Shared ? item % shape.query_blocks * (kConsumers * kRows) : 0;

      barrier_wait(query_empty + 8 * query.slot, query.phase ^ 1);
#pragma unroll 1
      for (int group = 0; group < kConsumers; ++group) {
        if constexpr (!Shared) unit = locate(shape, min(kConsumers * item + group, shape.units - 1));
        const uint32_t to = memory + L::kQueryOffset + (query.slot * kConsumers + group) * L::kQueryBytes;
        const int first = first_query + (Shared ? group * kRows : 0);
        pixels<kRows, false>(to, 0, L::kQueryGroupBytes, unit, first,
                             shape.qkv.data + unit.batch * shape.qkv.batch + unit.head * D, 0, 2 * group);
        factors<kRows>(to + D / 8 * L::kQueryGroupBytes, L::kQueryGroupBytes, unit.head, first, shape.rib_q, 2 * group);
      }
      commit(query_full + 8 * query.slot);
      query.advance<2>();

      const int tiles = Shared ? (shape.tokens + L::kKeys - 1) / L::kKeys : kConsumers;
#pragma unroll 1
      for (int tile = 0; tile < tiles; ++tile) {
        if constexpr (!Shared) unit = locate(shape, min(kConsumers * item + tile, shape.units - 1));
        const int first = Shared ? tile * L::kKeys : 0;
        const uint32_t to = memory + L::kStageOffset + stage.slot * L::kStageBytes;
        barrier_wait(empty + 8 * stage.slot, stage.phase ^ 1);
        pixels<L::kKeys, true>(to, to + L::kGroups * L::kKeyGroupBytes, L::kKeyGroupBytes, unit, first,
                               shape.qkv.data + unit.batch * shape.qkv.batch + channels + unit.head * D, channels, 2 * tile);
        factors<L::kKeys>(to + D / 8 * L::kKeyGroupBytes, L::kKeyGroupBytes, unit.head, first, shape.rib_k, 2 * tile);
        commit(full + 8 * stage.slot);
        stage.advance<L::kStages>();
      }
    }
    finish();
  }
};

template <int D, int R, bool Shared, bool BF16>
__device__ __forceinline__ void consume(const Shape &shape, uint32_t memory) {
  using L = Layout<D, R, Shared>;
  constexpr int kOutputs = (D + 8 * kSumColumn) / 2, kSteps = L::kKeys / 16, kPart = kSteps / RIBSR_SPLIT;
  const uint32_t full = memory, empty = memory + 8 * L::kStages, query_full = empty + 8 * L::kStages,
                 query_empty = query_full + 16;
  const int group = threadIdx.x >> 7, lane = threadIdx.x & 31;
  const int warp_row = (threadIdx.x >> 5 & 3) * 16;
  const int tiles = Shared ? (shape.tokens + L::kKeys - 1) / L::kKeys : 1;
  const float scale = shape.exponent_scale;

  float scores[L::kKeys / 2];
  float output[kOutputs];
  uint32_t probabilities[kSteps][4];
  Ring stage, query;
  if constexpr (!Shared) stage.slot = group;

  for (int item = blockIdx.x; item < shape.items; item += gridDim.x) {
    Rows rows;
    reset(rows);
#pragma unroll
    for (float &x : output) x = 0.0f;
    int previous = -1;  // stage whose values are still being multiplied

    barrier_wait(query_full + 8 * query.slot, query.phase);
    const uint64_t queries = matrix_descriptor(
        memory + L::kQueryOffset + (query.slot * kConsumers + group) * L::kQueryBytes, L::kQueryGroupBytes, 128);

#pragma unroll 1
    for (int tile = 0; tile < tiles; ++tile) {
      barrier_wait(full + 8 * stage.slot, stage.phase);
      const uint32_t address = memory + L::kStageOffset + stage.slot * L::kStageBytes;
      const uint64_t keys = matrix_descriptor(address, L::kKeyGroupBytes, 128);
      const uint64_t values = matrix_descriptor(address + L::kGroups * L::kKeyGroupBytes, 128, L::kKeyGroupBytes);

      group_fence();
#pragma unroll
      for (int k = 0; k < L::kGroups / 2; ++k) {
        group_multiply<L::kKeys, BF16>(scores, queries + 2 * k * L::kQueryGroupBytes / 16,
                                       keys + 2 * k * L::kKeyGroupBytes / 16, k > 0);
      }
      group_commit();
      group_wait<0>();
      if (lane == 0 && previous >= 0) barrier_arrive(empty + 8 * previous);
      if (lane == 0 && tile == tiles - 1) barrier_arrive(query_empty + 8 * query.slot);

      const int valid = shape.tokens - (Shared ? tile * L::kKeys : 0);
      if (valid < L::kKeys) mask<L::kKeys>(scores, valid);
      track_maximum<L::kKeys>(scores, output, rows, scale);
#pragma unroll
      for (int part = 0; part < RIBSR_SPLIT; ++part) {
#pragma unroll
        for (int k = part * kPart; k < (part + 1) * kPart; ++k) {
          exponentials<BF16, RIBSR_POLYNOMIAL, !kSumColumn>(scores + 8 * k, probabilities[k], rows, scale);
        }
        group_fence();
#pragma unroll
        for (int k = part * kPart; k < (part + 1) * kPart; ++k) {
          group_multiply_registers<D + 8 * kSumColumn, BF16>(output, probabilities[k], values + k * 16);
        }
        group_commit();
      }
      previous = stage.slot;
      stage.advance<L::kStages>(Shared ? 1 : kConsumers);
    }

    const int unit_index = Shared ? item / shape.query_blocks : kConsumers * item + group;
    const bool exists = unit_index < shape.units;
    const Unit unit = locate(shape, exists ? unit_index : 0);
    const int first_row = (Shared ? item % shape.query_blocks * (kConsumers * kRows) + group * kRows : 0) + warp_row;
    Pieces<D> pieces;
    uint4 gate[D / 16];
    locate_pieces<D>(pieces, shape, unit, exists ? first_row : shape.tokens);
    load_gate<D>(gate, pieces, shape);
    group_wait<0>();
    if (lane == 0) barrier_arrive(empty + 8 * previous);
    query.advance<2>();

    float inverse[2];
    if constexpr (kSumColumn) {
      inverse[0] = 1.0f / output[D / 2];
      inverse[1] = 1.0f / output[D / 2 + 2];
    } else {
      inverse[0] = 1.0f / quad_sum(rows.sum[0]);
      inverse[1] = 1.0f / quad_sum(rows.sum[1]);
    }
    store_vectorised<D, BF16>(output, inverse, gate, pieces, shape);
  }
}

#endif  // __CUDA_ARCH_FEAT_SM90_ALL

template <int D, int R, bool Shared, bool BF16>
__global__ void __launch_bounds__(kThreads, 1) attention(const __grid_constant__ Shape shape) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  using L = Layout<D, R, Shared>;
  extern __shared__ __align__(128) uint8_t shared[];
  const uint32_t memory = shared_address(shared);

  if (threadIdx.x == 0) {
    const int users = Shared ? 4 * kConsumers : 4;  // warps that read a stage
    for (int i = 0; i < L::kStages; ++i) {
      barrier_init(memory + 8 * i, kProducers);
      barrier_init(memory + 8 * (L::kStages + i), users);
    }
    for (int i = 0; i < 2; ++i) {
      barrier_init(memory + 8 * (2 * L::kStages + i), kProducers);
      barrier_init(memory + 8 * (2 * L::kStages + 2 + i), 4 * kConsumers);
    }
  }
  // Groups that no copy writes: zeros that fill [q, rib_q] and [k, rib_k] up to a multiple of 16, and the ones.
  if constexpr ((D + R) % 16 != 0) {
    constexpr int kZero = (D + R) / 8;
    for (int i = threadIdx.x; i < 2 * kConsumers * kRows; i += kThreads) {
      store_shared(memory + L::kQueryOffset + i / kRows * L::kQueryBytes + kZero * L::kQueryGroupBytes + i % kRows * 16,
                   0, 0, 0, 0);
    }
    for (int i = threadIdx.x; i < L::kStages * L::kKeys; i += kThreads) {
      store_shared(memory + L::kStageOffset + i / L::kKeys * L::kStageBytes + kZero * L::kKeyGroupBytes + i % L::kKeys * 16,
                   0, 0, 0, 0);
    }
  }
  if constexpr (kSumColumn) {
    const uint32_t ones = pack<BF16>(1.0f, 1.0f);
    for (int i = threadIdx.x; i < L::kStages * L::kKeys; i += kThreads) {
      store_shared(memory + L::kStageOffset + i / L::kKeys * L::kStageBytes +
                       (L::kGroups + D / 8) * L::kKeyGroupBytes + i % L::kKeys * 16,
                   ones, ones, ones, ones);
    }
  }
  fence_async_proxy();
  __syncthreads();

  if (threadIdx.x < 128 * kConsumers) {
    take_registers<RIBSR_TAKE>();
    consume<D, R, Shared, BF16>(shape, memory);
  } else {
    give_registers<RIBSR_GIVE>();
    Producer<D, R, Shared> producer{shape, static_cast<int>(threadIdx.x >> 5) - 4 * kConsumers,
                                    static_cast<int>(threadIdx.x & 31)};
    producer.run(memory);
  }
#endif
}

}  // namespace hopper
}  // namespace ribsr
