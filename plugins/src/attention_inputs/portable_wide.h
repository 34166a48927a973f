// ribsr_attention_inputs for wide layers, on compute capability 8.0 and later.
#pragma once

#include "shared/interface.h"

namespace ribsr {

// Whether the kernel is for layers of this width.
bool takes_wide_attention_inputs(int channels);

// Bytes.
int64_t wide_attention_inputs_workspace(int channels);

// Checks what check_common and the checks of maps and weights do not.
int32_t launch_wide_attention_inputs(const RibsrAttentionInputsParams &p, const Device &device, cudaStream_t stream);

}  // namespace ribsr
