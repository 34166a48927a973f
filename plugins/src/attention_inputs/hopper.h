// ribsr_attention_inputs for the width of sst-l, on compute capability 9.0.
#pragma once

#include "shared/interface.h"

namespace ribsr {

constexpr int kWideInputsChannels = 192;

// Bytes.
int64_t hopper_attention_inputs_workspace();

// Checks what check_common and the narrow kernels' checks do not.
int32_t launch_hopper_attention_inputs(const RibsrAttentionInputsParams &p, const Device &device, cudaStream_t stream);

}  // namespace ribsr
