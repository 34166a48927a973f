// What the functions of the C interface for GPUs share: checks, the device.
#pragma once

#include <cuda_runtime.h>
#include <stdint.h>

#include "ribsr_kernels.h"
#include "shared/checks.h"
#include "shared/map.h"

namespace ribsr {

// The fields that every structure of parameters has.
template <class Params>
int32_t check_common(const Params *params) {
  const int32_t code = check_struct(params, "params");
  if (code != RIBSR_OK) return code;
  RIBSR_CHECK(params->dtype == RIBSR_FLOAT16 || params->dtype == RIBSR_BFLOAT16,
              "dtype %d is neither float16 (1) nor bfloat16 (2)", params->dtype);
  return check_sizes(*params);
}

Map map_of(const RibsrMap &map);

// Whether 16-byte loads and stores are possible, an image addressed in units of 16 bytes with 32 bits.
bool vectorised(const RibsrMap &map, long long height, long long width);

// The same for vectors of four channels, which are 8 bytes.
bool in_fours(const RibsrMap &map, long long height, long long width);

// Whether pixels can be written in whole vectors of 8 channels: what follows the last channel must be padding.
bool whole_vectors(const RibsrMap &map, int channels);

struct Device {
  int index, major, minor, multiprocessors;
};

// Whether the device has wgmma as sm_90a has it, and the library code for it: plugins/compiler.py says so.
inline bool is_hopper(const Device &device) { return RIBSR_HOPPER && device.major == 9 && device.minor == 0; }

// The current device, if the kernels can run on it.
int32_t current_device(Device *device);

// Whether a path is one of the interface's.
int32_t check_path(int32_t path);

// What a launch came to.
int32_t launched(cudaError_t error);

}  // namespace ribsr
