// ribsr_feed_forward for wide layers, on compute capability 8.0 and later.
#pragma once

#include "shared/interface.h"

namespace ribsr {

// Whether the kernel is for layers of these widths.
bool takes_wide_feed_forward(int channels, int hidden);

// Bytes.
int64_t wide_feed_forward_workspace(int channels, int hidden);

// Checks what check_common does not, of widths that it takes.
int32_t check_wide_feed_forward(const RibsrFeedForwardParams &p);
int32_t launch_wide_feed_forward(const RibsrFeedForwardParams &p, const Device &device, cudaStream_t stream);

}  // namespace ribsr
