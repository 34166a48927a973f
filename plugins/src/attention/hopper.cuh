// Compute capability 9.0: wgmma, warp-specialised, persistent.
//
// One block per multiprocessor: four consumer warp groups of 64 query rows each, and producer warps that gather pixels
// with 16-byte asynchronous copies. A work item is either 256 query rows of one (window, head), whose key tiles the
// four groups share, or, for windows of at most 64 tokens, four (window, head) pairs, one per group. Producers run
// ahead over item boundaries. The groups drift apart: the softmax of some overlaps the matrix products of others.
//
// Probabilities are relative to a reference that a row's first tile sets, so that the other tiles need neither maximum
// nor sum: a block of ones beside the values gives the sums. An item begins with the tiles of its own queries, where
// scores are high if nearness counts; in large windows up to four of them have a say in the references. Where a row's
// sum shows in the end that probabilities overflowed, its item is marked, and done again in a second pass, carefully:
// every tile's scores are compared with the references, which move if need be. So are the block's next items, in the
// first pass: what happened is likely to happen again.
//
// Operands lie in shared memory as one row per token, swizzled (see matrix_descriptor), so that the pieces of one pixel
// stay together: scattered 16-byte pieces would each cost a 32-byte sector and a request to the L2 cache.
#pragma once

#include "attention/common.cuh"

namespace ribsr {
namespace hopper {

constexpr int kConsumers = 4;  // warp groups
constexpr int kProducers = 4;  // warps
constexpr int kThreads = 128 * kConsumers + 32 * kProducers;
constexpr int kRows = 64;    // queries of a warp group
constexpr int kKeys = 64;    // of a tile; 96 and more do not fit the registers of four consumers (VARIANTS.md)
constexpr int kStages = 8;   // key tiles in shared memory
constexpr int kLag = 2;      // copies of this many later jobs are in flight when a job is handed over
constexpr int kConsumerRegisters = 104, kProducerRegisters = 64;
constexpr int kMarks = 1024;          // of a block's items; the last stands for all later ones
constexpr int kCareful = 8;           // items after one that needed it
constexpr float kGreatest = 0x1p64f;  // sum of a row that did not overflow, far from what float32 can hold
constexpr int kComputed = 5;  // which of a thread's 8 scores of 16 keys has its exponential computed on the FMA units

// In powers of two: how far references lie above the maxima they are made from, and how far above a reference scores of
// the first tiles of an item and, if it is done carefully, of the others may rise before it moves. float16 holds what
// lies up to 16 above a reference, and loses what lies 25 below; VARIANTS.md says what follows.
template <bool BF16>
constexpr float kHeadroom = BF16 ? 16.0f : 2.0f;
template <bool BF16>
constexpr float kFirstRise = 4.0f - kHeadroom<BF16>;
template <bool BF16>
constexpr float kRise = BF16 ? 40.0f : 15.0f;
// Computed probabilities lie between 2^kLeast and 2^(kLeast + 128): what is below becomes 2^kLeast, above is overflow.
template <bool BF16>
constexpr int kLeast = BF16 ? -56 : -100;

// How many of a window's `tiles` are an item's first ones. They cost a quarter more than the others.
__device__ __forceinline__ int first_tiles(int tiles) { return min(kConsumers, max(1, tiles / 8)); }

// Shared: the warp groups share the key tiles of one (window, head); else each has its own, of at most 64 tokens.
template <int D, int R, bool Shared>
struct Layout {
  static constexpr int kItemRows = Shared ? kConsumers * kRows : kRows;
  static constexpr int kFactor = (R + 15) / 16 * 16;  // rank, filled up with zeros
  static constexpr int kSteps = (D + kFactor) / 16;   // of a product with [k, rib_k]
  static constexpr int kQueryBytes = kRows * (D + kFactor) * 2;  // per block of rows
  static constexpr int kFactorOffset = kKeys * D * 2;            // in a stage: keys, factors, values, ones
  static constexpr int kValueOffset = kFactorOffset + kKeys * kFactor * 2;
  static constexpr int kOnesOffset = kValueOffset + kKeys * D * 2;  // 16 rows
  static constexpr int kStageBytes = kOnesOffset + 16 * D * 2;
  static constexpr int kBarriers = 2 * kStages + 4;
  static constexpr int kMarkOffset = (8 * kBarriers + 15) / 16 * 16;
  static constexpr int kUnitOffset = kMarkOffset + kMarks / 8;  // [2][kConsumers] of Unit
  static constexpr int kPlaceOffset = kUnitOffset + 2 * kConsumers * 16;  // [2]: the item's first query, its first key
  static constexpr int kCarefulOffset = kPlaceOffset + 2 * 8;             // up to which item to be careful
  static constexpr int kQueryOffset = (kCarefulOffset + 4 + 511) / 512 * 512;
  static constexpr int kStageOffset = kQueryOffset + 2 * kConsumers * kQueryBytes;
  static constexpr int kBytes = kStageOffset + kStages * kStageBytes;
};

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

// Whether a block's item, the `index`-th of its walk, is to be done again.
__device__ __forceinline__ bool marked(uint32_t marks, int index) {
  index = min(index, kMarks - 1);
  return load_shared_int(marks + index / 32 * 4) >> index % 32 & 1;
}

__device__ __forceinline__ void mark_item(uint32_t marks, int index) {
  index = min(index, kMarks - 1);
  or_shared(marks + index / 32 * 4, 1u << index % 32);
}

// All warps of the block, between the passes.
__device__ __forceinline__ void end_pass() { meet<1, kThreads>(); }

// Whether this thread's scores rise as far above its references.
__device__ __forceinline__ bool rises(const float (&scores)[kKeys / 2], const Rows &rows, float scale, float rise) {
  bool does = false;
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    does |= fmaf(own_maximum<kKeys>(scores, i), scale, -rows.reference[i]) > rise;
  }
  return does;
}

// Move the references of rows that rise as far above them, and rescale what has been summed.
template <bool BF16, int Outputs>
__device__ __forceinline__ void follow(const float (&scores)[kKeys / 2], float (&output)[Outputs], Rows &rows,
                                       float scale, float rise) {
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const float top = row_maximum<kKeys>(scores, i) * scale;
    const float old = rows.reference[i];
    if (top - old > rise) rows.reference[i] = top + kHeadroom<BF16>;
    const float factor = exp2_special(old - rows.reference[i]);
#pragma unroll
    for (int j = 0; j < Outputs / 4; ++j) {
      output[4 * j + 2 * i] *= factor;
      output[4 * j + 2 * i + 1] *= factor;
    }
  }
}

