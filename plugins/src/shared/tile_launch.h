// The host's part of the kernels of tile.cuh.
#pragma once

#include "shared/interface.h"
#include "shared/tile.cuh"

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

// The workspace that the kernels of wide layers need.
inline int32_t check_workspace(const void *workspace, int64_t bytes) {
  RIBSR_CHECK(workspace != nullptr && aligned(workspace), "workspace must be %lld bytes, aligned to 16",
              static_cast<long long>(bytes));
  return RIBSR_OK;
}

inline int divide_up(int size, int part) { return (size + part - 1) / part; }

// Cuts a problem's maps into tiles of kColumns columns and `height` rows, and makes the kernel ready. There are as many
// blocks as the device holds, at most `resident` on a multiprocessor, or as there are tiles.
//
// bytes: of shared memory for a block. most_bytes: for any block of this kernel; the kernel's limit is one for the whole
// process, so that threads must not set different ones.
template <class Problem>
int32_t prepare_tiles(int *blocks, void (*kernel)(Problem), Problem &problem, int batch, int height, int bytes,
                      int most_bytes, int resident, const Device &device) {
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
  const int room = of_multiprocessor / (bytes + kReserved);
  const int most = (room < 1 ? 1 : room < resident ? room : resident) * device.multiprocessors;
  *blocks = problem.tiles < most ? problem.tiles : most;
  cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, most_bytes);
  if (error == cudaSuccess) {  // or else there may be room for one block only
    error = cudaFuncSetAttribute(kernel, cudaFuncAttributePreferredSharedMemoryCarveout, cudaSharedmemCarveoutMaxShared);
  }
  return error == cudaSuccess ? RIBSR_OK : launched(error);
}

}  // namespace ribsr
