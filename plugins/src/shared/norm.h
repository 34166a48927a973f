// Layer normalisation over the channels of pixels in a row, on CPUs.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>

#include "simd.h"
#include "tiles.h"

namespace ribsr::RIBSR_ISA {

struct Norm {
  const float *weight, *bias;  // [channels]
  int channels;
  float epsilon;

  // put(pixel, channel, Vector) for every vector of every pixel; lanes that are no channels are 0, or NaN as others are.
  // The pixels lie `stride` apart. kLanes of them at a time, so that sums of lanes are sums of vectors.
  template <class Put>
  void operator()(const float *from, ptrdiff_t stride, int pixels, const Put &put) const {
    for (int first = 0; first < pixels; first += kLanes)
      group(from + first * stride, stride, first, std::min(kLanes, pixels - first), put);
  }

 private:
  template <class Put>
  void group(const float *from, ptrdiff_t stride, int first, int pixels, const Put &put) const {
    float mean[kLanes], inverse[kLanes];
    const auto channel_count = static_cast<float>(channels);
    store(mean, sums(from, stride, pixels, [](int, Vector x) { return x; }) / channel_count);
    const auto square = [&](int p, Vector x) { return (x - mean[p]) * (x - mean[p]); };
    store(inverse, sums(from, stride, pixels, square) / channel_count);
    for (float &x : inverse) x = 1.0f / std::sqrt(x + epsilon);
    for (int p = 0; p < pixels; ++p)
      for (int c = 0; c < channels; c += kLanes) {
        const int left = channels - c;
        const Vector deviation = load_up_to(from + p * stride + c, left) - mean[p];
        put(first + p, c, fma(deviation * inverse[p], load_up_to(weight + c, left), load_up_to(bias + c, left)));
      }
  }

  // Of term(p, x) of all channels x of each pixel p: a pixel's sum in its lane.
  template <class Term>
  Vector sums(const float *from, ptrdiff_t stride, int pixels, const Term &term) const {
    const int whole = channels / kLanes * kLanes, rest = channels - whole;
    Vector rows[kLanes] = {};
    for (int p = 0; p < pixels; ++p, from += stride) {
      Vector sum{};
      for (int c = 0; c < whole; c += kLanes) sum += term(p, load(from + c));
      if (rest != 0) sum += first_lanes(term(p, load(from + whole, rest)), rest);
      rows[p] = sum;
    }
    transpose(rows);
    for (int half = kLanes / 2; half > 0; half /= 2)
      for (int i = 0; i < half; ++i) rows[i] += rows[i + half];
    return rows[0];
  }

  // x with 0 in all other lanes.
  static Vector first_lanes(Vector x, int count) {
    float lanes[kLanes];
    store(lanes, x);
    return load(lanes, count);
  }
};

}  // namespace ribsr::RIBSR_ISA
