// Products of rows of pixels with weights, on CPUs: 1x1 convolutions, and larger ones a row of taps after another.
//
// A block of pixels by up to three vectors of outputs is kept in registers. For every channel the weights are read as
// vectors, in the order in which they were packed, and each pixel's number is multiplied with all of them.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "scratch.h"
#include "simd.h"
#include "tiles.h"

namespace ribsr::RIBSR_ISA {

// The memory for pixels whose channels become factors: `factors` reads up to two vectors at a time.
inline size_t row_floats(int pixels, int channels) { return static_cast<size_t>(pixels) * channels + kLanes; }

// Turns numbers into factors where they are: `count` of them, a multiple of kLanes.
template <class Factor>
const Factor *factors(float *x, size_t count);

template <>
inline const float *factors<float>(float *x, size_t) {
  return x;
}

template <>
inline const uint32_t *factors<uint32_t>(float *x, size_t count) {
  auto *pairs = reinterpret_cast<uint32_t *>(x);
  for (size_t i = 0; i < count; i += 2 * kLanes) store(pairs + i / 2, load_pairs(x + i));
  return pairs;
}

// What becomes of a product, pixel by pixel.
struct Target {
  float *out;
  ptrdiff_t stride;  // between pixels
  const float *residual = nullptr;  // added if not null
  ptrdiff_t residual_stride = 0;
  float negative_slope = 1.0f;  // multiplies what is negative before that
};

constexpr int kVectors = 3;                               // of outputs in a block
constexpr int kPixels = kRegisters / (kVectors + 1) / 4 * 4;  // of a block: 8 or 4

// What is multiplied at a time: the weights of up to three vectors of outputs.
template <class Factor>
struct Panel {
  const Factor *weights;  // [length, vectors, kLanes]
  const float *bias;      // [vectors, kLanes]
  int length;             // Factors of a pixel's sum
  int outputs;            // as many as there are from its first one on
};

// Weights and biases, cut into panels of up to three vectors of outputs.
template <class Factor>
class Packed {
 public:
  // weight: [outputs, taps, channels]. Where `channels` is no whole number of Factors, one of 0 is put behind each tap's.
  Packed(const float *weight, const float *bias, int outputs, int taps, int channels)
      : length_(taps * static_cast<int>(divided_up(channels, kWide<Factor>))),
        outputs_(outputs),
        memory_(static_cast<size_t>(padded(outputs)) * (length_ + 1)) {
    if (!has_memory()) return;
    float *bias_to = memory_.data;
    std::memset(bias_to, 0, sizeof(float) * static_cast<size_t>(padded(outputs)));
    std::memcpy(bias_to, bias, sizeof(float) * static_cast<size_t>(outputs));
    auto *to = reinterpret_cast<Factor *>(bias_to + padded(outputs));
    for (int i = 0; i < panels(); ++i)
      for (int tap = 0; tap < taps; ++tap)
        for (int c = 0; c < channels; c += kWide<Factor>)
          for (int o = begin(i); o < begin(i + 1); o += kLanes, to += kLanes) {
            const auto gather = [&](int channel) {
              float lanes[kLanes] = {};
              for (int lane = 0; channel < channels && lane < std::min(kLanes, outputs - o); ++lane)
                lanes[lane] = weight[(static_cast<ptrdiff_t>(o + lane) * taps + tap) * channels + channel];
              return load(lanes);
            };
            if constexpr (kWide<Factor> == 1)
              store(to, gather(c));
            else
              store(to, pairs(gather(c), gather(c + 1)));
          }
  }

  bool has_memory() const { return memory_.data != nullptr; }
  int panels() const { return static_cast<int>(divided_up(vectors(), kVectors)); }
  int begin(int panel) const { return vectors() * panel / panels() * kLanes; }  // its first output
  Panel<Factor> panel(int index) const {
    const auto *weights = reinterpret_cast<const Factor *>(memory_.data + padded(outputs_));
    const ptrdiff_t first = begin(index);
    return {weights + first * length_, memory_.data + first, length_, outputs_ - begin(index)};
  }

 private:
  int vectors() const { return padded(outputs_) / kLanes; }

