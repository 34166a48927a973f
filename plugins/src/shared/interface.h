// What the functions of the C interface share: messages, checks, the device.
#pragma once

#include <cuda_runtime.h>
#include <stdint.h>

#include "ribsr_kernels.h"
#include "shared/map.h"

namespace ribsr {

// Keep the message for ribsr_error_message; returns `code`.
__attribute__((format(printf, 2, 3))) int32_t fail(int32_t code, const char *format, ...);

void clear_message();

#define RIBSR_CHECK(condition, ...)                                               \
  do {                                                                            \
    if (!(condition)) return ribsr::fail(RIBSR_INVALID_ARGUMENT, __VA_ARGS__);    \
  } while (0)

// The fields that every structure of parameters has.
template <class Params>
int32_t check_common(const Params *params) {
  RIBSR_CHECK(params != nullptr, "params is null");
  const Params &p = *params;
  RIBSR_CHECK(p.struct_size == sizeof(Params),
              "struct_size is %u, this library expects %zu: rebuild the caller against its header", p.struct_size,
              sizeof(Params));
  RIBSR_CHECK(p.dtype == RIBSR_FLOAT16 || p.dtype == RIBSR_BFLOAT16, "dtype %d is neither float16 (1) nor bfloat16 (2)",
              p.dtype);
  RIBSR_CHECK(p.batch > 0 && p.height > 0 && p.width > 0, "batch, height, width are %d, %d, %d: all must be positive",
              p.batch, p.height, p.width);
  RIBSR_CHECK(p.height <= (1 << 20) && p.width <= (1 << 20), "height, width are %d, %d: at most 2^20", p.height,
              p.width);
  return RIBSR_OK;
}

Map map_of(const RibsrMap &map);

// Whether 16-byte loads and stores are possible, an image addressed in units of 16 bytes with 32 bits.
bool vectorised(const RibsrMap &map, long long height, long long width);

// Whether pixels can be written in whole vectors of 8 channels: what follows the last channel must be padding.
bool whole_vectors(const RibsrMap &map, int channels);

struct Device {
  int index, major, minor, multiprocessors;
};

// Whether the device has wgmma as sm_90a has it.
inline bool is_hopper(const Device &device) { return device.major == 9 && device.minor == 0; }

// The current device, if the kernels can run on it.
int32_t current_device(Device *device);

// What a launch came to.
int32_t launched(cudaError_t error);

}  // namespace ribsr
