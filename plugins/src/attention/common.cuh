// What the attention kernels of all architectures share: window arithmetic, the softmax on a tile of scores in registers,
// the gated store. Register fragments are those of shared/common.cuh.
#pragma once

#include "attention/shape.h"
#include "shared/common.cuh"

namespace ribsr {

// ---- windows --------------------------------------------------------------------------------------------------------

// Where a (window, head) lies. Rows and columns are those of the padded map after undoing the roll.
struct Unit {
  int batch, head, row, column;
};

__device__ __forceinline__ Unit locate(const Shape &shape, int unit) {
  const int window = unit / shape.heads;
  const int line = window / shape.windows_x;
  const int batch = line / shape.windows_y;
  return {batch, unit - window * shape.heads, (line - batch * shape.windows_y) * shape.window_height + shape.shift_y,
          (window - line * shape.windows_x) * shape.window_width + shape.shift_x};
}

// Reflection without repeating the edge, as often as needed.
__device__ __forceinline__ int reflect(int i, int size) {
  const int period = max(2 * (size - 1), 1);
  i %= period;
  return size - 1 - abs(size - 1 - i);
}

// The row or column of the picture that one of a window's shows, which before wrapping around is the `i`-th.
__device__ __forceinline__ int source_coordinate(int i, int padded_size, int size) {
  if (i >= padded_size) i -= padded_size;
  return i >= size ? reflect(i, size) : i;
}

// The position of token n in the padded map.
__device__ __forceinline__ Pixel padded_pixel(const Shape &shape, const Unit &unit, int n) {
  const int row = __umulhi(n, shape.row_magic);
  int y = unit.row + row, x = unit.column + n - row * shape.window_width;
  if (y >= shape.padded_height) y -= shape.padded_height;
  if (x >= shape.padded_width) x -= shape.padded_width;
  return {y, x};
}

// The pixel of the picture that token n shows.
__device__ __forceinline__ Pixel source_pixel(const Shape &shape, const Unit &unit, int n) {
  Pixel p = padded_pixel(shape, unit, n);
  if (p.y >= shape.height) p.y = reflect(p.y, shape.height);
  if (p.x >= shape.width) p.x = reflect(p.x, shape.width);
  return p;
}

__device__ __forceinline__ long long element(const Map &map, int batch, int channel, const Pixel &p) {
  return batch * map.batch + channel * map.channel + p.y * map.row + p.x * map.column;
}

// ---- softmax --------------------------------------------------------------------------------------------------------

__device__ __forceinline__ float quad_max(float x) {
  x = fmaxf(x, __shfl_xor_sync(kAllLanes, x, 1));
  return fmaxf(x, __shfl_xor_sync(kAllLanes, x, 2));
}

// Running statistics of a thread's two rows. Probabilities are relative to a reference point that is the row's maximum
// over the tiles seen when it last moved. It need not be the latest maximum: it moves only when a thread's
// probabilities of one tile sum to more than kLimit, which keeps each of them within float16. So most tiles need no
// maximum, and the accumulator is hardly ever rescaled.
constexpr float kLimit = 32768.0f;

struct Rows {
  float reference[2];  // times exponent_scale
  float sum[2];        // of this thread's columns
};

__device__ __forceinline__ void reset(Rows &rows) {
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    rows.reference[i] = -INFINITY;
    rows.sum[i] = 0.0f;
  }
}

// Keys from `valid` on take no part.
template <int Keys>
__device__ __forceinline__ void mask(float (&scores)[Keys / 2], int valid) {
  const int place = 2 * (threadIdx.x & 3);
#pragma unroll
  for (int i = 0; i < Keys / 2; ++i) {
    if (8 * (i / 4) + place + (i & 1) >= valid) scores[i] = -INFINITY;
  }
}

