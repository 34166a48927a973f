// src/shared/device.cuh for the emulator: each function does what its PTX instruction does.
#pragma once

#include "cuda_runtime.h"

namespace ribsr {

inline uint32_t shared_address(const void *pointer) { return static_cast<uint32_t>(__cvta_generic_to_shared(pointer)); }

inline int own_thread() { return threadIdx.x; }

// ---- copies ---------------------------------------------------------------------------------------------------------

inline void copy_async(uint32_t to, const void *from, bool valid = true) { emulator::copy(to, from, 16, valid); }
inline void copy_commit() { emulator::copy_commit(); }
template <int Pending>
void copy_wait() {
  emulator::copy_wait(Pending);
}

template <class T>
T emulated_load(uint32_t from) {
  T value;
  memcpy(&value, emulator::shared_at(from, sizeof value), sizeof value);
  return value;
}

template <class T>
void emulated_store(uint32_t to, T value) {
  memcpy(emulator::shared_at(to, sizeof value), &value, sizeof value);
}

inline uint4 load_shared(uint32_t from) { return emulated_load<uint4>(from); }
inline int load_shared_int(uint32_t from) { return emulated_load<int>(from); }
inline float2 load_shared_pair(uint32_t from) { return emulated_load<float2>(from); }
inline float4 load_shared_floats(uint32_t from) { return emulated_load<float4>(from); }
inline uint2 load_shared_words(uint32_t from) { return emulated_load<uint2>(from); }
inline int load_shared_atomic(uint32_t from) { return emulated_load<int>(from); }
inline void raise_shared(uint32_t to, int least) { emulated_store(to, max(emulated_load<int>(to), least)); }
inline void or_shared(uint32_t to, uint32_t bits) { emulated_store(to, emulated_load<uint32_t>(to) | bits); }
inline void store_shared(uint32_t to, uint32_t a, uint32_t b, uint32_t c, uint32_t d) {
  emulated_store(to, make_uint4(a, b, c, d));
}
inline void store_shared(uint32_t to, int a) { emulated_store(to, a); }
inline void store_shared(uint32_t to, int a, int b) { emulated_store(to, int2{a, b}); }
inline void store_shared_float(uint32_t to, float a) { emulated_store(to, a); }
inline void prefetch(const void *) {}

template <int Barrier, int Threads>
void meet() {
  emulator::meet(Barrier, Threads);
}

template <int Barrier, int Threads>
void arrive() {
  emulator::arrive(Barrier, Threads);
}

// ---- numbers --------------------------------------------------------------------------------------------------------

template <bool BF16>
uint16_t emulated_round(float x) {
  if constexpr (BF16) {
    const uint32_t bits = __float_as_uint(x);
    return x != x ? 0x7fff : (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
  } else {
    return bits_of<uint16_t>(static_cast<_Float16>(x));
  }
}

template <bool BF16>
float emulated_value(uint16_t x) {
  if constexpr (BF16) return __uint_as_float(static_cast<uint32_t>(x) << 16);
  return static_cast<float>(bits_of<_Float16>(x));
}

template <bool BF16>
uint32_t pack(float low, float high) {
  return emulated_round<BF16>(low) | static_cast<uint32_t>(emulated_round<BF16>(high)) << 16;
}

template <bool BF16>
float2 unpack(uint32_t both) {
  return {emulated_value<BF16>(both & 0xffff), emulated_value<BF16>(both >> 16)};
}

// A function of each of two numbers, and of those of others.
template <bool BF16, class Function, class... Others>
uint32_t emulated_each(Function function, Others... others) {
  return pack<BF16>(function(unpack<BF16>(others).x...), function(unpack<BF16>(others).y...));
}

template <bool BF16>
uint32_t multiply_add_packed(uint32_t a, uint32_t b, uint32_t c) {  // the product of two is exact in double
  return emulated_each<BF16>([](double x, double y, double z) { return static_cast<float>(x * y + z); }, a, b, c);
}
template <bool BF16>
uint32_t multiply_packed(uint32_t a, uint32_t b) {
  return emulated_each<BF16>([](float x, float y) { return x * y; }, a, b);
}
template <bool BF16>
uint32_t add_packed(uint32_t a, uint32_t b) {
  return emulated_each<BF16>([](float x, float y) { return x + y; }, a, b);
}

inline float maximum(float x, float y) { return x != x || y != y ? NAN : max(x, y); }
inline uint32_t maximum_packed(uint32_t a, uint32_t b) { return emulated_each<false>(maximum, a, b); }
inline uint32_t tanh_packed(uint32_t a) {
  return emulated_each<false>([](float x) { return tanhf(x); }, a);
}
inline float multiply_add_saturated(float a, float b, float c) { return min(max(fmaf(a, b, c), 0.0f), 1.0f); }
template <int Factor>
uint32_t multiply_add_integer(uint32_t a, uint32_t c) {
  return a * Factor + c;
}

template <int Lanes>
float sum_lanes(float x) {
  for (int distance = Lanes / 2; distance > 0; distance /= 2) x += __shfl_xor_sync(0xffffffffu, x, distance);
  return x;
}

inline float reciprocal(float x) { return 1.0f / x; }
inline float inverse_root(float x) { return 1.0f / sqrtf(x); }
inline float exp2_special(float x) { return exp2f(x); }
inline float sigmoid(float x) { return reciprocal(1.0f + exp2_special(-1.44269504f * x)); }
template <bool BF16>
uint32_t sigmoid_packed(uint32_t both) {
  return emulated_each<BF16>(sigmoid, both);
}

// ---- matrix units ---------------------------------------------------------------------------------------------------

// Four 8x8 matrices whose rows lanes name, eight lanes each. Rows at the same place of different 128 bytes collide.
template <bool Transposed>
void emulated_load_matrices(uint32_t (&result)[4], uint32_t row) {
  struct Lane {
    uint32_t *result, row;
  } own = {result, row};
  emulator::together(own, [](Lane **all, int lanes) {
    if (lanes != 32) emulator::die("ldmatrix by a warp of lanes", lanes);
    for (int matrix = 0; matrix < 4; ++matrix) {
      Lane *const *rows = all + 8 * matrix;
      int waits = 0;
      for (int place = 0; place < 8; ++place) {
        uint32_t different[8], *end = different;
        for (int i = 0; i < 8; ++i) {
          if (rows[i]->row / 16 % 8 != static_cast<unsigned>(place)) continue;
          if (std::find(different, end, rows[i]->row) == end) *end++ = rows[i]->row;
        }
        waits = max(waits, static_cast<int>(end - different) - 1);
      }
      emulator::conflicts += max(waits, 0);
      ++emulator::matrices;
      for (int lane = 0; lane < 32; ++lane) {
        uint16_t both[2];
        for (int i = 0; i < 2; ++i) {
          const int first = lane / 4, second = 2 * (lane % 4) + i;
          const uint8_t *from = emulator::shared_at(rows[Transposed ? second : first]->row, 16);
          memcpy(both + i, from + 2 * (Transposed ? first : second), 2);
        }
        all[lane]->result[matrix] = both[0] | static_cast<uint32_t>(both[1]) << 16;
      }
    }
  });
}
inline void load_matrices(uint32_t (&r)[4], uint32_t row) { emulated_load_matrices<false>(r, row); }
inline void load_matrices_transposed(uint32_t (&r)[4], uint32_t row) { emulated_load_matrices<true>(r, row); }

// d[16 x 8] += a[16 x K] b[K x 8], in the layout of shared/common.cuh; the order of sums is not a GPU's.
template <bool BF16, int K>
void emulated_multiply_add(float *d, const uint32_t (&a)[K / 4], const uint32_t (&b)[K / 8]) {
  struct Lane {
    float *d;
    const uint32_t *a, *b;
  } own = {d, a, b};
  emulator::together(own, [](Lane **all, int lanes) {
    if (lanes != 32) emulator::die("mma by a warp of lanes", lanes);
    float left[16][K], right[K][8];
    for (int lane = 0; lane < 32; ++lane) {
      const int quad = lane / 4, pair = 2 * (lane % 4);
      for (int i = 0; i < K / 4; ++i) {
        const float2 two = unpack<BF16>(all[lane]->a[i]);
        float *to = left[quad + i % 2 * 8] + pair + i / 2 * 8;
        to[0] = two.x;
        to[1] = two.y;
      }
      for (int i = 0; i < K / 8; ++i) {
        const float2 two = unpack<BF16>(all[lane]->b[i]);
        right[pair + 8 * i][quad] = two.x;
        right[pair + 8 * i + 1][quad] = two.y;
      }
    }
    for (int lane = 0; lane < 32; ++lane) {
      for (int i = 0; i < 4; ++i) {
        float sum = 0.0f;
        for (int k = 0; k < K; ++k) sum += left[lane / 4 + i / 2 * 8][k] * right[k][2 * (lane % 4) + i % 2];
        all[lane]->d[i] += sum;
      }
    }
  });
}

template <bool BF16>
void multiply_add(float *d, const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  emulated_multiply_add<BF16, 16>(d, a, {b0, b1});
}
template <bool BF16>
void multiply_add(float *d, uint32_t a0, uint32_t a1, uint32_t b) {
  emulated_multiply_add<BF16, 8>(d, {a0, a1}, {b});
}
template <bool BF16>
void multiply(float *d, const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  std::fill(d, d + 4, 0.0f);
  multiply_add<BF16>(d, a, b0, b1);
}
template <bool BF16>
void multiply(float *d, uint32_t a0, uint32_t a1, uint32_t b) {
  std::fill(d, d + 4, 0.0f);
  multiply_add<BF16>(d, a0, a1, b);
}

}  // namespace ribsr