// A score's distance below the top of what can be computed, as a number from 0.5 to 1 in units of 2^-8 powers of two
// and with 16 more bits: 1 - (score * scale - reference - kLeast) / 256. Too small scores give 1, too great ones less
// than 0.5, down to 0.
__device__ __forceinline__ float computed_place(float score, float negative_scale, float start) {
  return multiply_add_saturated(score, negative_scale, start);
}

// The bits that all places from 0.5 to 1 but no smaller ones have.
constexpr uint32_t kInside = 0x3f000000u;

// 2^(256 (1 - place) + kLeast), to 8e-5. With `whole`, place up to the next unit: a cubic of the rest times 2^-whole.
// Of the bits of whole, those of a unit and above go, negated, to the exponent; that of 1 is cancelled by the cubic's
// sign and factor.
template <bool BF16>
__device__ __forceinline__ float exp2_computed(float place) {
  constexpr float kUnit = 256.0f;
  constexpr float kFactor = BF16 ? -0x1p72f : -0x1p28f;  // -2^(kLeast + 128)
  constexpr float k0 = 0.99992522f * kFactor, k1 = -0.69102072f * kFactor * kUnit;
  constexpr float k2 = 0.23007037f * kFactor * kUnit * kUnit, k3 = -0.03901226f * kFactor * kUnit * kUnit * kUnit;
  const uint32_t whole = __float_as_uint(place) & 0xffff0000u;
  const float rest = place - __uint_as_float(whole);
  const float power = fmaf(fmaf(fmaf(k3, rest, k2), rest, k1), rest, k0);
  return __uint_as_float(multiply_add_integer<-128>(whole, __float_as_uint(power)));
}

