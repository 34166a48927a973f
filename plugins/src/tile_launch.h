// The host's part of the kernels of tile.cuh.
#pragma once

#include "interface.h"
#include "tile.cuh"

namespace ribsr {

inline bool aligned(const void *data) { return reinterpret_cast<uintptr_t>(data) % 16 == 0; }

inline int32_t attribute(int *value, cudaDeviceAttr which, const Device &device) {
  const cudaError_t error = cudaDeviceGetAttribute(value, which, device.index);
  if (error != cudaSuccess) return fail(RIBSR_CUDA_ERROR, "no usable CUDA device: %s", cudaGetErrorString(error));
  return RIBSR_OK;
}

// What a block may have.
inline int32_t shared_memory(int *bytes, const Device &device) {
  return attribute(bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
}

inline int32_t too_little_memory(const Device &device, int available) {
  return fail(RIBSR_UNSUPPORTED, "device %d has %d bytes of shared memory for a block: too few", device.index,
              available);
}

// All but the tiles.
template <class Params>
void set_input(Input &input, const Params &p) {
  input.in = map_of(p.in);
  input.norm_weight = static_cast<const uint16_t *>(p.norm_weight);
  input.norm_bias = static_cast<const uint16_t *>(p.norm_bias);
  input.channels = p.channels;
  input.height = p.height;
  input.width = p.width;
  input.epsilon = p.epsilon;
  input.inverse_channels = 1.0f / static_cast<float>(p.channels);
  for (int j = 0; j < kMostChannels / 8; ++j) input.exists[j] = 8 * j < p.channels ? 1.0f : 0.0f;
}

inline int divide_up(int size, int part) { return (size + part - 1) / part; }

// As many blocks as the device holds, or as there are tiles of kColumns columns and `height` rows.
template <class Problem>
int32_t launch_tiles(void (*kernel)(Problem), Problem &problem, int batch, int height, int bytes, const Device &device,
                     cudaStream_t stream) {
  int of_multiprocessor = 0;
  const int32_t code = attribute(&of_multiprocessor, cudaDevAttrMaxSharedMemoryPerMultiprocessor, device);
  if (code != RIBSR_OK) return code;
  problem.tiles_x = divide_up(problem.width, kColumns);
  problem.tiles_y = divide_up(problem.height, height);
  const long long tiles = 1ll * batch * problem.tiles_y * problem.tiles_x;
  // The walk's index goes beyond the last tile by less than a grid.
  RIBSR_CHECK(tiles < (1ll << 30), "the map is too large: %lld tiles", tiles);
  problem.tiles = static_cast<int>(tiles);
  constexpr int kReserved = 1024;  // by the system, for each block
  const int resident = of_multiprocessor / (bytes + kReserved) >= kResident ? kResident : 1;
  const int most = resident * device.multiprocessors;
  cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
  if (error == cudaSuccess) {  // or else there may be room for one block only
    error = cudaFuncSetAttribute(kernel, cudaFuncAttributePreferredSharedMemoryCarveout, cudaSharedmemCarveoutMaxShared);
  }
  if (error != cudaSuccess) return launched(error);
  const int blocks = problem.tiles < most ? problem.tiles : most;
  const int per_image = problem.tiles_x * problem.tiles_y;
  problem.step = {blocks / per_image, blocks % per_image / problem.tiles_x * height,
                  blocks % problem.tiles_x * kColumns, blocks};
  kernel<<<blocks, kThreads, bytes, stream>>>(problem);
  return launched(cudaGetLastError());
}

}  // namespace ribsr
