// What the CPU's kernels share. Every `cpu.cpp` is compiled once for each instruction set, in a namespace of its own that
// the build names by RIBSR_ISA (baseline, avx2, avx512, avx512_bf16); src/cpu/interface.cpp checks the parameters and
// calls the right one.
#pragma once

#include <cstdint>

#include "ribsr_cpu.h"

namespace ribsr::RIBSR_ISA {

// The parameters are checked. A status of ribsr_kernels.h; RIBSR_UNSUPPORTED only where there is no memory for a task.
int32_t attention(const RibsrAttentionParams &params, const RibsrExecutor &executor) noexcept;
int32_t layer_norm(const RibsrLayerNormParams &params, const RibsrExecutor &executor) noexcept;
int32_t depthwise(const RibsrDepthwiseParams &params, const RibsrExecutor &executor) noexcept;
int32_t feed_forward(const RibsrFeedForwardParams &params, const RibsrExecutor &executor) noexcept;
int32_t attention_inputs(const RibsrAttentionInputsParams &params, const RibsrExecutor &executor) noexcept;
int32_t convolution(const RibsrConvolutionParams &params, const RibsrExecutor &executor) noexcept;

constexpr int64_t divided_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Runs task(i) for every i below count as the executor says.
template <class Task>
void parallel(const RibsrExecutor &executor, int64_t count, const Task &task) {
  if (executor.parallel == nullptr) {
    for (int64_t index = 0; index < count; ++index) task(index);
    return;
  }
  executor.parallel(
      executor.pool, [](void *data, int64_t index) { (*static_cast<const Task *>(data))(index); }, count,
      const_cast<Task *>(&task));
}

}  // namespace ribsr::RIBSR_ISA
