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

#ifndef RIBSR_PRODUCERS
#define RIBSR_PRODUCERS 4
#endif
#ifndef RIBSR_KEYS
#define RIBSR_KEYS 64
#endif
#ifndef RIBSR_STAGES
#define RIBSR_STAGES 6
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

// How the warp groups share the work.
enum class Sharing {
  kNone,  // each group has its own (window, head) of at most 64 tokens
  kOne,   // an item is kConsumers blocks of query rows of one (window, head), one per group
  kTwo    // twice as many, two per group: half the key traffic per score
};

template <int D, int R, Sharing Mode>
struct Layout {
  static constexpr bool Shared = Mode != Sharing::kNone;
  static constexpr int kBlocks = Mode == Sharing::kTwo ? 2 : 1;  // of query rows per group
  static constexpr int kItemRows = Shared ? kBlocks * kConsumers * kRows : kRows;
  static constexpr int kKeys = Shared ? RIBSR_KEYS : 64;
  static constexpr int kFactorGroups = R / 8;
  static constexpr int kGroups = (D + R + 15) / 16 * 2;  // of 8 channels, of [q, rib_q] and [k, rib_k]; zeros at the end
  static constexpr int kQueryGroupBytes = kRows * 16 + 32;  // the 32 spread the pieces of one pixel over the banks
  static constexpr int kKeyGroupBytes = kKeys * 16 + 32;
  static constexpr int kQueryBytes = kGroups * kQueryGroupBytes;  // per block of rows
  static constexpr int kStageBytes = (kGroups + D / 8) * kKeyGroupBytes;
  static constexpr int kStages = Mode == Sharing::kTwo ? RIBSR_STAGES : 8;
  static constexpr int kBarriers = 2 * kStages + 4;
  static constexpr int kUnitOffset = (8 * kBarriers + 127) / 128 * 128;  // [2][kConsumers] of Unit
  static constexpr int kQueryOffset = kUnitOffset + (2 * kConsumers * 16 + 127) / 128 * 128;
  static constexpr int kStageOffset = kQueryOffset + 2 * kBlocks * kConsumers * kQueryBytes;
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

template <int D, int R, Sharing Mode>
struct Producer {
  using L = Layout<D, R, Mode>;
  static constexpr bool Shared = L::Shared;
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

  // Warps take sets of 32 tokens in turn; `turn` says who begins, so that small jobs are spread too. Tokens past the
  // window repeat the last one: their scores are masked, so that only their being finite matters.

  // `Count` tokens from `first` on: D channels from `source` on, and, Values, those `values` bytes further.
  template <int Count, bool Values>
  __device__ __forceinline__ void pixels(uint32_t to, uint32_t to_values, int group_bytes, const Unit &unit, int first,
                                         const uint16_t *source, long long values, int turn) {
    constexpr int kPieces = D / 8, kTokens = 32 / kPieces;  // of a token; tokens per warp instruction
    static_assert(Count % 32 == 0, "a warp takes whole sets of 32 tokens");
    const unsigned row_stride = static_cast<unsigned>(shape.qkv.row >> 3);
    const unsigned column_stride = static_cast<unsigned>(shape.qkv.column >> 3);
    const char *from = reinterpret_cast<const char *>(source) + 16 * (lane % kPieces);
    const uint32_t place = lane % kPieces * group_bytes + lane / kPieces * 16;
#pragma unroll 1
    for (int base = 32 * ((warp + turn) % kProducers); base < Count; base += 32 * kProducers) {
      const Pixel p = source_pixel(shape, unit, min(first + base + lane, shape.tokens - 1));
      const unsigned mine = p.y * row_stride + p.x * column_stride;  // in units of 16 bytes
      if constexpr (!Values) prefetch(shape.gate.data + element(shape.gate, unit.batch, unit.head * D, p));
#pragma unroll
      for (int i = 0; i < kPieces; ++i) {
        const char *pixel = from + 16ull * __shfl_sync(kAllLanes, mine, i * kTokens + lane / kPieces);
        copy_async(to + place + base * 16 + i * kTokens * 16, pixel);
        if constexpr (Values) copy_async(to_values + place + base * 16 + i * kTokens * 16, pixel + values);
      }
    }
  }

