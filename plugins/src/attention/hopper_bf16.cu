#include "attention/launch.cuh"

cudaError_t ribsr::launch_hopper_bf16(const Shape &shape, int multiprocessors, cudaStream_t stream) {
  return launch_hopper<true>(shape, multiprocessors, stream);
}
