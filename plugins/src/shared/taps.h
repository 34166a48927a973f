// A depthwise 3x3 convolution of one row after another, on CPUs.
#pragma once

#include <cstddef>
#include <cstring>

#include "scratch.h"
#include "simd.h"
#include "tiles.h"

namespace ribsr::RIBSR_ISA {

// The weights of a depthwise convolution, by vectors of channels; where there are no channels, 0.
class Taps {
 public:
  // weight: [channels, 3, 3]. bias: [channels]. Null has_memory() is asked before use.
  Taps(const float *weight, const float *bias, int channels)
      : channels_(padded(channels)), memory_(static_cast<size_t>(10 * channels_)) {
    if (!has_memory()) return;
    std::memset(memory_.data, 0, sizeof(float) * static_cast<size_t>(10 * channels_));
    for (int c = 0; c < channels; ++c) {
      float *lane = memory_.data + c / kLanes * 10 * kLanes + c % kLanes;
      for (int tap = 0; tap < 9; ++tap) lane[tap * kLanes] = weight[9 * c + tap];
      lane[9 * kLanes] = bias[c];
    }
  }

  bool has_memory() const { return memory_.data != nullptr; }

  // put(column, channel, sum, centre) for every vector of `columns` pixels, centre being the middle of what was summed.
  // rows: the one above, the row itself and the one below, each of one pixel more at either end, pixels of whole vectors of
  // channels. A pixel is read once: it is in three sums.
  template <class Put>
  void operator()(const float *above, const float *row, const float *below, int columns, const Put &put) const {
    for (int c = 0; c < channels_; c += kLanes) {
      Vector w[10];
      for (int tap = 0; tap < 10; ++tap) w[tap] = load(memory_.data + c * 10 + tap * kLanes);
      Vector left{}, middle{}, centre{};
      for (int x = 0; x < columns + 2; ++x) {
        const ptrdiff_t at = static_cast<ptrdiff_t>(x) * channels_ + c;
        const Vector a = load(above + at), b = load(row + at), d = load(below + at);
        const Vector sum = fma(d, w[8], fma(b, w[5], fma(a, w[2], left)));
        left = fma(d, w[7], fma(b, w[4], fma(a, w[1], middle)));
        middle = fma(d, w[6], fma(b, w[3], fma(a, w[0], w[9])));
        if (x >= 2) put(x - 2, c, sum, centre);
        centre = b;
      }
    }
  }

 private:
  int channels_;
  Memory memory_;
};

// The last three rows of a map that is made from top to bottom, with one pixel more at either end of a tile: zeros where
// the map ends.
class Ring {
 public:
  static constexpr int kRows = 3;

  Ring(float *memory, const Tile &tile, int height, int width, int channels)
      : memory_(memory), tile_(tile), height_(height), width_(width), channels_(channels) {}

  static size_t floats(int columns, int channels) { return size_t{kRows} * padded((columns + 2) * channels); }

  // A row, from the column before the tile on.
  float *row(int y) const { return memory_ + static_cast<ptrdiff_t>((y + kRows) % kRows) * padded(row_floats()); }
  int row_floats() const { return (tile_.columns() + 2) * channels_; }

  // make(row, x, pixels): fills a row from column x on, one that is in the map.
  template <class Make>
  void advance(int y, const Make &make) const {
    float *begin = row(y);
    const size_t pixel = sizeof(float) * static_cast<size_t>(channels_);
    if (y < 0 || y >= height_) {
      std::memset(begin, 0, sizeof(float) * static_cast<size_t>(row_floats()));
      return;
    }
    const int x0 = std::max(tile_.x0 - 1, 0), x1 = std::min(tile_.x1 + 1, width_);
    if (x0 == tile_.x0) std::memset(begin, 0, pixel);
    if (x1 == tile_.x1) std::memset(begin + static_cast<ptrdiff_t>(tile_.columns() + 1) * channels_, 0, pixel);
    make(begin + static_cast<ptrdiff_t>(x0 - tile_.x0 + 1) * channels_, x0, x1 - x0);
  }

 private:
  float *memory_;
  const Tile &tile_;
  int height_, width_, channels_;
};

}  // namespace ribsr::RIBSR_ISA
