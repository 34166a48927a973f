// How the CPU's kernels cut maps into tasks, and find pixels in them. Maps have channel stride 1.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "cpu.h"
#include "scratch.h"
#include "simd.h"

namespace ribsr::RIBSR_ISA {

// Channels as the kernels keep them: whole vectors.
constexpr int padded(int channels) { return (channels + kLanes - 1) / kLanes * kLanes; }

inline const float *pixel(const RibsrMap &map, int batch, int y, int x) {
  return static_cast<const float *>(map.data) + batch * map.batch_stride + y * map.row_stride + x * map.column_stride;
}

inline float *writable(const RibsrMap &map, int batch, int y, int x) { return const_cast<float *>(pixel(map, batch, y, x)); }

// The lanes behind the channels of a map whose pixels lie a multiple of 8 apart for the sake of vectors: they become 0.
class Gap {
 public:
  Gap(const RibsrMap &map, int channels)
      : channels_(channels), stride_(map.column_stride), lanes_(stride_ == (channels + 7) / 8 * 8 ? -channels & 7 : 0) {}

  void clear(float *row, int pixels) const {
    for (int p = 0; lanes_ != 0 && p < pixels; ++p) std::memset(row + p * stride_ + channels_, 0, sizeof(float) * lanes_);
  }

 private:
  int channels_;
  ptrdiff_t stride_;
  unsigned lanes_;
};

// Rows y0 to y1 and columns x0 to x1 of an image; without the last ones.
struct Tile {
  int batch, y0, y1, x0, x1;

  int columns() const { return x1 - x0; }
};

// A map, cut into tiles of about equal size. Kernels that work row by row like tall tiles, which share fewer rows with
// others, so there are no more of them than the threads need.
struct Tiles {
  int height, width;
  int64_t batch, down, across;

  // most_columns: of a tile.
  Tiles(int batch, int height, int width, int most_columns, int threads) : height(height), width(width), batch(batch) {
    const int64_t wanted = threads > 1 ? int64_t{2} * threads : 1;  // so that no thread waits long for the last one
    across = divided_up(width, std::max(most_columns, 1));
    down = std::clamp<int64_t>(divided_up(wanted, batch * across), 1, std::max(height / 16, 1));
    if (count() < threads) across = std::max(across, std::min<int64_t>(divided_up(threads, batch * down), width / 8));
    if (count() < threads) down = std::clamp<int64_t>(divided_up(threads, batch * across), down, height);
  }

  int columns() const { return static_cast<int>(divided_up(width, across)); }  // of the widest

  int64_t count() const { return batch * down * across; }

  Tile operator[](int64_t index) const {
    const int64_t x = index % across, y = index / across % down;
    const auto part = [](int64_t i, int64_t parts, int size) { return static_cast<int>(i * size / parts); };
    return {static_cast<int>(index / across / down), part(y, down, height), part(y + 1, down, height),
            part(x, across, width), part(x + 1, across, width)};
  }
};

// The widest tile whose work fits into a part of the second-level cache.
inline int cached_columns(int floats_per_column) { return std::max(8, (64 << 10) / floats_per_column); }

// Runs task(tile, memory) for every tile, with so many floats of the thread's memory. A status.
template <class Task>
int32_t for_tiles(const RibsrExecutor &executor, const Tiles &tiles, size_t floats, const Task &task) {
  std::atomic<bool> has_memory{true};
  parallel(executor, tiles.count(), [&](int64_t index) {
    if (float *memory = scratch(floats))
      task(tiles[index], memory);
    else
      has_memory = false;
  });
  return has_memory ? RIBSR_OK : RIBSR_UNSUPPORTED;
}

}  // namespace ribsr::RIBSR_ISA