  // `Count` rows from `first` on of a head's RIB factor.
  template <int Count>
  __device__ __forceinline__ void factors(uint32_t to, int group_bytes, int head, int first, const uint16_t *factor,
                                          int turn) {
    constexpr int kPieces = R / 8;
    const int last = (shape.tokens - first) * kPieces - 1;  // piece
    const uint16_t *source = factor + (static_cast<long long>(head) * shape.tokens + first) * R;
#pragma unroll 1
    for (int base = 32 * ((warp + turn) % kProducers); base < Count; base += 32 * kProducers) {
#pragma unroll
      for (int i = 0; i < kPieces; ++i) {
        const int piece = base * kPieces + 32 * i + lane;
        copy_async(to + piece % kPieces * group_bytes + piece / kPieces * 16, source + 8 * min(piece, last));
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
      const int first_query = Shared ? item % shape.query_blocks * L::kItemRows : 0;

      barrier_wait(query_empty + 8 * query.slot, query.phase ^ 1);
#pragma unroll 1
      for (int block = 0; block < L::kBlocks * kConsumers; ++block) {
        if constexpr (!Shared) unit = locate(shape, min(kConsumers * item + block, shape.units - 1));
        if (warp == 0 && lane == 0 && block < kConsumers) {
          store_shared(memory + L::kUnitOffset + (query.slot * kConsumers + block) * 16, unit.batch, unit.head, unit.row,
                       unit.column);
        }
        const uint32_t to = memory + L::kQueryOffset + (query.slot * L::kBlocks * kConsumers + block) * L::kQueryBytes;
        const int first = first_query + (Shared ? block * kRows : 0);
        if (first >= shape.tokens) continue;  // whatever lies there gives rows that nobody stores
        pixels<kRows, false>(to, 0, L::kQueryGroupBytes, unit, first,
                             shape.qkv.data + unit.batch * shape.qkv.batch + unit.head * D, 0, 2 * block);
        factors<kRows>(to + D / 8 * L::kQueryGroupBytes, L::kQueryGroupBytes, unit.head, first, shape.rib_q, 2 * block);
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
                               shape.qkv.data + unit.batch * shape.qkv.batch + channels + unit.head * D, 2 * channels, 2 * tile);
        factors<L::kKeys>(to + D / 8 * L::kKeyGroupBytes, L::kKeyGroupBytes, unit.head, first, shape.rib_k, 2 * tile);
        commit(full + 8 * stage.slot);
        stage.advance<L::kStages>();
      }
    }
    finish();
  }
};

template <int D, int R, Sharing Mode, bool BF16>
__device__ __forceinline__ void consume(const Shape &shape, uint32_t memory) {
  using L = Layout<D, R, Mode>;
  constexpr bool Shared = L::Shared;
  constexpr int kSteps = L::kKeys / 16;
  const uint32_t full = memory, empty = memory + 8 * L::kStages, query_full = empty + 8 * L::kStages,
                 query_empty = query_full + 16;
  const int group = __shfl_sync(kAllLanes, threadIdx.x >> 7, 0);  // so that the compiler knows it is uniform
  const bool leader = (threadIdx.x & 31) == 0;
  const int tiles = Shared ? (shape.tokens + L::kKeys - 1) / L::kKeys : 1;
  const float scale = shape.exponent_scale;

  float scores[L::kKeys / 2];
  float output[L::kBlocks][D / 2];
  uint32_t probabilities[kSteps][4];
  Ring stage, query;
  if constexpr (!Shared) stage.slot = group;

  for (int item = blockIdx.x; item < shape.items; item += gridDim.x) {
    Rows rows[L::kBlocks];
#pragma unroll
    for (int block = 0; block < L::kBlocks; ++block) {
      reset(rows[block]);
#pragma unroll
      for (float &x : output[block]) x = 0.0f;
    }
    const int first_row = Shared ? item % shape.query_blocks * L::kItemRows + group * kRows : 0;
    const int blocks = first_row + kConsumers * kRows < shape.tokens ? L::kBlocks : 1;  // the last item may be short
    int previous = 0;

    barrier_wait(query_full + 8 * query.slot, query.phase);
    const uint32_t queries = descriptor_address(
        memory + L::kQueryOffset + (query.slot * L::kBlocks * kConsumers + group) * L::kQueryBytes);

#pragma unroll 1
    for (int tile = 0; tile < tiles; ++tile) {
      barrier_wait(full + 8 * stage.slot, stage.phase);
      const uint32_t keys = descriptor_address(memory + L::kStageOffset + stage.slot * L::kStageBytes);
      const uint32_t values = keys + L::kGroups * L::kKeyGroupBytes / 16;

#pragma unroll
      for (int block = 0; block < L::kBlocks; ++block) {
        if (block > 0 && blocks == 1) break;
        group_fence();
#pragma unroll
        for (int k = 0; k < L::kGroups / 2; ++k) {
          group_multiply<L::kKeys, BF16>(
              scores,
              matrix_descriptor<L::kQueryGroupBytes, 128>(
                  queries + (block * kConsumers * L::kQueryBytes + 2 * k * L::kQueryGroupBytes) / 16),
              matrix_descriptor<L::kKeyGroupBytes, 128>(keys + 2 * k * L::kKeyGroupBytes / 16), k > 0);
        }
        group_commit();
        group_wait<0>();
        if (block == 0 && tile > 0 && leader) barrier_arrive(empty + 8 * previous);

        const int valid = shape.tokens - (Shared ? tile * L::kKeys : 0);
        if (__builtin_expect(valid < L::kKeys, 0)) mask<L::kKeys>(scores, valid);
        // Against the reference of the tiles before; only where that turns out too low, the maximum is looked for.
        float sum[2];
        exponentials<L::kKeys, BF16>(scores, probabilities, sum, rows[block], scale);
        if (__builtin_expect(__any_sync(kAllLanes, !(sum[0] + sum[1] <= kLimit)), 0)) {
          move_reference<L::kKeys>(scores, output[block], rows[block], scale);
          exponentials<L::kKeys, BF16>(scores, probabilities, sum, rows[block], scale);
        }
        rows[block].sum[0] += sum[0];
        rows[block].sum[1] += sum[1];
        group_fence();
#pragma unroll
        for (int k = 0; k < kSteps; ++k) {
          group_multiply_registers<D, BF16>(output[block], probabilities[k],
                                            matrix_descriptor<128, L::kKeyGroupBytes>(values + k * 16));
        }
        group_commit();
      }
      previous = stage.slot;
      stage.advance<L::kStages>(Shared ? 1 : kConsumers);
    }

    const bool exists = Shared || kConsumers * item + group < shape.units;
    const uint4 place = load_shared(memory + L::kUnitOffset + (query.slot * kConsumers + group) * 16);
    const Unit unit = {static_cast<int>(place.x), static_cast<int>(place.y), static_cast<int>(place.z),
                       static_cast<int>(place.w)};
    group_wait<0>();
    if (leader) {
      barrier_arrive(empty + 8 * previous);
      barrier_arrive(query_empty + 8 * query.slot);
    }
    query.advance<2>();
#pragma unroll
    for (int block = 0; block < L::kBlocks; ++block) {
      if (block >= blocks) break;
      Pieces<D> pieces;
      uint4 gate[D / 16];
      const int row = first_row + block * kConsumers * kRows + (threadIdx.x >> 5 & 3) * 16;
      locate_pieces<D>(pieces, shape, unit, exists ? row : shape.tokens);
      load_gate<D>(gate, pieces, shape);
      const float inverse[2] = {1.0f / quad_sum(rows[block].sum[0]), 1.0f / quad_sum(rows[block].sum[1])};
      store_vectorised<D, BF16>(output[block], inverse, gate, pieces, shape);
    }
  }
}

#endif  // __CUDA_ARCH_FEAT_SM90_ALL

template <int D, int R, Sharing Mode, bool BF16>
__global__ void __launch_bounds__(kThreads, 1) attention(const __grid_constant__ Shape shape) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  using L = Layout<D, R, Mode>;
  extern __shared__ __align__(128) uint8_t shared[];
  const uint32_t memory = shared_address(shared);