template <int D, int R, bool Shared>
struct Producer {
  using L = Layout<D, R, Shared>;
  const Shape &shape;
  int warp, lane;
  Ring stage, query;
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
    for (int i = kLag - 1; i >= 0; --i) {
      hand_over(waiting[i]);
      waiting[i] = 0;
    }
  }

  // Until a buffer is free; what has been copied is handed over first, for the consumers may be waiting for it.
  __device__ __forceinline__ void acquire(uint32_t empty, uint32_t parity) {
    if (__all_sync(kAllLanes, barrier_passed(empty, parity))) return;
    finish();
    barrier_wait(empty, parity);
  }

  // Warps take sets of 32 tokens in turn; `turn` says who begins, so that small jobs are spread too. Tokens past the
  // window repeat the last one: their scores are masked, so that only their being finite matters.

  // `Count` tokens from `first` on: D channels from `source` on, and, Values, those `values` bytes further.
  template <int Count, bool Values>
  __device__ __forceinline__ void pixels(uint32_t to, uint32_t to_values, const Unit &unit, int first,
                                         const uint16_t *source, long long values, int turn) {
    constexpr int kPieces = D / 8, kTokens = 32 / kPieces;  // of a token; tokens per warp instruction
    static_assert(Count % 32 == 0, "a warp takes whole sets of 32 tokens");
    const unsigned row_stride = static_cast<unsigned>(shape.qkv.row >> 3);
    const unsigned column_stride = static_cast<unsigned>(shape.qkv.column >> 3);
    const char *from = reinterpret_cast<const char *>(source) + 16 * (lane % kPieces);
    const int place = swizzled<2 * D>(lane / kPieces, lane % kPieces);  // the pattern repeats every 8 rows
#pragma unroll 1
    for (int base = 32 * ((warp + turn) % kProducers); base < Count; base += 32 * kProducers) {
      const Pixel p = source_pixel(shape, unit, min(first + base + lane, shape.tokens - 1));
      const unsigned mine = p.y * row_stride + p.x * column_stride;  // in units of 16 bytes
      if constexpr (!Values) prefetch(shape.gate.data + element(shape.gate, unit.batch, unit.head * D, p));
#pragma unroll
      for (int i = 0; i < kPieces; ++i) {
        const char *pixel = from + 16ull * __shfl_sync(kAllLanes, mine, i * kTokens + lane / kPieces);
        copy_async(to + place + (base + i * kTokens) * 2 * D, pixel);
        if constexpr (Values) copy_async(to_values + place + (base + i * kTokens) * 2 * D, pixel + values);
      }
    }
  }

  // `Count` rows from `first` on of a head's RIB factor.
  template <int Count>
  __device__ __forceinline__ void factors(uint32_t to, int head, int first, const uint16_t *factor, int turn) {
    constexpr int kPieces = R / 8;
    const uint16_t *source = factor + (static_cast<long long>(head) * shape.tokens + first) * R;
    const int last = (shape.tokens - first) * kPieces - 1;  // piece
    const bool whole = last >= Count * kPieces - 1;
#pragma unroll 1
    for (int base = 32 * ((warp + turn) % kProducers); base < Count; base += 32 * kProducers) {
      const uint16_t *from = source + base * R + 8 * lane;
      const uint32_t there = to + base * 2 * L::kFactor;
#pragma unroll
      for (int i = 0; i < kPieces; ++i) {
        const int piece = 32 * i + lane;
        const int place = swizzled<2 * L::kFactor>(piece / kPieces, piece % kPieces);
        copy_async(there + place,
                   whole ? from + 256 * i : source + 8 * min(base * kPieces + piece, last));
      }
    }
  }

  // All of the block's items, or the marked ones again.
  __device__ __forceinline__ void run(uint32_t memory, bool again) {
    const uint32_t full = memory, empty = memory + 8 * kStages, query_full = empty + 8 * kStages,
                   query_empty = query_full + 16;
    const long long channels = static_cast<long long>(shape.heads) * shape.head_width;
    int index = 0;
#pragma unroll 1
    for (int item = blockIdx.x; item < shape.items; item += gridDim.x, ++index) {
      if (again && !marked(memory + L::kMarkOffset, index)) continue;
      Unit unit = locate(shape, Shared ? item / shape.query_blocks : 0);
      const int first_query = Shared ? item % shape.query_blocks * L::kItemRows : 0;
      const int tiles = Shared ? (shape.tokens + kKeys - 1) / kKeys : kConsumers;
      // In the middle of the item's own.
      const int own_tiles = min(kConsumers, tiles - first_query / kKeys);
      const int first_tile = Shared ? first_query / kKeys + max(own_tiles - first_tiles(tiles), 0) / 2 : 0;

      acquire(query_empty + 8 * query.slot, query.phase ^ 1);
      if (Shared && warp == 0 && lane == 0) {
        store_shared(memory + L::kPlaceOffset + query.slot * 8, first_query, first_tile * kKeys);
      }
#pragma unroll 1
      for (int block = 0; block < kConsumers; ++block) {
        if constexpr (!Shared) unit = locate(shape, min(kConsumers * item + block, shape.units - 1));
        if (warp == 0 && lane == 0) {
          store_shared(memory + L::kUnitOffset + (query.slot * kConsumers + block) * 16, unit.batch, unit.head,
                       unit.row, unit.column);
        }
        const uint32_t to = memory + L::kQueryOffset + (query.slot * kConsumers + block) * L::kQueryBytes;
        const int first = first_query + (Shared ? block * kRows : 0);
        if (first >= shape.tokens) continue;  // whatever lies there gives rows that nobody stores
        pixels<kRows, false>(to, 0, unit, first,
                             shape.qkv.data + unit.batch * shape.qkv.batch + unit.head * D, 0, 2 * block);
        factors<kRows>(to + kRows * D * 2, unit.head, first, shape.rib_q, 2 * block);
      }
      commit(query_full + 8 * query.slot);
      query.advance<2>();

      int tile = first_tile;
#pragma unroll 1
      do {
        if constexpr (!Shared) unit = locate(shape, min(kConsumers * item + tile, shape.units - 1));
        const int first = Shared ? tile * kKeys : 0;
        const uint32_t to = memory + L::kStageOffset + stage.slot * L::kStageBytes;
        acquire(empty + 8 * stage.slot, stage.phase ^ 1);
        // By the slot: a place in shared memory always has the same writer.
        pixels<kKeys, true>(to, to + L::kValueOffset, unit, first,
                               shape.qkv.data + unit.batch * shape.qkv.batch + channels + unit.head * D, 2 * channels,
                               2 * stage.slot);
        factors<kKeys>(to + L::kFactorOffset, unit.head, first, shape.rib_k, 2 * stage.slot);
        commit(full + 8 * stage.slot);
        stage.advance<kStages>();
        if (++tile == tiles) tile = 0;
      } while (tile != first_tile);
    }
    finish();
  }
};