  int length_, outputs_;
  Memory memory_;
};

// A pixel's factors are in `count` runs of the same length. runs: where those of the first pixel begin.
template <class Factor>
struct Operand {
  const Factor *runs[3];
  int count;
  ptrdiff_t stride;  // between pixels, in Factors
};

constexpr int kTerms = 256;  // of a sum in registers; longer ones are sums of such sums, since rounding grows with length

// The sums of a block, from pixel `first` on.
template <int Pixels, int Vectors, class Factor>
inline void block(const Operand<Factor> &operand, const Panel<Factor> &panel, const Target &target, int first) {
  Vector sums[Pixels][Vectors];
  for (int p = 0; p < Pixels; ++p)
    for (int v = 0; v < Vectors; ++v) {
      sums[p][v] = load(panel.bias + v * kLanes);
      __builtin_prefetch(target.out + (first + p) * target.stride + v * kLanes, 1);  // large maps come from memory
    }
  const Factor *weights = panel.weights;
  const int run_length = panel.length / operand.count;
  int run = 0, k = 0;  // the next term
  const auto add_terms = [&] {
    for (int room = kTerms; room > 0 && run < operand.count;) {
      const int count = std::min(room, run_length - k);
      const Factor *a = operand.runs[run] + first * operand.stride + k;
      for (const Factor *end = a + count; a < end; ++a, weights += Vectors * kLanes) {
        decltype(load(weights)) w[Vectors];
#pragma GCC unroll 3
        for (int v = 0; v < Vectors; ++v) w[v] = load(weights + v * kLanes);
#pragma GCC unroll 8
        for (int p = 0; p < Pixels; ++p)
#pragma GCC unroll 3
          for (int v = 0; v < Vectors; ++v) sums[p][v] = multiply_add(a[p * operand.stride], w[v], sums[p][v]);
      }
      room -= count;
      k = k + count == run_length ? 0 : k + count;
      run += k == 0;
    }
  };
  add_terms();
  if (run < operand.count) {
    Vector totals[Pixels][Vectors];
    std::memcpy(totals, sums, sizeof sums);
    while (run < operand.count) {
      for (int p = 0; p < Pixels; ++p)
        for (int v = 0; v < Vectors; ++v) sums[p][v] = Vector{};
      add_terms();
      for (int p = 0; p < Pixels; ++p)
        for (int v = 0; v < Vectors; ++v) totals[p][v] += sums[p][v];
    }
    std::memcpy(sums, totals, sizeof sums);
  }
#pragma GCC unroll 8
  for (int p = 0; p < Pixels; ++p)
#pragma GCC unroll 3
    for (int v = 0; v < Vectors; ++v) {
      Vector x = sums[p][v];
      const int left = std::max(panel.outputs - v * kLanes, 1);  // never below; compilers cannot know
      if (target.negative_slope != 1.0f) x = x < 0.0f ? x * target.negative_slope : x;
      if (target.residual != nullptr)
        x += load_up_to(target.residual + (first + p) * target.residual_stride + v * kLanes, left);
      store_up_to(target.out + (first + p) * target.stride + v * kLanes, x, left);
    }
}

// All pixels from `first` on, in the largest blocks there are.
template <int Pixels, int Vectors, class Factor>
void blocks(const Operand<Factor> &operand, const Panel<Factor> &panel, const Target &target, int first, int pixels) {
  for (; first + Pixels <= pixels; first += Pixels) block<Pixels, Vectors>(operand, panel, target, first);
  if constexpr (Pixels > 1)
    if (first < pixels) blocks<Pixels - 1, Vectors>(operand, panel, target, first, pixels);
}

// target = operand times weights plus biases, for pixels in a row.
template <class Factor>
void product(const Operand<Factor> &operand, int pixels, const Packed<Factor> &weights, const Target &target) {
  for (int i = 0; i < weights.panels(); ++i) {
    const Panel<Factor> panel = weights.panel(i);
    Target there = target;
    there.out += weights.begin(i);
    if (there.residual != nullptr) there.residual += weights.begin(i);
    const int vectors = (weights.begin(i + 1) - weights.begin(i)) / kLanes;
    if (vectors == 3)
      blocks<kPixels, 3>(operand, panel, there, 0, pixels);
    else if (vectors == 2)
      blocks<kPixels, 2>(operand, panel, there, 0, pixels);
    else
      blocks<kPixels, 1>(operand, panel, there, 0, pixels);
  }
}

// The same of pixels in a row, each of so many channels, which become factors where they are.
template <class Factor>
void product_of_row(float *row, int pixels, int channels, const Packed<Factor> &weights, const Target &target) {
  const Factor *a = factors<Factor>(row, static_cast<size_t>(pixels) * channels);
  product<Factor>({{a}, 1, channels / kWide<Factor>}, pixels, weights, target);
}

}  // namespace ribsr::RIBSR_ISA
