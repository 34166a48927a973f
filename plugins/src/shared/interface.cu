// The parts of the C interface that belong to no operator.
#include "shared/interface.h"

namespace ribsr {

Map map_of(const RibsrMap &map) {
  return {static_cast<uint16_t *>(map.data), map.batch_stride, map.channel_stride, map.row_stride, map.column_stride};
}

// Whether vectors of `lanes` channels can be loaded and stored, an image addressed in units of them with 32 bits.
static bool in_vectors(const RibsrMap &map, long long height, long long width, int lanes) {
  const long long rows = map.row_stride / lanes, columns = map.column_stride / lanes;
  return map.channel_stride == 1 && map.batch_stride % lanes == 0 && map.row_stride % lanes == 0 &&
         map.column_stride % lanes == 0 && reinterpret_cast<uintptr_t>(map.data) % (2 * lanes) == 0 && rows >= 0 &&
         columns >= 0 && rows < (1ll << 28) && columns < (1ll << 28) &&
         (height - 1) * rows + (width - 1) * columns < (1ll << 31);
}

bool vectorised(const RibsrMap &map, long long height, long long width) { return in_vectors(map, height, width, 8); }

bool in_fours(const RibsrMap &map, long long height, long long width) { return in_vectors(map, height, width, 4); }

int32_t check_path(int32_t path) {
  RIBSR_CHECK(path >= RIBSR_PATH_AUTO && path <= RIBSR_PATH_HOPPER, "path %d is unknown: use 0, 1 or 2", path);
  return RIBSR_OK;
}

bool whole_vectors(const RibsrMap &map, int channels) {
  return channels % 8 == 0 || map.column_stride == (channels + 7) / 8 * 8;
}

int32_t current_device(Device *device) {
  Device &d = *device;
  cudaError_t error = cudaGetDevice(&d.index);
  if (error == cudaSuccess) error = cudaDeviceGetAttribute(&d.major, cudaDevAttrComputeCapabilityMajor, d.index);
  if (error == cudaSuccess) error = cudaDeviceGetAttribute(&d.minor, cudaDevAttrComputeCapabilityMinor, d.index);
  if (error == cudaSuccess) {
    error = cudaDeviceGetAttribute(&d.multiprocessors, cudaDevAttrMultiProcessorCount, d.index);
  }
  if (error != cudaSuccess) return fail(RIBSR_CUDA_ERROR, "no usable CUDA device: %s", cudaGetErrorString(error));
  if (d.major < 8) {
    return fail(RIBSR_UNSUPPORTED, "device %d has compute capability %d.%d: 8.0 or later is needed", d.index, d.major,
                d.minor);
  }
  return RIBSR_OK;
}

int32_t launched(cudaError_t error) {
  if (error != cudaSuccess) return fail(RIBSR_CUDA_ERROR, "launch failed: %s", cudaGetErrorString(error));
  return RIBSR_OK;
}

}  // namespace ribsr

#define TEXT(words) #words
#define TEXT_OF(macro) TEXT(macro)

extern "C" {

const char *ribsr_error_message(void) { return ribsr::message; }

int32_t ribsr_interface_version(void) { return RIBSR_INTERFACE_VERSION; }

const char *ribsr_gpu_code(void) { return TEXT_OF(RIBSR_GPU_CODE); }  // plugins/compiler.py says what it is

}  // extern "C"