template <int D, int R, bool Shared, bool BF16>
struct Consumer {
  using L = Layout<D, R, Shared>;
  const Shape &shape;
  int group;
  bool leader;  // of its warp
  Ring stage, query;

  // Of the group's queries, in the item at hand.
  __device__ __forceinline__ int first_row(uint32_t memory) const {
    return Shared ? load_shared_int(memory + L::kPlaceOffset + query.slot * 8) + group * kRows : 0;
  }

  // With the items after this one.
  __device__ __forceinline__ void be_careful(uint32_t memory, int index) {
    if (leader) raise_shared(memory + L::kCarefulOffset, index + 1 + kCareful);
  }

  __device__ __forceinline__ bool is_careful(uint32_t memory, int index) const {
    const int until = leader ? load_shared_atomic(memory + L::kCarefulOffset) : 0;
    return index < __shfl_sync(kAllLanes, until, 0);
  }

  // All of the block's items, or the marked ones again.
  __device__ __forceinline__ void run(uint32_t memory, bool again) {
    const uint32_t full = memory, empty = memory + 8 * kStages, query_full = empty + 8 * kStages,
                   query_empty = query_full + 16;
    const int tiles = Shared ? (shape.tokens + kKeys - 1) / kKeys : 1;
    const int first = first_tiles(tiles);
    const float scale = shape.exponent_scale;
    const uint32_t first_keys = __shfl_sync(kAllLanes, descriptor_address(memory + L::kStageOffset), 0);

    float scores[kKeys / 2];
    float output[(D + 8) / 2];  // and the sums of the rows
#pragma unroll
    for (float &x : output) x = 0.0f;
    uint32_t probabilities[kKeys / 16][4];
    const float negative_scale = scale * (-1.0f / 256.0f);
    float start[2] = {};  // of the places of the rows' scores

    int index = 0;
#pragma unroll 1
    for (int item = blockIdx.x; item < shape.items; item += gridDim.x, ++index) {
      if (again && !marked(memory + L::kMarkOffset, index)) continue;
      int watched = first;  // tiles whose scores may move the references
      if constexpr (Shared) {
        if (again || is_careful(memory, index)) watched = tiles;
      }
      Rows rows;
      uint32_t inside = kInside;  // bits that all places had
      uint32_t previous = 0;  // empty barrier of the stage whose values are still being multiplied

      barrier_wait(query_full + 8 * query.slot, query.phase);
      const uint32_t queries =
          descriptor_address(memory + L::kQueryOffset + (query.slot * kConsumers + group) * L::kQueryBytes);

      int remaining = shape.tokens;  // keys of this tile and of those that follow it in the window
      if constexpr (Shared) remaining -= load_shared_int(memory + L::kPlaceOffset + query.slot * 8 + 4);
#pragma unroll 1
      for (int tile = 0; tile < tiles; ++tile) {
        const uint32_t full_now = full + 8 * stage.slot;
        barrier_wait(full_now, stage.phase);
        const uint32_t keys = first_keys + stage.slot * (L::kStageBytes / 16);
        const uint32_t values = keys + L::kValueOffset / 16;

        group_fence();
#pragma unroll
        for (int k = 0; k < L::kSteps; ++k) {
          const bool factor = k >= D / 16;
          const uint64_t b = factor
                                 ? matrix_descriptor<2 * L::kFactor>(keys + L::kFactorOffset / 16 + 2 * (k - D / 16))
                                 : matrix_descriptor<2 * D>(keys + 2 * k);
          const uint64_t a =
              factor ? matrix_descriptor<2 * L::kFactor>(queries + kRows * D * 2 / 16 + 2 * (k - D / 16))
                     : matrix_descriptor<2 * D>(queries + 2 * k);
          group_multiply<BF16>(scores, a, b, k > 0);
        }
        group_commit();
        group_wait<0>();
        if (tile > 0 && leader) barrier_arrive(previous);
        previous = full_now + 8 * kStages;
        stage.template advance<kStages>(Shared ? 1 : kConsumers);

        if (__builtin_expect(remaining <= kKeys, 0)) {  // the window's last tile
          if (remaining < kKeys) mask<kKeys>(scores, remaining);
          remaining = shape.tokens + kKeys;
        }
        remaining -= kKeys;
        if (__builtin_expect(tile < watched, 0)) {
          if (tile == 0) {
            set_reference<kKeys>(scores, rows, scale);
            if constexpr (Shared) {
              for (float &reference : rows.reference) reference += kHeadroom<BF16>;
            }
          } else {
            const float rise = tile < first ? kFirstRise<BF16> : kRise<BF16>;
            if (__any_sync(kAllLanes, rises(scores, rows, scale, rise))) {
              follow<BF16>(scores, output, rows, scale, rise);
              if (!again && tile >= first && first_row(memory) < shape.tokens) be_careful(memory, index);
            }
          }
          // Both kinds of exponentials are relative to the same, rounded, reference.
          constexpr float kStart = 1.0f + kLeast<BF16> / 256.0f;
#pragma unroll
          for (int i = 0; i < 2; ++i) {
            start[i] = fmaf(rows.reference[i], 1.0f / 256.0f, kStart);
            rows.reference[i] = (start[i] - kStart) * 256.0f;
          }
        }
        // Every 16 keys are multiplied with their values as soon as their probabilities are there.
#pragma unroll
        for (int k = 0; k < kKeys / 16; ++k) {
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            float pair[2];
#pragma unroll
            for (int j = 0; j < 2; ++j) {
              const float score = scores[8 * k + 2 * i + j];
              if (2 * i + j == kComputed) {
                const float place = computed_place(score, negative_scale, start[i & 1]);
                if constexpr (Shared) inside &= __float_as_uint(place);
                pair[j] = exp2_computed<BF16>(place);
              } else {
                pair[j] = exp2_special(fmaf(score, scale, -rows.reference[i & 1]));
              }
            }
            probabilities[k][i] = pack<BF16>(pair[0], pair[1]);
          }
          const uint32_t step = k * 2 * D;  // 16 rows, in units of 16 bytes
          const uint32_t to_ones = (L::kOnesOffset - L::kValueOffset) / 16 - step;
          group_fence();
          group_multiply_registers<D + 8, BF16>(output, probabilities[k],
                                                matrix_descriptor<2 * D>(values + step, to_ones), k > 0 || tile > 0);
        }
        group_commit();
      }

      const uint4 place = load_shared(memory + L::kUnitOffset + (query.slot * kConsumers + group) * 16);
      const Unit unit = {static_cast<int>(place.x), static_cast<int>(place.y), static_cast<int>(place.z),
                         static_cast<int>(place.w)};
      const bool exists = Shared || kConsumers * item + group < shape.units;
      const int row = first_row(memory);
      Pieces<D> pieces;
      uint4 gate[D / 16];
      locate_pieces<D>(pieces, shape, unit, exists ? row + (threadIdx.x >> 5 & 3) * 16 : shape.tokens);
      load_gate<D>(gate, pieces, shape, unit);
      group_wait<0>();
      if (leader) {
        barrier_arrive(previous);
        barrier_arrive(query_empty + 8 * query.slot);
      }
      query.template advance<2>();
      const float sum[2] = {output[D / 2], output[D / 2 + 2]};
      if (Shared && !again && row < shape.tokens) {
        const bool overflowed = !(sum[0] <= kGreatest && sum[1] <= kGreatest && inside == kInside);
        if (__any_sync(kAllLanes, overflowed)) {
          if (leader) mark_item(memory + L::kMarkOffset, index);
          be_careful(memory, index);
        }
      }
      const float inverse[2] = {reciprocal(sum[0]), reciprocal(sum[1])};
      store_vectorised<D, BF16>(output, inverse, gate, pieces, shape, unit);
    }
  }
};

