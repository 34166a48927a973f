// What the kernels use of CUDA, for the emulator: types, functions of a warp, and the part of the runtime that launchers call.
#pragma once

#include <math.h>
#include <stdint.h>
#include <string.h>

#include <algorithm>

#include "emulator.h"

using std::max;
using std::min;

#define __global__
#define __device__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __grid_constant__
#define __align__(bytes) alignas(bytes)

#define threadIdx (emulator::self->index)
#define blockIdx (emulator::block_index)
#define blockDim (emulator::block_size)
#define gridDim (emulator::grid_size)

struct uint2 {
  unsigned x, y;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
struct int2 {
  int x, y;
};
struct float2 {
  float x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
using dim3 = emulator::Index;

inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }

template <class To, class From>
To bits_of(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  memcpy(&to, &from, sizeof to);
  return to;
}

inline int __float_as_int(float x) { return bits_of<int>(x); }
inline unsigned __float_as_uint(float x) { return bits_of<unsigned>(x); }
inline float __uint_as_float(unsigned x) { return bits_of<float>(x); }
inline unsigned __umulhi(unsigned a, unsigned b) { return static_cast<unsigned long long>(a) * b >> 32; }
inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }

inline unsigned __byte_perm(unsigned a, unsigned b, unsigned selector) {
  const unsigned long long both = a | static_cast<unsigned long long>(b) << 32;
  unsigned result = 0;
  for (int i = 0; i < 4; ++i) result |= static_cast<unsigned>(both >> 8 * (selector >> 4 * i & 7) & 0xff) << 8 * i;
  return result;
}

template <class T>
T __ldg(const T *from) {
  if (reinterpret_cast<uintptr_t>(from) % sizeof(T) != 0) emulator::die("misaligned load of bytes", sizeof(T));
  return *from;
}
template <class T>
T __ldcg(const T *from) {
  return __ldg(from);
}

inline size_t __cvta_generic_to_shared(const void *pointer) {
  return static_cast<const uint8_t *>(pointer) - emulator::shared_memory + emulator::kSharedBase;
}

// ---- warps and blocks -----------------------------------------------------------------------------------------------

inline void __syncthreads() { emulator::meet(emulator::kWholeBlock, 0); }

inline void __syncwarp(unsigned = 0xffffffffu) {
  int nothing = 0;
  emulator::together(nothing, [](int **, int) {});
}

template <class T>
T __shfl_sync(unsigned, T value, int source) {
  struct Lane {
    T value, result;
    int source;
  } lane = {value, value, source & 31};
  emulator::together(lane, [](Lane **all, int lanes) {
    for (int i = 0; i < lanes; ++i) {
      if (all[i]->source < lanes) all[i]->result = all[all[i]->source]->value;
    }
  });
  return lane.result;
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int lanes) {
  return __shfl_sync(mask, value, emulator::self->lane ^ lanes);
}

inline bool __any_sync(unsigned, bool value) {
  struct Lane {
    bool value, result;
  } lane = {value, false};
  emulator::together(lane, [](Lane **all, int lanes) {
    const bool any = std::any_of(all, all + lanes, [](const Lane *one) { return one->value; });
    for (int i = 0; i < lanes; ++i) all[i]->result = any;
  });
  return lane.result;
}
inline bool __all_sync(unsigned mask, bool value) { return !__any_sync(mask, !value); }

// ---- the runtime ----------------------------------------------------------------------------------------------------

using cudaError_t = int;
using cudaStream_t = struct CUstream_st *;
enum { cudaSuccess = 0 };
enum cudaDeviceAttr {
  cudaDevAttrComputeCapabilityMajor,
  cudaDevAttrComputeCapabilityMinor,
  cudaDevAttrMultiProcessorCount,
  cudaDevAttrMaxSharedMemoryPerBlockOptin,
  cudaDevAttrMaxSharedMemoryPerMultiprocessor
};
enum { cudaFuncAttributeMaxDynamicSharedMemorySize, cudaFuncAttributePreferredSharedMemoryCarveout };
enum { cudaSharedmemCarveoutMaxShared = 100 };

// A small RTX 30 or 40: compute capability 8.6; few multiprocessors, so that blocks have several tiles of small maps.
constexpr int kEmulatedShared = 99 * 1024;

inline cudaError_t cudaGetDevice(int *device) { return *device = 0, cudaSuccess; }
inline cudaError_t cudaDeviceGetAttribute(int *value, cudaDeviceAttr which, int) {
  constexpr int kValues[] = {8, 6, 2, kEmulatedShared, kEmulatedShared + 1024};
  *value = kValues[which];
  return cudaSuccess;
}
template <class Kernel>
cudaError_t cudaFuncSetAttribute(Kernel, int which, int value) {
  return which == cudaFuncAttributeMaxDynamicSharedMemorySize && value > kEmulatedShared;
}
inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline const char *cudaGetErrorString(cudaError_t) { return "too much shared memory"; }

// Hopper's launchers ask for functions of the driver; they are not called.
enum cudaDriverEntryPointQueryResult { cudaDriverEntryPointSuccess, cudaDriverEntryPointSymbolNotFound };
enum { cudaEnableDefault };
#define CUDART_VERSION 13000
inline cudaError_t cudaGetDriverEntryPointByVersion(const char *, void **, int, int, cudaDriverEntryPointQueryResult *) {
  return 1;
}
