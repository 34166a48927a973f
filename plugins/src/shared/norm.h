// Layer normalisation over the channels of pixels in a row, on CPUs.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>

#include "simd.h"

namespace ribsr::RIBSR_ISA {

struct Norm {
  const float *weight, *bias;  // [channels]
  int channels;
  float epsilon;

  // put(pixel, channel, Vector, lanes) for every vector of every pixel; lanes that are no channels are 0, or NaN as the
  // others are. The pixels lie `stride` apart. kLanes of them at a time, so that sums of lanes are sums of vectors.
  template <class Put>
  void operator()(const float *from, ptrdiff_t stride, int pixels, const Put &put) const {
    for (int first = 0; first < pixels; first += kLanes)
      group(from + first * stride, stride, first, std::min(kLanes, pixels - first), put);
  }

 private:
  int lanes(int channel) const { return std::min(kLanes, channels - channel); }

  // The sum over all channels of term(x, channel) of every pixel of a group.
  template <class Term>
  static Vector sums(int pixels, const Term &term) {
    Vector rows[kLanes] = {};
    for (int i = 0; i < pixels; ++i) rows[i] = term(i);
    transpose(rows);
    for (int half = kLanes / 2; half > 0; half /= 2)
      for (int i = 0; i < half; ++i) rows[i] += rows[i + half];
    return rows[0];
  }

  template <class Put>
  void group(const float *from, ptrdiff_t stride, int first, int pixels, const Put &put) const {
    const int whole = channels / kLanes * kLanes, rest = channels - whole;
    const auto add = [&](int i, const auto &term) {
      const float *x = from + i * stride;
      Vector total{};
      for (int c = 0; c < whole; c += kLanes) total += term(load(x + c));
      if (rest != 0) total += load_first(term(load(x + whole, rest)), rest);
      return total;
    };
    float mean[kLanes], inverse[kLanes];
    store(mean, sums(pixels, [&](int i) { return add(i, [](Vector x) { return x; }); }) / static_cast<float>(channels));
    store(inverse, sums(pixels, [&](int i) {
            return add(i, [&](Vector x) { return (x - mean[i]) * (x - mean[i]); });
          }) / static_cast<float>(channels));
    for (int i = 0; i < kLanes; ++i) inverse[i] = 1.0f / std::sqrt(inverse[i] + epsilon);
    for (int i = 0; i < pixels; ++i) {
      const float *x = from + i * stride;
      for (int c = 0; c < channels; c += kLanes) {
        const int n = lanes(c);
        const Vector scaled = (n == kLanes ? load(x + c) : load(x + c, n)) - mean[i];
        const Vector w = n == kLanes ? load(weight + c) : load(weight + c, n);
        const Vector b = n == kLanes ? load(bias + c) : load(bias + c, n);
        put(first + i, c, fma(scaled * inverse[i], w, b), n);
      }
    }
  }

  static Vector load_first(Vector x, int count) {
    float lanes[kLanes];
    store(lanes, x);
    return load(lanes, count);
  }
};

}  // namespace ribsr::RIBSR_ISA