// Both passes of one role. Windows of one tile need no second one: their references are the maxima.
template <bool Shared, class Role>
__device__ __forceinline__ void run_passes(Role &role, uint32_t memory) {
#pragma unroll 1
  for (int pass = 0; pass < (Shared ? 2 : 1); ++pass) {
    if (pass > 0) {
      end_pass();
      if (load_shared_int(memory + Role::L::kCarefulOffset) == 0) break;  // nothing is marked
    }
    role.run(memory, pass > 0);
  }
}

#endif  // __CUDA_ARCH_FEAT_SM90_ALL

template <int D, int R, bool Shared, bool BF16>
__global__ void __launch_bounds__(kThreads, 1) attention(const __grid_constant__ Shape shape) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  using L = Layout<D, R, Shared>;
  extern __shared__ __align__(1024) uint8_t shared[];
  const uint32_t memory = shared_address(shared);

  if (threadIdx.x == 0) {
    const int users = Shared ? 4 * kConsumers : 4;  // warps that read a stage
    for (int i = 0; i < kStages; ++i) {
      barrier_init(memory + 8 * i, kProducers);
      barrier_init(memory + 8 * (kStages + i), users);
    }
    for (int i = 0; i < 2; ++i) {
      barrier_init(memory + 8 * (2 * kStages + i), kProducers);
      barrier_init(memory + 8 * (2 * kStages + 2 + i), 4 * kConsumers);
    }
  }
  if constexpr (R != L::kFactor) {  // the pieces of the factors that no copy writes
    constexpr int kWidth = 2 * L::kFactor;
    for (int i = threadIdx.x; i < 2 * kConsumers * kRows; i += kThreads) {
      const uint32_t tile = memory + L::kQueryOffset + i / kRows * L::kQueryBytes + kRows * D * 2;
      store_shared(tile + swizzled<kWidth>(i % kRows, R / 8), 0, 0, 0, 0);
    }
    for (int i = threadIdx.x; i < kStages * kKeys; i += kThreads) {
      const uint32_t tile = memory + L::kStageOffset + i / kKeys * L::kStageBytes + L::kFactorOffset;
      store_shared(tile + swizzled<kWidth>(i % kKeys, R / 8), 0, 0, 0, 0);
    }
  }
  for (int i = threadIdx.x; i < kStages * 2 * D; i += kThreads) {  // pieces
    constexpr uint32_t kOnes = BF16 ? 0x3f803f80u : 0x3c003c00u;
    const uint32_t ones = memory + L::kStageOffset + i / (2 * D) * L::kStageBytes + L::kOnesOffset;
    store_shared(ones + i % (2 * D) * 16, kOnes, kOnes, kOnes, kOnes);
  }
  if (threadIdx.x < kMarks / 128) store_shared(memory + L::kMarkOffset + 16 * threadIdx.x, 0, 0, 0, 0);
  if (threadIdx.x == 0) store_shared(memory + L::kCarefulOffset, 0);
  fence_async_proxy();
  __syncthreads();

  if (threadIdx.x < 128 * kConsumers) {
    take_registers<kConsumerRegisters>();
    const int group = __shfl_sync(kAllLanes, threadIdx.x >> 7, 0);  // so that the compiler knows it is uniform
    Consumer<D, R, Shared, BF16> consumer{shape, group, (threadIdx.x & 31) == 0};
    if constexpr (!Shared) consumer.stage.slot = group;
    // Likewise, else it is made anew from special registers for every tile.
    run_passes<Shared>(consumer, __shfl_sync(kAllLanes, memory, 0));
  } else {
    give_registers<kProducerRegisters>();
    Producer<D, R, Shared> producer{shape, static_cast<int>(threadIdx.x >> 5) - 4 * kConsumers,
                                    static_cast<int>(threadIdx.x & 31)};
    run_passes<Shared>(producer, memory);
  }
#endif
}

}  // namespace hopper
}  // namespace ribsr
