// What the kernels of wide layers share, compute capability 9.0: tiles and what is around them, weights that come chunk
// by chunk, diagonal matrices.
#pragma once

#include "shared/tile.cuh"

namespace ribsr {

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

// The nearest one that is there: what is outside is not used, but must be read from somewhere.
template <class Problem>
__device__ __forceinline__ const uint4 *nearest(const Problem &problem, const Tile &tile, const Pixel &p) {
  const int y = min(max(p.y, 0), problem.height - 1), x = min(max(p.x, 0), problem.width - 1);
  const auto row_step = static_cast<unsigned>(problem.in.row >> 3);
  const auto column_step = static_cast<unsigned>(problem.in.column >> 3);
  return reinterpret_cast<const uint4 *>(problem.in.data + tile.image * problem.in.batch) +
         (y * row_step + x * column_step);
}

// Weights in a ring of `Stages` buffers, for one thread that has other things to do as well. They begin again after
// `chunks`, `step` bytes apart.
template <int Stages>
struct Chunks {
  uint32_t to, full, empty;
  const uint8_t *from;
  int bytes, step, chunks;
  int left;  // to come
  Ring stage;
  int chunk = 0;

  // The next one, if there is one and room for it.
  __device__ __forceinline__ void fetch() {
    if (left == 0 || !barrier_passed(empty + 8 * stage.slot, stage.phase ^ 1)) return;
    barrier_expect(full + 8 * stage.slot, bytes);
    copy_bulk(to + stage.slot * bytes, from + chunk * step, bytes, full + 8 * stage.slot);
    stage.template advance<Stages>();
    if (++chunk == chunks) chunk = 0;
    --left;
  }
};

// How many of a problem's tiles a block has.
template <class Problem>
__device__ __forceinline__ int own_tiles(const Problem &problem) {
  return (problem.tiles - 1 - static_cast<int>(blockIdx.x)) / static_cast<int>(gridDim.x) + 1;
}

// Which bytes of a word of two taps a lane has in an operand: those of a diagonal matrix, one of a pair of rows.
struct Selectors {
  uint32_t low, high;
};

__device__ __forceinline__ Selectors selectors_of(int lane) {
  if (lane % 4 != lane / 8) return {0x4444, 0x4444};
  return lane / 4 % 2 ? Selectors{0x1044, 0x3244} : Selectors{0x4410, 0x4432};
}

#endif  // __CUDA_ARCH_FEAT_SM90_ALL

}  // namespace ribsr