// Of this thread's columns.
template <int Keys>
__device__ __forceinline__ float own_maximum(const float (&scores)[Keys / 2], int row) {
  float top = fmaxf(scores[2 * row], scores[2 * row + 1]);
#pragma unroll
  for (int j = 1; j < Keys / 8; ++j) top = fmaxf(top, fmaxf(scores[4 * j + 2 * row], scores[4 * j + 2 * row + 1]));
  return top;
}

template <int Keys>
__device__ __forceinline__ float row_maximum(const float (&scores)[Keys / 2], int row) {
  return quad_max(own_maximum<Keys>(scores, row));
}

// The first tile's maxima as references.
template <int Keys>
__device__ __forceinline__ void set_reference(const float (&scores)[Keys / 2], Rows &rows, float scale) {
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    rows.reference[i] = row_maximum<Keys>(scores, i) * scale;
    rows.sum[i] = 0.0f;
  }
}

// Move the references up to this tile's maxima, and rescale the accumulator and the sums.
template <int Keys, int Outputs>
__device__ __forceinline__ void move_reference(const float (&scores)[Keys / 2], float (&output)[Outputs], Rows &rows,
                                               float scale) {
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const float reference = fmaxf(row_maximum<Keys>(scores, i) * scale, rows.reference[i]);
    const float factor = exp2_special(rows.reference[i] - reference);
    rows.reference[i] = reference;
    rows.sum[i] *= factor;
#pragma unroll
    for (int j = 0; j < Outputs / 4; ++j) {
      output[4 * j + 2 * i] *= factor;
      output[4 * j + 2 * i + 1] *= factor;
    }
  }
}

// Probabilities of a tile as A operands of 16 keys each, and the sums of this thread's share of them.
template <int Keys, bool BF16>
__device__ __forceinline__ void exponentials(const float (&scores)[Keys / 2], uint32_t (&operands)[Keys / 16][4],
                                             float (&sum)[2], const Rows &rows, float scale) {
  float sums[2][2];
#pragma unroll
  for (int i = 0; i < Keys / 4; ++i) {
    const int row = i & 1;
    const float p = exp2_special(fmaf(scores[2 * i], scale, -rows.reference[row]));
    const float q = exp2_special(fmaf(scores[2 * i + 1], scale, -rows.reference[row]));
    sums[row][0] = i < 2 ? p : sums[row][0] + p;
    sums[row][1] = i < 2 ? q : sums[row][1] + q;
    operands[i / 4][i % 4] = pack<BF16>(p, q);
  }
  sum[0] = sums[0][0] + sums[0][1];
  sum[1] = sums[1][0] + sums[1][1];
}

// ---- the gated store ------------------------------------------------------------------------------------------------

// Among the four lanes of a quad: lane p's v[i] becomes lane i's v[p]. Its own inverse.
__device__ __forceinline__ void transpose_quad(uint32_t (&v)[4]) {
  const bool odd = threadIdx.x & 1, upper = threadIdx.x & 2;
#pragma unroll
  for (int i = 0; i < 4; i += 2) {
    const uint32_t other = __shfl_xor_sync(kAllLanes, odd ? v[i] : v[i + 1], 1);
    (odd ? v[i] : v[i + 1]) = other;
  }
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const uint32_t other = __shfl_xor_sync(kAllLanes, upper ? v[i] : v[i + 2], 2);
    (upper ? v[i] : v[i + 2]) = other;
  }
}

// Where a thread's 16-byte pieces of a 16-row tile go. Piece t of lane place p is the (4t + p)-th of the tile's 2 rows
// (g and g + 8) times D / 8 channel groups.
template <int D>
struct Pieces {
  unsigned gate[D / 16], out[D / 16];  // from the head's first channel in the image, in units of 8 elements
  bool inside[D / 16];                 // else there is nothing to store
};

