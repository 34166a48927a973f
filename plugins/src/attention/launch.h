// The launchers the C interface chooses among; each .cu file instantiates some of them.
#pragma once

#include <cuda_runtime.h>

#include "attention/shape.h"

namespace ribsr {

cudaError_t launch_portable_fp16(const Shape &shape, cudaStream_t stream);
cudaError_t launch_portable_bf16(const Shape &shape, cudaStream_t stream);
cudaError_t launch_hopper_fp16(const Shape &shape, int multiprocessors, cudaStream_t stream);
cudaError_t launch_hopper_bf16(const Shape &shape, int multiprocessors, cudaStream_t stream);

}  // namespace ribsr
