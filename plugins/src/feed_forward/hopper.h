// ribsr_feed_forward for the widths of sst-l, on compute capability 9.0.
#pragma once

#include "shared/interface.h"

namespace ribsr {

constexpr int kWideChannels = 192, kWideHidden = 384;

// Bytes.
int64_t hopper_feed_forward_workspace();

// Checks what check_common and the narrow kernels' checks do not.
int32_t launch_hopper_feed_forward(const RibsrFeedForwardParams &p, const Device &device, cudaStream_t stream);

}  // namespace ribsr