template <int D>
__device__ __forceinline__ void locate_pieces(Pieces<D> &pieces, const Shape &shape, const Unit &unit, int first_row) {
  constexpr int kGroups = D / 8;
#pragma unroll
  for (int t = 0; t < D / 16; ++t) {
    const int piece = 4 * t + (threadIdx.x & 3);
    const int n = first_row + ((threadIdx.x & 31) >> 2) + 8 * (piece / kGroups);
    const int group = piece % kGroups;
    const Pixel p = padded_pixel(shape, unit, n);
    pieces.inside[t] =
        n < shape.tokens && p.y < shape.height && p.x < shape.width && 8 * group < shape.head_width;
    const auto offset = [&](const Map &map) {
      return p.y * static_cast<unsigned>(map.row >> 3) + p.x * static_cast<unsigned>(map.column >> 3) + group;
    };
    pieces.gate[t] = offset(shape.gate);
    pieces.out[t] = offset(shape.out);
  }
}

__device__ __forceinline__ uint4 *head_of(const Map &map, const Shape &shape, const Unit &unit) {
  return reinterpret_cast<uint4 *>(map.data + unit.batch * map.batch + unit.head * shape.head_width);
}

template <int D>
__device__ __forceinline__ void load_gate(uint4 (&gate)[D / 16], const Pieces<D> &pieces, const Shape &shape,
                                          const Unit &unit) {
  const uint4 *head = head_of(shape.gate, shape, unit);
#pragma unroll
  for (int t = 0; t < D / 16; ++t) {
    gate[t] = make_uint4(0, 0, 0, 0);
    if (pieces.inside[t]) gate[t] = __ldg(head + pieces.gate[t]);
  }
}

// output[4j..] * inverse for the two rows, rounded, times gate, in 16-byte stores.
template <int D, bool BF16>
__device__ __forceinline__ void store_vectorised(const float *output, const float (&inverse)[2],
                                                 const uint4 (&gate)[D / 16], const Pieces<D> &pieces,
                                                 const Shape &shape, const Unit &unit) {
  constexpr int kGroups = D / 8;
  uint4 *head = head_of(shape.out, shape, unit);
#pragma unroll
  for (int t = 0; t < D / 16; ++t) {
    uint32_t v[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int half = (4 * t + i) / kGroups, j = (4 * t + i) % kGroups;
      v[i] = pack<BF16>(output[4 * j + 2 * half] * inverse[half], output[4 * j + 2 * half + 1] * inverse[half]);
    }
    transpose_quad(v);
    if (pieces.inside[t]) {
      uint4 g = gate[t];
      if (shape.gate_sigmoid) {
        g = make_uint4(sigmoid_packed<BF16>(g.x), sigmoid_packed<BF16>(g.y), sigmoid_packed<BF16>(g.z),
                       sigmoid_packed<BF16>(g.w));
      }
      head[pieces.out[t]] = make_uint4(multiply_packed<BF16>(v[0], g.x), multiply_packed<BF16>(v[1], g.y),
                                       multiply_packed<BF16>(v[2], g.z), multiply_packed<BF16>(v[3], g.w));
    }
  }
}

// The same one element at a time, for any strides and widths.
template <int D, bool BF16>
__device__ __forceinline__ void store_elements(const float *output, const float (&inverse)[2], const Shape &shape,
                                               const Unit &unit, int first_row) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int n = first_row + ((threadIdx.x & 31) >> 2) + 8 * half;
    const Pixel p = padded_pixel(shape, unit, n);
    if (n >= shape.tokens || p.y >= shape.height || p.x >= shape.width) continue;
#pragma unroll
    for (int i = 0; i < D / 4; ++i) {
      const int channel = 8 * (i / 2) + 2 * (threadIdx.x & 3) + (i & 1);
      if (channel >= shape.head_width) continue;
      const int c = unit.head * shape.head_width + channel;
      const float given = unpack<BF16>(shape.gate.data[element(shape.gate, unit.batch, c, p)]).x;
      const float gate = shape.gate_sigmoid ? sigmoid(given) : given;
      const float value = output[4 * (i / 2) + 2 * half + (i & 1)] * inverse[half] * gate;
      shape.out.data[element(shape.out, unit.batch, c, p)] = static_cast<uint16_t>(pack<BF16>(value, 0.0f));
    }
  }
}

}  // namespace ribsr
