#include "attention/launch.cuh"

cudaError_t ribsr::launch_portable_bf16(const Shape &shape, cudaStream_t stream) {
  return launch_portable<true>(shape, stream);
}