  if (threadIdx.x == 0) {
    const int users = L::Shared ? 4 * kConsumers : 4;  // warps that read a stage
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
    for (int i = threadIdx.x; i < 2 * L::kBlocks * kConsumers * kRows; i += kThreads) {
      store_shared(memory + L::kQueryOffset + i / kRows * L::kQueryBytes + kZero * L::kQueryGroupBytes + i % kRows * 16,
                   0, 0, 0, 0);
    }
    for (int i = threadIdx.x; i < L::kStages * L::kKeys; i += kThreads) {
      store_shared(memory + L::kStageOffset + i / L::kKeys * L::kStageBytes + kZero * L::kKeyGroupBytes + i % L::kKeys * 16,
                   0, 0, 0, 0);
    }
  }
  fence_async_proxy();
  __syncthreads();

  if (threadIdx.x < 128 * kConsumers) {
    take_registers<RIBSR_TAKE>();
    consume<D, R, Mode, BF16>(shape, memory);
  } else {
    give_registers<RIBSR_GIVE>();
    Producer<D, R, Mode> producer{shape, static_cast<int>(threadIdx.x >> 5) - 4 * kConsumers,
                                    static_cast<int>(threadIdx.x & 31)};
    producer.run(memory);
  }
#endif
}

}  // namespace hopper
}  // namespace ribsr
