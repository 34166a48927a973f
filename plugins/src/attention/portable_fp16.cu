#include "attention/launch.cuh"

cudaError_t ribsr::launch_portable_fp16(const Shape &shape, cudaStream_t stream) {
  return launch_portable<false>(shape, stream);
}
