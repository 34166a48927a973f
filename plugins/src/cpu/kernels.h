// The kernels that a build for one instruction set has.
#pragma once

#include "ribsr_cpu.h"

namespace ribsr {

struct Kernels {
  int32_t (*attention)(const RibsrAttentionParams &, const RibsrExecutor &) noexcept;
  int32_t (*layer_norm)(const RibsrLayerNormParams &, const RibsrExecutor &) noexcept;
  int32_t (*depthwise)(const RibsrDepthwiseParams &, const RibsrExecutor &) noexcept;
  int32_t (*feed_forward)(const RibsrFeedForwardParams &, const RibsrExecutor &) noexcept;
  int32_t (*attention_inputs)(const RibsrAttentionInputsParams &, const RibsrExecutor &) noexcept;
  int32_t (*convolution)(const RibsrConvolutionParams &, const RibsrExecutor &) noexcept;
};

// Of each instruction set, from src/cpu/cpu.cpp.
namespace baseline {
extern const Kernels kernels;
}
#ifdef __x86_64__
namespace avx2 {
extern const Kernels kernels;
}
namespace avx512 {
extern const Kernels kernels;
}
namespace avx512_bf16 {
extern const Kernels kernels;
}
#endif

}  // namespace ribsr
